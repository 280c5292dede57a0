"""Proposals that a leader has appended and not yet seen committed, and the bytes that a publisher has in flight.

A proposal took effect if and only if the entry committed at its index has its term. When leadership is lost nothing is
known until then, so proposals stay here: the next committed entry at their index tells, and so does any entry at a later
index of an installed snapshot, after which the outcome stays unknown. Whoever waits brings a deadline of its own.
Leaves out: proposing, futures, timers. Source: Ongaro §8 (a new leader may commit or overwrite what an earlier one appended).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

T = TypeVar("T")


class Outcome(Enum):
    """What became of a proposal."""

    COMMITTED = "committed"
    OVERWRITTEN = "overwritten"
    """Certainly not committed: another entry has its index."""


@dataclass(slots=True)
class _Proposal(Generic[T]):
    term: int
    index: int
    size_bytes: int
    token: T


class ProposalWindow(Generic[T]):
    """Outstanding proposals of one group at one member; `T` is whatever the shell wants back."""

    def __init__(self) -> None:
        self._proposals: deque[_Proposal[T]] = deque()
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._proposals)

    def add(self, term: int, index: int, size_bytes: int, token: T) -> list[T]:
        """Notes a proposal. Returns tokens at the same or a later index: their entries were cut off our own log."""
        overwritten: list[T] = []
        while self._proposals and self._proposals[-1].index >= index:
            overwritten.append(self._pop_last().token)
        self._proposals.append(_Proposal(term, index, size_bytes, token))
        self.size_bytes += size_bytes
        return overwritten

    def committed(self, index: int, term: int) -> list[tuple[T, Outcome]]:
        """The entry at `index` of `term` was committed: what is decided by it, oldest first."""
        decided: list[tuple[T, Outcome]] = []
        while self._proposals and self._proposals[0].index <= index:
            proposal = self._proposals.popleft()
            self.size_bytes -= proposal.size_bytes
            is_this = proposal.index == index and proposal.term == term
            decided.append((proposal.token, Outcome.COMMITTED if is_this else Outcome.OVERWRITTEN))
        return decided

    def take_all(self) -> list[T]:
        """Everything outstanding, its outcome unknown: the group closed, or a snapshot jumped over the indexes."""
        tokens = [proposal.token for proposal in self._proposals]
        self._proposals.clear()
        self.size_bytes = 0
        return tokens

    def _pop_last(self) -> _Proposal[T]:
        proposal = self._proposals.pop()
        self.size_bytes -= proposal.size_bytes
        return proposal


class Credit:
    """Bytes that one publisher may have unanswered."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0

    def has_room(self, size_bytes: int) -> bool:
        """Whether `size_bytes` more fit. One batch always fits an empty window, however large it is."""
        return self.used_bytes == 0 or self.used_bytes + size_bytes <= self.limit_bytes

    def take(self, size_bytes: int) -> None:
        """Uses credit."""
        self.used_bytes += size_bytes

    def give_back(self, size_bytes: int) -> None:
        """Returns credit."""
        self.used_bytes -= size_bytes
