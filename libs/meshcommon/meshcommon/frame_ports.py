"""Opens WebSockets that carry binary frames: accepts them on a port, or dials one.

Leaves out: the connections themselves (`frame_socket`), and whom to let in (each listener's own check). Source: RFC 6455 §4;
ADR 0010.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, TypeAlias

from picows import (
    WSHandshakeError,
    WSTransport,
    WSUpgradeRequest,
    WSUpgradeResponse,
    WSUpgradeResponseWithListener,
)

from meshcommon.address import PeerAddress, parse_peer_address
from meshcommon.barrier import barrier
from meshcommon.errors import MeshError
from meshcommon.frame_protocol import FrameProtocol
from meshcommon.frame_socket import FrameSocket, SocketLimits
from meshcommon.peer_text import printable
from meshcommon.read_budget import ReadBudget
from meshcommon.socket_gate import SocketGate
from meshcommon.tls_accept import accept_tls

_PROTOCOL_HEADER: Final = "Sec-WebSocket-Protocol"
_ADDRESSES_MAX: Final = 8
"""Of one name, that are tried."""
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


class TlsFailedError(DialRefused):
    """TLS failed: it serves none, or one of the two sides does not trust the other's certificate."""

    def __init__(self, reason: str) -> None:
        """`reason` is what the TLS library says."""
        super().__init__(f"TLS failed: {reason}")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Refusal:
    """An HTTP answer instead of an upgrade; the text is for people."""

    status: HTTPStatus
    text: str
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Opening:
    """How connections to a port come to be open.

    Attributes:
        timeout_s: for TLS, and for the WebSocket handshake.
        gate: bounds the sockets that are not open or not proved yet; one of the default size when None.
        tls: a server's context: nothing is accepted in clear; None: everything is.
    """

    timeout_s: float
    gate: SocketGate | None = None
    tls: ssl.SSLContext | None = None


Check: TypeAlias = Callable[[WSUpgradeRequest, str], Refusal | None]
"""Decides about a request, and by the IP address that it comes from."""
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
    opening: Opening,
    *,
    budget: ReadBudget | None = None,
) -> None:
    """Accepts connections until cancelled; each is `handle`d in a task of its own, and dropped when that returns or fails.

    Requests that are no WebSocket upgrade get 426; `check` may refuse others. `budget` bounds what all connections hold
    together.
    """
    counting = opening.gate or SocketGate()
    async with asyncio.TaskGroup() as tasks:

        async def run(connection: FrameSocket) -> None:
            try:
                with barrier("connection", remote=connection.remote):
                    await handle(connection)
            finally:
                connection.abort()

        def answer(request: WSUpgradeRequest, host: str) -> WSUpgradeResponseWithListener:
            refusal = check(request, host) if "Upgrade" in request.headers else NO_UPGRADE
            if refusal is not None:
                return _refuse(refusal)
            begin = lambda connection: tasks.create_task(run(connection), name="connection")  # noqa: E731
            accepted = WSUpgradeResponse.create_101_response([(_PROTOCOL_HEADER, subprotocol)])
            return WSUpgradeResponseWithListener(accepted, _Accepted(limits, budget, begin))

        def open_one(request: WSUpgradeRequest, host: str) -> WSUpgradeResponseWithListener:
            with barrier("upgrade"):
                return answer(request, host)
            return _refuse(Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "Internal error.\n"))

        def protocol(entered: str | None = None) -> FrameProtocol:
            made = FrameProtocol(
                lambda request: open_one(request, made.host), limits, opening.timeout_s, gate=counting, entered=entered
            )
            return made

        if opening.tls is not None:
            await accept_tls(listening, opening.tls, counting, protocol, opening.timeout_s)
            return
        server = await asyncio.get_running_loop().create_server(protocol, sock=listening)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            server.close()


