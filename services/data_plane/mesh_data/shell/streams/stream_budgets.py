"""What all callers of this node together may have under way: bytes of publishers, and bytes read from local logs.

One object a node, made by `main` and given to the ports that serve callers. Leaves out: what one connection may hold.
Source: docs/design/bounds.md.
"""

from __future__ import annotations

import asyncio
from typing import Final

from mesh_data.core.publish_window import Budget
from mesh_data.shell.streams.byte_room import ByteRoom

PUBLISH_BYTES_MAX: Final = 96 * 1024 * 1024
"""Unanswered bytes of all publishers of this node. What is on its way to another node is there twice for a moment."""
READ_BYTES_MAX: Final = 64 * 1024 * 1024
"""Bytes of local logs under way for all readers of this node at a time, other nodes included."""


class StreamBudgets:
    """The budgets of one node."""

    def __init__(self) -> None:
        self.publish: Budget[asyncio.Event] = Budget(PUBLISH_BYTES_MAX)
        self.read_room = ByteRoom(READ_BYTES_MAX)
