"""The HTTP server of every service: uvicorn, with a bound on everything that a stranger can claim.

| what | bound (`HttpLimits`) | beyond |
|---|---|---|
| connections, idle ones and WebSockets included | `connections_max` | 503 and closed |
| head of a request | `HEAD_BYTES_MAX` (whole ones: `request_head`), `QUIET_S` from connect or the last answer | 400, or closed |
| an answer that is not read | `QUIET_S` without progress (a WebSocket: `SOCKET_QUIET_S`) | cut |
| answers that are not read, over all connections | `UNREAD_BYTES_MAX` | the largest is cut |
| a WebSocket message that comes in | `SOCKET_MESSAGE_BYTES_MAX` | closed with 1009 |
| pings of a client that does not read | nothing is read from it while it has something to read | – |

Bodies are bounded by the application, which knows what is legal. A request that is no HTTP gets a problem document.
With TLS a socket counts before its handshake, too (`OPENING_LIMITS`, `OPEN_TIMEOUT_S`).
Source: architecture §11 "Everything from outside". Leaves out: certificates (`tls_files`).
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from meshcommon.address import check_listen, is_unix
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.listen import BACKLOG, UnixPlace, bind, bind_unix
from meshcommon.logging import new_correlation_id
from meshcommon.problem import MEDIA_TYPE, problem_of
from meshcommon.request_head import HEAD_BYTES_MAX
from meshcommon.socket_gate import GateLimits, SocketGate
from meshcommon.tls_accept import accept_tls

LOOK_EVERY_S: Final = 5.0
QUIET_S: Final = 10.0
SOCKET_QUIET_S: Final = 40.0
UNREAD_BYTES_MAX: Final = 64 * 1024 * 1024
SOCKET_MESSAGE_BYTES_MAX: Final = 4 * 1024
OPENING_LIMITS: Final = GateLimits(sockets_max=128, reserved=0, per_address_max=128)
"""Sockets in their TLS handshake. No address has a share: all may come through one proxy, or from this machine."""
OPEN_TIMEOUT_S: Final = 5.0
_TLS_WRITE_BYTES: Final = 64 * 1024
_PING_S: Final = 20.0
_LARGE_BYTES: Final = 64 * 1024
_STOP_GRACE_S: Final = 3
_REASONS: Final = {400: "Bad Request", 503: "Service Unavailable"}


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What differs between listeners.

    Attributes:
        connections_max: Open connections, and with that requests at a time: HTTP/1.1 has one on each.
        has_sockets: Whether WebSockets are served.
    """

    connections_max: int
    has_sockets: bool = False


ADMIN_HTTP: Final = HttpLimits(connections_max=64)


class QuietServer(uvicorn.Server):
    """uvicorn without its own signal handlers: the service's lifecycle owns the signals."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves the handlers as they are."""
        yield


class _TlsServer(QuietServer):
    """Accepts by itself, so that sockets are bounded before their handshake is done; uvicorn would let any number wait."""

    def __init__(self, config: uvicorn.Config, tls: ssl.SSLContext) -> None:
        super().__init__(config)
        self._tls = tls
        self._gate = SocketGate(OPENING_LIMITS)
        self._accepting: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to accept on the one socket."""
        await super().startup(sockets=[])
        (listening,) = sockets or []
        accepting = accept_tls(listening, self._tls, self._gate, self._make, OPEN_TIMEOUT_S)
        self._accepting = asyncio.create_task(accepting, name="TLS acceptor")
        self._accepting.add_done_callback(self._ended)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accepts no more, then as uvicorn."""
        if self._accepting is not None:
            self._accepting.cancel()
            with suppress(asyncio.CancelledError):
                await self._accepting
        await super().shutdown(sockets)

    def _make(self, remote: str) -> BoundedHttp:
        make: Any = self.config.http_protocol_class
        protocol: BoundedHttp = make(self.config, self.server_state, self.lifespan.state)
        protocol.enter_gate(self._gate, remote)
        return protocol

    def _ended(self, _accepting: asyncio.Task[None]) -> None:
        # A listener that accepts no more must not look alive: `shutdown` raises what ended it.
        self.should_exit = True


