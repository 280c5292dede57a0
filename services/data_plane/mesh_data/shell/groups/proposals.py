"""What a proposal of a replica comes to, as a future. Its waiters are told by the group's `Proposals` (`meshraft.proposals`).

Leaves out: proposing, what an answer means, and runs of batches (`run_attempt`). Source: architecture §8.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TypeAlias

from mesh_data.core.stream_state import Appended, Result
from meshcommon.errors import ErrorCode, MeshError

Answer: TypeAlias = Result | MeshError
"""What a proposal comes to. Errors are values, so that a publisher that went away leaves no unread exception."""


@dataclass(slots=True)
class AppendedRun:
    """A run of batches that was applied in one go: each was appended, one behind the other.

    Attributes:
        first_index: of its first entry.
        offset: of its first record.
        time_ms: the stream's time at its end.
        ends: records in front of each entry, and of all.
    """

    first_index: int
    offset: int
    time_ms: int
    ends: list[int]

    def part(self, index: int, count: int) -> Appended:
        """What `count` entries from `index` on came to, taken as one."""
        at = index - self.first_index
        before, behind = self.ends[at], self.ends[at + count]
        return Appended(self.offset + before, behind - before, self.time_ms)


Applied: TypeAlias = Result | AppendedRun | None
"""What applied entries came to; None for one of Raft's own, which nobody here waits for."""


class Attempt:
    """Waits for one entry."""

    __slots__ = ("future",)

    def __init__(self) -> None:
        self.future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        """Never raises."""

    def committed(self, index: int, count: int, result: Applied) -> None:
        """It was applied."""
        if result is None:
            raise AssertionError("an entry of Raft's own was proposed here")
        self._answer(result.part(index, count) if isinstance(result, AppendedRun) else result)

    def failed(self, _count: int, error: MeshError) -> None:
        """It was not, or that is not known."""
        self._answer(error)

    def _answer(self, answer: Answer) -> None:
        if not self.future.done():
            self.future.set_result(answer)


def decided(answer: Answer) -> asyncio.Future[Answer]:
    """The future of what is decided at once."""
    future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    future.set_result(answer)
    return future


def outcome_unknown(why: str) -> MeshError:
    """Nobody here can say whether the batch was committed, for that reason."""
    return MeshError(ErrorCode.OUTCOME_UNKNOWN, f"{why} Whether the batch was committed is not known here.")
