"""The replicated state of a stream against a deliberately dumb oracle, and its snapshots at every point."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, precondition, rule

from mesh_data.core.stream_snapshot import CHECKPOINT_BYTES_MIN, RETAINED_BYTES_DEFAULT, StreamConfig
from mesh_data.core.stream_state import (
    FIRST_INDEX,
    Appended,
    FloorMoved,
    ProducerReady,
    Refused,
    Repeated,
    StreamState,
    Unchanged,
)
from meshcommon.errors import ErrorCode
from meshcommon.ids import StreamId
from meshtest.effort import scaled
from meshwire.entry import BatchEntry, InitProducerEntry, MoveFloorEntry, SealEntry, encode_entry
from meshwire.errors import WireCode, WireError
from meshwire.records import Record, encode_batch

CONFIG = StreamConfig(StreamId(7), retained_bytes_max=2_000, checkpoint_bytes=500, producers_max=4)


def batch(count: int = 1, producer: tuple[int, int, int] = (0, 0, 0), stamp_ms: int = 1, value: bytes = b"v") -> bytes:
    return encode_entry(BatchEntry(stamp_ms, encode_batch([Record(value)] * count, *producer)))


def init(name: str = "", stamp_ms: int = 1) -> bytes:
    return encode_entry(InitProducerEntry(stamp_ms, name))


@dataclass
class OracleProducer:
    """Everything a producer ever sent, record by record."""

    producer_id: int
    used_index: int
    name: str = ""
    epoch: int = 1
    offsets: list[int] = field(default_factory=list)
    is_expired: bool = False


class StreamMachine(RuleBasedStateMachine):
    """I2, I4, I5: offsets, duplicates, epochs and expiry as the oracle has them; a restored state goes on alike."""

    producers = Bundle("producers")
    producers_max = 1_000

    def __init__(self) -> None:
        super().__init__()
        self.state = StreamState(StreamConfig(StreamId(1), 1_000, 300, producers_max=self.producers_max))
        self.twin = StreamState.restore(self.state.snapshot())
        self.index = FIRST_INDEX
        self.log: list[bytes] = []
        self.length = 0
        self.time_ms = 0
        self.known: dict[int, OracleProducer] = {}
        self.names: dict[str, OracleProducer] = {}
        self.sealed = False

    def apply(self, entry: bytes) -> object:
        self.index += 1
        self.log.append(entry)
        result = self.state.apply(self.index, entry)
        assert self.twin.apply(self.index, entry) == result
        return result

    @initialize(target=producers)
    def first_producer(self) -> object:
        return self.init_producer("", 1)

    @rule(target=producers, name=st.sampled_from(("", "a", "b")), stamp_ms=st.integers(0, 100))
    def init_producer(self, name: str, stamp_ms: int) -> object:
        result = self.apply(init(name, stamp_ms))
        if self.sealed:
            assert isinstance(result, Refused)
            return multiple()
        self.time_ms = max(self.time_ms, stamp_ms)
        if name in self.names:
            self.names[name].epoch += 1
            producer = self.names[name]
            producer.used_index = self.index
        else:
            self.expire_one_of_too_many()
            producer = self.known[self.index] = OracleProducer(self.index, self.index, name)
            if name:
                self.names[name] = producer
        last = producer.offsets[-1] + 1 if producer.offsets else 0
        assert result == ProducerReady(producer.producer_id, producer.epoch, len(producer.offsets), last)
        return producer

    def expire_one_of_too_many(self) -> None:
        """The longest unused goes, anonymous ones before named ones."""
        alive = [producer for producer in self.known.values() if not producer.is_expired]
        if len(alive) < self.producers_max:
            return
        gone = min(alive, key=lambda producer: (producer.name != "", producer.used_index))
        gone.is_expired = True
        self.names.pop(gone.name, None)

    @rule(
        producer=producers,
        count=st.integers(1, 5),
        skew=st.integers(-8, 2),
        epoch_skew=st.sampled_from((0, 0, 0, -1, 1)),
        stamp_ms=st.integers(0, 100),
    )
    def publish(self, producer: OracleProducer, count: int, skew: int, epoch_skew: int, stamp_ms: int) -> None:
        expected = len(producer.offsets)
        sequence, epoch = max(0, expected + skew), max(0, producer.epoch + epoch_skew)
        result = self.apply(batch(count, (producer.producer_id, epoch, sequence), stamp_ms))
        if self.sealed:
            assert isinstance(result, Refused)
            assert result.code == ErrorCode.STREAM_NOT_FOUND
            return
        self.time_ms = max(self.time_ms, stamp_ms)
        if producer.is_expired:
            # Never appended and never called a repetition, whatever was sent before: nobody knows any more.
            assert isinstance(result, Refused)
            assert result.code == ErrorCode.PRODUCER_EXPIRED
        elif epoch != producer.epoch:
            assert isinstance(result, Refused)
            assert result.code == ErrorCode.PRODUCER_FENCED
        elif sequence == expected:
            assert result == Appended(self.length, count, self.time_ms)
            producer.offsets += range(self.length, self.length + count)
            producer.used_index = self.index
            self.length += count
        elif sequence + count <= expected:
            assert isinstance(result, Repeated)
            assert result.offset in (producer.offsets[sequence], None)
            # What came in the last five appends is answered exactly: a run covers at least one of them.
            if expected - sequence <= 5:
                assert result.offset == producer.offsets[sequence]
        else:
            assert isinstance(result, Refused)
            assert result.code == ErrorCode.SEQUENCE_GAP
            assert result.details["next_sequence"] == str(expected)

    @rule(count=st.integers(1, 5), stamp_ms=st.integers(0, 100))
    def publish_without_producer(self, count: int, stamp_ms: int) -> None:
        result = self.apply(batch(count, stamp_ms=stamp_ms))
        if not self.sealed:
            self.time_ms = max(self.time_ms, stamp_ms)
            assert result == Appended(self.length, count, self.time_ms)
            self.length += count

    @rule(producer_id=st.integers(1_000_000, 1_000_010))
    def publish_with_unknown_producer(self, producer_id: int) -> None:
        result = self.apply(batch(1, (producer_id, 1, 0)))
        assert isinstance(result, Refused)
        assert self.sealed or result.code == ErrorCode.PRODUCER_EXPIRED
        if not self.sealed:
            self.time_ms = max(self.time_ms, 1)

    @rule(data=st.data())
    def move_floor(self, data: st.DataObject) -> None:
        indexes = [item.index for item in self.state.checkpoints]
        index = data.draw(st.sampled_from([*indexes, self.index, 0, self.state.floor.index]))
        result = self.apply(encode_entry(MoveFloorEntry(index)))
        assert result == (FloorMoved(index) if index in indexes else Unchanged())

    @precondition(lambda self: self.index > 30)
    @rule(revision=st.integers(1, 9))
    def seal(self, revision: int) -> None:
        assert self.apply(encode_entry(SealEntry(revision))) == Unchanged()
        self.sealed = True

    @rule()
    def skip_an_entry_of_raft(self) -> None:
        self.index += 1
        self.log.append(b"")
        self.state.skip(self.index)
        self.twin.skip(self.index)

    @rule()
    def restart_the_twin_from_its_snapshot(self) -> None:
        self.twin = StreamState.restore(self.twin.snapshot())

    @rule()
    def restart_from_what_the_member_kept_itself(self) -> None:
        """From its own file a member has the snapshot of every checkpoint still, so that the floor can go to any."""
        before = {item.index: self.state.checkpoint_snapshot(item.index) for item in self.state.checkpoints}
        self.state = StreamState.restore(self.state.snapshot(), self.state.kept_snapshots())
        assert {item.index: self.state.checkpoint_snapshot(item.index) for item in self.state.checkpoints} == before
        assert None not in before.values()

    @rule()
    def restart_the_twin_from_a_checkpoint(self) -> None:
        """A member that comes late gets the snapshot at a checkpoint and every entry after it."""
        for checkpoint in self.state.checkpoints:
            snapshot = self.state.checkpoint_snapshot(checkpoint.index)
            assert snapshot is not None
            late = StreamState.restore(snapshot)
            for index in range(checkpoint.index + 1, self.index + 1):
                entry = self.log[index - FIRST_INDEX - 1]
                if entry:
                    late.apply(index, entry)
                else:
                    late.skip(index)
            assert late.snapshot() == self.state.snapshot()
            self.twin = late

    @invariant()
    def states_agree(self) -> None:
        assert self.state.next_offset == self.length
        assert self.state.time_ms == self.time_ms
        assert self.state.chain == self.twin.chain
        assert self.state.snapshot() == self.twin.snapshot()

    @invariant()
    def floor_is_a_checkpoint_at_or_below_what_was_applied(self) -> None:
        assert self.state.floor.index <= self.state.applied_index
        assert 0 <= self.state.retained_bytes <= self.state.total_bytes


class CrowdedStreamMachine(StreamMachine):
    """The same where producers expire all the time."""

    producers_max = 2


StreamMachine.TestCase.settings = settings(max_examples=scaled(30), stateful_step_count=60, deadline=None)
CrowdedStreamMachine.TestCase.settings = StreamMachine.TestCase.settings
test_stream_state_matches_the_oracle = StreamMachine.TestCase
test_stream_state_with_too_many_producers_matches_the_oracle = CrowdedStreamMachine.TestCase


def test_default_checkpoints_are_an_eighth_of_the_cap_but_not_tiny() -> None:
    assert StreamConfig.of(StreamId(1), 0).retained_bytes_max == RETAINED_BYTES_DEFAULT
    assert StreamConfig.of(StreamId(1), 0).checkpoint_bytes == RETAINED_BYTES_DEFAULT // 8
    assert StreamConfig.of(StreamId(1), 1024).checkpoint_bytes == CHECKPOINT_BYTES_MIN


def test_floor_is_proposed_at_the_first_checkpoint_that_helps_enough() -> None:
    state = StreamState(CONFIG)
    index = FIRST_INDEX
    while state.retained_bytes <= CONFIG.retained_bytes_max:
        assert state.floor_to_propose() is None
        index += 1
        state.apply(index, batch(value=bytes(100)))
    proposed = state.floor_to_propose()
    assert proposed == state.checkpoints[0].index
    state.apply(index + 1, encode_entry(MoveFloorEntry(proposed)))
    assert state.retained_bytes <= CONFIG.retained_bytes_max
    assert state.floor_to_propose() is None
    assert state.checkpoint_snapshot(proposed) is not None


def test_floor_moves_to_no_index_without_a_checkpoint() -> None:
    state = StreamState(CONFIG)
    state.apply(2, batch())
    before = state.floor
    assert state.apply(3, encode_entry(MoveFloorEntry(2))) == Unchanged()
    assert state.floor == before


def test_too_many_producers_expire_the_longest_unused_anonymous_one() -> None:
    state = StreamState(CONFIG)
    state.apply(2, init("named"))
    for index in (3, 4, 5):
        state.apply(index, init())
    state.apply(6, batch(producer=(3, 1, 0)))
    state.apply(7, init())
    assert [producer.producer_id for producer in state.producers] == [2, 3, 5, 7]
    refused = state.apply(8, batch(producer=(4, 1, 0)))
    assert isinstance(refused, Refused)
    assert refused.code == ErrorCode.PRODUCER_EXPIRED


def test_time_never_goes_back() -> None:
    state = StreamState(CONFIG)
    assert state.apply(2, batch(stamp_ms=50)) == Appended(0, 1, 50)
    assert state.apply(3, batch(stamp_ms=20)) == Appended(1, 1, 50)


def test_unreadable_entry_is_refused_alike_everywhere() -> None:
    left, right = StreamState(CONFIG), StreamState(CONFIG)
    for entry in (b"\x00garbage!", batch()[:-1]):
        result = left.apply(left.applied_index + 1, entry)
        assert isinstance(result, Refused)
        assert right.apply(right.applied_index + 1, entry) == result
    assert left.chain == right.chain != StreamState(CONFIG).chain


@pytest.mark.parametrize("at", range(0, 60, 7))
def test_damaged_snapshot_is_recognised(at: int) -> None:
    state = StreamState(CONFIG)
    state.apply(2, init("name"))
    state.apply(3, batch(producer=(2, 1, 0)))
    data = bytearray(state.snapshot())
    data[at] ^= 0x10
    with pytest.raises(WireError):
        StreamState.restore(bytes(data))
    with pytest.raises(WireError):
        StreamState.restore(state.snapshot()[:-1])


def test_snapshot_of_another_version_is_refused() -> None:
    data = bytearray(StreamState(CONFIG).snapshot())
    data[2] = 9
    with pytest.raises(WireError) as refused:
        StreamState.restore(bytes(data))
    assert refused.value.code == WireCode.BAD_VERSION
