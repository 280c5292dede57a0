"""Accepts TLS connections so that a socket counts before its TLS handshake, not only after it.

`create_server(ssl=…)` tells nobody of a socket until its handshake is done: strangers could hold any number open for free.
Here the gate is asked at once, and what does not finish in time is dropped. Leaves out: certificates (the context's) and
plain listeners, where the protocol asks the gate itself (`frame_protocol`). Source: architecture §5 "Listeners", §11.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Final, Protocol, cast

from meshcommon.barrier import barrier
from meshcommon.logging import get_logger
from meshcommon.peer_text import printable
from meshcommon.socket_gate import SocketGate

_log = get_logger(__name__)
_NO_SOCKETS_PAUSE_S: Final = 0.1
"""Pause when the kernel gives no socket: the process has too many open, for example."""


class GatedProtocol(Protocol):
    """An `asyncio.Protocol` of one socket that the gate counts until it leaves."""

    def leave_gate(self) -> None:
        """The socket counts no more. May be called again."""


async def accept_tls(
    listening: socket.socket,
    tls: ssl.SSLContext,
    gate: SocketGate,
    make: Callable[[str], GatedProtocol],
    timeout_s: float,
) -> None:
    """Accepts until cancelled.

    Args:
        listening: Bound, listening, not blocking; closed at the end.
        tls: A server's context.
        gate: Counts sockets; one that it turns away is closed without a word, since none could be read yet.
        make: Makes the protocol of a socket for which the gate has counted this address: it leaves the gate when it is
            open, or proved.
        timeout_s: For the TLS handshake.
    """
    loop = asyncio.get_running_loop()

    async def shake(connection: socket.socket, remote: str) -> None:
        protocol = make(remote)
        with barrier("tls_accept", remote=remote):
            try:
                await loop.connect_accepted_socket(
                    lambda: cast("asyncio.Protocol", protocol), connection, ssl=tls, ssl_handshake_timeout=timeout_s
                )
                return
            except (OSError, TimeoutError) as error:  # among them ssl.SSLError
                _log.debug("tls_refused", remote=remote, reason=printable(str(error)))
        protocol.leave_gate()
        connection.close()

    try:
        async with asyncio.TaskGroup() as tasks:
            while True:
                try:
                    connection, address = await loop.sock_accept(listening)
                except OSError as error:
                    _log.warning("accept_failed", reason=error.strerror)
                    await asyncio.sleep(_NO_SOCKETS_PAUSE_S)
                    continue
                remote = str(address[0])
                if not gate.enter(remote):
                    connection.close()
                    continue
                connection.setblocking(False)
                tasks.create_task(shake(connection, remote), name="tls handshake")
    finally:
        listening.close()
