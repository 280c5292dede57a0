"""What the peer port answers to those who do not speak our protocol: each is refused with a reason, and counted."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from structlog.testing import capture_logs
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import CloseCode
from websockets.typing import Subprotocol

from data_plane_testing.identities import shown
from mesh_data.core.forwarder import Delivery, DropReason
from mesh_data.core.handshake import Handshake, LocalNode, Role, Terms
from mesh_data.core.lane_limits import LANES_PER_PEER_MAX
from mesh_data.core.timing import OverlayTiming
from mesh_data.core.view import Node, NodeState, View
from mesh_data.shell.overlay import lane_session, listener
from mesh_data.shell.overlay.lane_socket import LANE_LIMITS
from mesh_data.shell.overlay.listener import PeerListener
from mesh_data.shell.overlay.overlay import Overlay
from meshapi.overlay.v1 import lane_pb2
from meshcommon.delegation import Delegations
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId
from meshcommon.token_bucket import TokenBucket
from meshtest.delegated import delegated_signer
from meshtest.waiting import eventually
from meshwire.errors import WireError
from meshwire.frame import (
    MAX_HANDSHAKE_BYTES,
    decode_handshake,
    encode_handshake,
    encode_packets,
    frame_parts,
)
from meshwire.packet import VERSION, Packet, Protocol, TrafficClass, encode

SEED = b"\x01" * 32
PEER_SEED = b"\x02" * 32


def node(node_id: int, seed: bytes) -> Node:
    key = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    return Node(NodeId(node_id), f"n{node_id}", key, "", NodeState.ACTIVE)


MESH = "0b8e1f0a-5c1d-4e0f-9a53-2f6f0e6d9c01"
VIEW = View(1, MESH, 0, {NodeId(1): node(1, SEED), NodeId(2): node(2, PEER_SEED)}, {})


class Port:
    """A member's peer port."""

    def __init__(self) -> None:
        self.listener = PeerListener("127.0.0.1:0")
        self.overlay = Overlay(OverlayTiming(handshake_s=1.0), {}, self.listener)
        self.overlay.configure(LocalNode(NodeId(1), "n1", delegated_signer(SEED, MESH, 1), MESH), VIEW, is_running=True)
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
    "frame", [b"\x00garbage", b"", b"\x02not packets", b"\x01\xff\xff", b"\x01" + bytes(MAX_HANDSHAKE_BYTES - 1)]
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
    connection.transport.write(b"\x82\xff" + (LANE_LIMITS.frame_bytes_max + 1).to_bytes(8, "big") + bytes(4))
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


async def shake(connection: ClientConnection) -> None:
    """The handshake of member 2, by hand."""
    local = LocalNode(NodeId(2), "n2", delegated_signer(PEER_SEED, MESH, 2), MESH)
    terms = Terms(Delegations(time.time), VIEW, **shown(VIEW))
    handshake = Handshake(Role.DIALLER, local, terms, b"n" * 32, b"N" * 32, 0.0)
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
        await connection.send(b"\x02\x00\x00\x00\x40" + b"\xff" * 64)
        dropped = port.overlay.core.forwarder.counters.dropped

        async def is_counted() -> bool:
            return dropped[DropReason.MALFORMED] == 1

        await eventually("the drop", is_counted, timeout_s=10)
        assert port.overlay.core.is_link_up(NodeId(2))


async def serves_honest_peers(port: Port) -> bool:
    """The service runs, and a member that does everything right gets a lane."""
    assert not port.task.done()
    async with port.dial() as connection:
        await shake(connection)
        return True


async def test_hello_whose_refusal_outgrows_its_frame_ends_that_connection_only(port: Port) -> None:
    """The refusal quotes the name: 20,000 control characters become 80,000 characters of text."""
    hello = lane_pb2.LaneHello(version_min=9, version_max=9, name="\x01" * 20_000)
    async with port.dial() as connection:
        await connection.recv()
        await connection.send(encode_handshake(lane_pb2.LaneHandshake(hello=hello).SerializeToString()))
        await rejection(connection)
    assert await serves_honest_peers(port)


