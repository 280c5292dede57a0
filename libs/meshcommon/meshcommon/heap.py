"""Gives freed memory back to the system after a burst.

glibc keeps what was freed for the next allocation. After a burst of frames of a megabyte each a process may so hold
hundreds of MB that nobody uses, for as long as it lives. `malloc_trim` returns them. Called only after the process has
grown, in a thread, because it takes some milliseconds. Does nothing where the C library has no such call. Leaves out
limits: what a peer may make a process hold is bounded where it is taken. Source: malloc_trim(3).
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Final

PERIOD_S: Final = 2.0
GROWN_BYTES: Final = 16 * 1024 * 1024
"""Growth since the last trim, or over the least that was seen since, that is worth trims."""
TRIMS: Final = 15
"""Trims after a growth, one at each look: what it grew by may be in use for a while before it is freed."""
COLLECT_EVERY: Final = 2
"""Of the trims after a growth, how many go by between two runs of the cycle collector, which stop the service for a while."""
_PAGE_BYTES: Final = 4096
_STATM: Final = Path("/proc/self/statm")


def resident_bytes() -> int:
    """Memory of this process that is in RAM; 0 where the system does not tell."""
    try:
        return int(_STATM.read_text().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return 0


def find_trim() -> Callable[[], object] | None:
    """The C library's call, if it has one."""
    call = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return None if call is None else lambda: call(0)


async def give_back(
    period_s: float = PERIOD_S,
    resident: Callable[[], int] = resident_bytes,
    trim: Callable[[], object] | None = None,
) -> None:
    """Trims when the process has grown, until cancelled; returns at once where that is not possible."""
    trim = trim or find_trim()
    if trim is None:
        return
    settled = resident()
    trims_due = 0
    while True:
        await asyncio.sleep(period_s)
        now = resident()
        if now - settled >= GROWN_BYTES:
            trims_due = TRIMS
        if trims_due:
            trims_due -= 1
            if trims_due % COLLECT_EVERY == 0:
                gc.collect()
            await asyncio.to_thread(trim)
            now = resident()
        settled = now if trims_due else min(settled, now)
