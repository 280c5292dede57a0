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
from typing import Generic, NamedTuple, TypeAlias, TypeVar

T = TypeVar("T")

Key: TypeAlias = tuple[int, int, int]
"""Producer, its epoch, first sequence: what tells a repetition."""


class Outcome(Enum):
    """What became of a proposal."""

    COMMITTED = "committed"
    OVERWRITTEN = "overwritten"
    """Certainly not committed: another entry has its index."""


@dataclass(slots=True)
class _Proposal(Generic[T]):
    """Entries from `index` on, `count` of them, that are not decided yet; they were proposed together."""

    term: int
    index: int
    size_bytes: int
    token: T
    count: int
    key: Key | None = None
    more: list[T] | None = None


class Decided(NamedTuple, Generic[T]):
    """What became of consecutive entries of one proposal."""

    token: T
    first: int
    entries: int
    outcome: Outcome


class ProposalWindow(Generic[T]):
    """Outstanding proposals of one group at one member; `T` is whatever the shell wants back."""

    def __init__(self) -> None:
        self._proposals: deque[_Proposal[T]] = deque()
        self._newest: dict[int, Key] = {}
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._proposals)

    def add(self, term: int, index: int, size_bytes: int, token: T, count: int = 1, key: Key | None = None) -> list[T]:
        """Notes a proposal of `count` entries. Returns tokens that reach its index: what they have there was cut off our log."""
        overwritten: list[T] = []
        while self._proposals and self._proposals[-1].index + self._proposals[-1].count > index:
            overwritten += _tokens(self._pop_last())
        self._proposals.append(_Proposal(term, index, size_bytes, token, count, key))
        if key is not None:
            self._newest[key[0]] = key
        self.size_bytes += size_bytes
        return overwritten

    def may_hold(self, key: Key) -> bool:
        """Whether a proposal with this key may be outstanding; a cheap no for all that come for the first time."""
        newest = self._newest.get(key[0])
        return newest is not None and key <= newest

    def join(self, key: Key, token: T) -> bool:
        """Lets `token` share the outcome of a proposal with this key, if one is outstanding.

        A publisher that got no answer in time sends again. Proposed once more, the batch would make the log longer just
        when it is too slow, and be found to be a repetition only when it is committed.
        """
        for proposal in self._proposals:
            if proposal.key == key:
                proposal.more = [*(proposal.more or ()), token]
                return True
        return False

    def committed(self, index: int, term: int) -> list[tuple[T, Outcome]]:
        """The entry at `index` of `term` was committed: what is decided by it, oldest first."""
        return [(decided.token, decided.outcome) for decided in self.committed_run(index, index, term)]

    def committed_run(self, first: int, last: int, term: int) -> list[Decided[T]]:
        """The entries from `first` to `last` were committed, all of `term`: what is decided by them, oldest first."""
        decided: list[Decided[T]] = []
        proposals = self._proposals
        while proposals and proposals[0].index <= last:
            proposal = proposals[0]
            is_passed = proposal.index < first
            count = min(proposal.count, (first if is_passed else last + 1) - proposal.index)
            is_these = not is_passed and proposal.term == term
            outcome = Outcome.COMMITTED if is_these else Outcome.OVERWRITTEN
            decided.append(Decided(proposal.token, proposal.index, count, outcome))
            if proposal.more is not None:
                decided += [Decided(token, proposal.index, count, outcome) for token in proposal.more]
            if count == proposal.count:
                proposals.popleft()
                self.size_bytes -= proposal.size_bytes
            else:
                proposal.index += count
                proposal.count -= count
        if not proposals:
            self._newest.clear()
        return decided

    def take_all(self) -> list[T]:
        """Everything outstanding, its outcome unknown: the group closed, or a snapshot jumped over the indexes."""
        tokens = [token for proposal in self._proposals for token in _tokens(proposal)]
        self._proposals.clear()
        self._newest.clear()
        self.size_bytes = 0
        return tokens

    def _pop_last(self) -> _Proposal[T]:
        proposal = self._proposals.pop()
        self.size_bytes -= proposal.size_bytes
        return proposal


def _tokens(proposal: _Proposal[T]) -> list[T]:
    return [proposal.token, *(proposal.more or ())]


class Credit:
    """Bytes that one publisher may have unanswered, out of what all publishers of a node may have together."""

    def __init__(self, limit_bytes: int, shared: Credit | None = None) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._shared = shared

    def has_room(self, size_bytes: int) -> bool:
        """Whether `size_bytes` more fit. One batch always fits an empty window, however large it is."""
        if self.used_bytes == 0:
            return True
        limits = [self] if self._shared is None else [self, self._shared]
        return all(credit.used_bytes + size_bytes <= credit.limit_bytes for credit in limits)

    def take(self, size_bytes: int) -> None:
        """Uses credit."""
        self.used_bytes += size_bytes
        if self._shared is not None:
            self._shared.used_bytes += size_bytes

    def give_back(self, size_bytes: int) -> None:
        """Returns credit."""
        self.used_bytes -= size_bytes
        if self._shared is not None:
            self._shared.used_bytes -= size_bytes

    def close(self) -> None:
        """The publisher is gone: what it used is the others' again."""
        self.give_back(self.used_bytes)
        self._shared = None
