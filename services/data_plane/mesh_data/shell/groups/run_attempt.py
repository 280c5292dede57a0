"""A run of batches that was proposed in one call, and what becomes of it.

All goes well almost always: every batch is appended, one behind the other, and then one answer serves them all. Anything else
*splits* the run: from then on each of its batches has an answer of its own. Leaves out: proposing, and what is done about
answers. Source: ADR 0011.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from mesh_data.core.stream_state import Appended
from mesh_data.shell.groups.proposals import Answer, AppendedRun, Applied
from meshcommon.errors import MeshError


class RunAttempt:
    """Waits for the batches of a run, `counts` records in each, which are decided in order."""

    __slots__ = ("_counts", "_decided", "_records", "_singles", "_time_ms", "future", "offset")

    def __init__(self, counts: Sequence[int]) -> None:
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once all is decided, or the run is split."""
        self.offset = 0
        """Of the first record, once one was appended."""
        self._counts = counts
        self._decided = 0
        self._records = 0
        self._time_ms = 0
        self._singles: list[asyncio.Future[Answer]] | None = None

    @property
    def is_whole(self) -> bool:
        """Whether every batch was appended, the first at `offset`, the others behind it."""
        return self._singles is None and self._decided == len(self._counts)

    @property
    def is_split(self) -> bool:
        """Whether each batch has its own answer."""
        return self._singles is not None

    def _appended(self, offset: int, batches: int, records: int, time_ms: int) -> None:
        if self._singles is None and self._decided and offset != self.offset + self._records:
            self.split()  # others wrote in between
        if self._singles is not None:
            for at in range(self._decided, self._decided + batches):
                _set(self._singles[at], Appended(offset, self._counts[at], time_ms))
                offset += self._counts[at]
        elif not self._decided:
            self.offset = offset
        self._decided += batches
        self._records += records
        self._time_ms = time_ms
        if self.is_whole and not self.future.done():
            self.future.set_result(None)

    def committed(self, index: int, count: int, result: Applied) -> None:
        """The next `count` batches, at `index` and behind it, were applied."""
        if isinstance(result, AppendedRun):
            at = index - result.first_index
            before, behind = result.ends[at], result.ends[at + count]
            self._appended(result.offset + before, count, behind - before, result.time_ms)
        elif result is None:
            raise AssertionError("an entry of Raft's own was proposed here")
        elif isinstance(result, Appended):
            self._appended(result.offset, count, result.count, result.time_ms)
        else:
            self._answer(count, result)

    def failed(self, count: int, error: MeshError) -> None:
        """The next `count` batches were not appended, or that is not known."""
        self._answer(count, error)

    def _answer(self, batches: int, answer: Answer) -> None:
        singles = self.split()
        for at in range(self._decided, self._decided + batches):
            _set(singles[at], answer)
        self._decided += batches

    def split(self) -> list[asyncio.Future[Answer]]:
        """An answer for each batch; those that were appended have theirs already."""
        if self._singles is None:
            loop = asyncio.get_running_loop()
            singles = [loop.create_future() for _ in self._counts]
            offset = self.offset
            for at in range(self._decided):
                singles[at].set_result(Appended(offset, self._counts[at], self._time_ms))
                offset += self._counts[at]
            self._singles = singles
            if not self.future.done():
                self.future.set_result(None)
        return self._singles


def _set(future: asyncio.Future[Answer], answer: Answer) -> None:
    if not future.done():
        future.set_result(answer)
