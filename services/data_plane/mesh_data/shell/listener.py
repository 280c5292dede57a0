"""The peer listener: accepts WebSocket connections of other nodes and refuses everything else in clear text.

Leaves out: the lane handshake. A request without an upgrade is answered 426, one with a foreign subprotocol 400, and 503
while too many connections are still unproven.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from socket import socket
from typing import Final

from picows import WSUpgradeRequest

from mesh_data.shell.lane_socket import LANE_LIMITS, SUBPROTOCOL
from meshcommon.frame_ports import Refusal, offered_protocols, serve
from meshcommon.frame_socket import FrameSocket
from meshcommon.listen import bind

OPENING_MAX: Final = 64
"""Connections whose node is not yet proved. Cost: 64 KiB each at most."""


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

    async def run(self, accept: Callable[[FrameSocket], Awaitable[None]], opening_timeout_s: float) -> None:
        """Hands each connection to `accept`, which returns when the lane is over."""
        await serve(self._socket, SUBPROTOCOL, self._check, accept, LANE_LIMITS, opening_timeout_s)

    def close(self) -> None:
        """Gives the port back when `run` was never called."""
        self._socket.close()

    def _check(self, request: WSUpgradeRequest) -> Refusal | None:
        if self.opening >= OPENING_MAX:
            self.refused += 1
            return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "Too many connections at once: try again.\n")
        if SUBPROTOCOL in offered_protocols(request):
            return None
        self.refused += 1
        return Refusal(
            HTTPStatus.BAD_REQUEST,
            f"This is the peer port of a mesh node: it speaks only the WebSocket subprotocol {SUBPROTOCOL}.\n",
        )