async def dial(
    address: str,
    subprotocol: str,
    limits: SocketLimits,
    timeout_s: float,
    *,
    tls: ssl.SSLContext | None = None,
    headers: Sequence[tuple[str, str]] = (),
) -> FrameSocket:
    """Connects to `ws://host:port` or `wss://host:port`, directly, whatever proxies the environment names.

    The addresses of a name are tried in turn, each for its share of `timeout_s`. `headers` go with the request.

    `tls` judges the certificate of a `wss` address and shows this side's; None trusts the authorities of the system. With
    it an address in clear is refused: nobody on the way may turn TLS off.

    Raises:
        ValueError: it is no address, or one in clear where TLS is wanted.
        DialRefused: what answers is something else; TlsFailedError when TLS failed.
        OSError, TimeoutError: nothing answers.
    """
    try:
        target = parse_peer_address(address)
    except MeshError as error:
        raise ValueError(error.message) from None
    if tls is not None and target.scheme != "wss":
        raise ValueError("it is in clear, and TLS is wanted")

    def protocol() -> FrameProtocol:
        sent = [(_PROTOCOL_HEADER, subprotocol), *headers]
        host_port = str(target).partition("://")[2]
        return FrameProtocol(lambda *_: FrameSocket(limits), limits, timeout_s, host_port=host_port, headers=sent)

    try:
        async with asyncio.timeout(timeout_s):
            wire, opening = await _connect(protocol, target, timeout_s, tls)
            try:
                await opening.wait_until_handshake_complete()
            except BaseException:
                wire.abort()
                raise
    except ssl.SSLError as error:
        # First, for it is an OSError as well, and one about a certificate a ValueError.
        reason = error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else error.reason
        raise TlsFailedError(printable(reason or str(error))) from error
    except (ConnectionResetError, ConnectionAbortedError, BrokenPipeError) as error:
        raise HungUpError(_HUNG_UP) from error
    except WSHandshakeError as error:
        status = int(error.response.status) if error.response is not None else 0
        raise DialRefused(printable(str(error)), status, error.raw_body or b"") from error
    except UnicodeError as error:  # what the resolver makes of a name that passed the grammar
        raise ValueError(f"{printable(address)!r} is no address") from error
    connection = opening.listener
    if not isinstance(connection, FrameSocket) or opening.transport.response is None:
        # picows ends its wait without an error when the other side hangs up in the middle of the handshake.
        wire.abort()
        raise HungUpError(_HUNG_UP)
    chosen = opening.transport.response.headers.get(_PROTOCOL_HEADER)
    if chosen != subprotocol:
        connection.abort()
        raise DialRefused(f"it chose the subprotocol {printable(str(chosen))}")
    return connection


async def _connect(
    protocol: Callable[[], FrameProtocol], target: PeerAddress, timeout_s: float, tls: ssl.SSLContext | None
) -> tuple[asyncio.Transport, FrameProtocol]:
    """Tries the addresses of a name until one answers. Raises as the last one, or what TLS says at the first that answers."""
    loop = asyncio.get_running_loop()
    context = (tls or True) if target.scheme == "wss" else None
    name = target.host if context is not None else None
    found = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    hosts = list(dict.fromkeys(str(entry[4][0]) for entry in found))[:_ADDRESSES_MAX]
    failure: OSError = OSError(f"{target.host} has no address")
    for number, host in enumerate(hosts):
        is_last = number == len(hosts) - 1
        try:
            # One that swallows what it is sent must leave time for the next; the last one has the rest.
            async with asyncio.timeout(None if is_last else timeout_s / len(hosts)):
                return await loop.create_connection(protocol, host, target.port, ssl=context, server_hostname=name)
        except ssl.SSLError:
            raise
        except OSError as error:  # a TimeoutError is one
            failure = error
    raise failure


class _Accepted(FrameSocket):
    """A connection that begins its work when the handshake is done."""

    def __init__(self, limits: SocketLimits, budget: ReadBudget | None, begin: Callable[[FrameSocket], object]) -> None:
        super().__init__(limits, budget)
        self._begin = begin

    def on_ws_connected(self, transport: WSTransport) -> None:
        """The handshake is done."""
        super().on_ws_connected(transport)
        self._begin(self)


def _refuse(refusal: Refusal) -> WSUpgradeResponseWithListener:
    extra = [("Upgrade", "websocket")] if refusal.status is HTTPStatus.UPGRADE_REQUIRED else []
    answer = WSUpgradeResponse.create_error_response(refusal.status, refusal.text.encode(), [*extra, *refusal.headers])
    return WSUpgradeResponseWithListener(answer, None)
