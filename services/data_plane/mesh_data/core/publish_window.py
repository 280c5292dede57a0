"""The bytes that a publisher has in flight, within its own window and the budget of all.

Bytes in flight are counted twice: a flow (one producer's batches on one connection, or one call) has a window, and all flows
of a node share a budget that is never exceeded, however many they are. Two rules keep the budget fair. A flow that has
something unanswered may grow only to a quarter of what is free, so that the last ones to come still find room (dynamic
thresholds, Choudhury and Hahne 1998). A flow that has nothing unanswered and finds no room gets in line; while there is a
line nobody else takes anything, so its turn comes as soon as earlier batches are answered, and each of those has a
deadline. Leaves out: proposals (`meshraft.proposals`), futures, timers.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Generic, TypeVar

T = TypeVar("T")

MESSAGE_COST_BYTES: Final = 512
"""What a batch takes besides its bytes: tiny ones must count too."""
_SHARE_OF_FREE: Final = 4


class Budget(Generic[T]):
    """What all publishers of a node may have unanswered together; `T` is what the shell wants back of who waits."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self.flows = 0
        """Publishers that have a window, whether or not they use it."""
        self.line: deque[Credit[T]] = deque()
        """Who has nothing unanswered and found no room, longest wait first."""

    @property
    def free_bytes(self) -> int:
        """Bytes that are left."""
        return self.limit_bytes - self.used_bytes

    def next_in_line(self) -> T | None:
        """Who waits longest and should look again whether there is room."""
        return self.line[0].token if self.line else None


class Credit(Generic[T]):
    """Bytes that one publisher has unanswered, within its window and the budget of all.

    Neither waiting nor waking is done here: the shell calls `line_up` before it waits, and wakes `Budget.next_in_line`
    whenever bytes came back or the line moved on.
    """

    __slots__ = ("_is_closed", "_is_waiting", "_shared", "token", "used_bytes", "window_bytes")

    def __init__(self, window_bytes: int, shared: Budget[T], token: T) -> None:
        self.window_bytes = window_bytes
        self.used_bytes = 0
        self.token = token
        self._shared = shared
        self._is_waiting = False
        self._is_closed = False
        shared.flows += 1

    def has_room(self, size_bytes: int) -> bool:
        """Whether `size_bytes` more fit now. An empty window takes one batch of any size, if the budget has room for it."""
        shared = self._shared
        if self.used_bytes:
            limit = min(self.window_bytes, shared.free_bytes // _SHARE_OF_FREE)
            return not shared.line and self.used_bytes + size_bytes <= limit
        if shared.line and shared.line[0] is not self:
            return False
        return size_bytes <= shared.free_bytes or not shared.used_bytes

    def take(self, size_bytes: int) -> bool:
        """Uses credit. Returns whether the line moved on."""
        self.used_bytes += size_bytes
        self._shared.used_bytes += size_bytes
        return self._leave_line()

    def give_back(self, size_bytes: int) -> None:
        """Returns credit."""
        self.used_bytes -= size_bytes
        self._shared.used_bytes -= size_bytes

    def line_up(self) -> None:
        """Nothing fits now: with an empty window only what others give back can change that."""
        if not self.used_bytes and not self._is_waiting and not self._is_closed:
            self._is_waiting = True
            self._shared.line.append(self)

    def close(self) -> None:
        """The publisher is gone: what it used is the others' again, and so is its place in the line."""
        if self._is_closed:
            return
        self._is_closed = True
        self.give_back(self.used_bytes)
        self._leave_line()
        self._shared.flows -= 1

    def _leave_line(self) -> bool:
        if not self._is_waiting:
            return False
        self._is_waiting = False
        self._shared.line.remove(self)
        return True
