"""The client listener: accepts WebSocket connections of this site's applications, refuses the rest in clear text.

Applications cannot be authenticated yet, so the address is a loopback one unless the operator opened it, and a request
with an Origin is refused: only browsers send one, and a foreign web page must not publish here. A request without an
upgrade is answered 426. Leaves out: what is said on a connection (`client_session`). Source: architecture
§5 "Listeners", §11.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from socket import socket
from typing import Final

from picows import WSUpgradeRequest

from mesh_data.shell.client_session import ClientSession
from mesh_data.shell.streams_catalogue import StreamsCatalogue
from mesh_data.shell.streams_metrics import CLIENT_CONNECTIONS, CLIENT_REFUSALS
from meshcommon.frame_ports import Refusal, offered_protocols, serve
from meshcommon.frame_socket import FrameSocket, SocketLimits
from meshcommon.listen import bind
from meshwire.client import MAX_FRAME_BYTES, SUBPROTOCOL

CONNECTIONS_MAX: Final = 256
"""Connections at once. Cost: some hundred KiB each, and what their unanswered batches take (4 MiB a producer)."""
OPEN_TIMEOUT_S: Final = 5.0
_LIMITS: Final = SocketLimits(
    frame_bytes_max=MAX_FRAME_BYTES,
    # A peer that neither answers nor reads is dropped after twice as long.
    ping_s=20.0,
)


class ClientListener:
    """Listens from construction on; `run` serves until cancelled."""

    def __init__(self, listen: str, catalogue: StreamsCatalogue) -> None:
        """Binds.

        Raises:
            MeshError: ADDRESS_IN_USE or SETTING_INVALID.
        """
        self._catalogue = catalogue
        self._socket: socket = bind(listen, "The client listener")
        self._sessions: set[ClientSession] = set()

    @property
    def port(self) -> int:
        """The port that is bound."""
        port: int = self._socket.getsockname()[1]
        return port

    async def run(self) -> None:
        """Serves connections, each until it ends."""
        await serve(self._socket, SUBPROTOCOL, self._check, self._handle, _LIMITS, OPEN_TIMEOUT_S)

    async def close(self) -> None:
        """The service stops: answers what is due on every connection, then says so and closes it."""
        await asyncio.gather(*(session.finish() for session in self._sessions))

    async def _handle(self, connection: FrameSocket) -> None:
        session = ClientSession(self._catalogue, connection)
        self._sessions.add(session)
        CLIENT_CONNECTIONS.inc()
        try:
            await session.run()
        finally:
            CLIENT_CONNECTIONS.dec()
            self._sessions.discard(session)

    def _check(self, request: WSUpgradeRequest) -> Refusal | None:
        if "Origin" in request.headers:
            return _refuse(HTTPStatus.FORBIDDEN, "Web pages may not use this port.")
        if SUBPROTOCOL not in offered_protocols(request):
            return _refuse(
                HTTPStatus.BAD_REQUEST,
                f"This is the client port of a mesh node: it speaks only the WebSocket subprotocol {SUBPROTOCOL}.",
            )
        if len(self._sessions) >= CONNECTIONS_MAX:
            return _refuse(HTTPStatus.SERVICE_UNAVAILABLE, "Too many connections at once: try again.")
        return None


def _refuse(status: HTTPStatus, text: str) -> Refusal:
    CLIENT_REFUSALS.labels(status.phrase).inc()
    return Refusal(status, text + "\n")
