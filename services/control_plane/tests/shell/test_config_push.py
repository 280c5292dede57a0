"""Pushing a configuration: what cannot be sent is tried again, and ends nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

from mesh_control.shell.changes import Changes
from mesh_control.shell.config_push import ConfigPush
from meshcommon.admin import Readiness
from meshtest.waiting import eventually


async def test_push_that_fails_unexpectedly_is_tried_again() -> None:
    attempts = 0

    async def push() -> None:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise ValueError("a view that outgrew its limit")

    async def silent() -> AsyncIterator[object]:
        await asyncio.Event().wait()
        yield object()

    channel: Any = SimpleNamespace(unary_stream=lambda *_, **__: lambda *_, **__: silent())
    readiness = Readiness()
    pushing = ConfigPush("routing", channel, push, lambda: 1, Changes(), readiness)
    running = asyncio.create_task(pushing.run(), name="push")

    async def warns() -> bool:
        return any("routing" in warning for warning in readiness.warnings())

    async def is_told() -> bool:
        return attempts == 3 and not readiness.warnings()

    await eventually("a warning", warns, poll_s=0.01)
    await eventually("the third attempt", is_told, poll_s=0.01)
    assert await pushing.settle(1.0)
    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
