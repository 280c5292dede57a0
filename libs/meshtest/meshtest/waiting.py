"""Waiting for a condition of a running system, with a deadline and a message that says what was seen last."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from meshcommon.errors import MeshError

POLL_S: Final = 0.05
ValueT = TypeVar("ValueT")


class ConditionNotMetError(Exception):
    """The deadline passed."""


async def eventually(
    what: str, look: Callable[[], Awaitable[ValueT | None]], timeout_s: float = 30.0, poll_s: float = POLL_S
) -> ValueT:
    """Calls `look` until it returns something true, and returns that.

    Args:
        what: The condition in words, for the error.
        look: Looks once; a MeshError that it raises counts as "not yet" and is shown when time is up.
        timeout_s: Deadline in seconds.
        poll_s: Pause between two looks in seconds.

    Raises:
        ConditionNotMetError: Time is up.
    """
    deadline = asyncio.get_running_loop().time() + timeout_s
    last: object = None
    while True:
        try:
            value = await look()
            if value:
                return value
            last = value
        except MeshError as error:
            last = error
        if asyncio.get_running_loop().time() > deadline:
            raise ConditionNotMetError(f"not within {timeout_s:.0f} s: {what} (last seen: {last!r})")
        await asyncio.sleep(poll_s)
