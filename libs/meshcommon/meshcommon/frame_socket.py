"""A WebSocket that carries binary frames, for lanes and for clients: what is known of the library (`picows`) after the handshake.

A frame handed out is whole, whoever cut it up on the way, and a copy of its own. What a peer can make this process hold is
bounded: frames by size, frames not yet taken by `_UNTAKEN_BYTES_MAX` and one buffer of the library, bytes not yet written by
the transport's limit, after which `send` waits. Nothing is compressed. Leaves out: opening one (`frame_ports`), and what frames mean.
Source: RFC 6455; ADR 0010 for the choice of the library.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from picows import WSCloseCode, WSFrame, WSListener, WSMsgType, WSTransport

CLOSE_TIMEOUT_S: Final = 1.0
"""What the other side has for answering a close."""
HEAD_BYTES: Final = 14
"""Room that `send` wants before a frame: the head of a WebSocket frame and its mask."""
_UNTAKEN_BYTES_MAX: Final = 256 * 1024
"""While more has come than was taken, nothing more is read."""
_FRAME_COST_BYTES: Final = 64
"""What a frame costs besides its bytes: empty ones must count too."""
_TCP_NOTSENT_LOWAT: Final = getattr(socket, "TCP_NOTSENT_LOWAT", 25)
_REASON_BYTES_MAX: Final = 120
"""A close frame has room for 123 bytes of reason."""


class SocketClosed(Exception):
    """The connection is gone; the text says why."""


class TextFrame(Exception):
    """The other side sent a text frame: it speaks another protocol."""


@dataclass(frozen=True, slots=True)
class SocketLimits:
    """How a connection is bounded.

    Attributes:
        frame_bytes_max: larger frames end the connection (close code 1009).
        write_buffer_bytes: `send` waits while more is not yet with the kernel.
        unsent_bytes_max: what the kernel may hold unsent; None leaves it to the kernel.
        ping_s: a peer that answers no ping within this time, once in this time, is dropped; None sends no pings.
    """

    frame_bytes_max: int
    write_buffer_bytes: int = 64 * 1024
    unsent_bytes_max: int | None = None
    ping_s: float | None = None


class FrameSocket(WSListener):
    """One connection that carries frames. Not for concurrent senders or receivers; belongs to one event loop."""

    def __init__(self, limits: SocketLimits) -> None:
        self._limits = limits
        self._transport: WSTransport | None = None
        self._remote = "?"
        self._frames: deque[bytes | None] = deque()
        """What came; None for a text frame."""
        self._untaken_bytes = 0
        self._parts: list[bytes] = []
        self._parts_bytes = 0
        self._came: asyncio.Future[None] | None = None
        self._is_reading = True
        self._writable: asyncio.Future[None] | None = None
        self._gone = asyncio.Event()

    @property
    def remote(self) -> str:
        """Address of the other end, for logs."""
        return self._remote

    @property
    def is_gone(self) -> bool:
        """Whether nothing of the connection is left."""
        return self._gone.is_set()

    async def send(self, frame: bytes | bytearray) -> None:
        """Writes a frame and waits while the connection has more unsent than it should.

        Args:
            frame: the frame; a bytearray has `HEAD_BYTES` of room before it, is used up, and saves a copy.

        Raises:
            SocketClosed: the connection is gone.
        """
        self.write(frame)
        while self._writable is not None:
            await asyncio.shield(self._writable)
        if self._gone.is_set():
            raise SocketClosed(self.reason)

    def write(self, frame: bytes | bytearray) -> None:
        """The same without waiting, for a caller that looks at `is_writable` before. Raises SocketClosed."""
        transport = self._transport
        if transport is None or self._gone.is_set() or transport.is_close_frame_sent:
            raise SocketClosed(self.reason)
        if isinstance(frame, bytearray):
            transport.send_reuse_external_bytearray(WSMsgType.BINARY, frame, HEAD_BYTES)
        else:
            transport.send(WSMsgType.BINARY, frame)

    @property
    def is_writable(self) -> bool:
        """Whether a frame may be written now: the connection is open and has no more unsent than it should."""
        return self._writable is None and not self._gone.is_set()

    async def receive(self) -> bytes:
        """The next frame.

        Raises:
            SocketClosed: the connection is gone.
            TextFrame: a text frame came.
        """
        while (frame := self._take()) is None:
            if self._gone.is_set():
                raise SocketClosed(self.reason)
            self._came = asyncio.get_running_loop().create_future()
            try:
                await self._came
            finally:
                self._came = None
        return frame

    def _take(self) -> bytes | None:
        if not self._frames:
            return None
        frame = self._frames.popleft()
        if frame is None:
            raise TextFrame
        self._untaken_bytes -= len(frame) + _FRAME_COST_BYTES
        if not self._is_reading and self._untaken_bytes <= _UNTAKEN_BYTES_MAX and self._transport is not None:
            self._is_reading = True
            if not self._gone.is_set():
                self._transport.underlying_transport.resume_reading()
        return frame

    async def close(self, reason: str) -> None:
        """Closes with a close frame; gives the other side a second to answer it."""
        transport = self._transport
        if transport is None or self._gone.is_set():
            return
        if not transport.is_close_frame_sent:
            transport.send_close(WSCloseCode.OK, reason.encode()[:_REASON_BYTES_MAX].decode(errors="ignore"))
        if not self._is_reading:
            # Its answer has to be read, whatever came before it.
            self._is_reading = True
            transport.underlying_transport.resume_reading()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._gone.wait()
        except TimeoutError:
            self.abort()

    def abort(self) -> None:
        """Drops the connection without a word; one that is gone already is left alone."""
        if self._transport is not None and not self._gone.is_set():
            self._transport.underlying_transport.abort()

    async def wait_closed(self) -> None:
        """Returns when the connection is gone."""
        await self._gone.wait()

    @property
    def reason(self) -> str:
        """Why the connection is gone."""
        closing = self._transport.close_handshake if self._transport is not None else None
        sent = closing.sent if closing is not None else None
        received = closing.recv if closing is not None else None
        if sent is not None and sent.code == WSCloseCode.MESSAGE_TOO_BIG:
            return f"the peer sent a frame of more than {self._limits.frame_bytes_max} bytes"
        if received is not None:
            return f"closed by the peer: {received.reason or _number(received.code)}"
        if sent is not None:
            return f"closed: {sent.reason or _number(sent.code)}"
        return "connection lost"

    # What picows calls

    def on_ws_connected(self, transport: WSTransport) -> None:
        """The handshake is done."""
        self._transport = transport
        wire = transport.underlying_transport
        address = wire.get_extra_info("peername")
        if isinstance(address, tuple):
            self._remote = f"{address[0]}:{address[1]}"
        wire.set_write_buffer_limits(high=self._limits.write_buffer_bytes)
        raw = wire.get_extra_info("socket")
        # A connection that is already gone tells so at the first frame.
        with contextlib.suppress(OSError):
            if raw is not None:
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._limits.unsent_bytes_max is not None:
                    raw.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, self._limits.unsent_bytes_max)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """A frame of any kind came."""
        kind = frame.msg_type
        if kind == WSMsgType.CLOSE:
            if not transport.is_close_frame_sent:
                transport.send_close(WSCloseCode.OK)
            transport.disconnect()
            asyncio.get_running_loop().call_later(CLOSE_TIMEOUT_S, self.abort)  # a peer that reads nothing more
        elif transport.is_close_frame_sent or kind in (WSMsgType.PING, WSMsgType.PONG):
            return
        elif frame.rsv1 or frame.rsv2 or frame.rsv3:
            self._refuse(WSCloseCode.PROTOCOL_ERROR, "reserved bits are set")
        elif kind == WSMsgType.BINARY and frame.fin and not self._parts:
            self._take_in(frame.get_payload_as_bytes())
        elif kind == WSMsgType.TEXT:
            self._take_in(None)
        else:
            self._join(frame, is_first=kind == WSMsgType.BINARY)

    def on_ws_disconnected(self, _transport: WSTransport) -> None:
        """The connection is gone."""
        self._gone.set()
        self.resume_writing()
        self._tell()

    def pause_writing(self) -> None:
        """More is unsent than should be."""
        if self._writable is None and not self._gone.is_set():
            self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        """Enough has been sent."""
        writable, self._writable = self._writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)

    def _join(self, frame: WSFrame, *, is_first: bool) -> None:
        """A part of a message that somebody on the way cut up."""
        if is_first == bool(self._parts):
            self._refuse(WSCloseCode.PROTOCOL_ERROR, "a fragment is out of place")
            return
        part = frame.get_payload_as_bytes()
        self._parts_bytes += len(part)
        # Parts count as frames do: empty ones cost memory too.
        cost_bytes = self._parts_bytes + len(self._parts) * _FRAME_COST_BYTES
        if cost_bytes > self._limits.frame_bytes_max:
            self._refuse(WSCloseCode.MESSAGE_TOO_BIG, "the message is too big")
            return
        self._parts.append(part)
        if frame.fin:
            whole, self._parts, self._parts_bytes = b"".join(self._parts), [], 0
            self._take_in(whole)

    def _take_in(self, frame: bytes | None) -> None:
        self._frames.append(frame)
        self._untaken_bytes += len(frame or b"") + _FRAME_COST_BYTES
        if self._untaken_bytes > _UNTAKEN_BYTES_MAX and self._is_reading and self._transport is not None:
            self._is_reading = False
            self._transport.underlying_transport.pause_reading()
        self._tell()

    def _tell(self) -> None:
        if self._came is not None and not self._came.done():
            self._came.set_result(None)

    def _refuse(self, code: WSCloseCode, reason: str) -> None:
        if self._transport is not None:
            self._transport.send_close(code, reason)
            asyncio.get_running_loop().call_later(CLOSE_TIMEOUT_S, self.abort)


def with_head(parts: Sequence[bytes | bytearray | memoryview]) -> bytearray:
    """Joins the parts of a frame behind the room that `send` wants."""
    return bytearray().join((bytes(HEAD_BYTES), *parts))


def _number(code: Any) -> int:
    """A close code that picows knows is an enumeration's member, any other a number."""
    return int(getattr(code, "value", code))
