"""Attach as a service of the site misuses it: nonsense ends its call, slowness costs packets, nothing else happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from mesh_data.core.forwarder import Delivery
from mesh_data.core.timing import OverlayTiming
from mesh_data.shell.overlay.overlay import Overlay
from mesh_data.shell.overlay.overlay_service import (
    PACKET_BYTES,
    QUEUE_BYTES_MAX,
    QUEUE_SOURCE_BYTES_MAX,
    QUEUE_STRANGERS_BYTES_MAX,
    Attachment,
    OverlayServicer,
)
from meshapi.overlay.v1 import overlay_pb2, overlay_pb2_grpc
from meshcommon.barrier import UNEXPECTED_ERRORS
from meshcommon.delegated_keys import DelegatedKeys
from meshcommon.errors import ErrorCode
from meshcommon.grpc_client import mesh_error, open_channel
from meshcommon.grpc_server import GrpcServer
from meshcommon.ids import NodeId
from meshwire.packet import Protocol, TrafficClass

U64 = 2**64 - 1


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[Overlay, overlay_pb2_grpc.OverlayServiceAsyncStub]]:
    """An overlay without a mesh behind its service."""
    overlay = Overlay(OverlayTiming(), {}, None)
    server = GrpcServer()
    servicer = OverlayServicer(overlay, DelegatedKeys(Path("unused")))
    overlay_pb2_grpc.add_OverlayServiceServicer_to_server(servicer, server.server)
    await server.start("127.0.0.1:0", "overlay")
    channel = open_channel(f"127.0.0.1:{server.port}")
    try:
        yield overlay, overlay_pb2_grpc.OverlayServiceStub(channel)
    finally:
        servicer.close()
        await channel.close()
        await server.server.stop(None)


async def attach(stub: overlay_pb2_grpc.OverlayServiceAsyncStub, *protocols: int) -> Any:
    call = stub.Attach()
    await call.write(overlay_pb2.AttachRequest(bind=overlay_pb2.AttachBind(protocols=protocols)))
    first = await call.read()
    assert isinstance(first, overlay_pb2.AttachResponse)
    assert first.WhichOneof("kind") == "links"
    return call


async def read_to_the_end(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


def send(**fields: int | bytes | bool) -> overlay_pb2.AttachRequest:
    packet: Any = {"protocol": Protocol.JOIN, "payload": b"x", **fields}
    return overlay_pb2.AttachRequest(send=overlay_pb2.AttachSend(packets=[overlay_pb2.OutPacket(**packet)]))


@pytest.mark.parametrize(
    "request_",
    [
        send(protocol=77, destination=2),
        send(protocol=2**32 - 1, destination=2),
        send(traffic_class=7, destination=2),
        send(protocol=Protocol.RAFT_DSG, destination=2),
        send(protocol=Protocol.PATH_ERROR, destination=2),
        overlay_pb2.AttachRequest(bind=overlay_pb2.AttachBind(protocols=[Protocol.LSA])),
    ],
    ids=["protocol 77", "protocol 2^32-1", "class 7", "streams", "path error", "second bind"],
)
async def test_nonsense_ends_the_call_that_sent_it_and_no_other(request_: overlay_pb2.AttachRequest) -> None:
    async with serving() as (overlay, stub):
        honest, other = await attach(stub, Protocol.RAFT_MCG), await attach(stub, Protocol.JOIN)
        await other.write(request_)
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await read_to_the_end(other)
        assert mesh_error(refusal.value, "data plane").code is ErrorCode.INVALID_ARGUMENT
        overlay._sinks[Protocol.RAFT_MCG](Delivery(NodeId(2), 0, Protocol.RAFT_MCG, TrafficClass.CONTROL, b"on"))
        async with asyncio.timeout(10):
            while (response := await honest.read()).WhichOneof("kind") != "deliver":
                pass
        assert response.deliver.packets[0].payload == b"on"


@pytest.mark.parametrize(
    "request_",
    [
        send(destination=U64),
        send(destination=U64, is_link_local=True),
        send(destination=0, lane_id=U64),
        send(destination=2, payload=bytes(3_000_000)),
        send(destination=0, payload=bytes(3_000_000)),
        overlay_pb2.AttachRequest(),
    ],
    ids=["node 2^64-1", "neighbour 2^64-1", "lane 2^64-1", "too large", "too large for a lane", "nothing"],
)
async def test_packet_that_cannot_arrive_is_dropped_and_the_call_goes_on(request_: overlay_pb2.AttachRequest) -> None:
    async with serving() as (overlay, stub):
        failures = UNEXPECTED_ERRORS.labels("attach_packet")._value.get()
        call = await attach(stub, Protocol.RAFT_MCG)
        await call.write(request_)
        await call.write(overlay_pb2.AttachRequest())
        overlay._sinks[Protocol.RAFT_MCG](Delivery(NodeId(2), 0, Protocol.RAFT_MCG, TrafficClass.CONTROL, b"on"))
        async with asyncio.timeout(10):
            while (response := await call.read()).WhichOneof("kind") != "deliver":
                pass
        assert response.deliver.packets[0].payload == b"on"
        assert UNEXPECTED_ERRORS.labels("attach_packet")._value.get() == failures


async def test_unexpected_failure_costs_only_its_packet(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as (overlay, stub):
        sent: list[NodeId] = []

        def fail_for_two(_protocol: Protocol, _cls: TrafficClass, destination: NodeId, _payload: bytes) -> bool:
            if destination == 2:
                raise ZeroDivisionError
            sent.append(destination)
            return True

        monkeypatch.setattr(overlay, "send", fail_for_two)
        call = await attach(stub, Protocol.JOIN)
        for destination in (2, 3):
            await call.write(send(destination=destination))
        async with asyncio.timeout(10):
            while not sent:
                await call.read()
        assert sent == [3]


def packet(source: int, size: int, lane_id: int = 0) -> Delivery:
    return Delivery(NodeId(source), lane_id, Protocol.JOIN, TrafficClass.CONTROL, bytes(size))


def test_queue_towards_a_slow_service_is_bounded_also_for_empty_packets() -> None:
    attachment = Attachment()
    for source in (2, 3, 4):
        for _ in range(QUEUE_BYTES_MAX // PACKET_BYTES):
            attachment.deliver(packet(source, 0))
    waiting = 0
    while taken := attachment.take_packets():
        waiting += len(taken)
    assert waiting == QUEUE_BYTES_MAX // PACKET_BYTES
    assert attachment.dropped == 2 * waiting
    attachment.deliver(packet(4, 100))
    assert len(attachment.take_packets()) == 1


def test_one_source_takes_only_its_share_of_the_queue() -> None:
    attachment = Attachment()
    for _ in range(100):
        attachment.deliver(packet(2, 1_000_000))
        attachment.deliver(packet(5, 1_000_000))
    attachment.deliver(packet(6, 10))
    # Two that together fill it leave no room; a share of half needs two.
    assert QUEUE_SOURCE_BYTES_MAX * 2 == QUEUE_BYTES_MAX
    attachment.deliver(packet(3, 10))
    taken: list[overlay_pb2.InPacket] = []
    while more := attachment.take_packets():
        taken += more
    share = QUEUE_SOURCE_BYTES_MAX // (1_000_000 + PACKET_BYTES)
    assert [(item.source, item.lane_id) for item in taken[-2:]] == [(6, 0), (3, 0)]
    assert len(taken) == 2 * share + 2


def test_nodes_that_join_do_not_stand_in_the_way_of_members() -> None:
    """Before, two lanes of strangers filled the whole queue, and what a member said was dropped or came after 16 MiB."""
    attachment = Attachment()
    for _ in range(300):
        for lane in range(1, 17):
            attachment.deliver(packet(0, 60_000, lane_id=lane))
    attachment.deliver(packet(2, 1_000_000))
    waiting: list[overlay_pb2.InPacket] = []
    while more := attachment.take_packets():
        waiting += more
    assert waiting[-1].source == 2
    assert sum(len(item.payload) for item in waiting[:-1]) <= QUEUE_STRANGERS_BYTES_MAX + 60_000
    assert {item.lane_id for item in waiting[:-1]} > {1, 2, 3, 4}
    # The answer to a joiner is one packet, and may be larger than all that.
    attachment.deliver(packet(0, 1_900_000, lane_id=17))
    attachment.deliver(packet(0, 10, lane_id=17))
    assert [len(item.payload) for item in attachment.take_packets()] == [1_900_000]
