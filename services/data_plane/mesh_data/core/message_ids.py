"""Message ids of this node's packets: they rise by one, and whether one was given out a moment ago is known.

A path error names the packet that was lost; one about a packet that this node did not send lately is not believed. Leaves
out everything else about packets.
"""

from __future__ import annotations

from collections import deque
from typing import Final

RECENT_S: Final = 2.0
"""An id is recent for so long after it was given out."""
_MARK_GAP_S: Final = 0.05
_MASK: Final = 0xFFFFFFFFFFFFFFFF


class MessageIds:
    """Numbers this node's packets, and knows which numbers are recent. `now` is monotonic seconds."""

    __slots__ = ("_last", "_marks")

    def __init__(self, first: int) -> None:
        self._last = first & _MASK
        self._marks: deque[tuple[float, int]] = deque()

    def next(self, now: float) -> int:
        """The next id."""
        self._last = (self._last + 1) & _MASK
        if not self._marks or now - self._marks[-1][0] >= _MARK_GAP_S:
            self._forget(now)
            self._marks.append((now, self._last))
        return self._last

    def is_recent(self, message_id: int, now: float) -> bool:
        """Whether it was given out within `RECENT_S`."""
        self._forget(now)
        if not self._marks:
            return False
        oldest = self._marks[0][1]
        return (message_id - oldest) & _MASK <= (self._last - oldest) & _MASK

    def _forget(self, now: float) -> None:
        while self._marks and now - self._marks[0][0] > RECENT_S:
            self._marks.popleft()
