"""Batches taken and applied in runs come to what they come to one by one, and leave the same state (ADR 0011)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TypeAlias

from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_plane_testing.lone_owner import LoneOwner
from data_plane_testing.stream_cluster import NAME, STREAM, A
from mesh_data.core.stream_snapshot import StreamConfig
from mesh_data.core.stream_state import FIRST_INDEX, Appended, ProducerReady, StreamState
from mesh_data.core.view import Member, Stream, StreamPhase
from mesh_data.shell.groups.entry_reader import EntryReader
from mesh_data.shell.groups.proposals import Answer, AppendedRun
from mesh_data.shell.groups.replica import Replica
from mesh_data.shell.groups.run_attempt import RunAttempt
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import MemberId
from meshraft import GroupConfig, RaftHost, SimDisk, publish_runs
from meshraft.driver import RaftDriver
from meshtest.effort import scaled
from meshwire.batch import decode_header
from meshwire.client import decode_messages, decode_publish, decode_published, encode_publish
from meshwire.entry import SealEntry, encode_entry
from meshwire.records import Record, encode_batch

MEMBER = MemberId(11)
SMALL = StreamConfig(STREAM, retained_bytes_max=6_000, checkpoint_bytes=1_000, producers_max=3)
STREAM_VIEW = Stream(STREAM, NAME, (Member(A, MEMBER, is_voter=True),), StreamPhase.ACTIVE, 1, 0)


@dataclass
class Frame:
    """Batches of producers that were made earlier, told by number: (producer, skew of epoch and sequence, record sizes)."""

    batches: list[tuple[int, int, int, list[int]]]


@dataclass
class Make:
    """An InitProducer."""

    name: str


@dataclass
class Turn:
    """The clock moves, and what was proposed is committed, or is not yet."""

    time_ms: int
    commits: bool = True


class Seal:
    """The stream is deleted."""


Step: TypeAlias = Frame | Make | Turn | Seal


@dataclass
class Node:
    """A replica that votes alone; `takes_runs` says which way it takes."""

    takes_runs: bool
    now_ms: int = 1
    disk: SimDisk = field(default_factory=SimDisk)
    answers: list[Answer | asyncio.Future[Answer]] = field(default_factory=list)
    runs: int = 0

    def __post_init__(self) -> None:
        self.host = RaftHost.simulated(self.disk, seed=1)
        self.driver = RaftDriver(self.host, lambda _frame: None)
        reader = EntryReader(self.host)
        self.replica = Replica(
            self.driver, reader, STREAM_VIEW, MEMBER, lambda: self.now_ms, GroupConfig(), owner=LoneOwner()
        )
        self.replica.raft.join()
        first = StreamState(SMALL).snapshot()
        self.host.create_group(STREAM, MEMBER, {MEMBER: A}, voters=[MEMBER], snapshot=first)
        self.replica.restore(first, FIRST_INDEX)
        self.settle()
        self.host.campaign(STREAM)
        self.settle()

    def settle(self) -> None:
        while self.host.has_work() or self.disk.sync():
            if self.takes_runs:
                self.driver.turn()
                continue
            pump = self.host.pump()
            for entry in pump.committed:
                self.replica.apply(entry)
            for role in pump.roles:
                self.replica.raft.role_changed(role)
            if pump.committed:
                self.replica.turn_ended()

    def publish(self, frame: bytes) -> None:
        runs = publish_runs(frame)
        assert runs is not None
        if not self.takes_runs:
            for message in decode_messages(frame):
                batch = bytes(decode_publish(message.body)[2])
                self.answers.append(self.replica.publish(batch, decode_header(batch)))
            return
        for run in runs:
            proposed = self.replica.publish_run(run)
            if proposed is None:
                batches = [run.batch(number) for number in range(len(run))]
                self.answers += [self.replica.publish(batch, decode_header(batch)) for batch in batches]
                continue
            attempt, taken = proposed
            assert taken == len(run)
            self.runs += 1
            self.answers += attempt.split() if len(self.answers) % 2 else [_Part(attempt, at) for at in range(taken)]

    def came_to(self) -> list[object]:
        return [_plain(answer) for answer in self.answers]

    def seen(self) -> tuple[object, ...]:
        replica, state = self.replica, self.replica.state
        return (
            state.snapshot(),
            state.kept_snapshots(),
            replica.chains.known(state.applied_index, state.chain),
            replica.core.index.image(),
            replica.floor_offset,
            replica.raft.applied_term,
            replica.raft.term_begins_at,
            len(replica.raft.proposals),
            replica.raft.proposals.size_bytes,
        )


class _Part(asyncio.Future[Answer]):
    """A batch of a run that is looked at only when all is decided."""

    def __init__(self, attempt: RunAttempt, at: int) -> None:
        super().__init__()
        self.attempt, self.at = attempt, at


def _plain(answer: object) -> object:
    """Without the time, of which publishers are not told."""
    if isinstance(answer, _Part):
        answer = answer.attempt.split()[answer.at]
    if isinstance(answer, asyncio.Future):
        answer = answer.result()
    if isinstance(answer, Appended):
        return (answer.offset, answer.count)
    return (answer.code, answer.details) if isinstance(answer, MeshError) else answer


sizes = st.lists(st.integers(0, 120), min_size=1, max_size=3)
skews = st.sampled_from((0, 0, 0, 0, 0, 0, -1, 1, -3))
batches = st.tuples(st.integers(0, 3), st.sampled_from((0,) * 12 + (-1, 1)), skews, sizes)
one_producer = st.builds(
    lambda producer, parts: [(producer, 0, 0, part) for part in parts], st.integers(0, 3), st.lists(sizes, min_size=1)
)
steps = st.one_of(
    st.builds(Frame, one_producer),
    st.builds(Frame, st.lists(batches, min_size=1, max_size=12)),
    st.builds(Make, st.sampled_from(("", "a", "b"))),
    st.builds(Turn, st.integers(0, 60), st.booleans()),
)


def frame_of(
    parts: list[tuple[int, int, int, list[int]]], epochs: list[tuple[int, int]], sequences: dict[int, int]
) -> bytes:
    """A client's frame; `sequences` go on by what is in it."""
    frame = b""
    for number, epoch_skew, skew, values in parts:
        producer, epoch = epochs[number % len(epochs)]
        sequence = max(0, sequences.get(producer, 0) + skew)
        batch = encode_batch([Record(bytes(size)) for size in values], producer, epoch + epoch_skew, sequence)
        sequences[producer] = sequence + len(values)
        frame += encode_publish(number, STREAM, batch)
    return frame


