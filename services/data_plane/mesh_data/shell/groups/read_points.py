"""Read points of one replica as futures, and how new they make its view.

Leaves out: waiting until the entry at a read point is applied (`read_call`). Source: Ongaro §6.4 (ReadIndex).
"""

from __future__ import annotations

import asyncio
import math
from typing import Any

from mesh_data.core.stream_requests import Freshness
from meshraft.group import RaftGroup


class ReadPoints:
    """Asks the group for read points."""

    def __init__(self, group: RaftGroup[Any, Any]) -> None:
        self._group = group

    def ask(self) -> tuple[int, asyncio.Future[int]]:
        """Asks the leader for a read point; the future may never be done. Give the token to `forget`. Raises RaftError."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[int] = loop.create_future()

        def answer(index: int | None) -> None:
            if index is None:
                future.cancel()
            elif not future.done():
                future.set_result(index)

        return self._group.ask_read_point(loop.time(), answer), future

    def forget(self, token: int) -> None:
        """Nobody waits for that read point any more."""
        self._group.read_points.forget(token)

    def freshness(self, applied_index: int) -> Freshness:
        """How new the replica's view is, by the last read point that the leader gave it."""
        confirmed_at = self._group.read_points.confirmed_at
        if confirmed_at is None:
            return Freshness(applied_index, None)
        return Freshness(applied_index, math.ceil((asyncio.get_running_loop().time() - confirmed_at) * 1000))
