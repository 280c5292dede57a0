"""Who waits for what a replica proposed: futures and runs by log index, and what they are told.

Leaves out: proposing, and what an answer means. Source: architecture §8; ADR 0011 for runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import accumulate
from typing import TypeAlias

from mesh_data.core.publish_window import Key, Outcome, ProposalWindow
from mesh_data.core.stream_state import Appended, BatchRun, Result
from mesh_data.shell.run_attempt import RunAttempt
from meshcommon.errors import ErrorCode, MeshError

Answer: TypeAlias = Result | MeshError
"""What a proposal comes to. Errors are values, so that a publisher that went away leaves no unread exception."""

_Waiting: TypeAlias = asyncio.Future[Result | MeshError] | RunAttempt


class Proposals:
    """The proposals of one replica that are not decided. `not_leader` gives the answer to those that were overwritten."""

    def __init__(self, not_leader: Callable[[], MeshError]) -> None:
        self._not_leader = not_leader
        self._window: ProposalWindow[_Waiting] = ProposalWindow()

    def __len__(self) -> int:
        return len(self._window)

    @property
    def size_bytes(self) -> int:
        """Bytes of entries in proposals of which some are not decided."""
        return self._window.size_bytes

    def add(self, term: int, index: int, size_bytes: int, key: Key | None = None) -> asyncio.Future[Answer]:
        """Notes the proposal of one entry; the future never raises. By `key` a repetition finds it."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._add(term, index, size_bytes, future, 1, key)
        return future

    def join(self, key: Key) -> asyncio.Future[Answer] | None:
        """A future of its own for a repetition of what is not decided yet, None when it is none."""
        if not self._window.may_hold(key):
            return None
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        return future if self._window.join(key, future) else None

    def add_run(self, term: int, index: int, size_bytes: int, attempt: RunAttempt, count: int) -> None:
        """Notes the proposal of `count` entries, the first at `index`."""
        self._add(term, index, size_bytes, attempt, count, None)

    def decide(self, index: int, term: int, result: Result | None) -> None:
        """The entry at `index` of `term` was applied; `result` is None for one that is not an application's."""
        for waiting, _, count, outcome in self._window.committed_run(index, index, term):
            is_this = outcome is Outcome.COMMITTED and result is not None
            _answer(waiting, count, result if is_this and result is not None else self._not_leader())

    def decide_run(self, run: BatchRun, offset: int, time_ms: int, counts: list[int]) -> None:
        """The run was appended at `offset`; `counts` are the records of each of its batches."""
        ends = [0, *accumulate(counts)]
        for waiting, index, count, outcome in self._window.committed_run(run.first_index, run.last_index, run.term):
            if outcome is not Outcome.COMMITTED:
                _answer(waiting, count, self._not_leader())
                continue
            before, behind = ends[index - run.first_index], ends[index - run.first_index + count]
            if isinstance(waiting, RunAttempt):
                waiting.appended(offset + before, count, behind - before, time_ms)
            else:
                _answer(waiting, count, Appended(offset + before, behind - before, time_ms))

    def fail(self, error: MeshError) -> None:
        """Tells everybody who waits."""
        for waiting in self._window.take_all():
            _fail(waiting, error)

    def _add(self, term: int, index: int, size_bytes: int, waiting: _Waiting, count: int, key: Key | None) -> None:
        for cut_off in self._window.add(term, index, size_bytes, waiting, count, key):
            # Gone from this log, but not from every other: until something is committed at its index it may come back.
            _fail(cut_off, outcome_unknown("The leadership was lost and won again meanwhile."))


def decided(answer: Answer) -> asyncio.Future[Answer]:
    """The future of what is decided at once."""
    future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    future.set_result(answer)
    return future


def outcome_unknown(why: str) -> MeshError:
    """Nobody here can say whether the batch was committed, for that reason."""
    return MeshError(ErrorCode.OUTCOME_UNKNOWN, f"{why} Whether the batch was committed is not known here.")


def _answer(waiting: _Waiting, count: int, answer: Answer) -> None:
    if isinstance(waiting, RunAttempt):
        waiting.answer(count, answer)
    elif not waiting.done():
        waiting.set_result(answer)


def _fail(waiting: _Waiting, error: MeshError) -> None:
    if isinstance(waiting, RunAttempt):
        waiting.fail(error)
    else:
        _answer(waiting, 1, error)
