"""Read points of one group: what its leader confirms to be committed, so that a read sees all that was acknowledged.

Raft drops a question without a word when there is no leader: deadline and repetition are the caller's. Leaves out: waiting until
the entry at a read point is applied. Source: Ongaro's thesis §6.4 (ReadIndex).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TypeAlias

from meshraft import RaftHost

ReadAnswer: TypeAlias = Callable[[int | None], None]
"""Called with the read point, an index; with None when the group closed."""


class ReadPoints:
    """Questions under way, and when the newest answer was asked for."""

    def __init__(self, host: RaftHost, group: int) -> None:
        self._host = host
        self._group = group
        self._asked: dict[int, tuple[float, ReadAnswer]] = {}
        self._tokens = itertools.count(1)
        self.confirmed_at: float | None = None
        """Everything that was committed at this time, by the caller's clock, is applied here; None before the first answer."""

    def ask(self, now: float, answer: ReadAnswer) -> int:
        """Asks the leader at `now`, seconds of the caller's clock; returns a token for `forget`.

        `answer` may never be called. Raises RaftError: Backpressure when too many wait.
        """
        token = next(self._tokens)
        self._host.read_index(self._group, token)
        self._asked[token] = (now, answer)
        return token

    def forget(self, token: int) -> None:
        """Nobody waits for that read point any more."""
        self._asked.pop(token, None)

    def answered(self, token: int, index: int, applied_index: int) -> None:
        """All that was acknowledged before the question is at or below `index`; Raft has handed that out."""
        asked = self._asked.pop(token, None)
        if asked is None:
            return
        asked_at, answer = asked
        # A state machine that has stopped applying has less than what was handed out.
        if applied_index >= index and (self.confirmed_at is None or asked_at > self.confirmed_at):
            self.confirmed_at = asked_at
        answer(index)

    def close(self) -> None:
        """The group closed: tells everybody who waits."""
        asked, self._asked = self._asked, {}
        for _asked_at, answer in asked.values():
            answer(None)
