"""Remembers hash chains of a replica, and compares those of a stream's members at one log index.

Members are rarely at the same index, so each tells the chains at some indexes; the one that most of them know is compared,
the highest of those. Leaves out: asking them, and reading logs. Source: architecture I4.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

CHAIN_BYTES: Final = 32
MARK_EVERY: Final = 64
MARKS_MAX: Final = 64
"""Members that are at most some thousand entries apart know a common index."""


def next_mark(index: int) -> int:
    """The first index from `index` on of which `ChainMemory` remembers the chain."""
    return -(-index // MARK_EVERY) * MARK_EVERY


KeyT = TypeVar("KeyT")


@dataclass(frozen=True, slots=True)
class ChainAt:
    """The hash chain after the entry at `index`."""

    index: int
    chain: bytes


def checked_marks(marks: Iterable[tuple[int, bytes]], applied_index: int) -> dict[int, bytes]:
    """What another node says that it knows, by index.

    Raises:
        ValueError: it is more than a member remembers, not in order, or no digests.
    """
    known: dict[int, bytes] = {}
    last = -1
    for index, chain in marks:
        if not last < index <= applied_index or len(chain) != CHAIN_BYTES:
            raise ValueError("marks that are out of order, or no digests")
        if len(known) > MARKS_MAX + 1:
            raise ValueError("more marks than a member remembers")
        known[index] = chain
        last = index
    return known


class ChainMemory:
    """Chains that one replica knows: where its log begins, and at some later indexes."""

    def __init__(self) -> None:
        self.base = ChainAt(0, b"")
        """Where the log that is kept begins."""
        self._marks: deque[ChainAt] = deque(maxlen=MARKS_MAX)

    def begin(self, index: int, chain: bytes) -> None:
        """The replica starts anew, its log at `index`."""
        self.base = ChainAt(index, chain)
        self._marks.clear()

    def truncate(self, index: int, chain: bytes) -> None:
        """The log now begins at `index`."""
        self.base = ChainAt(index, chain)

    def note(self, index: int, chain: bytes) -> None:
        """An entry was applied."""
        if index % MARK_EVERY == 0:
            self._marks.append(ChainAt(index, chain))

    def known(self, applied_index: int, chain: bytes) -> list[ChainAt]:
        """What is known, ascending, `applied_index` last."""
        later = [mark for mark in self._marks if self.base.index < mark.index < applied_index]
        base = [self.base] if self.base.index < applied_index else []
        return [*base, *later, ChainAt(applied_index, chain)]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the comparison found.

    Attributes:
        index: compared index, 0 when no two members know a common one.
        chain: what most members have there; empty when there is no such majority among those that know it.
        is_divergent: not all have the same.
    """

    index: int
    chain: bytes
    is_divergent: bool


def compare(marks: Mapping[KeyT, Mapping[int, bytes]]) -> Comparison:
    """Compares members by their chains at indexes."""
    known = Counter(index for chains in marks.values() for index in chains)
    if not known:
        return Comparison(0, b"", is_divergent=False)
    index = max(known, key=lambda item: (known[item], item))
    if known[index] < 2:
        return Comparison(0, b"", is_divergent=False)
    chains = Counter(member[index] for member in marks.values() if index in member)
    chain, votes = chains.most_common(1)[0]
    return Comparison(index, chain if votes * 2 > known[index] else b"", is_divergent=len(chains) > 1)
