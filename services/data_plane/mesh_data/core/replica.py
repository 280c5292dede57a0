"""What one replica of a stream holds: its state, where its records are in the log, the chains it knows, where its log begins.

Committed entries and snapshots go in, in the order of the log; results, the next proposal about the floor and the next
compaction come out. Of meshraft it knows only what entries look like. Leaves out: Raft, the log itself, who waits for what, and who leads (`group_leader`). Source:
architecture §7, §8.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from struct import Struct
from typing import Final

from mesh_data.core.chain_audit import ChainMemory, next_mark
from mesh_data.core.offset_index import OffsetIndex, Position
from mesh_data.core.replica_checkpoint import ReplicaCheckpoint
from mesh_data.core.stream_requests import StoredBatch
from mesh_data.core.stream_snapshot import StreamConfig, decode_snapshot
from mesh_data.core.stream_state import (
    FIRST_INDEX,
    Appended,
    BatchRun,
    FloorMoved,
    LaterEntry,
    Refused,
    Repeated,
    Result,
    StreamState,
)
from meshraft import ENTRY_CONF_CHANGE, ENTRY_NORMAL, Committed, Entry
from meshwire.batch import decode_header
from meshwire.entry import EntryKind, MoveFloorEntry, encode_entry

REVISION: Final = Struct("!Q")
"""Context of a configuration change: the catalogue revision that it follows."""
_KIND_AND_STAMP: Final = Struct("!BQ")
_STAMPED: Final = (EntryKind.BATCH, EntryKind.INIT_PRODUCER)


@dataclass(frozen=True, slots=True)
class Compaction:
    """The log may now begin behind `index`, where the state was `snapshot`."""

    index: int
    snapshot: bytes
    offset: int


class ReplicaCore:
    """One replica, blank until a snapshot is restored."""

    def __init__(self, config: StreamConfig) -> None:
        self.state = StreamState(config)
        self.index = OffsetIndex(Position(0, 0, 0))
        self.chains = ChainMemory()
        self.is_blank = True
        """No state has come yet: neither the first snapshot nor one from the leader."""
        self.is_formed = False
        """At least one entry has been applied after the snapshot the replica began with."""
        self._compacted_index = 0
        self._compaction: Compaction | None = None
        self._floor_proposed = 0

    # State in and out

    def restore(self, snapshot: bytes, index: int) -> None:
        """Starts from a snapshot: the initial one, the stored one, or one that the leader sent.

        Raises:
            WireError: the snapshot is damaged.
        """
        state = StreamState.restore(snapshot)
        self._begin(state, index, OffsetIndex(Position(state.next_offset, index + 1, state.time_ms)), state.chain)
        self.is_formed = self.is_formed or index > FIRST_INDEX

    def resume(self, checkpoint: ReplicaCheckpoint, floor_index: int, floor_snapshot: bytes) -> None:
        """Starts from a checkpoint of its own instead of the stored snapshot, which is at `floor_index`.

        Raises:
            WireError: a state in either is damaged.
        """
        state = StreamState.restore(checkpoint.state, checkpoint.kept)
        begin = decode_snapshot(floor_snapshot)
        index = OffsetIndex.of(checkpoint.index)
        index.truncate(Position(begin.next_offset, floor_index + 1, begin.time_ms))
        self._begin(state, floor_index, index, begin.chain)
        self.is_formed = checkpoint.applied_index > FIRST_INDEX

    def apply(self, entry: Committed) -> Result | None:
        """Applies the next committed entry; None when it carries no command.

        Raises:
            LaterEntry: it is of a later version; nothing has changed, and nothing may be applied from it on.
        """
        index, data = entry.index, entry.data
        result: Result | None = None
        if entry.kind == ENTRY_CONF_CHANGE:
            self._reconfigure(index, data)
        elif entry.kind != ENTRY_NORMAL or not data:
            self.state.skip(index)
        else:
            result = self._apply_command(index, data)
        self.is_formed = True
        return result

    def run_max(self, index: int) -> tuple[int, int]:
        """The last index and the most bytes of a run of batches from `index` on.

        It ends where something has to be noted: a mark of the chain, one of the index of offsets, a checkpoint.
        """
        entries_max, bytes_max = self.index.run_max
        return min(index + entries_max - 1, next_mark(index)), min(bytes_max, self.state.run_bytes_max)

    def apply_run(self, run: BatchRun) -> int | None:
        """Applies committed batches in one go, within `run_max`; the first offset, or None when they do not go together."""
        time_before_ms = self.state.time_ms
        offset = self.state.apply_run(run)
        if offset is None:
            return None
        self.is_formed = True
        entries = run.last_index - run.first_index + 1
        self.index.append_run(Position(offset, run.first_index, time_before_ms), entries, run.size_bytes)
        self.chains.note(run.last_index, run.chain)
        return offset

    def take_compaction(self) -> Compaction | None:
        """What the floor that was just moved allows; the owner compacts the log at once."""
        compaction, self._compaction = self._compaction, None
        return compaction

    # Leading

    def floor_entry(self) -> tuple[int, bytes] | None:
        """What a leader should propose about the floor now: the index that it moves to, and the entry."""
        index = self.state.floor_to_propose()
        if index is None or index <= self._floor_proposed:
            return None
        return index, encode_entry(MoveFloorEntry(index))

    def floor_was_proposed(self, index: int) -> None:
        """It was: it is not asked for again in this leadership."""
        self._floor_proposed = index

    def role_changed(self) -> None:
        """What was proposed in an earlier leadership may be lost."""
        self._floor_proposed = 0

    # Reading

    @property
    def floor_offset(self) -> int:
        """First offset that can be read here."""
        return max(self.state.floor.offset, self.index.first.offset)

    def batches(self, entries: Iterable[Entry], start: Position) -> Iterator[tuple[StoredBatch | None, Position]]:
        """For each entry, the first of which is at `start`: the batch, if it is one with offsets, and the position after it."""
        offset, time_ms = start.offset, start.time_ms
        for entry in entries:
            data = entry.data
            found: StoredBatch | None = None
            if entry.kind == ENTRY_NORMAL and data:
                kind, stamp_ms = _KIND_AND_STAMP.unpack_from(data)
                if kind in _STAMPED:
                    time_ms = max(time_ms, stamp_ms)
                if kind == EntryKind.BATCH and not self.index.is_refused(entry.index):
                    batch = memoryview(data)[_KIND_AND_STAMP.size :]
                    found = StoredBatch(offset, time_ms, batch)
                    offset += decode_header(batch).record_count
            yield found, Position(offset, entry.index + 1, time_ms)

    # Inside

    def _begin(self, state: StreamState, log_index: int, index: OffsetIndex, chain: bytes) -> None:
        self.state = state
        self.index = index
        self.is_blank = False
        self.chains.begin(log_index, chain)
        self._compacted_index = log_index
        self._compaction = None

    def _reconfigure(self, index: int, context: bytes) -> None:
        if context and len(context) != REVISION.size:
            raise LaterEntry(f"a change of members has a context of {len(context)} bytes")
        self.state.reconfigured(index, REVISION.unpack(context)[0] if context else 0)

    def _apply_command(self, index: int, data: bytes) -> Result:
        state = self.state
        time_before_ms = state.time_ms
        result = state.apply(index, data)
        if isinstance(result, Appended):
            self.index.append(Position(result.offset, index, time_before_ms), len(data))
        elif isinstance(result, Repeated | Refused):
            self.index.refuse(index)
        elif isinstance(result, FloorMoved):
            self._floor_moved(result.index)
        self.chains.note(index, state.chain)
        return result

    def _floor_moved(self, index: int) -> None:
        snapshot = self.state.checkpoint_snapshot(index)
        # A member that restored a later snapshot has neither the entries nor the snapshot, and needs none.
        if snapshot is None or index <= self._compacted_index:
            return
        floor = self.state.floor
        self._compacted_index = index
        self._compaction = Compaction(index, snapshot, floor.offset)
        self.chains.truncate(index, decode_snapshot(snapshot).chain)
        self.index.truncate(Position(floor.offset, index + 1, floor.time_ms))
