"""picows' protocol with what it lacks: sockets are counted before the upgrade, and what has come is counted before it is whole.

The library parses frames in C and hands over whole ones; until then their bytes lie in a buffer that only grows. So each
read is capped, and the connection (`frame_socket`) learns after each how much of an unfinished frame has come. It pauses
there while its peer is unproven, long before the library's own limit of a frame.

Uses two things of picows that it does not document: `WSProtocol` with the order of its arguments, and that the loop calls the
methods of a subclass (tests/test_frame_socket.py would notice a change). Source: picows 2.3 `picows.pyx`; ADR 0010.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

from picows import WSAutoPingStrategy
from picows.picows import WSProtocol  # type: ignore[attr-defined]

from meshcommon.barrier import report
from meshcommon.frame_socket import FrameSocket, SocketLimits
from meshcommon.socket_gate import SocketGate

_READ_BUFFER_BYTES: Final = 16 * 1024
"""What the buffer has at first: also the most that may come before the upgrade."""
_TURNED_AWAY: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Type: text/plain\r\nContent-Length: 41\r\n\r\n"
    b"Too many connections at once: try again.\n"
)
_log: Final = {
    is_dialler: logging.getLogger(f"picows.{name}") for is_dialler, name in ((True, "client"), (False, "server"))
}


class FrameProtocol(WSProtocol):  # type: ignore[misc]
    """One TCP connection, from before the handshake to its end. `listener` is its FrameSocket once it is open."""

    def __init__(
        self,
        make: Callable[..., Any],
        limits: SocketLimits,
        timeout_s: float,
        *,
        gate: SocketGate | None = None,
        entered: str | None = None,
        host_port: str | None = None,
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        """`make` makes the connection as picows wants it. With `host_port` this is the dialling side.

        `entered` is the address for which the gate has counted this socket already; else the protocol asks the gate.
        """
        is_dialler = host_port is not None
        super().__init__(
            host_port,
            "/" if is_dialler else None,
            is_dialler,
            make,
            _log[is_dialler],
            True,  # an exception in a callback ends the connection
            timeout_s,
            limits.ping_s is not None,
            limits.ping_s or 0.0,
            limits.ping_s or 0.0,
            # Also while the peer talks: one that sends and never reads must be dropped too.
            WSAutoPingStrategy.PING_PERIODICALLY,
            # Its own answers to pings ignore whether the peer reads: `FrameSocket` answers them.
            False,
            limits.frame_bytes_max,
            list(headers),
            _READ_BUFFER_BYTES,
        )
        self._gate = gate
        self._remote = entered
        """Under which the gate counts this socket; None when it does not."""
        self._is_turned_away = False
        self.host = entered or ""
        """IP address of the other end, once there is a connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        """The kernel has a new connection for us."""
        try:
            peer = transport.get_extra_info("peername")
            remote = self.host = str(peer[0]) if isinstance(peer, tuple) else ""
            if self._gate is not None and self._remote is None:
                if not self._gate.enter(remote):
                    self._is_turned_away = True
                    transport.write(_TURNED_AWAY)
                    transport.close()
                    return
                self._remote = remote
            super().connection_made(transport)
        except Exception as error:  # noqa: BLE001 - one that is gone already, for example: it ends that one
            report("accept", error)
            self._is_turned_away = True
            self.leave_gate()
            transport.abort()

    def get_buffer(self, size_hint: int) -> memoryview:
        """Where the loop puts the next bytes: not more at a time than a connection should take."""
        room: memoryview = super().get_buffer(size_hint)
        connection: FrameSocket | None = self.listener
        bytes_max = _READ_BUFFER_BYTES if connection is None else connection.read_bytes_max
        return room if len(room) <= bytes_max else room[:bytes_max]

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes have come."""
        if self._is_turned_away:
            return
        connection: FrameSocket | None = self.listener
        if connection is None:
            super().buffer_updated(nbytes)
            connection = self.listener
            if connection is not None:
                connection.on_proven(self.leave_gate)
            return
        connection.partial_bytes += nbytes
        super().buffer_updated(nbytes)
        if connection.partial_bytes > connection.partial_bytes_max:
            connection.partial_grew()

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is gone."""
        self.leave_gate()
        if not self._is_turned_away:
            super().connection_lost(error)

    def eof_received(self) -> bool:
        """The other side sends nothing more: closes."""
        return False

    def leave_gate(self) -> None:
        """The socket counts no more: it is gone, or its peer is proved."""
        remote, self._remote = self._remote, None
        if remote is not None and self._gate is not None:
            self._gate.leave(remote)
