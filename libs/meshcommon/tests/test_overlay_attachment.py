"""The stream of packets to the data plane, across its ends."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio
from prometheus_client import CollectorRegistry, Counter

from meshapi.overlay.v1 import overlay_pb2, overlay_pb2_grpc
from meshcommon.ids import NodeId
from meshcommon.overlay_attachment import OverlayAttachment, QueueLimits
from meshtest.waiting import eventually
from meshwire.packet import Protocol, TrafficClass

LIMITS = QueueLimits(bytes_max=16_000_000, destination_bytes_max=8_000_000)


def attachment(channel: grpc.aio.Channel, **callbacks: Any) -> tuple[OverlayAttachment, Counter]:
    dropped = Counter("dropped", "Packets that were not queued.", registry=CollectorRegistry())
    return OverlayAttachment("test_overlay", channel, LIMITS, dropped, **callbacks), dropped


class _DataPlane(overlay_pb2_grpc.OverlayServiceServicer):
    """Notes what comes, and ends the first call at once."""

    def __init__(self) -> None:
        self.calls = 0
        self.payloads: list[bytes] = []

    async def Attach(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802
        self.calls += 1
        number = self.calls
        async for request in request_iterator:
            self.payloads += [packet.payload for packet in request.send.packets]
            yield overlay_pb2.AttachResponse()
            if number == 1:
                return

    async def OpenJoinLane(self, request: Any, context: Any) -> Any:  # noqa: N802
        return overlay_pb2.OpenJoinLaneResponse()

    async def CloseJoinLane(self, request: Any, context: Any) -> Any:  # noqa: N802
        return overlay_pb2.CloseJoinLaneResponse()


class _Delivering(_DataPlane):
    """Delivers two packets of a protocol whose handler fails, and one of another."""

    async def Attach(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802
        self.calls += 1
        packets = [
            overlay_pb2.InPacket(protocol=protocol, source=2, payload=b"x")
            for protocol in (Protocol.JOIN, Protocol.JOIN, Protocol.RAFT_MCG)
        ]
        yield overlay_pb2.AttachResponse(deliver=overlay_pb2.AttachDeliver(packets=packets))
        async for request in request_iterator:
            self.payloads += [packet.payload for packet in request.send.packets]


async def test_handler_that_fails_costs_only_its_packet_and_a_silent_peer_only_its_share() -> None:
    data_plane = _Delivering()
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 8 * 1024 * 1024)])
    overlay_pb2_grpc.add_OverlayServiceServicer_to_server(data_plane, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    client, dropped = attachment(channel)
    taken: list[int] = []

    def fail(packet: overlay_pb2.InPacket) -> None:
        taken.append(packet.protocol)
        raise ZeroDivisionError

    client.handle(Protocol.JOIN, fail)
    client.handle(Protocol.RAFT_MCG, lambda packet: taken.append(packet.protocol))
    running = asyncio.create_task(client.run(), name="overlay attachment")

    async def has_taken_all() -> bool:
        return taken == [Protocol.JOIN, Protocol.JOIN, Protocol.RAFT_MCG]

    async def has_come() -> bool:
        return bool(data_plane.payloads) and data_plane.payloads[-1] == b"honest"

    try:
        await eventually("three packets", has_taken_all)
        # No turn of the loop between: nothing is written meanwhile.
        for _ in range(40):
            client.send(Protocol.JOIN, TrafficClass.CONTROL, NodeId(2), bytes(1_000_000))
        client.send(Protocol.JOIN, TrafficClass.CONTROL, NodeId(3), b"honest")
        await eventually("the packet", has_come, timeout_s=10.0)
        assert len(data_plane.payloads) == LIMITS.destination_bytes_max // 1_000_128 + 1
        assert dropped._value.get() == 40 - LIMITS.destination_bytes_max // 1_000_128
        assert (data_plane.calls, running.done()) == (1, False)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await channel.close()
        await server.stop(None)


async def test_packets_after_a_reconnection_do_not_vanish_in_the_former_call() -> None:
    data_plane = _DataPlane()
    server = grpc.aio.server()
    overlay_pb2_grpc.add_OverlayServiceServicer_to_server(data_plane, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    lost: list[str] = []
    client, dropped = attachment(channel, on_lost=lost.append)
    client.handle(Protocol.JOIN, lambda packet: None)
    running = asyncio.create_task(client.run(), name="overlay attachment")

    async def is_attached_again() -> bool:
        return data_plane.calls == 2

    async def has_come() -> bool:
        return data_plane.payloads == [b"first"]

    try:
        await eventually("the second call", is_attached_again)
        client.send(Protocol.JOIN, TrafficClass.CONTROL, NodeId(2), b"first")
        await eventually("the packet", has_come, timeout_s=10.0)
        assert lost == ["The data plane ended the connection."]
        assert dropped._value.get() == 0
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await channel.close()
        await server.stop(None)
