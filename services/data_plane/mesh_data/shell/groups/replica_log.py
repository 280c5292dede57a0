"""Reading one local replica: from an offset to batches, through the offset index and the Raft log.

A read goes in steps of a bounded size; between two of them the log may be compacted, or the replica closed. Leaves out:
where entries come from (`entry_reader`), waiting for new records, and record contents.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable
from typing import Final

from mesh_data.core.offset_index import Position
from mesh_data.core.replica import ReplicaCore
from mesh_data.core.stream_requests import StoredBatch
from mesh_data.shell.groups.entry_reader import EntryReader
from meshraft import LogCompacted
from meshwire.batch import decode_header

_STEP_BYTES: Final = 256 * 1024
"""Entries read from the log at a time."""
_SCAN_BYTES_MAX: Final = 4 * 1024 * 1024
"""A read that finds nothing in so many bytes returns empty; the next one goes on from there."""
_CURSORS_MAX: Final = 256
_LOOKUP_MARKS_MAX: Final = 256


class ReplicaLog:
    """The readable part of one replica's log."""

    def __init__(self, reader: EntryReader, group: int, core: ReplicaCore) -> None:
        self._reader = reader
        self._group = group
        self._core = core
        # Where readers of an offset go on, so that a stream of reads does not scan from a mark each time.
        self._cursors: OrderedDict[int, Position] = OrderedDict()

    def restart(self) -> None:
        """The log begins elsewhere now."""
        self._cursors.clear()

    async def read(self, offset: int, applied_index: int, bytes_max: int) -> list[StoredBatch]:
        """Batches from the one that holds `offset` on: at least one if there is one near, then up to `bytes_max`.

        Args:
            offset: not below the first that can be read here.
            applied_index: last log index that may be read.
            bytes_max: bytes of batches after which no further one is added.

        Raises:
            RaftError: the log cannot be read.
        """
        batches: list[StoredBatch] = []
        size_bytes = 0
        start = self._cursors.pop(offset, None) or self._core.index.locate(offset)
        reached = start
        async for step in self._scan(start, applied_index):
            for found, after in step:
                reached = after
                if found is None or after.offset <= offset:
                    continue
                batches.append(found)
                size_bytes += len(found.batch)
                if size_bytes >= bytes_max:
                    break
            if size_bytes >= bytes_max:
                break
        self._remember(max(reached.offset, offset), reached)
        return batches

    async def find(self, producer_id: int, sequence: int, below_offset: int, applied_index: int) -> int | None:
        """Offset of a producer's record, searched backwards from `below_offset`; None when it is too far back."""
        for _ in range(_LOOKUP_MARKS_MAX):
            if below_offset <= self._core.index.first.offset:
                return None
            mark = self._core.index.locate(below_offset - 1)
            async for step in self._scan(mark, applied_index):
                reached = mark
                for found, reached in step:  # noqa: B007 - read after the loop
                    if found is not None:
                        header = decode_header(found.batch)
                        if (
                            header.producer_id == producer_id
                            and header.base_sequence <= sequence <= header.last_sequence
                        ):
                            return found.base_offset + sequence - header.base_sequence
                if reached.offset >= below_offset:
                    break
            below_offset = mark.offset
        return None

    async def _scan(
        self, start: Position, applied_index: int
    ) -> AsyncIterator[Iterable[tuple[StoredBatch | None, Position]]]:
        """Entries from `start` on, a step at a time: see `ReplicaCore.batches`."""
        at, scanned_bytes = start, 0
        while at.index <= applied_index and scanned_bytes < _SCAN_BYTES_MAX:
            entries = await self._reader.entries(self._group, at.index, applied_index + 1, _STEP_BYTES)
            if at.index < self._core.index.first.index:
                # What the index knew of these entries went while they were read: refused ones could not be told.
                raise LogCompacted(f"the log now begins at {self._core.index.first.index}")
            step = list(self._core.batches(entries, at))
            scanned_bytes += sum(len(entry.data) for entry in entries)
            at = step[-1][1]
            yield step

    def _remember(self, offset: int, position: Position) -> None:
        self._cursors[offset] = position
        while len(self._cursors) > _CURSORS_MAX:
            self._cursors.popitem(last=False)