class _Sliced:
    """A TLS transport that is written to in slices.

    The TLS layer encrypts what it is given at once and hands all of it to the transport below, whose buffer it does not
    count. In slices it notices that the one below is full, and counts the rest itself: at most one slice and that
    transport's high-water mark of 64 KiB stay uncounted.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """As the transport."""
        view = memoryview(data)
        for start in range(0, len(view), _TLS_WRITE_BYTES):
            self._transport.write(view[start : start + _TLS_WRITE_BYTES])


class _ReaderWatch:
    """Looks every `LOOK_EVERY_S` whether the connection moves; one that does not for long enough is cut."""

    def __init__(self, quiet_s_max: float) -> None:
        self._quiet_looks_max = round(quiet_s_max / LOOK_EVERY_S)
        self._quiet_looks = 0
        self._unread_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, transport: asyncio.Transport, is_busy: Any) -> None:
        """Starts looking. `is_busy` says whether the service, not the client, is the one to act."""

        def look() -> None:
            unread_bytes = transport.get_write_buffer_size()
            has_moved = unread_bytes < self._unread_bytes if unread_bytes else is_busy()
            self._unread_bytes = unread_bytes
            self._quiet_looks = 0 if has_moved else self._quiet_looks + 1
            if self._quiet_looks >= self._quiet_looks_max:
                # Not closed: that would wait for the client to read what is left.
                transport.abort()
                return
            self._timer = loop.call_later(LOOK_EVERY_S, look)

        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(LOOK_EVERY_S, look)

    def moved(self) -> None:
        """The client has just done its part."""
        self._quiet_looks = 0

    def end(self) -> None:
        """Stops looking."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _cut_the_largest(connections: Any) -> None:
    """Ends the connection with most unread bytes where all together have more than `UNREAD_BYTES_MAX`."""
    sizes = {connection: connection.transport.get_write_buffer_size() for connection in connections}
    if sum(sizes.values()) > UNREAD_BYTES_MAX:
        max(sizes, key=lambda connection: sizes[connection]).transport.abort()


class BoundedHttp(H11Protocol):
    """One HTTP connection."""

    connections_max = ADMIN_HTTP.connections_max

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._watch = _ReaderWatch(QUIET_S)
        self._gate: tuple[SocketGate, str] | None = None

    def enter_gate(self, gate: SocketGate, remote: str) -> None:
        """The gate counts this socket, from the address `remote`, until its TLS handshake is over."""
        self._gate = gate, remote

    def leave_gate(self) -> None:
        """The gate counts it no more."""
        held, self._gate = self._gate, None
        if held is not None:
            held[0].leave(held[1])

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Takes the connection, or refuses it when there are too many."""
        if self._gate is not None:
            self.leave_gate()
            transport = cast("asyncio.Transport", _Sliced(transport))
        super().connection_made(transport)
        if len(self.connections) > self.connections_max:
            self._refuse(MeshError(ErrorCode.UNAVAILABLE, "Too many connections are open here: try again in a while."))
        self._watch.begin(transport, self._is_busy)

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the watch."""
        self._watch.end()
        super().connection_lost(exc)

    def _is_busy(self) -> bool:
        # None before the first request, which uvicorn's type does not tell.
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    def resume_writing(self) -> None:
        """The client has read."""
        self._watch.moved()
        super().resume_writing()

    def on_response_complete(self) -> None:
        """Has the time for the next head begin, and bounds what is not read of answers."""
        self._watch.moved()
        super().on_response_complete()
        if self.transport.get_write_buffer_size() > _LARGE_BYTES:
            _cut_the_largest(self.connections)

    def handle_websocket_upgrade(self, event: Any) -> None:
        """Hands the connection over, and the watch with it."""
        self._watch.end()
        super().handle_websocket_upgrade(event)

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP, unless an answer to this request has begun already."""
        cycle = self.cycle
        if self._is_busy():
            # Bytes after a good head are bad: the application sees a client that has gone.
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started:
                self.transport.abort()
                return
        self._refuse(MeshError(ErrorCode.INVALID_ARGUMENT, "This is no valid HTTP/1.1 request."))

    def _refuse(self, error: MeshError) -> None:
        self.transport.write(_answer(error))
        self.transport.close()


class BoundedSocket(WebSocketsSansIOProtocol):
    """One WebSocket. From a client that does not read, nothing is read: its pings would have to be answered."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._watch = _ReaderWatch(SOCKET_QUIET_S)
        self._is_held = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins the watch."""
        super().connection_made(transport)
        self._watch.begin(self.transport, lambda: not self.transport.is_closing())

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the watch."""
        self._watch.end()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Stops reading, too."""
        super().pause_writing()
        self._is_held = True
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        """Reads again, unless the application is behind."""
        self._watch.moved()
        super().resume_writing()
        self._is_held = False
        if not self.read_paused:
            self.transport.resume_reading()

    async def receive(self) -> Any:
        """As uvicorn, but the application's progress does not end the hold."""
        message = await super().receive()
        if self._is_held and not self.transport.is_closing():
            self.transport.pause_reading()
        return message

    async def send(self, message: Any) -> None:
        """As uvicorn; bounds what all clients together leave unread."""
        await super().send(message)
        if self.transport.get_write_buffer_size() > _LARGE_BYTES:
            _cut_the_largest(self.connections)

    def data_received(self, data: bytes) -> None:
        """As uvicorn; a head that HTTP takes but WebSocket does not, for example for its length, gets an answer, too."""
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated:
            self.transport.write(_answer(MeshError(ErrorCode.INVALID_ARGUMENT, "This is no valid WebSocket request.")))
            self.transport.close()

    def keepalive_timeout(self) -> None:
        """Cut, not closed: what is unread would stay."""
        super().keepalive_timeout()
        self.transport.abort()


