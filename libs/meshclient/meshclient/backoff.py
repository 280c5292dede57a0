"""Waiting between tries: doubled each time up to a cap, with full jitter so that clients do not come back together."""

from __future__ import annotations

import asyncio
import random
from typing import Final

_FIRST_S: Final = 0.05
_MAX_S: Final = 1.0


class Backoff:
    """One row of tries; make a new one after progress."""

    def __init__(self) -> None:
        self._limit_s = _FIRST_S

    async def wait(self) -> None:
        """Waits before the next try."""
        await asyncio.sleep(random.uniform(0, self._limit_s))
        self._limit_s = min(self._limit_s * 2, _MAX_S)
