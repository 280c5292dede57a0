"""Reading one local replica: from an offset to batches, through the offset index and the Raft log.

Reads happen on the event loop in steps of a bounded size: the Raft host belongs to one thread, and the log serves recent
entries from memory and older ones mostly from the page cache. Leaves out: waiting for new records, and record contents.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from struct import Struct
from typing import Final

from mesh_data.core.offset_index import OffsetIndex, Position
from mesh_data.core.stream_requests import StoredBatch
from meshraft import KIND_NORMAL, RaftHost
from meshwire.batch import decode_header
from meshwire.entry import EntryKind

_KIND_AND_STAMP: Final = Struct("!BQ")
_STAMPED: Final = (EntryKind.BATCH, EntryKind.INIT_PRODUCER)
_STEP_BYTES: Final = 256 * 1024
"""Entries read from the log at a time."""
_SCAN_BYTES_MAX: Final = 4 * 1024 * 1024
"""A read that finds nothing in so many bytes returns empty; the next one goes on from there."""
_CURSORS_MAX: Final = 256
_LOOKUP_MARKS_MAX: Final = 256


class ReplicaLog:
    """The readable part of one replica's log."""

    def __init__(self, host: RaftHost, group: int, start: Position) -> None:
        self._host = host
        self._group = group
        self.index = OffsetIndex(start)
        # Where readers of an offset go on, so that a stream of reads does not scan from a mark each time.
        self._cursors: OrderedDict[int, Position] = OrderedDict()

    @property
    def first_offset(self) -> int:
        """Lowest offset that can be read here."""
        return self.index.first.offset

    def truncate(self, start: Position) -> None:
        """The log now begins at `start`."""
        self.index.truncate(start)
        self._cursors.clear()

    def read(self, offset: int, applied_index: int, bytes_max: int) -> list[StoredBatch]:
        """Batches from the one that holds `offset` on: at least one if there is one near, then up to `bytes_max`.

        Args:
            offset: not below `first_offset`.
            applied_index: last log index that may be read.
            bytes_max: bytes of batches after which no further one is added.

        Raises:
            RaftError: the log cannot be read.
        """
        batches: list[StoredBatch] = []
        size_bytes = 0
        start = self._cursors.pop(offset, None) or self.index.locate(offset)
        reached = start
        for found, after in self._scan(start, applied_index):
            reached = after
            if found is None or after.offset <= offset:
                continue
            batches.append(found)
            size_bytes += len(found.batch)
            if size_bytes >= bytes_max:
                break
        self._remember(max(reached.offset, offset), reached)
        return batches

    def find(self, producer_id: int, sequence: int, below_offset: int, applied_index: int) -> int | None:
        """Offset of a producer's record, searched backwards from `below_offset`; None when it is too far back."""
        for _ in range(_LOOKUP_MARKS_MAX):
            if below_offset <= self.first_offset:
                return None
            mark = self.index.locate(below_offset - 1)
            for found, after in self._scan(mark, applied_index):
                if found is not None:
                    header = decode_header(found.batch)
                    if header.producer_id == producer_id and header.base_sequence <= sequence <= header.last_sequence:
                        return found.base_offset + sequence - header.base_sequence
                if after.offset >= below_offset:
                    break
            below_offset = mark.offset
        return None

    def _scan(self, start: Position, applied_index: int) -> Iterator[tuple[StoredBatch | None, Position]]:
        """Entries from `start` on: the batch, if the entry is one with offsets, and the position after the entry."""
        offset, index, time_ms = start.offset, start.index, start.time_ms
        scanned_bytes = 0
        while index <= applied_index and scanned_bytes < _SCAN_BYTES_MAX:
            for entry in self._host.entries(self._group, index, applied_index + 1, _STEP_BYTES):
                index = entry.index + 1
                data = entry.data
                scanned_bytes += len(data)
                found: StoredBatch | None = None
                if entry.kind == KIND_NORMAL and data:
                    kind, stamp_ms = _KIND_AND_STAMP.unpack_from(data)
                    if kind in _STAMPED:
                        time_ms = max(time_ms, stamp_ms)
                    if kind == EntryKind.BATCH and not self.index.is_refused(entry.index):
                        batch = memoryview(data)[_KIND_AND_STAMP.size :]
                        found = StoredBatch(offset, time_ms, batch)
                        offset += decode_header(batch).record_count
                yield found, Position(offset, index, time_ms)

    def _remember(self, offset: int, position: Position) -> None:
        self._cursors[offset] = position
        while len(self._cursors) > _CURSORS_MAX:
            self._cursors.popitem(last=False)