def _answer(error: MeshError) -> bytes:
    """A whole answer, for where there is no application to give one."""
    status = error.mapping.http
    body = json.dumps(problem_of(error, new_correlation_id())).encode()
    retry = "retry-after: 1\r\n" if error.retryable else ""
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\ncontent-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\n"
        f"{retry}connection: close\r\n\r\n"
    )
    return head.encode() + body


async def serve_asgi(
    app: ASGIApp,
    listen: str,
    what: str,
    *,
    limits: HttpLimits = ADMIN_HTTP,
    is_insecure_dev: bool = False,
    tls: ssl.SSLContext | None = None,
    is_authenticated: bool = False,
) -> None:
    """Serves `app` on `listen` until cancelled.

    Args:
        app: The application.
        listen: `host:port` or `unix:/path`.
        what: What listens there, for the text of an error.
        limits: Bounds of this listener.
        is_insecure_dev: Whether an address that other machines reach is accepted.
        tls: A server's context; None, or a unix socket, which only its own user reaches: in clear.
        is_authenticated: Whether the application lets in only callers that prove who they are.

    Raises:
        MeshError: INSECURE_NOT_ALLOWED, ADDRESS_IN_USE or SETTING_INVALID.
    """
    check_listen(
        listen,
        what,
        is_insecure_dev=is_insecure_dev,
        is_encrypted=tls is not None,
        is_authenticated=is_authenticated,
    )
    place = UnixPlace.take(listen, what) if is_unix(listen) else None
    try:
        listening = bind(listen, what) if place is None else bind_unix(place)
        config = _config(app, limits)
        server = QuietServer(config) if tls is None or place is not None else _TlsServer(config, tls)
        serving = asyncio.create_task(server.serve(sockets=[listening]), name=f"{what} server")
        try:
            await asyncio.shield(serving)
        except asyncio.CancelledError:
            server.should_exit = True
            await serving
            raise
        finally:
            listening.close()
    finally:
        if place is not None:
            place.close()


def _config(app: ASGIApp, limits: HttpLimits) -> uvicorn.Config:
    http = type("Http", (BoundedHttp,), {"connections_max": limits.connections_max})
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        # No proxy is trusted: X-Forwarded-For and -Proto of a client are its own words.
        proxy_headers=False,
        server_header=False,
        http=http,
        h11_max_incomplete_event_size=HEAD_BYTES_MAX,
        backlog=BACKLOG,
        ws=BoundedSocket if limits.has_sockets else "none",
        ws_max_size=SOCKET_MESSAGE_BYTES_MAX,
        ws_ping_interval=_PING_S,
        ws_ping_timeout=_PING_S,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=_STOP_GRACE_S,
    )
