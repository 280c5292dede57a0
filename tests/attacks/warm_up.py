"""A gentle round over every port before anything is measured: what allocators and pools take once is no growth later."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import AsyncExitStack

import grpc.aio
import httpx

from mesh_data.shell.overlay.lane_socket import SUBPROTOCOL
from meshapi.supervisor.v1 import data_pb2, data_pb2_grpc
from meshclient import MeshClient
from meshcommon.grpc_client import open_channel
from meshwire import client
from tests.attacks.raw_socket import Opcode, connected, upgrade_request, websocket, websocket_frame
from tests.attacks.target import ABUSED, STREAM, Target

_CONNECTIONS = 40
_BODY_BYTES = 900_000
_RECORDS = 16


async def warm_up(target: Target) -> None:
    """Connections, frames, calls and bodies of honest sizes at every node."""
    await asyncio.gather(*(_warm_up_site(target, name) for name in target.sites))
    for name in target.sites:
        await _publish(target, name)
        await _follow(target, name)
    await target.traffic.progress(60)


async def _warm_up_site(target: Target, name: str) -> None:
    ports = [port for port in ("data_client", "gateway_http", "gateway_grpc", "peer") if port != "peer" or name != "c"]
    for port in ports:
        await asyncio.gather(*(_touch(target.port(name, port)) for _ in range(_CONNECTIONS)))
    if "peer" in ports:
        async with websocket(target.port(name, "peer"), SUBPROTOCOL) as socket:
            await socket.send(websocket_frame(Opcode.BINARY, bytes(60_000)))
            await socket.is_closed(5)
    async with websocket(target.port(name, "data_client"), client.SUBPROTOCOL) as socket:
        await socket.send(websocket_frame(Opcode.BINARY, bytes(client.MAX_FRAME_BYTES)))
        await socket.is_closed(5)
    await _bodies(target, name)


async def _touch(port: int) -> None:
    with contextlib.suppress(TimeoutError, ConnectionError):
        async with connected(port) as socket:
            await socket.send(upgrade_request(port, "nothing"))
            await socket.read_all(0.3)


async def _publish(target: Target, name: str) -> None:
    """Large records, as many as the log keeps in memory at each member."""
    async with (
        MeshClient(target.sites[name].config.client) as application,
        application.producer(ABUSED) as producer,
    ):
        receipts = [await producer.send(bytes(_BODY_BYTES)) for _ in range(_RECORDS)]
        for receipt in receipts:
            await receipt


async def _follow(target: Target, name: str) -> None:
    """Many readers of one stream that take little: the small objects of their batches leave gaps in the heap once."""
    reads = b"".join(
        client.encode_message(
            client.Kind.READ, correlation, client.encode_read(client.Read(STREAM, 0, 0xFFFFFFFF, True))
        )
        for correlation in range(1, 64)
    )
    async with AsyncExitStack() as stack:
        for _ in range(4):
            socket = await stack.enter_async_context(websocket(target.port(name, "data_client"), client.SUBPROTOCOL))
            await socket.send(websocket_frame(Opcode.BINARY, reads))
        await target.traffic.progress(5, 25)


async def _bodies(target: Target, name: str) -> None:
    value = "x" * _BODY_BYTES
    async with httpx.AsyncClient(base_url=target.sites[name].config.rest, timeout=20) as http:
        path = f"/v1/streams/{STREAM}/records"
        await asyncio.gather(*(http.post(path, content=value.encode()) for _ in range(4)))
    async with open_channel(target.sites[name].config.gateway) as channel:
        stub = data_pb2_grpc.MeshDataServiceStub(channel)
        request = data_pb2.DescribeStreamRequest(stream=value)

        async def describe() -> None:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await stub.DescribeStream(request, timeout=10)

        await asyncio.gather(*(describe() for _ in range(20)))
