"""A WebSocket that carries binary frames, for lanes and for clients: what is known of the library (`picows`) after the handshake.

A frame handed out is whole, whoever cut it up on the way, and a copy of its own. What a peer can make this process hold is
bounded (docs/design/bounds.md): frames by size, and until the peer is proved by much less; frames not yet taken by
`_UNTAKEN_BYTES_MAX`; both of all connections of a port by a `ReadBudget`; bytes not yet written by the transport's limit, after
which `send` waits and pings are not answered; and a peer that reads nothing for `stall_s` while something waits is dropped.
Nothing is compressed. Leaves out: opening one (`frame_ports`), and what frames mean. Source: RFC 6455; ADR 0010 for the
choice of the library.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from picows import WSCloseCode, WSFrame, WSListener, WSMsgType, WSTransport

from meshcommon.address import host_group
from meshcommon.boot_certificate import certificate_digest
from meshcommon.peer_text import printable
from meshcommon.read_budget import ReadBudget

CLOSE_TIMEOUT_S: Final = 1.0
"""What the other side has for answering a close."""
HEAD_BYTES: Final = 14
"""Room that `send` wants before a frame: the head of a WebSocket frame and its mask."""
_UNTAKEN_BYTES_MAX: Final = 256 * 1024
"""While more has come than was taken, nothing more is read."""
_FRAME_COST_BYTES: Final = 64
"""What a frame costs besides its bytes: empty ones must count too."""
_PARTIAL_STEP_BYTES: Final = 128 * 1024
"""An unfinished frame is measured again each time that it has grown by this."""
_IDLE_PER_S_MAX: Final = 4096
"""Frames that carry nothing, in one second, weighted: each costs time and, as a ping, an answer, however small it is."""
_CONTROL_WEIGHT: Final = 32
"""Of a ping, pong or close. Honest peers send a few a minute; what a connection that closes still brings counts once."""
STRANGER_READ_BYTES: Final = 16 * 1024
"""Most that is read at once from an unproven peer: a read is handled whole, however many frames it holds."""
_STALLS_MAX: Final = 2
_CONTROL: Final = frozenset({WSMsgType.PING, WSMsgType.PONG, WSMsgType.CLOSE})
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
        unproven_bytes_max: until `prove` neither a frame nor all that wait may be larger; None: every peer is proved.
        read_bytes_max: most that is read at once.
        stall_s: a peer that takes no byte for so long (at most half as long again) while some wait is dropped.
    """

    frame_bytes_max: int
    write_buffer_bytes: int = 64 * 1024
    unsent_bytes_max: int | None = None
    ping_s: float | None = None
    unproven_bytes_max: int | None = None
    read_bytes_max: int = 256 * 1024
    stall_s: float = 40.0


