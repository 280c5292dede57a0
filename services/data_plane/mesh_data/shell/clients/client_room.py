"""What all connections of the client port together may hold: batches that wait for their readers, producers and reads.

One object a listener. Leaves out: what one connection may hold (`client_session`). Source: docs/design/bounds.md.
"""

from __future__ import annotations

from typing import Final

from mesh_data.shell.streams.byte_room import ByteCount

UNWRITTEN_BYTES_MAX: Final = 128 * 1024 * 1024
"""Bytes of batches that wait for their readers to take them."""
NODE_FLOWS_MAX: Final = 4096
"""Publishers of this node at once, idle ones included; about 10 KiB each. Every connection may have FLOWS_KEPT in any case."""
FLOWS_KEPT: Final = 8
NODE_READS_MAX: Final = 4096
"""Reads of all connections at once. Every connection may have READS_KEPT in any case."""
READS_KEPT: Final = 4


class ClientRoom:
    """What the connections of one listener hold."""

    def __init__(self) -> None:
        self.unwritten = ByteCount(UNWRITTEN_BYTES_MAX)
        self.reads = 0
        """Reads that are under way."""
