"""Waking up when something changed, without polling and without lost wake-ups."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Changes:
    """A change that many tasks can wait for. One event loop only."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    def notify(self) -> None:
        """Wakes everyone who waits."""
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        self._waiting.clear()

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Waits for the next `notify`; False when `timeout_s` passed first."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            async with asyncio.timeout(timeout_s):
                await future
        except TimeoutError:
            return False
        finally:
            self._waiting.discard(future)
        return True

    async def wait_until(self, predicate: Callable[[], bool], timeout_s: float) -> bool:
        """Waits until `predicate` holds, asking again at each change; False when `timeout_s` passed first."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while not predicate():
            left_s = deadline - asyncio.get_running_loop().time()
            if left_s <= 0 or not await self.wait(left_s):
                return predicate()
        return True
