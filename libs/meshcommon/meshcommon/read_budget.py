"""What all connections of one port together may hold of what was sent to them and not yet used.

Each connection may always hold its share. What some hold beyond that counts against one limit; when it is exceeded, those
that have completed no frame for the longest time are ended, until the rest fits. (They are not paused: the receive buffer of
a connection never shrinks, so only its end gives the memory back.) A client that is still there connects again.
Leaves out: measuring and ending connections (`frame_socket`). Pure. Source: architecture §11 "Everything from outside".
"""

from __future__ import annotations

from typing import Protocol


class Holder(Protocol):
    """A connection, as the budget sees it."""

    def evict(self) -> None:
        """End at once."""


class ReadBudget:
    """Bytes held beyond the shares. Connections are kept in the order of their last sign of progress."""

    def __init__(self, limit_bytes: int, share_bytes: int) -> None:
        """`share_bytes` of each connection are free; the rest of all together is at most `limit_bytes`."""
        self._limit_bytes = limit_bytes
        self.share_bytes = share_bytes
        self._charged: dict[Holder, int] = {}
        self.held_bytes = 0
        """Bytes beyond the shares, of all connections."""
        self.evicted = 0
        """Connections that were ended to make room."""

    def charge(self, holder: Holder, held_bytes: int) -> None:
        """`holder` holds that much now; others, at last itself, may be evicted for it."""
        beyond = max(held_bytes - self.share_bytes, 0)
        before = self._charged.get(holder)
        if before is None:
            if not beyond:
                return
            before = 0
        self._charged[holder] = beyond
        self.held_bytes += beyond - before
        if self.held_bytes <= self._limit_bytes:
            return
        others = [item for item, charged in self._charged.items() if charged and item is not holder]
        for victim in [*others, holder]:
            if self.held_bytes <= self._limit_bytes:
                return
            self.release(victim)
            self.evicted += 1
            victim.evict()

    def progressed(self, holder: Holder) -> None:
        """`holder` has completed a frame: it is the last to be evicted now."""
        charged = self._charged.pop(holder, None)
        if charged is not None:
            self._charged[holder] = charged

    def release(self, holder: Holder) -> None:
        """`holder` is gone, or as good as gone."""
        self.held_bytes -= self._charged.pop(holder, 0)
