"""Frames over TLS, with real certificates at both ends, and sockets that count before TLS is done (I6)."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from meshcommon.barrier import UNEXPECTED_ERRORS
from meshcommon.frame_ports import DialRefused, Opening, TlsFailedError, dial, serve
from meshcommon.frame_socket import FrameSocket, SocketClosed, SocketLimits
from meshcommon.listen import bind
from meshcommon.socket_gate import GateLimits, SocketGate
from meshtest.certificates import SelfSigned
from meshtest.waiting import eventually

PROTOCOL = "test.v1"
LIMITS = SocketLimits(frame_bytes_max=1_000_000)
OPEN_S = 0.5


async def until(what: str, holds: Callable[[], object]) -> None:
    async def look() -> bool:
        return bool(holds())

    await eventually(what, look, timeout_s=10, poll_s=0.01)


def unexpected() -> float:
    """Failures of listeners that nobody expected."""
    return sum(float(UNEXPECTED_ERRORS.labels(where)._value.get()) for where in ("tls_accept", "accept", "connection"))


class Server:
    """A TLS listener that returns each frame."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        self.gate = SocketGate(GateLimits(sockets_max=4, reserved=0, per_address_max=4))
        self._socket = bind("127.0.0.1:0", "The test listener")
        self.port: int = self._socket.getsockname()[1]
        self.handled = 0
        opening = Opening(OPEN_S, self.gate, tls)
        self.task = asyncio.create_task(
            serve(self._socket, PROTOCOL, lambda *_: None, self._handle, LIMITS, opening), name="server"
        )

    async def _handle(self, connection: FrameSocket) -> None:
        self.handled += 1
        connection.prove(is_bounded=False)
        while True:
            try:
                await connection.send(await connection.receive())
            except SocketClosed:
                return

    async def dial(self, tls: ssl.SSLContext | None, scheme: str = "wss") -> FrameSocket:
        return await dial(f"{scheme}://127.0.0.1:{self.port}", PROTOCOL, LIMITS, 5.0, tls=tls)

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@pytest.fixture
def own(tmp_path: Path) -> SelfSigned:
    return SelfSigned.make(tmp_path, "own")


@pytest.fixture
def other(tmp_path: Path) -> SelfSigned:
    return SelfSigned.make(tmp_path, "other")


@pytest.fixture
async def server(own: SelfSigned, other: SelfSigned) -> AsyncIterator[Server]:
    """A listener that shows `own` and wants `other`."""
    started = Server(own.server(trusted=other))
    yield started
    await started.stop()


async def echoes(connection: FrameSocket, *frames: bytes) -> bool:
    for frame in frames:
        await connection.send(frame)
    return [await connection.receive() for _ in frames] == list(frames)


async def test_frames_pass_both_ways_when_each_side_trusts_the_other(
    server: Server, own: SelfSigned, other: SelfSigned
) -> None:
    connection = await server.dial(other.client(trusted=own))
    connection.prove(is_bounded=False)
    assert await echoes(connection, b"a", b"x" * 900_000, b"")
    await until("nothing is unproven", lambda: not server.gate.unproven)
    connection.abort()


async def test_listener_that_is_not_trusted_is_not_spoken_to(server: Server, other: SelfSigned) -> None:
    with pytest.raises(TlsFailedError, match="self-signed certificate"):
        await server.dial(other.client(trusted=other))
    with pytest.raises(TlsFailedError, match="self-signed certificate"):
        await server.dial(None)
    await until("nothing is left", lambda: not server.gate.unproven)


async def test_dialler_that_is_not_trusted_gets_no_frame_through(
    server: Server, own: SelfSigned, other: SelfSigned
) -> None:
    failures = unexpected()
    with pytest.raises((OSError, DialRefused, SocketClosed)):
        await echoes(await server.dial(own.client(trusted=own)), b"a")
    await until("nothing is left", lambda: not server.gate.unproven)
    assert (server.handled, unexpected()) == (0, failures)
    trusted = await server.dial(other.client(trusted=own))
    assert await echoes(trusted, b"still serving")
    trusted.abort()


async def test_address_in_clear_is_refused_where_tls_is_wanted(
    server: Server, own: SelfSigned, other: SelfSigned
) -> None:
    with pytest.raises(ValueError, match="in clear"):
        await server.dial(other.client(trusted=own), "ws")


async def test_clear_text_at_a_tls_port_is_dropped(server: Server) -> None:
    failures = unexpected()
    with pytest.raises((OSError, DialRefused)):
        await server.dial(None, "ws")
    await until("nothing is left", lambda: not server.gate.unproven)
    assert (server.handled, unexpected()) == (0, failures)


async def test_sockets_that_say_nothing_count_at_once_and_are_dropped(
    server: Server, own: SelfSigned, other: SelfSigned
) -> None:
    """Each is counted before TLS, a fifth is closed without a word, and all are gone when their time is over."""
    silent = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(4)]
    await until("all count", lambda: server.gate.unproven == 4)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    assert await reader.read() == b""
    assert server.gate.refused == 1
    await until("they are dropped", lambda: not server.gate.unproven)
    for item in (*silent, (reader, writer)):
        item[1].close()
    connection = await server.dial(other.client(trusted=own))
    assert await echoes(connection, b"free again")
    connection.abort()
