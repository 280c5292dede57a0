"""Where in the log an offset is: a sparse map from offsets to log indexes, and the log indexes that hold no records.

A reader goes to the last mark at or before its offset and steps forward through the log. Stepping needs the records per
entry, which the entries tell, and which batches were refused, which they do not: those are kept here. Memory: 24 bytes
per mark, 8 per refused batch. Leaves out: reading the log; files (an image of it is part of a replica's checkpoint, and
replay rebuilds the rest). Source: Kafka's sparse offset index.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import Final

MARK_BYTES: Final = 64 * 1024
MARK_ENTRIES: Final = 64


@dataclass(slots=True)
class Position:
    """A place in the log from which a reader can step on. Not frozen, because each batch makes one.

    Attributes:
        offset: offset of the first record at or after `index`.
        index: log index to read next.
        time_ms: state time just before that entry.
    """

    offset: int
    index: int
    time_ms: int


@dataclass(frozen=True, slots=True)
class IndexImage:
    """An index at one moment, as it is kept on disk; its arrays are its own."""

    offsets: array[int]
    indexes: array[int]
    times: array[int]
    refused: array[int]
    bytes_since: int
    entries_since: int


class OffsetIndex:
    """Offsets of one stream's retained log. Offsets and indexes are added in ascending order."""

    def __init__(self, start: Position) -> None:
        """`start` is where the retained log begins."""
        self._offsets = array("Q", (start.offset,))
        self._indexes = array("Q", (start.index,))
        self._times = array("Q", (start.time_ms,))
        self._refused = array("Q")
        self._bytes_since = 0
        self._entries_since = 0

    @classmethod
    def of(cls, image: IndexImage) -> OffsetIndex:
        """The index in an image, which must not be used any more."""
        index = cls(Position(0, 0, 0))
        index._offsets, index._indexes, index._times = image.offsets, image.indexes, image.times
        index._refused = image.refused
        index._bytes_since, index._entries_since = image.bytes_since, image.entries_since
        return index

    def image(self) -> IndexImage:
        """A copy of everything, for a thread to write down."""
        return IndexImage(
            self._offsets[:],
            self._indexes[:],
            self._times[:],
            self._refused[:],
            self._bytes_since,
            self._entries_since,
        )

    @property
    def first(self) -> Position:
        """Where the retained log begins."""
        return self._mark(0)

    @property
    def marks(self) -> int:
        """How many marks are kept."""
        return len(self._offsets)

    def append(self, position: Position, size_bytes: int) -> None:
        """Notes a batch: `position.index` is its entry, `position.offset` its first record."""
        if self._entries_since >= MARK_ENTRIES or self._bytes_since >= MARK_BYTES:
            self._offsets.append(position.offset)
            self._indexes.append(position.index)
            self._times.append(position.time_ms)
            self._bytes_since = 0
            self._entries_since = 0
        self._bytes_since += size_bytes
        self._entries_since += 1

    @property
    def run_max(self) -> tuple[int, int]:
        """Entries and bytes that one `append_run` may bring: behind them, or behind the entry that reaches them, is a mark."""
        entries, size_bytes = MARK_ENTRIES - self._entries_since, MARK_BYTES - self._bytes_since
        return (entries, size_bytes) if entries > 0 and size_bytes > 0 else (MARK_ENTRIES, MARK_BYTES)

    def append_run(self, position: Position, entries: int, size_bytes: int) -> None:
        """Notes so many batches in a row, like `append` of each; the first is at `position`."""
        self.append(position, size_bytes)
        self._entries_since += entries - 1

    def refuse(self, index: int) -> None:
        """Notes that the batch at log index `index` took no offsets."""
        self._refused.append(index)

    def is_refused(self, index: int) -> bool:
        """Whether the batch at that log index took no offsets."""
        at = bisect_left(self._refused, index)
        return at < len(self._refused) and self._refused[at] == index

    def locate(self, offset: int) -> Position:
        """The last mark whose offset is not above `offset`; `offset` is not below `first.offset`."""
        return self._mark(max(0, bisect_right(self._offsets, offset) - 1))

    def truncate(self, start: Position) -> None:
        """Forgets everything before `start`, the new beginning of the log."""
        keep = bisect_right(self._indexes, start.index)
        self._offsets = array("Q", (start.offset,)) + self._offsets[keep:]
        self._indexes = array("Q", (start.index,)) + self._indexes[keep:]
        self._times = array("Q", (start.time_ms,)) + self._times[keep:]
        self._refused = self._refused[bisect_left(self._refused, start.index) :]

    def _mark(self, at: int) -> Position:
        return Position(self._offsets[at], self._indexes[at], self._times[at])
