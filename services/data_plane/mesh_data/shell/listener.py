"""The peer listener: accepts WebSocket connections of other nodes and refuses everything else in clear text.

Leaves out: the lane handshake. A request without an upgrade is answered 426 by the library, one with a foreign
subprotocol 400, and 503 while too many connections are still unproven.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from socket import socket
from typing import Final

from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from mesh_data.shell.lane_socket import LANE_OPTIONS, SUBPROTOCOL, LaneSocket
from meshcommon.listen import bind

OPENING_MAX: Final = 64
"""Connections whose node is not yet proved. Cost: 64 KiB each at most."""
_HEADER: Final = "Sec-WebSocket-Protocol"


class PeerListener:
    """Listens from construction on; `run` serves until cancelled."""

    def __init__(self, listen: str) -> None:
        """Binds.

        Raises:
            MeshError: ADDRESS_IN_USE or SETTING_INVALID.
        """
        self._socket: socket = bind(listen, "The peer listener")
        self.opening = 0
        self.refused = 0

    @property
    def port(self) -> int:
        """The port that is bound."""
        port: int = self._socket.getsockname()[1]
        return port

    async def run(self, accept: Callable[[LaneSocket], Awaitable[None]], opening_timeout_s: float) -> None:
        """Hands each connection to `accept`, which returns when the lane is over."""

        async def handle(connection: ServerConnection) -> None:
            await accept(LaneSocket(connection))

        async with serve(
            handle,
            sock=self._socket,
            subprotocols=[Subprotocol(SUBPROTOCOL)],
            process_request=self._check,
            open_timeout=opening_timeout_s,
            **LANE_OPTIONS,
        ):
            await asyncio.get_running_loop().create_future()

    def close(self) -> None:
        """Gives the port back when `run` was never called."""
        self._socket.close()

    def _check(self, connection: ServerConnection, request: Request) -> Response | None:
        if self.opening >= OPENING_MAX:
            self.refused += 1
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "Too many connections at once: try again.\n")
        if "Upgrade" not in request.headers:
            return None
        offered = {item.strip() for header in request.headers.get_all(_HEADER) for item in header.split(",")}
        if SUBPROTOCOL in offered:
            return None
        self.refused += 1
        return connection.respond(
            HTTPStatus.BAD_REQUEST,
            f"This is the peer port of a mesh node: it speaks only the WebSocket subprotocol {SUBPROTOCOL}.\n",
        )
