"""The stream of packets to the data plane, across its ends."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio

from mesh_control.shell.overlay_client import OverlayClient
from meshapi.overlay.v1 import overlay_pb2, overlay_pb2_grpc
from meshcommon.ids import NodeId
from meshtest.waiting import eventually
from meshwire.packet import Protocol, TrafficClass


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


async def test_packets_after_a_reconnection_do_not_vanish_in_the_former_call() -> None:
    data_plane = _DataPlane()
    server = grpc.aio.server()
    overlay_pb2_grpc.add_OverlayServiceServicer_to_server(data_plane, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    client = OverlayClient(channel)
    client.handle(Protocol.JOIN, lambda packet: None)
    running = asyncio.create_task(client.run(), name="overlay client")

    async def is_attached_again() -> bool:
        return data_plane.calls == 2

    async def has_come() -> bool:
        return data_plane.payloads == [b"first"]

    try:
        await eventually("the second call", is_attached_again)
        client.send(Protocol.JOIN, TrafficClass.CONTROL, NodeId(2), b"first")
        await eventually("the packet", has_come, timeout_s=10.0)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await channel.close()
        await server.stop(None)
