"""A task whose cancellation a library lost still ends."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from meshcommon.cancellation import raise_if_cancelled


async def test_a_lost_cancellation_ends_the_task_at_the_next_look() -> None:
    rounds = 0

    async def loop() -> None:
        nonlocal rounds
        while rounds < 3:
            rounds += 1
            with contextlib.suppress(asyncio.CancelledError):  # as `wait_for` of Python 3.11 does
                await asyncio.sleep(60)
            raise_if_cancelled()

    task = asyncio.create_task(loop())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert rounds == 1


async def test_a_timeout_of_the_task_is_no_request_to_end() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await asyncio.sleep(60)
    raise_if_cancelled()