async def both(history: list[Step]) -> tuple[Node, Node]:
    """Plays a history to two nodes, one of which takes runs."""
    nodes = Node(takes_runs=True), Node(takes_runs=False)
    epochs: list[tuple[int, int]] = []
    sequences: dict[int, int] = {}
    for step in (Make(""), Make("a"), *history, Turn(1)):
        match step:
            case Make(name):
                made = [node.replica.init_producer(name) for node in nodes]
                for node in nodes:
                    node.settle()
                ready = made[0].result()
                assert made[1].result() == ready
                if isinstance(ready, ProducerReady):
                    epochs.append((ready.producer_id, ready.epoch))
            case Turn(time_ms, commits):
                for node in nodes:
                    node.now_ms = time_ms
                    if commits:
                        node.settle()
            case Seal():
                for node in nodes:
                    node.host.propose(STREAM, encode_entry(SealEntry(3)))
            case Frame(parts):
                frame = frame_of(parts, epochs, sequences)
                for node in nodes:
                    node.publish(frame)
    return nodes


@settings(max_examples=scaled(50), deadline=None)
@example(
    [Turn(50, commits=False), Frame([(0, 0, 0, [1])]), Turn(10, commits=False), Frame([(0, 0, 0, [1])])],
    False,
)
@given(st.lists(steps, max_size=25), st.booleans())
def test_runs_come_to_what_single_batches_come_to(history: list[Step], is_sealed: bool) -> None:
    if is_sealed:
        history.insert(len(history) // 2, Seal())

    async def scenario() -> None:
        fast, slow = await both(history)
        assert fast.came_to() == slow.came_to()
        assert fast.seen() == slow.seen()

    asyncio.run(scenario())


def test_a_frame_of_one_producer_is_one_run_and_all_of_it_is_answered() -> None:
    async def scenario() -> None:
        fast, slow = await both([Frame([(0, 0, 0, [100])] * 300), Turn(5), Frame([(0, 0, 0, [1, 2])] * 200)])
        assert (fast.runs, slow.runs) == (2, 0)
        assert (
            fast.came_to()
            == slow.came_to()
            == [(at, 1) for at in range(300)] + [(300 + 2 * at, 2) for at in range(200)]
        )
        assert fast.seen() == slow.seen()

    asyncio.run(scenario())


def test_the_answers_of_a_run_are_those_of_its_batches() -> None:
    batch = [
        encode_batch([Record(b"v")] * (1 + at % 3), 7, 1, sum(1 + past % 3 for past in range(at))) for at in range(9)
    ]
    runs = publish_runs(b"".join(encode_publish(100 + at, STREAM, data) for at, data in enumerate(batch)))
    assert runs is not None
    (run,) = runs
    assert [run.batch(at) for at in range(9)] == batch
    answers = decode_messages(run.answers(40))
    assert [answer.correlation for answer in answers] == run.correlations == list(range(100, 109))
    published = [decode_published(answer.body) for answer in answers]
    assert [(found.base_offset - 40, found.count) for found in published] == [
        (decode_header(data).base_sequence, decode_header(data).record_count) for data in batch
    ]


def test_a_run_that_fails_half_way_tells_each_batch_its_own_fate() -> None:
    async def scenario() -> None:
        attempt = RunAttempt([1, 2, 3, 4])
        attempt.committed(7, 2, AppendedRun(7, 10, 5, [0, 1, 3]))
        assert not attempt.future.done()
        attempt.committed(9, 1, Appended(20, 3, 6))  # somebody else wrote in between
        assert attempt.future.done()
        assert not attempt.is_whole
        attempt.failed(1, MeshError(ErrorCode.NOT_LEADER, "gone"))
        assert [_plain(single) for single in attempt.split()] == [(10, 1), (11, 2), (20, 3), (ErrorCode.NOT_LEADER, {})]

    asyncio.run(scenario())
