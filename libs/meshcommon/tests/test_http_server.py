"""What a stranger can claim of an HTTP listener: connections, heads, unread answers, pings; and what it answers to nonsense."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from meshcommon import http_server
from meshcommon.http_server import HttpLimits, serve_asgi
from meshtest.ports import free_ports
from meshtest.waiting import eventually

LARGE = 8 * 1024 * 1024
LIMITS = HttpLimits(connections_max=4, has_sockets=True)
UPGRADE = (
    b"GET /socket HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)


async def body(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())))


async def large(_request: Request) -> Response:
    return Response(bytes(LARGE))


async def socket(websocket: WebSocket) -> None:
    """Answers each message with its length; a number, with so many bytes."""
    await websocket.accept()
    try:
        while True:
            text = await websocket.receive_text()
            await websocket.send_text("x" * int(text) if text.isdigit() else str(len(text)))
    except WebSocketDisconnect:
        pass


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """Where a small application is served."""
    async with listening() as number:
        yield number


@asynccontextmanager
async def listening(listen: str = "") -> AsyncIterator[int]:
    number = free_ports(1)[0]
    routes = [Route("/", body, methods=["GET", "POST"]), Route("/large", large), WebSocketRoute("/socket", socket)]
    serving = asyncio.create_task(
        serve_asgi(Starlette(routes=routes), listen or f"127.0.0.1:{number}", "The test", limits=LIMITS)
    )

    async def is_open() -> bool:
        serving.done() and serving.result()
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", number)
        except OSError:
            return False
        writer.transport.abort()
        return True

    if not listen:
        await eventually("it listens", is_open)
    yield number
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


class Wire:
    """A connection as bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port: int, sent: bytes = b"") -> Wire:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**16)
        writer.write(sent)
        return cls(reader, writer)

    async def head(self) -> bytes:
        async with asyncio.timeout(10):
            return await self.reader.readuntil(b"\r\n\r\n")

    async def is_ended(self, within_s: float = 10.0) -> bool:
        """Whether the other side ends it, whatever it still sends."""
        try:
            async with asyncio.timeout(within_s):
                while await self.reader.read(2**16):
                    pass
        except TimeoutError:
            return False
        except ConnectionError:
            return True
        return True

    async def problem(self) -> tuple[int, dict[str, Any]]:
        """Status and document of an answer that ends the connection."""
        async with asyncio.timeout(10):
            head, _, document = (await self.reader.read()).partition(b"\r\n\r\n")
        assert b"application/problem+json" in head
        return int(head.split()[1]), json.loads(document)


