"""The replicated state of one stream group: what every member computes alike from the committed entries.

State: next offset, producers, time, floor, checkpoints, seal, revision of the members, and a hash chain over the entries that members compare.
`apply` reads only the entry and the state, so equal entries give equal states (invariant I4). A batch that is refused
(gap, fenced, expired, repeated) stays in the log but takes no offsets; its result answers the publisher.

*Versions*: an entry of a kind, or a batch of a format, that only a later version knows is not applied and changes nothing
(`LaterEntry`); nor may anything behind it be, until the node is updated. So members of two versions never come to different
states at the same index: the older one stands still.

*Checkpoints*: whenever `checkpoint_bytes` of entries have been applied since the last one, the state keeps its own
snapshot. The floor moves only to a checkpoint, so a group's stored snapshot is always a state that every member computed at
that index. A member that restored a snapshot knows earlier checkpoints by index, for the sake of equal states, but has
no snapshot for them and needs none.

Leaves out: records (the log is the stream), reading (`offset_index`), and who proposes what. Source: architecture §7, §8.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from mesh_data.core.producers import IsNext, IsRefused, IsRepeated, ProducerTable
from mesh_data.core.stream_snapshot import Checkpoint, Snapshot, StreamConfig, decode_snapshot, encode_snapshot
from meshcommon.errors import ErrorCode
from meshwire.batch import decode_header
from meshwire.entry import (
    BatchEntry,
    BatchLine,
    InitProducerEntry,
    MoveFloorEntry,
    SealEntry,
    decode_entry,
    peek_batch,
)
from meshwire.errors import WireCode, WireError

FIRST_INDEX: Final = 1
"""Log index of the initial snapshot: a group's first entry follows it."""


@dataclass(slots=True)
class Appended:
    """The batch's records have offsets `offset` to `offset + count - 1`.

    Not frozen, nor are other values of which each batch makes one: freezing doubles what it costs to make them.
    """

    offset: int
    count: int
    time_ms: int


@dataclass(frozen=True, slots=True)
class Repeated:
    """The batch had been appended before, at `offset`; None when that has to be looked up in the log."""

    offset: int | None
    count: int


@dataclass(frozen=True, slots=True)
class Refused:
    """Nothing was appended."""

    code: ErrorCode
    message: str
    details: dict[str, str]


@dataclass(frozen=True, slots=True)
class ProducerReady:
    """Answer to an InitProducer."""

    producer_id: int
    epoch: int
    next_sequence: int
    last_offset_next: int


@dataclass(frozen=True, slots=True)
class FloorMoved:
    """The floor is now at the checkpoint with that log index."""

    index: int


@dataclass(frozen=True, slots=True)
class Unchanged:
    """The entry had no effect (a floor that is not ahead, a second seal)."""


class LaterEntry(Exception):
    """The next entry is of a later version: nothing may be applied from it on. The text says what it is."""


class BatchRun(NamedTuple):
    """Committed batches that change the state like one, as somebody who read them sums them up.

    They are entries of consecutive indexes, of one term, stamp, producer and epoch; with a producer, each begins with the
    sequence after the one before. `chain` is the hash chain after the last of them.
    """

    first_index: int
    last_index: int
    term: int
    stamp_ms: int
    producer_id: int
    epoch: int
    sequence: int
    records: int
    size_bytes: int
    chain: bytes


_Command: TypeAlias = InitProducerEntry | MoveFloorEntry | SealEntry
Result: TypeAlias = Appended | Repeated | Refused | ProducerReady | FloorMoved | Unchanged
_UNCHANGED: Final = Unchanged()


