"""A budget of bytes for work that is short: whoever finds no room waits, first come, first served.

Its use is what a burst would otherwise hold at once, as when a commit wakes hundreds of readers. Everybody holds a share
only while something is under way that ends by itself, so that nobody can keep the others out. Leaves out: bytes that wait
for a peer or a quorum (`publish_window`, `client_session`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress


class ByteRoom:
    """Room for `limit_bytes` at a time. For one event loop."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def waiting(self) -> int:
        """How many wait for room."""
        return len(self._waiting)

    @asynccontextmanager
    async def hold(self, size_bytes: int) -> AsyncGenerator[None]:
        """Holds so many bytes, or all there are when it is more, as soon as it is its turn."""
        size_bytes = min(size_bytes, self.limit_bytes)
        if self._waiting or self.held_bytes + size_bytes > self.limit_bytes:
            await self._turn(size_bytes)
        else:
            self.held_bytes += size_bytes
        try:
            yield
        finally:
            self._give_back(size_bytes)

    async def _turn(self, size_bytes: int) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size_bytes, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give_back(size_bytes)
            else:
                with suppress(ValueError):  # it was passed over already
                    self._waiting.remove((size_bytes, turn))
                self._admit()
            raise

    def _give_back(self, size_bytes: int) -> None:
        self.held_bytes -= size_bytes
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self.held_bytes + self._waiting[0][0] <= self.limit_bytes:
            size_bytes, turn = self._waiting.popleft()
            if not turn.cancelled():
                self.held_bytes += size_bytes
                turn.set_result(None)


class ByteCount:
    """Bytes that are held in several places, and how many they should be at most."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0

    @property
    def is_full(self) -> bool:
        """Whether nothing is left."""
        return self.used_bytes >= self.limit_bytes

    def share_bytes(self, most_bytes: int) -> int:
        """What one holder may have: `most_bytes`, less when little is left, so that those that come last find some."""
        return max(0, min(most_bytes, (self.limit_bytes - self.used_bytes) // 4))
