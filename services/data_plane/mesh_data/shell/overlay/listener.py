"""The peer listener: accepts WebSocket connections of other nodes and refuses everything else in clear text.

Leaves out: the lane handshake. A request without an upgrade is answered 426, one with an Origin 403, one with a
foreign subprotocol 400. While too many sockets are unproven, from everywhere or from one address, the next one is
answered 503 and closed before anything is read.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from socket import socket

from picows import WSUpgradeRequest

from mesh_data.shell.overlay.lane_socket import LANE_LIMITS, SUBPROTOCOL
from meshcommon.boot_certificate import BootCertificate
from meshcommon.frame_ports import Opening, Refusal, offered_protocols, serve
from meshcommon.frame_socket import FrameSocket
from meshcommon.listen import bind
from meshcommon.socket_gate import SocketGate


class PeerListener:
    """Listens from construction on; `run` serves until cancelled."""

    def __init__(self, listen: str, certificate: BootCertificate | None = None) -> None:
        """Binds. With a certificate nothing is accepted in clear.

        Raises:
            MeshError: ADDRESS_IN_USE or SETTING_INVALID.
        """
        self._socket: socket = bind(listen, "The peer listener")
        self._tls = certificate.server() if certificate is not None else None
        self.certificate = certificate.digest if certificate is not None else b""
        """SHA-256 of the certificate that is shown, empty for none."""
        self.gate = SocketGate()
        self._refused = 0

    @property
    def port(self) -> int:
        """The port that is bound."""
        port: int = self._socket.getsockname()[1]
        return port

    @property
    def refused(self) -> int:
        """Connections refused before the lane handshake."""
        return self._refused + self.gate.refused

    async def run(self, accept: Callable[[FrameSocket], Awaitable[None]], opening_timeout_s: float) -> None:
        """Hands each connection to `accept`, which returns when the lane is over."""
        opening = Opening(opening_timeout_s, self.gate, self._tls)
        await serve(self._socket, SUBPROTOCOL, self._check, accept, LANE_LIMITS, opening)

    def close(self) -> None:
        """Gives the port back when `run` was never called."""
        self._socket.close()

    def _check(self, request: WSUpgradeRequest, _host: str) -> Refusal | None:
        if "Origin" in request.headers:
            # Only browsers send one: no page may make a browser of this network speak for it.
            self._refused += 1
            return Refusal(HTTPStatus.FORBIDDEN, "Web pages may not use this port.\n")
        if SUBPROTOCOL in offered_protocols(request):
            return None
        self._refused += 1
        return Refusal(
            HTTPStatus.BAD_REQUEST,
            f"This is the peer port of a mesh node: it speaks only the WebSocket subprotocol {SUBPROTOCOL}.\n",
        )
