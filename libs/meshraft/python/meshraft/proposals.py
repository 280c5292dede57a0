"""Proposals of one group that this member has appended and that are not decided, and who waits for them.

A proposal took effect if and only if the entry committed at its index has its term. When leadership is lost nothing is
known until then, so proposals stay here: the next committed entry at their index tells, and so does any entry at a later
index. A snapshot that jumps over them leaves their outcome unknown. Waiters bring deadlines of their own. Leaves out: proposing,
and what an error is. Source: Ongaro's thesis §8 (a new leader may commit or overwrite what an earlier one appended).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeAlias, TypeVar

R = TypeVar("R")
E = TypeVar("E")
R_contra = TypeVar("R_contra", contravariant=True)
E_contra = TypeVar("E_contra", contravariant=True)

Key: TypeAlias = tuple[int, int, int]
"""Identity of a proposal that may be repeated: client, its epoch, sequence. Sequences of one client and epoch rise."""


class Waiter(Protocol[R_contra, E_contra]):
    """Waits for the entries of one proposal, which are decided in order: in one piece, or in several."""

    def committed(self, index: int, count: int, result: R_contra) -> None:
        """The next `count` entries, from `index` on, were applied; `result` is that of the whole run they were in."""

    def failed(self, count: int, error: E_contra) -> None:
        """The next `count` entries were overwritten, or their outcome is unknown: `error` says which."""


@dataclass(slots=True)
class _Proposal(Generic[R, E]):
    """Entries from `index` on, `count` of them, that are not decided yet; they were proposed together."""

    term: int
    index: int
    size_bytes: int
    waiter: Waiter[R, E]
    count: int
    key: Key | None = None
    others: list[Waiter[R, E]] | None = None

    def waiters(self) -> Iterator[Waiter[R, E]]:
        yield self.waiter
        if self.others is not None:
            yield from self.others


class Proposals(Generic[R, E]):
    """Undecided proposals; `R` is what a state machine makes of entries, `E` what a waiter is told instead.

    A waiter may propose again while it is told.
    """

    def __init__(self, overwritten: Callable[[], E], unknown: Callable[[str], E]) -> None:
        """Neither is called before a proposal comes to that.

        Args:
            overwritten: makes the error of entries that certainly did not take effect.
            unknown: makes the error of entries of which nobody here can say that; takes a sentence with the reason.
        """
        self._overwritten = overwritten
        self._unknown = unknown
        self._proposals: deque[_Proposal[R, E]] = deque()
        self._newest: dict[int, Key] = {}
        self.size_bytes = 0
        """Bytes of entries in proposals of which some are not decided."""

    def __len__(self) -> int:
        return len(self._proposals)

    def add(
        self, term: int, index: int, size_bytes: int, waiter: Waiter[R, E], count: int = 1, key: Key | None = None
    ) -> None:
        """Notes a proposal of `count` entries. With a `key` a repetition finds it.

        Proposals that reach its index were cut off this member's log: this one leads again after another leader did.
        """
        cut_off: list[_Proposal[R, E]] = []
        while self._proposals and self._proposals[-1].index + self._proposals[-1].count > index:
            cut_off.append(self._proposals.pop())
            self.size_bytes -= cut_off[-1].size_bytes
        self._proposals.append(_Proposal(term, index, size_bytes, waiter, count, key))
        if key is not None:
            self._newest[key[0]] = key
        self.size_bytes += size_bytes
        for proposal in cut_off:
            # Gone from this log, but not from every other: until something is committed at its index it may come back.
            _fail(proposal, self._unknown("The leadership was lost and won again meanwhile."))

    def may_hold(self, key: Key) -> bool:
        """Whether a proposal with this key may be undecided; a cheap no for all that come for the first time."""
        newest = self._newest.get(key[0])
        return newest is not None and key <= newest

    def join(self, key: Key, waiter: Waiter[R, E]) -> bool:
        """Lets `waiter` share the outcome of an undecided proposal with this key; false when there is none.

        A client that got no answer in time sends again. Proposed once more, the entry would make the log longer just when it
        is too slow, and be found to be a repetition only when it is committed.
        """
        for proposal in self._proposals:
            if proposal.key == key:
                proposal.others = [*(proposal.others or ()), waiter]
                return True
        return False

    def decide(self, first: int, last: int, term: int, result: R) -> None:
        """The entries from `first` to `last`, all of `term`, were applied and came to `result`: tells who waits for them."""
        proposals = self._proposals
        while proposals and proposals[0].index <= last:
            proposal = proposals[0]
            index = proposal.index
            is_passed = index < first
            count = min(proposal.count, (first if is_passed else last + 1) - index)
            if count == proposal.count:
                proposals.popleft()
                self.size_bytes -= proposal.size_bytes
                if not proposals:
                    self._newest.clear()
            else:
                proposal.index += count
                proposal.count -= count
            if is_passed or proposal.term != term:
                for waiter in proposal.waiters():
                    waiter.failed(count, self._overwritten())
                continue
            proposal.waiter.committed(index, count, result)
            for waiter in proposal.others or ():
                waiter.committed(index, count, result)

    def jumped_over(self) -> None:
        """A snapshot jumped over the indexes."""
        self.fail(self._unknown("This node fell behind and was sent a snapshot."))

    def fail(self, error: E) -> None:
        """Tells everybody who waits `error`: the group closed, for instance."""
        if not self._proposals:
            return
        proposals, self._proposals = self._proposals, deque()
        self._newest.clear()
        self.size_bytes = 0
        for proposal in proposals:
            _fail(proposal, error)


def _fail(proposal: _Proposal[R, E], error: E) -> None:
    for waiter in proposal.waiters():
        waiter.failed(proposal.count, error)
