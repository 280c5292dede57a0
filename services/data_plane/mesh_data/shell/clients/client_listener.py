"""The client listener: accepts WebSocket connections of this site's applications, refuses the rest in clear text.

Where other machines reach it, an application shows the operator's token of the site in the request, over TLS; on a loopback
address nobody is asked. A request with an Origin is refused: only browsers send one, and a foreign web page must not
publish here. A request without an
upgrade is answered 426. Leaves out: what is said on a connection (`client_session`). Source: architecture
§5 "Listeners", §11.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from socket import socket
from typing import Final

from picows import WSUpgradeRequest

from mesh_data.shell.clients.client_room import ClientRoom
from mesh_data.shell.clients.client_session import ClientSession
from mesh_data.shell.streams.stream_budgets import StreamBudgets
from mesh_data.shell.streams.streams_catalogue import StreamsCatalogue
from mesh_data.shell.streams_metrics import CLIENT_CONNECTIONS, CLIENT_REFUSALS
from meshcommon.errors import MeshError
from meshcommon.frame_ports import Opening, Refusal, offered_protocols, serve
from meshcommon.frame_socket import FrameSocket, SocketLimits
from meshcommon.listen import bind
from meshcommon.operator_token import CHALLENGE, OperatorToken
from meshcommon.read_budget import ReadBudget
from meshcommon.socket_gate import GateLimits, SocketGate
from meshcommon.tls_files import TlsFiles
from meshwire.client import MAX_FRAME_BYTES, SUBPROTOCOL

CONNECTIONS_MAX: Final = 256
"""Connections at once. Cost: some hundred KiB each, what is in `READ_BUDGET_BYTES`, and their unanswered batches."""
OPENING_LIMITS: Final = GateLimits(sockets_max=128, reserved=0, per_address_max=128)
"""Sockets that are not open yet. All come from this machine, as a rule, so the address tells nothing."""
READ_SHARE_BYTES: Final = 256 * 1024
READ_BUDGET_BYTES: Final = 64 * 1024 * 1024
"""What all connections together may hold, beyond a share each, of frames that are not whole or not taken yet."""
OPEN_TIMEOUT_S: Final = 5.0
_LIMITS: Final = SocketLimits(
    frame_bytes_max=MAX_FRAME_BYTES,
    # What the kernel may hold unsent of a connection whose peer does not read.
    unsent_bytes_max=1024 * 1024,
    # A peer that does not answer is dropped after twice as long; one that does not read, by `stall_s`.
    ping_s=20.0,
    read_bytes_max=128 * 1024,
    stall_s=40.0,
)


class ClientListener:
    """Listens from construction on; `run` serves until cancelled."""

    def __init__(
        self,
        listen: str,
        catalogue: StreamsCatalogue,
        budgets: StreamBudgets,
        tls: TlsFiles | None = None,
        guard: OperatorToken | None = None,
    ) -> None:
        """Binds. With `tls` nothing is accepted in clear; without, everything is. `guard` is asked about each request.

        Raises:
            MeshError: ADDRESS_IN_USE or SETTING_INVALID.
        """
        self._catalogue = catalogue
        self._budgets = budgets
        self._guard = guard
        self._tls = tls.context if tls is not None else None
        self.room = ClientRoom()
        self._socket: socket = bind(listen, "The client listener")
        self._sessions: set[ClientSession] = set()
        self.gate = SocketGate(OPENING_LIMITS)
        self.budget = ReadBudget(READ_BUDGET_BYTES, READ_SHARE_BYTES)

    @property
    def port(self) -> int:
        """The port that is bound."""
        port: int = self._socket.getsockname()[1]
        return port

    async def run(self) -> None:
        """Serves connections, each until it ends."""
        opening = Opening(OPEN_TIMEOUT_S, self.gate, self._tls)
        await serve(self._socket, SUBPROTOCOL, self._check, self._handle, _LIMITS, opening, budget=self.budget)

    async def close(self) -> None:
        """The service stops: answers what is due on every connection, then says so and closes it."""
        await asyncio.gather(*(session.finish() for session in self._sessions))

    async def _handle(self, connection: FrameSocket) -> None:
        session = ClientSession(self._catalogue, self._budgets, self.room, connection)
        self._sessions.add(session)
        CLIENT_CONNECTIONS.inc()
        try:
            await session.run()
        finally:
            CLIENT_CONNECTIONS.dec()
            self._sessions.discard(session)

    def _check(self, request: WSUpgradeRequest, host: str) -> Refusal | None:
        if "Origin" in request.headers:
            return _refuse(HTTPStatus.FORBIDDEN, "Web pages may not use this port.")
        if SUBPROTOCOL not in offered_protocols(request):
            return _refuse(
                HTTPStatus.BAD_REQUEST,
                f"This is the client port of a mesh node: it speaks only the WebSocket subprotocol {SUBPROTOCOL}.",
            )
        if self._guard is not None:
            try:
                self._guard.admit(request.headers.getall("Authorization", ()), host)
            except MeshError as error:
                status = HTTPStatus(error.mapping.http)
                headers = (("WWW-Authenticate", CHALLENGE),) if status is HTTPStatus.UNAUTHORIZED else ()
                return _refuse(status, f"{error.code}: {error.message}", headers)
        if len(self._sessions) >= CONNECTIONS_MAX:
            return _refuse(HTTPStatus.SERVICE_UNAVAILABLE, "Too many connections at once: try again.")
        return None


def _refuse(status: HTTPStatus, text: str, headers: tuple[tuple[str, str], ...] = ()) -> Refusal:
    CLIENT_REFUSALS.labels(status.phrase).inc()
    return Refusal(status, text + "\n", headers)
