"""Freed memory is given back after growth, and only then."""

from __future__ import annotations

import asyncio
import contextlib

from meshcommon.heap import GROWN_BYTES, TRIMS, find_trim, give_back, resident_bytes


async def test_trims_after_growth_and_again_when_it_was_in_use_at_first() -> None:
    held = {"used": 100 << 20, "freed": 0}
    trims: list[int] = []

    def trim() -> None:
        trims.append(held["freed"])
        held["freed"] = 0

    task = asyncio.create_task(give_back(0.001, lambda: held["used"] + held["freed"], trim), name="heap")
    try:
        await asyncio.sleep(0.02)
        held["used"] += GROWN_BYTES - 1
        await asyncio.sleep(0.02)
        assert trims == []
        held["used"] = 900 << 20
        async with asyncio.timeout(30):
            while len(trims) < TRIMS:  # noqa: ASYNC110 - a plain value changes
                await asyncio.sleep(0.01)
        assert trims == [0] * TRIMS
        held["used"] += GROWN_BYTES
        await asyncio.sleep(0.003)
        held["used"], held["freed"] = 100 << 20, 800 << 20
        async with asyncio.timeout(30):
            while held["freed"]:  # noqa: ASYNC110 - a plain value changes
                await asyncio.sleep(0.01)
        assert max(trims) == 800 << 20
        async with asyncio.timeout(30):
            while len(trims) < 2 * TRIMS:  # noqa: ASYNC110 - a plain value changes
                await asyncio.sleep(0.01)
        count = len(trims)
        await asyncio.sleep(0.05)
        assert len(trims) == count
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def test_this_process_can_be_looked_at_and_trimmed() -> None:
    assert resident_bytes() > 1 << 20
    trim = find_trim()
    if trim is not None:
        trim()
