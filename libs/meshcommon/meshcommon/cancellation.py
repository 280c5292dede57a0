"""Cancellation that a library lost.

`asyncio.wait_for` of Python 3.11 returns normally when its task is cancelled just as the awaited thing ends; redis-py sends
each command that way. The task then goes on, and whoever waits for its end waits for ever. The request stays counted in
`Task.cancelling`, so a loop can look there after each call. Source: python/cpython issue 86296.
"""

from __future__ import annotations

import asyncio


def raise_if_cancelled() -> None:
    """Ends the calling task if it was asked to end and the request was lost.

    Call it on each round of a loop that awaits a library, outside any `asyncio.timeout`.

    Raises:
        asyncio.CancelledError: The task was cancelled.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
