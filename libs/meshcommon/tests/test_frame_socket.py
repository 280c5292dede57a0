"""Frames over WebSockets: whole, in order, and bounded, whatever the other side does (invariant I6)."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import pytest
import uvloop
from picows import WSUpgradeRequest

from meshcommon.frame_ports import DialRefused, Opening, Refusal, dial, offered_protocols, serve
from meshcommon.frame_socket import FrameSocket, SocketClosed, SocketLimits, TextFrame, with_head
from meshcommon.listen import bind
from meshtest.waiting import eventually

PROTOCOL = "test.v1"
LIMITS = SocketLimits(frame_bytes_max=100_000)
MASK = b"\x00\x00\x00\x00"
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Protocol: test.v1\r\n\r\n"
)


class Server:
    """A listener; accepted connections wait in `accepted`."""

    def __init__(self) -> None:
        self.accepted: asyncio.Queue[FrameSocket] = asyncio.Queue()
        self._socket = bind("127.0.0.1:0", "The test listener")
        self.port: int = self._socket.getsockname()[1]
        self.task = asyncio.create_task(
            serve(self._socket, PROTOCOL, self._check, self._handle, LIMITS, Opening(5.0)), name="server"
        )

    async def _handle(self, connection: FrameSocket) -> None:
        self.accepted.put_nowait(connection)
        await connection.wait_closed()

    def _check(self, request: WSUpgradeRequest, _host: str) -> Refusal | None:
        known = PROTOCOL in offered_protocols(request)
        return None if known else Refusal(HTTPStatus.BAD_REQUEST, "Speak test.v1.\n")

    async def raw(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection whose handshake is done and whose frames are written by hand."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(UPGRADE)
        assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
        return reader, writer

    async def pair(self) -> tuple[FrameSocket, FrameSocket]:
        """Both ends of a new connection, the dialled one first."""
        near = await dial(f"ws://127.0.0.1:{self.port}", PROTOCOL, LIMITS, 5.0)
        return near, await self.accepted.get()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """A running listener."""
    started = Server()
    yield started
    started.task.cancel()
    await asyncio.gather(started.task, return_exceptions=True)


@asynccontextmanager
async def by_hand(server: Server) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, FrameSocket]]:
    reader, writer = await server.raw()
    try:
        async with asyncio.timeout(20):
            yield reader, writer, await server.accepted.get()
    finally:
        writer.close()


def head(first: int, size: int) -> bytes:
    return bytes((first, 0x80 | size)) + MASK


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 100_000])
async def test_frames_of_every_length_arrive_both_ways(server: Server, size: int) -> None:
    near, far = await server.pair()
    frame = bytes(number & 0xFF for number in range(size))
    for source, destination in ((near, far), (far, near)):
        await source.send(frame)
        await source.send(with_head((frame[: size // 2], memoryview(frame)[size // 2 :])))
        assert await destination.receive() == frame
        assert await destination.receive() == frame


async def test_a_message_that_was_cut_up_on_the_way_is_joined(server: Server) -> None:
    async with by_hand(server) as (_, writer, connection):
        writer.write(head(0x02, 3) + b"one" + head(0x89, 1) + b"p" + head(0x00, 3) + b"two" + head(0x80, 0))
        writer.write(head(0x82, 4) + b"next")
        assert await connection.receive() == b"onetwo"
        assert await connection.receive() == b"next"


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (head(0x80, 1) + b"x", 1002),
        (head(0x02, 1) + b"x" + head(0x82, 1) + b"y", 1002),
        (head(0xC2, 1) + b"x", 1002),
        (head(0x82, 126) + (100).to_bytes(2, "big"), 1002),
        (bytes((0x82, 0xFF)) + (100_001).to_bytes(8, "big") + MASK, 1009),
        ((head(0x02, 0) + head(0x00, 0) * 2_000), 1009),
        (b"\x82\x01x", 1002),
    ],
    ids=["no first part", "whole inside parts", "reserved bit", "long length", "too large", "empty parts", "unmasked"],
)
async def test_what_breaks_the_protocol_ends_the_connection(server: Server, frames: bytes, code: int) -> None:
    async with by_hand(server) as (reader, writer, connection):
        writer.write(frames)
        closing = await reader.read()
        assert closing[0] == 0x88
        assert int.from_bytes(closing[2:4], "big") == code
        with pytest.raises(SocketClosed):
            await connection.receive()


async def test_a_text_frame_is_told_apart(server: Server) -> None:
    async with by_hand(server) as (_, writer, connection):
        writer.write(head(0x81, 2) + b"hi")
        with pytest.raises(TextFrame):
            await connection.receive()


@pytest.mark.parametrize("size", [0, 60_000])
async def test_a_receiver_that_takes_nothing_stops_the_sender(server: Server, size: int) -> None:
    near, far = await server.pair()
    sent = 0

    async def flood() -> None:
        nonlocal sent
        while True:
            await near.send(bytes(size))
            sent += 1
            await asyncio.sleep(0)

    flooding = asyncio.create_task(flood(), name="flood")
    before = -1

    async def stands_still() -> bool:
        nonlocal before
        before, is_still = sent, sent == before and sent > 0
        return is_still

    await eventually("the sender waits", stands_still, timeout_s=60)
    taken = 0
    while taken <= before:
        await far.receive()
        taken += 1

    async def goes_on() -> bool:
        return sent > before

    await eventually("the sender goes on", goes_on, timeout_s=20)
    flooding.cancel()
    near.abort()


async def test_closing_tells_why(server: Server) -> None:
    near, far = await server.pair()
    await near.close("enough")
    with pytest.raises(SocketClosed, match="enough"):
        await far.receive()
    with pytest.raises(SocketClosed):
        await near.send(b"late")


async def test_a_lost_connection_wakes_whoever_waits(server: Server) -> None:
    near, far = await server.pair()
    waiting = asyncio.create_task(far.receive(), name="waiting")
    near.abort()
    with pytest.raises(SocketClosed, match="lost"):
        await waiting


async def test_the_addresses_of_a_name_are_tried_in_turn(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """One refuses, one swallows what it is sent, and the last one answers."""
    loop = asyncio.get_running_loop()
    connect, tried = loop.create_connection, []

    async def resolve(_host: str, port: int, **_options: Any) -> list[Any]:
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", port)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
        ]

    async def create_connection(protocol: Any, host: str, *arguments: Any, **options: Any) -> Any:
        tried.append(host)
        if host == "192.0.2.1":
            await asyncio.sleep(60)
        return await connect(protocol, host, *arguments, **options)

    monkeypatch.setattr(loop, "getaddrinfo", resolve)
    monkeypatch.setattr(loop, "create_connection", create_connection)
    near = await dial(f"ws://mesh.example:{server.port}", PROTOCOL, LIMITS, 6.0)
    assert tried == ["::1", "192.0.2.1", "127.0.0.1"]
    await near.close("")


async def test_another_protocol_is_refused_with_its_reason(server: Server) -> None:
    with pytest.raises(DialRefused) as refused:
        await dial(f"ws://127.0.0.1:{server.port}", "other.v1", LIMITS, 5.0)
    assert refused.value.status == HTTPStatus.BAD_REQUEST
    assert b"test.v1" in refused.value.body


@pytest.mark.parametrize("address", ["ws://", "http://127.0.0.1:1", "ws://127.0.0.1:99999", "nonsense"])
async def test_what_is_no_address_is_told(address: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        await dial(address, PROTOCOL, LIMITS, 5.0)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("is_reset", [False, True], ids=["closes", "resets"])
def test_a_peer_that_hangs_up_at_once_is_told_at_once(
    run: Callable[[Coroutine[Any, Any, None]], None], is_reset: bool
) -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    dials = 20

    def hang_up() -> None:
        for _ in range(dials):
            connection, _address = listening.accept()
            if is_reset:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()

    async def dial_all() -> None:
        for _ in range(dials):
            with pytest.raises(DialRefused):
                await dial(f"ws://127.0.0.1:{listening.getsockname()[1]}", PROTOCOL, LIMITS, 60.0)

    thread = threading.Thread(target=hang_up)
    thread.start()
    run(dial_all())
    thread.join()
    listening.close()