async def test_refusal_that_cannot_be_encoded_ends_that_connection_only(
    port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_error: MeshError) -> bytes:
        raise WireError("too large")

    with monkeypatch.context() as patch:
        patch.setattr(lane_session, "encode_reject", fail)
        async with port.dial() as connection:
            await connection.send(b"\x00garbage")
            assert await rejection(connection) == ""
    assert await port.counted(ErrorCode.WRONG_PROTOCOL)
    assert await serves_honest_peers(port)


async def test_frame_whose_handling_fails_ends_its_lane_only(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    async with port.dial() as connection:
        await shake(connection)
        with monkeypatch.context() as patch:
            patch.setattr(port.overlay.core, "receive", lambda *_: 1 // 0)
            await connection.send(b"\x02")
            with contextlib.suppress(ConnectionClosed):
                async with asyncio.timeout(10):
                    while True:
                        await connection.recv()
    assert await serves_honest_peers(port)


async def test_lane_whose_tick_fails_ends_and_others_are_ticked(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    tick_lane = port.overlay.core.tick_lane

    def fail_first(lane_id: int, now: float, stall_s: float) -> None:
        if lane_id == 1:
            raise ZeroDivisionError
        tick_lane(lane_id, now, stall_s)

    monkeypatch.setattr(port.overlay.core, "tick_lane", fail_first)
    async with port.dial() as first:
        await shake(first)
        with contextlib.suppress(ConnectionClosed):
            async with asyncio.timeout(10):
                while True:
                    await first.recv()
    async with port.dial() as second:
        await shake(second)
        async with asyncio.timeout(10):
            # Its beats come.
            assert await second.recv()
    assert not port.task.done()


async def test_large_frame_before_the_proof_is_refused_at_once(port: Port) -> None:
    async with port.dial() as connection:
        await connection.recv()
        connection.transport.write(b"\x82\xff" + (3 << 20).to_bytes(8, "big") + bytes(4) + bytes(128 * 1024))
        await rejection(connection)
        assert connection.close_code == CloseCode.MESSAGE_TOO_BIG
    assert await serves_honest_peers(port)


async def test_strangers_cannot_take_the_places_of_members(port: Port) -> None:
    async with port.dial() as connection:
        await shake(connection)

        async def is_known() -> bool:
            return port.overlay.core.is_link_up(NodeId(2))

        await eventually("the lane", is_known, timeout_s=10)
        silent = [
            await asyncio.open_connection("127.0.0.1", port.listener.port, local_addr=(f"127.0.0.{2 + number % 4}", 0))
            for number in range(80)
        ]
        gate = port.listener.gate

        async def is_full() -> bool:
            return (gate.unproven, gate.refused) == (48, 32)

        await eventually("all are counted", is_full, timeout_s=10)
        assert await serves_honest_peers(port)
        for _, writer in silent:
            writer.close()


async def test_one_member_gets_a_few_lanes(port: Port) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(LANES_PER_PEER_MAX):
            connection = await port.dial()
            stack.callback(connection.transport.abort)
            await shake(connection)
            # Not read further: a lane that is superfluous ends only when the node gives up on it.
            connection.transport.pause_reading()
        one_more = await stack.enter_async_context(port.dial())
        await shake(one_more)
        assert await rejection(one_more) == ErrorCode.HANDSHAKE_FAILED
    assert not port.task.done()


async def test_beats_of_a_member_that_reads_nothing_leave_memory_flat_and_end_its_lane(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not silent, and not there: its lane must not live as long as it beats."""
    monkeypatch.setattr(listener, "LANE_LIMITS", replace(LANE_LIMITS, stall_s=1.0))
    port = Port()
    try:
        connection = await port.dial()
        await shake(connection)

        async def is_up() -> bool:
            return port.overlay.core.is_link_up(NodeId(2))

        async def is_down() -> bool:
            return not await is_up()

        await eventually("the lane", is_up, timeout_s=10)
        connection.transport.pause_reading()
        # As much of a field that nobody knows as a control message may hold: an echo must not hold it too.
        beat = (
            lane_pb2.LaneControl(beat=lane_pb2.LaneBeat(sequence=7)).SerializeToString() + b"\x7a\x80\x07" + bytes(896)
        )
        packet = encode(Packet(VERSION, TrafficClass.CONTROL, Protocol.LANE, 0, 15, 2, 1, payload=beat))
        frame = b"".join(frame_parts([packet] * 8))
        before, most, sent = resident_bytes(), 0, 0
        with contextlib.suppress(ConnectionClosed, TimeoutError):
            async with asyncio.timeout(20):
                while await is_up():
                    for _ in range(64):
                        await connection.send(frame)
                    sent += 64 * len(frame)
                    most = max(most, resident_bytes())
                    await asyncio.sleep(0)
        await eventually("the end of the lane", is_down, timeout_s=10)
        assert sent > 16 << 20
        assert most - before < 12 << 20
        lane = port.overlay.core.link(NodeId(2))
        assert lane is not None
        assert "reads nothing" in lane.down_reason
        assert await serves_honest_peers(port)
    finally:
        port.task.cancel()
        await asyncio.gather(port.task, return_exceptions=True)


def resident_bytes() -> int:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def test_handshakes_of_strangers_are_limited_and_those_of_members_go_on(
    port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signatures cost processor time: what strangers may use of it is bounded as their sockets are."""
    monkeypatch.setattr(port.overlay, "_stranger_handshakes", TokenBucket(0.0, 2.0, 0.0))
    for _ in range(2):
        async with port.dial() as connection:
            await connection.send(b"\x00garbage")
            await rejection(connection)
    async with port.dial() as connection:
        with pytest.raises(ConnectionClosed):
            await connection.recv()
    assert port.overlay.refusals["RATE_LIMITED"] == 1
    port.listener.gate.remember("127.0.0.1")
    assert await serves_honest_peers(port)


async def test_a_flood_of_refused_strangers_does_not_fill_the_log(port: Port) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    with capture_logs() as logs:
        for _ in range(60):
            async with port.dial() as connection:
                await connection.send(b"\x00garbage")
                await rejection(connection)
    refusals = [entry["log_level"] for entry in logs if entry["event"] == "lane_refused"]
    assert len(refusals) >= 59
    # Twenty at once and two a second; a slow machine takes longer for them.
    assert 20 <= refusals.count("info") <= 22 + 2 * (loop.time() - began)


def in_the_name_of(source: int, protocol: Protocol) -> bytes:
    """A packet for node 1 that says it is from `source`, as member 2 can make one: it is the last relay, or it is direct."""
    route = (source, 2, 1) if source != 2 else ()
    position = 2 if route else 0
    packet = Packet(
        VERSION,
        TrafficClass.CONTROL,
        protocol,
        0,
        9,
        source,
        1,
        route=route,
        position=position,
        payload=b"I refuse you",
    )
    return encode_packets([encode(packet)])


@pytest.mark.parametrize("protocol", [Protocol.RAFT_DSG, Protocol.RAFT_MCG, Protocol.REQUEST, Protocol.JOIN])
@pytest.mark.parametrize("source", [2, 3])
async def test_member_on_a_lane_cannot_speak_in_anothers_name_nor_without_a_seal(
    port: Port, source: int, protocol: Protocol
) -> None:
    """Store refusals, heartbeats, requests and proposals are packets of these protocols."""
    heard: list[Delivery] = []
    port.overlay.bind(protocol, heard.append)
    async with port.dial() as connection:
        await shake(connection)
        await connection.send(in_the_name_of(source, protocol))
        dropped = port.overlay.core.forwarder.counters.dropped

        async def is_counted() -> bool:
            return dropped[DropReason.UNSEALED] == 1

        await eventually("the drop", is_counted, timeout_s=10)
        assert heard == []
