"""What the peer port answers to those who do not speak our protocol: each is refused with a reason, and counted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import CloseCode
from websockets.typing import Subprotocol

from mesh_data.core.forwarder import DropReason
from mesh_data.core.handshake import Handshake, LocalNode, Role, Terms
from mesh_data.core.timing import OverlayTiming
from mesh_data.core.view import Node, NodeState, View
from mesh_data.shell.listener import OPENING_MAX, PeerListener
from mesh_data.shell.overlay import Overlay
from meshapi.overlay.v1 import lane_pb2
from meshcommon.errors import ErrorCode
from meshcommon.ids import NodeId
from meshtest.waiting import eventually
from meshwire.frame import MAX_FRAME_BYTES, MAX_HANDSHAKE_BYTES, decode_handshake

SEED = b"\x01" * 32
PEER_SEED = b"\x02" * 32


def node(node_id: int, seed: bytes) -> Node:
    key = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    return Node(NodeId(node_id), f"n{node_id}", key, "", NodeState.ACTIVE)


VIEW = View(1, "mesh", 0, {NodeId(1): node(1, SEED), NodeId(2): node(2, PEER_SEED)}, {})


class Port:
    """A member's peer port."""

    def __init__(self) -> None:
        self.listener = PeerListener("127.0.0.1:0")
        self.overlay = Overlay(OverlayTiming(handshake_s=1.0), {}, self.listener)
        self.overlay.configure(LocalNode(NodeId(1), "n1", SEED, "mesh"), VIEW, is_running=True)
        self.task = asyncio.create_task(self.overlay.run(), name="overlay")

    def dial(self, subprotocol: str = "mesh.v1") -> connect:
        return connect(
            f"ws://127.0.0.1:{self.listener.port}",
            subprotocols=[Subprotocol(subprotocol)],
            compression=None,
            proxy=None,
            max_size=None,
        )

    async def counted(self, code: ErrorCode) -> bool:
        """Waits until exactly one refusal, with that code, has been counted."""

        async def look() -> bool:
            return bool(self.overlay.refusals)

        await eventually("the refusal", look, timeout_s=10)
        return self.overlay.refusals == {code: 1}

    async def request(self, text: str) -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.listener.port)
        writer.write(text.replace("\n", "\r\n").encode())
        async with asyncio.timeout(10):
            answer = await reader.read()
        writer.close()
        return answer.decode()


@pytest.fixture
async def port() -> AsyncIterator[Port]:
    """A running peer port."""
    started = Port()
    yield started
    started.task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await started.task


async def rejection(connection: ClientConnection) -> str:
    """The code of the reject that comes before the close."""
    code = ""
    with contextlib.suppress(ConnectionClosed):
        async with asyncio.timeout(10):
            while True:
                frame = await connection.recv()
                assert isinstance(frame, bytes)
                message = lane_pb2.LaneHandshake.FromString(bytes(decode_handshake(frame)))
                code = message.reject.error.code or code
    return code


@pytest.mark.parametrize(
    "frame", [b"\x00garbage", b"", b"\x02not packets", b"\x01\xff\xff", b"\x01" + bytes(MAX_HANDSHAKE_BYTES)]
)
async def test_garbage_first_frame_is_rejected_and_counted(port: Port, frame: bytes) -> None:
    async with port.dial() as connection:
        await connection.send(frame)
        assert await rejection(connection) == ErrorCode.WRONG_PROTOCOL
    assert await port.counted(ErrorCode.WRONG_PROTOCOL)


async def test_text_frame_is_rejected(port: Port) -> None:
    async with port.dial() as connection:
        await connection.send("hello")
        assert await rejection(connection) == ErrorCode.WRONG_PROTOCOL


async def test_oversized_frame_closes_the_connection(port: Port) -> None:
    connection = await port.dial()
    # The head of a frame alone: the length is refused before the content has come.
    connection.transport.write(b"\x82\xff" + (MAX_FRAME_BYTES + 1).to_bytes(8, "big") + bytes(4))
    await rejection(connection)
    assert connection.close_code == CloseCode.MESSAGE_TOO_BIG
    assert await port.counted(ErrorCode.HANDSHAKE_FAILED)


async def test_silent_stranger_is_closed_when_the_handshake_is_over(port: Port) -> None:
    async with port.dial() as connection:
        assert await rejection(connection) == ErrorCode.HANDSHAKE_FAILED


async def test_foreign_subprotocol_is_refused_in_clear_text(port: Port) -> None:
    with pytest.raises(InvalidStatus) as refusal:
        async with port.dial("chat.v1"):
            pass
    assert refusal.value.response.status_code == 400
    assert b"mesh.v1" in (refusal.value.response.body or b"")
    assert port.listener.refused == 1


async def test_browser_is_told_that_this_is_no_web_page(port: Port) -> None:
    answer = await port.request("GET / HTTP/1.1\nHost: x\nConnection: close\n\n")
    assert answer.startswith("HTTP/1.1 426 ")
    assert "WebSocket" in answer


async def test_bytes_that_are_no_http_end_the_connection_and_nothing_else(port: Port) -> None:
    await port.request("\x16\x03\x01 this is not http\n\n\n")
    async with port.dial() as connection:
        assert isinstance(await connection.recv(), bytes)


async def test_too_many_unproven_connections_are_refused(port: Port) -> None:
    port.listener.opening = OPENING_MAX
    with pytest.raises(InvalidStatus) as refusal:
        async with port.dial():
            pass
    assert refusal.value.response.status_code == 503


async def shake(connection: ClientConnection) -> None:
    """The handshake of member 2, by hand."""
    local = LocalNode(NodeId(2), "n2", PEER_SEED, "mesh")
    handshake = Handshake(Role.DIALLER, local, Terms(VIEW), b"n" * 32, 0.0)
    while True:
        for frame in handshake.take_outgoing():
            await connection.send(frame)
        if handshake.is_done:
            break
        received = await connection.recv()
        assert isinstance(received, bytes)
        handshake.receive(received)
    assert handshake.failure is None


@pytest.mark.parametrize("frame", [b"\x07garbage", b"\x02\x00\x00", b"\x02\x00\x00\x00\x05short", "text", b"\x01\xff"])
async def test_member_that_breaks_the_rules_loses_its_lane(port: Port, frame: bytes | str) -> None:
    async with port.dial() as connection:
        await shake(connection)

        async def is_up() -> bool:
            return port.overlay.core.is_link_up(NodeId(2))

        async def is_down() -> bool:
            return not await is_up()

        await eventually("the link", is_up, timeout_s=10)
        await connection.send(frame)
        await eventually("its end", is_down, timeout_s=10)


async def test_truncated_packet_is_dropped_and_the_lane_lives(port: Port) -> None:
    async with port.dial() as connection:
        await shake(connection)
        # A frame that is well formed, around bytes that are no packet.
        await connection.send(b"\x02\x00\x00\x00\x40" + bytes(64))
        dropped = port.overlay.core.forwarder.counters.dropped

        async def is_counted() -> bool:
            return dropped[DropReason.MALFORMED] == 1

        await eventually("the drop", is_counted, timeout_s=10)
        assert port.overlay.core.is_link_up(NodeId(2))
