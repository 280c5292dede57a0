"""One open stream group of a simulated node: what the data plane's `Replica` does, without asyncio.

Purpose: state, offset index, checkpoints, compaction where the floor moved, and reading through the log, all with the real
cores. Leaves out: who waits for what (`raft_host`), and checkpoints on the node's own disk: a restart replays from the floor.
"""

from __future__ import annotations

import hashlib
from typing import Final

from mesh_data.core.offset_index import OffsetIndex, Position
from mesh_data.core.stream_snapshot import StreamConfig
from mesh_data.core.stream_state import Appended, FloorMoved, Refused, Repeated, Result, StreamState
from mesh_data.shell.replica_log import ReplicaLog
from meshcommon.ids import StreamId
from meshraft import KIND_NORMAL, Committed, RaftHost
from meshtest.checkers import Held
from meshwire.batch import decode_records
from meshwire.entry import MoveFloorEntry, encode_entry

RETAINED_BYTES: Final = 3_000
CHECKPOINT_BYTES: Final = 600
_READ_BYTES_MAX: Final = 1 << 30


def config_of(stream_id: StreamId) -> StreamConfig:
    """Two streams of three retain so little that their floors move within a run."""
    if stream_id % 3 == 0:
        return StreamConfig.of(stream_id, 0)
    return StreamConfig(stream_id, RETAINED_BYTES, CHECKPOINT_BYTES)


def identity_of(value: bytes) -> tuple[int, int]:
    """(producer, sequence) that a simulated record's value names."""
    producer, sequence, *_ = value.split(b":")
    return int(producer), int(sequence)


class Replica:
    """State and log of one group at one node, rebuilt from the disk after each restart."""

    def __init__(self, host: RaftHost, stream_id: StreamId, group: int) -> None:
        self._host = host
        self.group = group
        self.state = StreamState(config_of(stream_id))
        self.index = OffsetIndex(Position(0, 0, 0))
        self.is_formed = False
        self._compacted_index = 0
        self._floor_proposed = 0

    def restore(self, index: int, data: bytes) -> None:
        """Starts from a snapshot: the initial one, the stored one, or the leader's."""
        self.state = StreamState.restore(data)
        self.index = OffsetIndex(Position(self.state.next_offset, index + 1, self.state.time_ms))
        self._compacted_index = index
        self.is_formed = self.is_formed or index > 1

    def apply(self, entry: Committed) -> Result | None:
        """Applies one committed entry."""
        self.is_formed = True
        if entry.kind != KIND_NORMAL or not entry.data:
            self.state.skip(entry.index)
            return None
        time_before_ms = self.state.time_ms
        result = self.state.apply(entry.index, entry.data)
        match result:
            case Appended(offset):
                self.index.append(Position(offset, entry.index, time_before_ms), len(entry.data))
            case Repeated() | Refused():
                self.index.refuse(entry.index)
            case FloorMoved(floor_index):
                self._compact(floor_index)
            case _:
                pass
        return result

    def state_hash(self) -> str:
        """Of everything that members must agree on."""
        return hashlib.sha256(self.state.snapshot()).hexdigest()

    def floor_entry(self) -> bytes | None:
        """What a leader proposes next about the floor; asked for again only past what was proposed before."""
        index = self.state.floor_to_propose()
        if index is None or index <= self._floor_proposed:
            return None
        self._floor_proposed = index
        return encode_entry(MoveFloorEntry(index))

    def role_changed(self) -> None:
        """What was proposed in an earlier leadership may be lost."""
        self._floor_proposed = 0

    @property
    def floor_offset(self) -> int:
        """First offset that can be read here."""
        return max(self.state.floor.offset, self.index.first.offset)

    def read(self, offset: int) -> list[Held]:
        """Records from `offset` on, which is not below the floor, as the log has them now."""
        at = self.index.locate(offset)
        if at.index > self.state.applied_index:
            return []
        entries = self._host.entries(self.group, at.index, self.state.applied_index + 1, _READ_BYTES_MAX)
        steps = ReplicaLog._decode(self, entries, at)  # type: ignore[arg-type] # all that it needs is the index
        return [
            Held(found.base_offset + number, record.value, identity_of(record.value))
            for found, _ in steps
            if found is not None
            for number, record in enumerate(decode_records(found.batch))
            if found.base_offset + number >= offset
        ]

    def _compact(self, index: int) -> None:
        snapshot = self.state.checkpoint_snapshot(index)
        if snapshot is None or index <= self._compacted_index:
            return
        floor = self.state.floor
        self._host.compact(self.group, index, snapshot)
        self._compacted_index = index
        self.index.truncate(Position(floor.offset, index + 1, floor.time_ms))
