"""Opens WebSockets that carry binary frames: accepts them on a port, or dials one.

Leaves out: the connections themselves (`frame_socket`), and whom to let in (each listener's own check). Source: RFC 6455 §4;
ADR 0010.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, TypeAlias

from picows import (
    WSAutoPingStrategy,
    WSError,
    WSHandshakeError,
    WSTransport,
    WSUpgradeRequest,
    WSUpgradeResponse,
    WSUpgradeResponseWithListener,
    ws_connect,
    ws_create_server,
)

from meshcommon.frame_socket import FrameSocket, SocketLimits

_PROTOCOL_HEADER: Final = "Sec-WebSocket-Protocol"
_HUNG_UP: Final = "it closed the connection before the handshake"


class DialRefused(Exception):
    """What was dialled answered, but not with a WebSocket of our protocol."""

    def __init__(self, text: str, status: int = 0, body: bytes = b"") -> None:
        """`status` and `body` of an HTTP answer, if it was one."""
        super().__init__(text)
        self.status = status
        self.body = body


class HungUpError(DialRefused):
    """It hung up in the middle of the handshake: another kind of server, or a node that stops or dies and comes back."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An HTTP answer instead of an upgrade; the text is for people."""

    status: HTTPStatus
    text: str


Check: TypeAlias = Callable[[WSUpgradeRequest], Refusal | None]
NO_UPGRADE: Final = Refusal(
    HTTPStatus.UPGRADE_REQUIRED, "This port speaks WebSocket only: there is no web page here.\n"
)


def offered_protocols(request: WSUpgradeRequest) -> set[str]:
    """Subprotocols that the request names."""
    return {item.strip() for header in request.headers.getall(_PROTOCOL_HEADER, ()) for item in header.split(",")}


async def serve(
    listening: socket.socket,
    subprotocol: str,
    check: Check,
    handle: Callable[[FrameSocket], Awaitable[None]],
    limits: SocketLimits,
    opening_timeout_s: float,
) -> None:
    """Accepts connections until cancelled; each is `handle`d in a task of its own, and dropped when that returns.

    Requests that are no WebSocket upgrade get 426; `check` may refuse others.
    """
    async with asyncio.TaskGroup() as tasks:

        async def run(connection: FrameSocket) -> None:
            try:
                await handle(connection)
            finally:
                connection.abort()

        def open_one(request: WSUpgradeRequest) -> WSUpgradeResponseWithListener:
            refusal = check(request) if "Upgrade" in request.headers else NO_UPGRADE
            if refusal is not None:
                extra = [("Upgrade", "websocket")] if refusal.status is HTTPStatus.UPGRADE_REQUIRED else []
                answer = WSUpgradeResponse.create_error_response(refusal.status, refusal.text.encode(), extra)
                return WSUpgradeResponseWithListener(answer, None)
            connection = _Accepted(limits, lambda: tasks.create_task(run(connection), name="connection"))
            answer = WSUpgradeResponse.create_101_response([(_PROTOCOL_HEADER, subprotocol)])
            return WSUpgradeResponseWithListener(answer, connection)

        server = await ws_create_server(
            open_one,
            sock=listening,
            websocket_handshake_timeout=opening_timeout_s,
            **_options(limits),
        )
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            server.close()


async def dial(address: str, subprotocol: str, limits: SocketLimits, timeout_s: float) -> FrameSocket:
    """Connects to `ws://host:port` or `wss://host:port`, directly, whatever proxies the environment names.

    Raises:
        ValueError: it is no address.
        DialRefused: what answers is something else.
        OSError, TimeoutError: nothing answers.
    """
    if not address.startswith(("ws://", "wss://")):
        raise ValueError(f"{address} does not begin with ws:// or wss://")
    try:
        async with asyncio.timeout(timeout_s):
            transport, connection = await ws_connect(
                lambda: FrameSocket(limits),
                address,
                websocket_handshake_timeout=timeout_s,
                extra_headers=[(_PROTOCOL_HEADER, subprotocol)],
                max_redirects=0,
                **_options(limits),
            )
    except (ConnectionResetError, ConnectionAbortedError, BrokenPipeError) as error:
        raise HungUpError(_HUNG_UP) from error
    except WSHandshakeError as error:
        status = int(error.response.status) if error.response is not None else 0
        raise DialRefused(str(error), status, error.raw_body or b"") from error
    except WSError as error:  # the address cannot be taken apart
        raise ValueError(str(error)) from error
    if not isinstance(connection, FrameSocket) or transport.response is None:
        # picows ends its wait without an error when the other side hangs up in the middle of the handshake.
        raise HungUpError(_HUNG_UP)
    chosen = transport.response.headers.get(_PROTOCOL_HEADER)
    if chosen != subprotocol:
        connection.abort()
        raise DialRefused(f"it chose the subprotocol {chosen}")
    return connection


class _Accepted(FrameSocket):
    """A connection that begins its work when the handshake is done."""

    def __init__(self, limits: SocketLimits, begin: Callable[[], object]) -> None:
        super().__init__(limits)
        self._begin = begin

    def on_ws_connected(self, transport: WSTransport) -> None:
        """The handshake is done."""
        super().on_ws_connected(transport)
        self._begin()


def _options(limits: SocketLimits) -> dict[str, Any]:
    """What both sides give to picows."""
    return {
        "max_frame_size": limits.frame_bytes_max,
        # The loop's own transports: with aiofastnet's a dial on uvloop waits for ever when the peer hangs up at once.
        "use_aiofastnet": False,
        "enable_auto_ping": limits.ping_s is not None,
        "auto_ping_idle_timeout": limits.ping_s or 0.0,
        "auto_ping_reply_timeout": limits.ping_s or 0.0,
        # Also while the peer talks: one that sends and never reads must be dropped too.
        "auto_ping_strategy": WSAutoPingStrategy.PING_PERIODICALLY,
    }
