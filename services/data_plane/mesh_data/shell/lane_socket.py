"""The small interface between lanes and the WebSocket library: send a frame, receive a frame, close, abort.

Purpose: all that is known about `websockets` is known here and in `listener`/`dialler`. Leaves out: what frames mean.
Source: architecture §5 "Lane", "Detection" (unsent bytes in the kernel are capped); RFC 6455.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any, Final

from websockets.asyncio.connection import Connection
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.protocol import State

from meshwire.frame import MAX_FRAME_BYTES

SUBPROTOCOL: Final = "mesh.v1"
CLOSE_TIMEOUT_S: Final = 1.0
_UNSENT_BYTES_MAX: Final = 128 * 1024
"""What the kernel may hold unsent: more would let bulk that is already written delay control."""
_WRITE_BUFFER_BYTES: Final = 64 * 1024
_TCP_NOTSENT_LOWAT: Final = getattr(socket, "TCP_NOTSENT_LOWAT", 25)
_REASON_BYTES_MAX: Final = 120
"""A close frame has room for 123 bytes of reason."""

LANE_OPTIONS: Final[dict[str, Any]] = {
    "compression": None,
    "max_size": MAX_FRAME_BYTES,
    # Lanes beat by themselves, faster and measured.
    "ping_interval": None,
    "ping_timeout": None,
    "close_timeout": CLOSE_TIMEOUT_S,
    "write_limit": _WRITE_BUFFER_BYTES,
    # Frames read ahead: few, because a reader takes them all in one turn of the loop, and each may hold megabytes.
    "max_queue": 4,
}
"""Options that both sides give to `websockets`."""


class LaneClosed(Exception):
    """The connection is gone; the text says why."""


class TextFrame(Exception):
    """The other side sent a text frame: it speaks another protocol."""


class LaneSocket:
    """One WebSocket connection that carries frames. Not for concurrent senders."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        raw = connection.transport.get_extra_info("socket")
        # A connection that is already gone tells so at the first frame.
        with contextlib.suppress(OSError):
            if raw is not None:
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                raw.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, _UNSENT_BYTES_MAX)

    @property
    def remote(self) -> str:
        """Address of the other end, for logs."""
        address = self._connection.remote_address
        return f"{address[0]}:{address[1]}" if address else "?"

    async def send(self, frame: bytes) -> None:
        """Writes a frame and waits while the connection has more unsent than it should.

        Raises:
            LaneClosed: the connection is gone.
        """
        try:
            await self._connection.send(frame)
        except ConnectionClosed as error:
            raise LaneClosed(_reason(error)) from None

    async def receive(self) -> bytes:
        """The next frame.

        Raises:
            LaneClosed: the connection is gone.
            TextFrame: a text frame came.
        """
        try:
            frame = await self._connection.recv()
        except ConnectionClosed as error:
            raise LaneClosed(_reason(error)) from None
        if isinstance(frame, str):
            raise TextFrame
        return frame

    async def close(self, reason: str) -> None:
        """Closes with a close frame; gives the other side a second to answer it."""
        cut = reason.encode()[:_REASON_BYTES_MAX].decode(errors="ignore")
        await self._connection.close(CloseCode.NORMAL_CLOSURE, cut)

    def abort(self) -> None:
        """Drops the connection without a word; one that is gone already is left alone."""
        # A transport that asyncio has closed for good must not be touched again.
        if self._connection.state is not State.CLOSED:
            self._connection.transport.abort()

    async def wait_closed(self) -> None:
        """Returns when the connection is gone."""
        await asyncio.shield(self._connection.wait_closed())


def _reason(error: ConnectionClosed) -> str:
    if error.sent is not None and error.sent.code == CloseCode.MESSAGE_TOO_BIG:
        return f"the peer sent a frame of more than {MAX_FRAME_BYTES} bytes"
    if error.rcvd is not None:
        return f"closed by the peer: {error.rcvd.reason or error.rcvd.code}"
    if error.sent is not None:
        return f"closed: {error.sent.reason or error.sent.code}"
    return f"connection lost: {error.__cause__}" if error.__cause__ is not None else "connection lost"