class StreamState:
    """State of one stream group at `applied_index`."""

    def __init__(self, config: StreamConfig) -> None:
        """The state that all initial members of a group start from."""
        start = Checkpoint(index=FIRST_INDEX, offset=0, time_ms=0, total_bytes=0)
        self.config = config
        self.applied_index = FIRST_INDEX
        self.next_offset = 0
        self.time_ms = 0
        self.total_bytes = 0
        self.sealed_revision = 0
        self.members_revision = 0
        self.chain = hashlib.sha256(config.encode()).digest()
        self.producers = ProducerTable(config.producers_max)
        self.floor = start
        self.checkpoints: list[Checkpoint] = []
        self._last_checkpoint_bytes = 0
        self._snapshots: dict[int, bytes] = {}

    @classmethod
    def restore(cls, data: bytes, kept: Mapping[int, bytes] | None = None) -> StreamState:
        """The state in a snapshot; `kept` has the snapshots of its checkpoints when this member had applied it itself.

        Raises:
            WireError: the bytes are damaged or of another version.
        """
        snapshot = decode_snapshot(data)
        state = cls(snapshot.config)
        state.applied_index = snapshot.applied_index
        state.next_offset = snapshot.next_offset
        state.time_ms = snapshot.time_ms
        state.total_bytes = snapshot.total_bytes
        state.sealed_revision = snapshot.sealed_revision
        state.chain = snapshot.chain
        state.members_revision = snapshot.members_revision
        state.producers.load(snapshot.producers)
        state.floor = snapshot.floor
        state.checkpoints = list(snapshot.checkpoints)
        state._last_checkpoint_bytes = (snapshot.checkpoints or (snapshot.floor,))[-1].total_bytes
        state._snapshots = {snapshot.applied_index: data} if kept is None else dict(kept)
        return state

    def snapshot(self) -> bytes:
        """The whole state; equal states give equal bytes."""
        return encode_snapshot(
            Snapshot(
                config=self.config,
                applied_index=self.applied_index,
                next_offset=self.next_offset,
                time_ms=self.time_ms,
                total_bytes=self.total_bytes,
                sealed_revision=self.sealed_revision,
                chain=self.chain,
                members_revision=self.members_revision,
                floor=self.floor,
                checkpoints=tuple(self.checkpoints),
                producers=tuple(self.producers),
            )
        )

    @property
    def retained_bytes(self) -> int:
        """Bytes of entries above the floor."""
        return self.total_bytes - self.floor.total_bytes

    @property
    def is_sealed(self) -> bool:
        """Whether the stream was deleted."""
        return self.sealed_revision != 0

    def checkpoint_snapshot(self, index: int) -> bytes | None:
        """The snapshot of the checkpoint at `index`; None when this member restored a later one."""
        return self._snapshots.get(index)

    def kept_snapshots(self) -> dict[int, bytes]:
        """Every snapshot that `checkpoint_snapshot` gives, by log index."""
        return dict(self._snapshots)

    def floor_to_propose(self) -> int | None:
        """Index to which the floor should move because more is retained than wished, or None.

        It is the first checkpoint that brings the stream under its cap, or the last there is.
        """
        excess = self.retained_bytes - self.config.retained_bytes_max
        if excess <= 0 or not self.checkpoints:
            return None
        enough = (item for item in self.checkpoints if item.total_bytes - self.floor.total_bytes >= excess)
        return next(enough, self.checkpoints[-1]).index

    def skip(self, index: int) -> None:
        """Notes an entry of Raft's own (a leader's first entry)."""
        self.applied_index = index

    def reconfigured(self, index: int, revision: int) -> None:
        """Notes a configuration change that was made for catalogue `revision`.

        A leader makes no change for an older revision, so that a former wish never undoes a later one.
        """
        self.applied_index = index
        self.members_revision = max(self.members_revision, revision)

    def apply(self, index: int, data: bytes) -> Result:
        """Applies the committed entry `data` at log index `index`, which is above `applied_index`.

        Raises:
            LaterEntry: only a later version knows what the entry does; nothing has changed.
        """
        entry = peek_batch(data) or _read(data)
        self.applied_index = index
        digest = hashlib.sha256(self.chain)
        digest.update(data)
        self.chain = digest.digest()
        self.total_bytes += len(data)
        if isinstance(entry, BatchLine):
            result = self._sealed() if self.is_sealed else self._apply_batch(index, entry)
        elif isinstance(entry, WireError):
            # A leader checks what it proposes, so this is a bug or a foreign writer; all members refuse it alike.
            result = Refused(ErrorCode.INVALID_ARGUMENT, f"The entry cannot be read: {entry.reason}.", {})
        else:
            result = self._apply(index, entry)
        if self.total_bytes - self._last_checkpoint_bytes >= self.config.checkpoint_bytes:
            self._take_checkpoint()
        return result

    @property
    def run_bytes_max(self) -> int:
        """A run has to end with the entry that brings it to so many bytes: the next checkpoint is due there."""
        return self.config.checkpoint_bytes - self.total_bytes + self._last_checkpoint_bytes

    def apply_run(self, run: BatchRun) -> int | None:
        """Applies a run, to the same state as `apply` of each of its entries; returns the offset of its first record.

        None when its batches are not all appended; then nothing has changed, and they have to be applied one by one.
        """
        if self.is_sealed:
            return None
        offset = self.next_offset
        if run.producer_id:
            producer = self.producers.get(run.producer_id)
            if producer is None or run.epoch != producer.epoch or run.sequence != producer.next_sequence:
                return None
            producer.append(offset, run.records, run.last_index)
        self.applied_index = run.last_index
        self.chain = run.chain
        self.total_bytes += run.size_bytes
        self.time_ms = max(self.time_ms, run.stamp_ms)
        self.next_offset = offset + run.records
        if self.total_bytes - self._last_checkpoint_bytes >= self.config.checkpoint_bytes:
            self._take_checkpoint()
        return offset

    def known(self, producer_id: int, epoch: int, sequence: int, count: int) -> Repeated | Refused | None:
        """What a batch would come to, if that can never change: one that was committed, one of an epoch that has passed."""
        producer = self.producers.get(producer_id)
        if producer is None or (epoch == producer.epoch and sequence >= producer.next_sequence):
            return None  # the next one, or behind others on their way: only its entry can tell
        match self.producers.check(producer_id, epoch, sequence, count):
            case IsRepeated(offset):
                return Repeated(offset, count)
            case IsRefused(code, message, details) if epoch < producer.epoch:
                return Refused(code, message, details)
            case _:
                return None

    def _apply(self, index: int, entry: _Command) -> Result:
        match entry:
            case InitProducerEntry(stamp_ms, name):
                if self.is_sealed:
                    return self._sealed()
                self.time_ms = max(self.time_ms, stamp_ms)
                producer = self.producers.init(name, index)
                return ProducerReady(
                    producer.producer_id, producer.epoch, producer.next_sequence, producer.last_offset_next
                )
            case MoveFloorEntry(floor_index):
                return self._move_floor(floor_index)
            case SealEntry(revision):
                self.sealed_revision = self.sealed_revision or revision
                return _UNCHANGED

    def _apply_batch(self, index: int, batch: BatchLine) -> Result:
        stamp_ms, producer_id, epoch, sequence, count = batch
        self.time_ms = max(self.time_ms, stamp_ms)
        offset = self.next_offset
        if producer_id:
            producer = self.producers.get(producer_id)
            if producer is None or epoch != producer.epoch or sequence != producer.next_sequence:
                return self._not_next(producer_id, epoch, sequence, count)
            producer.append(offset, count, index)
        self.next_offset = offset + count
        return Appended(offset, count, self.time_ms)

    def _not_next(self, producer_id: int, epoch: int, sequence: int, count: int) -> Result:
        match self.producers.check(producer_id, epoch, sequence, count):
            case IsRepeated(offset):
                return Repeated(offset, count)
            case IsRefused(code, message, details):
                return Refused(code, message, details)
            case IsNext():
                raise AssertionError("the batch continues its producer's sequence")

    def _sealed(self) -> Refused:
        return Refused(
            ErrorCode.STREAM_NOT_FOUND,
            "The stream was deleted: create it again, or publish elsewhere.",
            {"revision": str(self.sealed_revision)},
        )

    def _move_floor(self, index: int) -> Result:
        target = next((item for item in self.checkpoints if item.index == index), None)
        if target is None:
            return _UNCHANGED
        self.floor = target
        self.checkpoints = [item for item in self.checkpoints if item.index > index]
        for old in [at for at in self._snapshots if at < index]:
            del self._snapshots[old]
        return FloorMoved(index)

    def _take_checkpoint(self) -> None:
        self._last_checkpoint_bytes = self.total_bytes
        self.checkpoints.append(Checkpoint(self.applied_index, self.next_offset, self.time_ms, self.total_bytes))
        self._snapshots[self.applied_index] = self.snapshot()


def _read(data: bytes) -> _Command | WireError:
    """The entry, which is no well-formed batch, or what is wrong with it. Raises LaterEntry."""
    try:
        entry = decode_entry(data)
        if not isinstance(entry, BatchEntry):
            return entry
        decode_header(entry.batch)
    except WireError as error:
        if error.code is WireCode.BAD_VERSION:
            raise LaterEntry(error.reason) from None
        return error
    raise AssertionError("the batch is well formed")