@pytest.fixture
def is_hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patience of hundredths of a second, so that tests need no more."""
    monkeypatch.setattr(http_server, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(http_server, "QUIET_S", 0.2)
    monkeypatch.setattr(http_server, "SOCKET_QUIET_S", 0.2)


async def test_connections_beyond_the_limit_are_told_and_others_go_on(port: int) -> None:
    async with AsyncExitStack() as stack:
        wires = [await Wire.open(port) for _ in range(LIMITS.connections_max)]
        for wire in wires:
            stack.callback(wire.writer.transport.abort)
        await asyncio.sleep(0.1)
        status, problem = await (await Wire.open(port)).problem()
        assert (status, problem["code"], problem["retryable"]) == (503, "UNAVAILABLE", True)
        wires[0].writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await wires[0].head()).startswith(b"HTTP/1.1 200")
        wires[1].writer.transport.abort()

        async def is_taken() -> bool:
            wire = await Wire.open(port, b"GET / HTTP/1.0\r\n\r\n")
            return (await wire.head()).startswith(b"HTTP/1.1 200")

        await eventually("the place is free again", is_taken)


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: "])
async def test_a_head_that_does_not_come_ends_the_connection(is_hasty: None, port: int, sent: bytes) -> None:
    wire = await Wire.open(port, sent)
    assert await wire.is_ended()


async def test_a_head_that_comes_in_drops_ends_the_connection_too(is_hasty: None, port: int) -> None:
    wire = await Wire.open(port, b"GET / HTTP/1.1\r\n")

    async def drip() -> None:
        while True:
            wire.writer.write(b"X: y\r\n")
            await asyncio.sleep(0.02)

    dripping = asyncio.create_task(drip())
    assert await wire.is_ended()
    dripping.cancel()


async def test_a_connection_in_use_stays(is_hasty: None, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "QUIET_S", 1.0)
    wire = await Wire.open(port)
    for _ in range(20):
        wire.writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await wire.head()).startswith(b"HTTP/1.1 200")
        await asyncio.sleep(0.08)
        await wire.reader.read(100)


async def test_an_answer_that_is_not_read_is_cut(is_hasty: None, port: int) -> None:
    wire = await Wire.open(port, b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await asyncio.sleep(1)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await wire.reader.readexactly(LARGE)


async def test_a_slow_reader_gets_all_of_it(is_hasty: None, port: int) -> None:
    wire = await Wire.open(port, b"GET /large HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    await wire.head()
    read = 0
    while part := await wire.reader.read(2**16):
        read += len(part)
        await asyncio.sleep(0.005)
    assert read == LARGE


async def test_what_all_leave_unread_is_bounded(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "UNREAD_BYTES_MAX", LARGE)
    wires = [await Wire.open(port, b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n") for _ in range(3)]
    await asyncio.sleep(0.5)
    outcomes = []
    for wire in wires:
        try:
            head = await wire.head()
            async with asyncio.timeout(5):
                await wire.reader.readexactly(LARGE)
            outcomes.append(head.startswith(b"HTTP/1.1 200"))
        except (ConnectionError, asyncio.IncompleteReadError):
            outcomes.append(False)
    assert False in outcomes


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET / HTTP/1\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nBad Name: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: \x00\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + bytes(64 * 1024),
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        UPGRADE + b"X: " + b"a" * 9_000 + b"\r\n\r\n",
        UPGRADE + b"".join(b"X-%d: a\r\n" % number for number in range(200)) + b"\r\n",
    ],
)
async def test_what_is_no_http_gets_a_problem_document(port: int, sent: bytes) -> None:
    status, problem = await (await Wire.open(port, sent)).problem()
    assert (status, problem["code"], problem["status"]) == (400, "INVALID_ARGUMENT", 400)


async def open_socket(port: int) -> Wire:
    wire = await Wire.open(port, UPGRADE + b"\r\n")
    assert (await wire.head()).startswith(b"HTTP/1.1 101")
    return wire


def frame(opcode: int, payload: bytes) -> bytes:
    """A masked frame; the mask is zero, so that the payload is sent as it is."""
    length = bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + struct.pack("!H", len(payload))
    return bytes([0x80 | opcode]) + length + bytes(4) + payload


async def flood(wire: Wire, data: bytes) -> None:
    while True:
        wire.writer.write(data)
        await wire.writer.drain()


async def test_a_socket_message_that_is_too_large_closes_it_with_the_reason(port: int) -> None:
    wire = await open_socket(port)
    wire.writer.write(frame(1, b"hello"))
    async with asyncio.timeout(10):
        assert await wire.reader.readexactly(3) == b"\x81\x015"
        wire.writer.write(frame(1, b"a" * (http_server.SOCKET_MESSAGE_BYTES_MAX + 1)))
        closing = await wire.reader.readexactly(4)
    assert struct.unpack("!H", closing[2:4])[0] == 1009


async def test_a_socket_is_not_compressed(port: int) -> None:
    wire = await Wire.open(port, UPGRADE + b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n")
    assert b"extensions" not in (await wire.head()).lower()


async def test_pings_that_are_never_read_take_no_memory(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uvicorn alone answers each of them into a buffer without end."""
    sizes: list[int] = []
    written = http_server.BoundedSocket.handle_ping

    def handle_ping(self: http_server.BoundedSocket) -> None:
        written(self)
        sizes.append(self.transport.get_write_buffer_size())

    monkeypatch.setattr(http_server.BoundedSocket, "handle_ping", handle_ping)
    wire = await open_socket(port)
    wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(flood(wire, frame(9, b"p" * 125) * 500), 2)
    assert max(sizes) < 1024 * 1024
    # And what is read again is answered again.
    wire.writer.transport.resume_reading()  # type: ignore[attr-defined]
    async with asyncio.timeout(10):
        assert (await wire.reader.readexactly(127))[:2] == b"\x8a\x7d"


async def test_a_follower_that_does_not_read_is_cut(is_hasty: None, port: int) -> None:
    wire = await open_socket(port)
    wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
    with pytest.raises(ConnectionError):
        await asyncio.wait_for(flood(wire, frame(1, b"1000000") * 500), 10)


async def test_it_serves_on_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "run" / "rest.sock"
    async with listening(f"unix:{path}"):

        async def is_there() -> bool:
            return path.exists()

        await eventually("the socket is there", is_there)
        assert path.stat().st_mode & 0o777 == 0o600
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            assert (await client.post("/", content=b"abc")).text == "3"
    assert not path.exists()