class FrameSocket(WSListener):
    """One connection that carries frames. Not for concurrent senders or receivers; belongs to one event loop."""

    def __init__(self, limits: SocketLimits, budget: ReadBudget | None = None) -> None:
        """`budget` is shared by the connections of a port."""
        self._limits = limits
        self._budget = budget
        self._transport: WSTransport | None = None
        self._remote = "?"
        self.remote_host = ""
        self.peer_certificate = b""
        """SHA-256 of the certificate that the other end has shown; empty without TLS, or when it has shown none."""
        """IP address of the other end."""
        self._unproven_bytes_max = limits.unproven_bytes_max
        """None once the peer is proved."""
        self._when_proven: Callable[[], None] | None = None
        self.partial_bytes = 0
        """What has come of a frame that is not whole yet; kept by the protocol."""
        self.partial_bytes_max = limits.unproven_bytes_max or _PARTIAL_STEP_BYTES
        """Beyond it the protocol calls `partial_grew`."""
        self._partial_bytes_most = 0
        self._frames: deque[bytes | None] = deque()
        """What came; None for a text frame."""
        self._untaken_bytes = 0
        self._parts: list[bytes] = []
        self._parts_bytes = 0
        self._came: asyncio.Future[None] | None = None
        self._is_reading = True
        self._writable: asyncio.Future[None] | None = None
        self._gone = asyncio.Event()
        self._why = ""
        self._pong_due: bytes | None = None
        self._written_bytes = 0
        self._passed_bytes = 0
        self._stalls = 0
        self._watch: asyncio.TimerHandle | None = None
        self._is_charged = False
        self._is_over = False
        """Nothing that still comes is looked at."""
        self._idle_since = 0.0
        self._idle = 0

    def on_proven(self, callback: Callable[[], None]) -> None:
        """Calls back once the peer is proved; at once when it is."""
        if self._unproven_bytes_max is None:
            callback()
        else:
            self._when_proven = callback

    def prove(self, *, is_bounded: bool = False) -> None:
        """The peer is who it says: it no longer counts as a stranger. `is_bounded`: the small limits stay in force."""
        callback, self._when_proven = self._when_proven, None
        if callback is not None:
            callback()
        if not is_bounded:
            self._unproven_bytes_max = None
            self.partial_bytes_max = _PARTIAL_STEP_BYTES
            self._update_reading()

    @property
    def read_bytes_max(self) -> int:
        """Most that may be read at once now."""
        return self._limits.read_bytes_max if self._unproven_bytes_max is None else STRANGER_READ_BYTES

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
        self._written_bytes += len(frame)
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
            self._refuse_large_of_stranger()
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
        if not self._is_reading:
            self._update_reading()
        if self._budget is not None and self._is_charged:
            self._charge(self._budget)
        return frame

    async def close(self, reason: str) -> None:
        """Closes with a close frame; gives the other side a second to answer it."""
        transport = self._transport
        if transport is None or self._gone.is_set():
            return
        if not transport.is_close_frame_sent:
            transport.send_close(WSCloseCode.OK, reason.encode()[:_REASON_BYTES_MAX].decode(errors="ignore"))
        if not self._is_reading and self._unproven_bytes_max is None:
            # Its answer has to be read, whatever came before it. A stranger's is not worth that.
            self._is_reading = True
            transport.underlying_transport.resume_reading()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._gone.wait()
        except TimeoutError:
            self.abort()

    def abort(self, why: str = "") -> None:
        """Drops the connection without a word; one that is gone already is left alone."""
        self._why = self._why or why
        self._is_over = True
        if self._transport is not None and not self._gone.is_set():
            self._transport.underlying_transport.abort()

    async def wait_closed(self) -> None:
        """Returns when the connection is gone."""
        await self._gone.wait()

    @property
    def reason(self) -> str:
        """Why the connection is gone."""
        if self._why:
            return self._why
        closing = self._transport.close_handshake if self._transport is not None else None
        sent = closing.sent if closing is not None else None
        received = closing.recv if closing is not None else None
        if sent is not None and sent.code == WSCloseCode.MESSAGE_TOO_BIG:
            limit_bytes = self._unproven_bytes_max or self._limits.frame_bytes_max
            return f"the peer sent a frame of more than {limit_bytes} bytes"
        if received is not None:
            said = printable(received.reason or "")
            return f"closed by the peer: {said or _number(received.code)}"
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
            host = f"[{address[0]}]" if ":" in address[0] else address[0]
            self._remote = f"{host}:{address[1]}"
            self.remote_host = host_group(str(address[0]))
        self.peer_certificate = certificate_digest(wire.get_extra_info("ssl_object"))
        wire.set_write_buffer_limits(high=self._limits.write_buffer_bytes)
        raw = wire.get_extra_info("socket")
        # A connection that is already gone tells so at the first frame.
        with contextlib.suppress(OSError):
            if raw is not None:
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._limits.unsent_bytes_max is not None:
                    raw.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, self._limits.unsent_bytes_max)
        self._watch = asyncio.get_running_loop().call_later(self._limits.stall_s / 2, self._look_for_stall)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """A frame of any kind came."""
        self.partial_bytes = frame.tail_size
        if self._is_over:
            return
        kind = frame.msg_type
        if kind in _CONTROL and not self._may_idle(_CONTROL_WEIGHT):
            return
        if kind == WSMsgType.CLOSE:
            if not transport.is_close_frame_sent:
                transport.send_close(WSCloseCode.OK)
            transport.disconnect()
            asyncio.get_running_loop().call_later(CLOSE_TIMEOUT_S, self.abort)  # a peer that reads nothing more
        elif kind == WSMsgType.PONG:
            return
        elif transport.is_close_frame_sent:
            self._may_idle(1)
        elif kind == WSMsgType.PING:
            self._pong(transport, frame.get_payload_as_bytes())
        elif frame.rsv1 or frame.rsv2 or frame.rsv3:
            self._refuse(WSCloseCode.PROTOCOL_ERROR, "reserved bits are set")
        elif self._unproven_bytes_max is not None and frame.payload_size > self._unproven_bytes_max:
            self._refuse(WSCloseCode.MESSAGE_TOO_BIG, "the frame is too big before the handshake")
        elif kind == WSMsgType.BINARY and frame.fin and not self._parts:
            self._take_in(frame.get_payload_as_bytes())
        elif kind == WSMsgType.TEXT:
            self._take_in(None)
        else:
            self._join(frame, is_first=kind == WSMsgType.BINARY)

    def on_ws_disconnected(self, _transport: WSTransport) -> None:
        """The connection is gone."""
        self._gone.set()
        if self._watch is not None:
            self._watch.cancel()
        if self._budget is not None:
            self._budget.release(self)
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
        payload, self._pong_due = self._pong_due, None
        if payload is not None and self._transport is not None and not self._gone.is_set():
            self._pong(self._transport, payload)

    def evict(self) -> None:
        """All connections together hold too much, and this one has made no progress for the longest time."""
        self.abort("the connections of this port hold too much at once")

    # What the protocol calls

    def partial_grew(self) -> None:
        """More of an unfinished frame has come than `partial_bytes_max`."""
        if self._unproven_bytes_max is not None:
            self._update_reading()
            if self._came is not None:
                self._refuse_large_of_stranger()
            return
        # The buffer of the library keeps its size: what counts is the most that it ever held.
        self._partial_bytes_most = self.partial_bytes
        self.partial_bytes_max = self.partial_bytes + _PARTIAL_STEP_BYTES
        if self._budget is not None:
            self._charge(self._budget)

    def _charge(self, budget: ReadBudget) -> None:
        if self._gone.is_set():
            return
        held_bytes = self._partial_bytes_most + self._untaken_bytes + self._parts_bytes
        self._is_charged = held_bytes > budget.share_bytes
        budget.charge(self, held_bytes)

    def _update_reading(self) -> None:
        """Reads on or pauses, as what is held has it."""
        transport = self._transport
        if transport is None or self._gone.is_set():
            return
        stranger_bytes_max = self._unproven_bytes_max
        if stranger_bytes_max is None:
            may_read = self._untaken_bytes <= _UNTAKEN_BYTES_MAX
        else:
            may_read = max(self._untaken_bytes, self.partial_bytes) <= stranger_bytes_max
        if may_read == self._is_reading or transport.underlying_transport.is_closing():
            return
        self._is_reading = may_read
        if may_read:
            transport.underlying_transport.resume_reading()
        else:
            transport.underlying_transport.pause_reading()

    def _refuse_large_of_stranger(self) -> None:
        """Somebody waits for the next frame of an unproven peer, and it is too large to ever become whole."""
        limit_bytes = self._unproven_bytes_max
        if limit_bytes is not None and self.partial_bytes > limit_bytes and not self._frames:
            self._refuse(WSCloseCode.MESSAGE_TOO_BIG, "the frame is too big before the handshake")

    def _may_idle(self, weight: int) -> bool:
        """Counts a frame that carries nothing; ends the connection and returns False when there are too many."""
        now = asyncio.get_running_loop().time()
        if now - self._idle_since >= 1.0:
            self._idle_since, self._idle = now, 0
        self._idle += weight
        if self._idle > _IDLE_PER_S_MAX:
            self.abort("the peer sends too many frames that carry nothing")
        return not self._is_over

    def _pong(self, transport: WSTransport, payload: bytes) -> None:
        """Answers a ping; while the peer does not read only the latest waits (RFC 6455 §5.5.3)."""
        if self._writable is not None:
            self._pong_due = payload
            return
        self._written_bytes += len(payload)
        transport.send_pong(payload)

    def _look_for_stall(self) -> None:
        """Twice in `stall_s`: whether the peer took any of what waits for it."""
        transport = self._transport
        if transport is None or self._gone.is_set():
            return
        unsent_bytes = transport.underlying_transport.get_write_buffer_size()
        passed_bytes = self._written_bytes - unsent_bytes
        is_standing = bool(unsent_bytes) and passed_bytes <= self._passed_bytes
        self._stalls = self._stalls + 1 if is_standing else 0
        self._passed_bytes = passed_bytes
        if self._stalls >= _STALLS_MAX:
            self.abort("the peer reads nothing of what waits for it")
            return
        self._watch = asyncio.get_running_loop().call_later(self._limits.stall_s / 2, self._look_for_stall)

    def _join(self, frame: WSFrame, *, is_first: bool) -> None:
        """A part of a message that somebody on the way cut up."""
        if is_first == bool(self._parts):
            self._refuse(WSCloseCode.PROTOCOL_ERROR, "a fragment is out of place")
            return
        part = frame.get_payload_as_bytes()
        self._parts_bytes += len(part)
        # Parts count as frames do: empty ones cost memory too.
        cost_bytes = self._parts_bytes + len(self._parts) * _FRAME_COST_BYTES
        if cost_bytes > (self._unproven_bytes_max or self._limits.frame_bytes_max):
            self._refuse(WSCloseCode.MESSAGE_TOO_BIG, "the message is too big")
            return
        self._parts.append(part)
        if frame.fin:
            whole, self._parts, self._parts_bytes = b"".join(self._parts), [], 0
            self._take_in(whole)
        elif self._budget is not None and cost_bytes > self._budget.share_bytes:
            self._charge(self._budget)

    def _take_in(self, frame: bytes | None) -> None:
        self._frames.append(frame)
        self._untaken_bytes += len(frame or b"") + _FRAME_COST_BYTES
        if self._untaken_bytes > (self._unproven_bytes_max or _UNTAKEN_BYTES_MAX) and self._is_reading:
            self._update_reading()
        if self._budget is not None and (self._is_charged or self._untaken_bytes > self._budget.share_bytes):
            self._charge(self._budget)
            self._budget.progressed(self)
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
