"""Kind 4: memory that a stranger or a client can claim is bounded per connection and in all; honest ones get through."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import grpc.aio
import httpx
import pytest

from mesh_data.shell.overlay.lane_socket import SUBPROTOCOL
from meshapi.supervisor.v1 import data_pb2, data_pb2_grpc
from meshclient import MeshClient
from meshcommon.grpc_client import open_channel
from meshtest.waiting import eventually
from meshwire import client, records
from tests.attacks.lanes import lane, stranger
from tests.attacks.mallory import Mallory
from tests.attacks.raw_socket import (
    Opcode,
    RawSocket,
    answer,
    connected,
    http_request,
    status_of,
    upgrade_request,
    websocket,
    websocket_frame,
    websocket_or_refusal,
)
from tests.attacks.target import STREAM, Target

PING = websocket_frame(Opcode.PING, b"p" * 125) * 400
FLOOD_BYTES_MAX = 120 << 20
FLOOD_SECONDS_MAX = 1.5
PEAK_MB_MAX = 48.0
PEAK_OF_STREAMS_MB_MAX = 640.0
"""Publishers' budget (96 MiB), receive buffers of 24 connections (4 MiB each), what the log has not committed (64 MiB) and
keeps (32 MiB), queues to two followers (16 MiB each): 320 MiB, each of them once more as a copy on the way to the next."""
MANY = 200


def subprotocol_of(port: str) -> str:
    """What the port speaks."""
    return SUBPROTOCOL if port == "peer" else client.SUBPROTOCOL


@pytest.mark.parametrize("port", ["peer", "data_client"])
async def test_pings_whose_pongs_are_never_read(target: Target, port: str) -> None:
    """One connection took 600 MB in a second and a half when pongs knew no flow control."""
    async with (
        target.peak_bounded("a/data", PEAK_MB_MAX),
        websocket(target.port("a", port), subprotocol_of(port)) as socket,
    ):
        await socket.flood(PING, FLOOD_BYTES_MAX, FLOOD_SECONDS_MAX)


async def test_pings_after_the_handshake(target: Target) -> None:
    async with target.peak_bounded("b/data", PEAK_MB_MAX), lane(target.port("b", "peer"), stranger()) as found:
        await found.socket.flood(PING, FLOOD_BYTES_MAX, FLOOD_SECONDS_MAX)


async def test_pings_at_the_websocket_of_the_gateway(target: Target) -> None:
    number = target.port("a", "gateway_http")
    async with target.peak_bounded("a/gateway", PEAK_MB_MAX), connected(number) as socket:
        await socket.send(upgrade_request(number, "", (), f"/v1/streams/{STREAM}/follow"))
        assert status_of(await socket.head()) == 101
        await socket.flood(PING, FLOOD_BYTES_MAX, FLOOD_SECONDS_MAX)


@pytest.mark.parametrize("port", ["peer", "data_client"])
async def test_frames_that_never_end(target: Target, port: str) -> None:
    """Many connections announce the largest frame, send most of it, and wait."""
    subprotocol = subprotocol_of(port)
    begun = websocket_frame(Opcode.BINARY, bytes(client.MAX_FRAME_BYTES))[:-1]
    fragments = websocket_frame(Opcode.BINARY, bytes(200_000), is_final=False)
    fragments += websocket_frame(Opcode.CONTINUATION, bytes(200_000), is_final=False) * 18
    async with AsyncExitStack() as stack:
        bound_mb = PEAK_MB_MAX if port == "peer" else 4 * PEAK_MB_MAX
        await stack.enter_async_context(target.peak_bounded("a/data", bound_mb))
        opened = [
            await stack.enter_async_context(websocket_or_refusal(target.port("a", port), subprotocol))
            for _ in range(40)
        ]
        sockets = [socket for socket in opened if socket is not None]
        assert sockets
        await asyncio.gather(
            *(socket.flood(fragments if at % 2 else begun, 1, 2.0) for at, socket in enumerate(sockets))
        )
        await asyncio.sleep(0.5)


async def idle(stack: AsyncExitStack, port: int, first: bytes) -> RawSocket:
    """A connection that says something and then nothing more."""
    socket = await stack.enter_async_context(connected(port))
    await socket.send(first)
    return socket


@pytest.mark.parametrize(
    "first", [b"", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "], ids=["silent", "half a request"]
)
async def test_sockets_opened_and_left_at_every_port(mallory: Mallory, target: Target, first: bytes) -> None:
    """Hundreds of idle sockets at each port; a member, an application and a program of the site still get in."""
    async with AsyncExitStack() as stack:
        for port in ("peer", "data_client", "gateway_http", "gateway_grpc"):
            number = target.port("a", port)
            await asyncio.gather(*(idle(stack, number, first) for _ in range(MANY)), return_exceptions=True)
        await member_gets_in(mallory, target)
        await application_gets_in(target)
        await program_gets_in(target)


async def member_gets_in(mallory: Mallory, target: Target) -> None:
    """A member's handshake succeeds within the time in which strangers are dropped."""

    async def try_once() -> bool:
        try:
            async with mallory.lane(target.port("a", "peer")):
                return True
        except (AssertionError, ConnectionError, TimeoutError):
            return False

    await eventually("a member gets a lane", try_once, 15)


async def application_gets_in(target: Target) -> None:
    """A new application can ask something."""

    async def try_once() -> bool:
        async with MeshClient(target.sites["a"].config.client, give_up_after_s=10) as application:
            return bool((await application.describe(STREAM)).next_offset)

    await eventually("an application gets in", try_once, 15)


async def program_gets_in(target: Target) -> None:
    """REST answers."""

    async def try_once() -> bool:
        try:
            async with httpx.AsyncClient(base_url=target.sites["a"].config.rest, timeout=5) as http:
                return (await http.get("/v1/mesh")).status_code == 200
        except httpx.TransportError:
            return False

    await eventually("REST answers", try_once, 15)


async def test_slow_handshake_is_ended(target: Target) -> None:
    """A byte at a time, at every stage: each connection ends by the clock of the node, not by ours."""
    number = target.port("a", "peer")
    request = upgrade_request(number, SUBPROTOCOL)

    async def trickle(first: bytes, rest: bytes) -> bool:
        async with connected(number) as socket:
            await socket.send(first)
            for at in range(len(rest)):
                await socket.send(rest[at : at + 1])
                await asyncio.sleep(0.25)
                if socket.reader.at_eof() or socket.writer.is_closing():
                    return True
                if at > 40:
                    break
            return await socket.is_closed(5)

    ended = await asyncio.gather(
        trickle(b"", request),
        trickle(request[:60], request[60:]),
        trickle(request, websocket_frame(Opcode.BINARY, bytes(100))),
    )
    assert all(ended)


# The log keeps the newest 32 MiB of its entries in memory; what comes and goes in pieces of a megabyte leaves gaps of 64 MB.
@pytest.mark.heap_gaps_mb(96)
async def test_publishes_whose_answers_are_never_read(target: Target) -> None:
    """Many flows on many connections, each with a window of its own that is empty at first."""
    size = 900_000
    frames = [
        websocket_frame(
            Opcode.BINARY,
            client.encode_publish(
                1,
                target.abused_id,
                records.encode_batch([records.Record(bytes(size))], producer, 1, 0),
                client.WAIT_COMMITTED,
            ),
        )
        for producer in range(1 << 40, (1 << 40) + 8)
    ]
    number = target.port("b", "data_client")
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(target.peak_bounded("b/data", PEAK_OF_STREAMS_MB_MAX))
        opened = [await stack.enter_async_context(websocket_or_refusal(number, client.SUBPROTOCOL)) for _ in range(24)]
        sockets = [socket for socket in opened if socket is not None]
        await asyncio.gather(*(socket.flood(b"".join(frames), 1, 3.0) for socket in sockets))
        await asyncio.sleep(1.0)


@pytest.mark.heap_gaps_mb(96)
async def test_reads_that_all_wake_at_once_and_are_never_read(target: Target) -> None:
    """Hundreds of followers with endless credit, none of which takes what it is sent."""
    number = target.port("c", "data_client")
    reads = b"".join(
        client.encode_message(
            client.Kind.READ, correlation, client.encode_read(client.Read(STREAM, 0, 0xFFFFFFFF, True))
        )
        for correlation in range(1, 64)
    )
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(target.peak_bounded("c/data", PEAK_OF_STREAMS_MB_MAX))
        for _ in range(4):
            socket = await stack.enter_async_context(websocket(number, client.SUBPROTOCOL))
            await socket.send(websocket_frame(Opcode.BINARY, reads))
        await target.traffic.progress(20, 25)


async def test_two_thousand_calls_that_stay(target: Target) -> None:
    """Follows over gRPC beyond what a server executes at once are refused; others get through."""
    codes: Counter[grpc.StatusCode] = Counter()
    async with AsyncExitStack() as stack:
        # Each a connection of its own: on one connection the client itself holds back what is too much.
        own = (("grpc.use_local_subchannel_pool", 1),)
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(target.sites["a"].config.gateway, options=own))
            for _ in range(8)
        ]

        async def follow(channel: grpc.aio.Channel) -> None:
            stub = data_pb2_grpc.MeshDataServiceStub(channel)
            try:
                async for _response in stub.Read(data_pb2.ReadRequest(stream=STREAM, from_offset=0, follow=True)):
                    await asyncio.sleep(60)
            except grpc.aio.AioRpcError as error:
                codes[error.code()] += 1

        async with target.peak_bounded("a/gateway", 4 * PEAK_MB_MAX), target.peak_bounded("a/data", 4 * PEAK_MB_MAX):
            tasks = [asyncio.create_task(follow(channel), name="follower") for channel in channels for _ in range(250)]

            async def is_refused() -> bool:
                return bool(codes)

            await eventually("somebody is refused", is_refused, 20)
            refused = Counter(codes)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    # A gateway that is refused by the service behind it ends what it has begun: CANCELLED.
    allowed = {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
    assert set(refused) <= allowed, refused
    await program_gets_in(target)


async def test_grpc_messages_of_many_megabytes(target: Target) -> None:
    settings = target.sites["b"].config.environment("", "")
    for service in ("GATEWAY", "CONTROL", "DATA", "ROUTING"):
        async with open_channel(settings[f"MESH_{service}_GRPC_LISTEN"]) as channel:
            for name in ("x" * (5 << 20), "x" * (20 << 20)):
                call: Any = channel.unary_unary("/meshapi.supervisor.v1.MeshDataService/DescribeStream")
                request = data_pb2.DescribeStreamRequest(stream=name).SerializeToString()
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await call(request, timeout=10)
                    raise AssertionError(f"{service} took {len(name)} bytes")


async def test_bodies_that_never_end(target: Target) -> None:
    """Each connection sends nearly the largest body and stops before its end."""
    number = target.port("a", "gateway_http")
    head = http_request(
        "POST",
        f"/v1/streams/{STREAM}/records?wait=committed",
        f"127.0.0.1:{number}",
        ["Content-Type: application/octet-stream", f"Content-Length: {2 << 20}"],
    )
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(target.peak_bounded("a/gateway", 2 * PEAK_MB_MAX))
        sockets = [await stack.enter_async_context(connected(number)) for _ in range(80)]
        await asyncio.gather(*(socket.flood(head + bytes((2 << 20) - 1), 1, 2.0) for socket in sockets))
        await asyncio.sleep(0.5)
        await program_gets_in(target)


async def test_chunked_body_without_end(target: Target) -> None:
    number = target.port("c", "gateway_http")
    head = http_request(
        "POST",
        f"/v1/streams/{STREAM}/records?wait=committed",
        f"127.0.0.1:{number}",
        ["Content-Type: application/octet-stream", "Transfer-Encoding: chunked"],
    )
    chunk = b"%x\r\n" % 65_536 + bytes(65_536) + b"\r\n"
    async with target.peak_bounded("c/gateway", PEAK_MB_MAX), connected(number) as socket:
        await socket.send(head)
        await socket.flood(chunk, 64 << 20, 3.0)
        assert status_of(await socket.head()) in {0, 400, 413}


async def test_unmasked_and_reserved_frames(target: Target) -> None:
    """RFC 6455 §5.1: a server must fail the connection."""
    for port in ("peer", "data_client"):
        for data in (
            websocket_frame(Opcode.BINARY, b"x", is_masked=False),
            websocket_frame(Opcode.BINARY, b"x", reserved=4),
            websocket_frame(3, b"x"),
            websocket_frame(Opcode.CONTINUATION, b"x"),
            websocket_frame(Opcode.PING, b"x" * 126),
        ):
            async with websocket(target.port("a", port), subprotocol_of(port)) as socket:
                await socket.send(data)
                assert await socket.is_closed(), (port, data[:4])


async def test_compression_is_not_agreed(target: Target) -> None:
    """A kilobyte could become a gigabyte."""
    for port in ("peer", "data_client"):
        number = target.port("a", port)
        async with connected(number) as socket:
            offer = ["Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"]
            await socket.send(upgrade_request(number, subprotocol_of(port), offer))
            head = await socket.head()
        assert b"sec-websocket-extensions" not in head.lower()


async def test_a_hundred_thousand_requests_on_one_connection(target: Target) -> None:
    """Pipelined requests whose answers are never read."""
    number = target.port("a", "gateway_http")
    request = f"GET /v1/mesh HTTP/1.1\r\nHost: 127.0.0.1:{number}\r\n\r\n".encode() * 500
    async with target.peak_bounded("a/gateway", PEAK_MB_MAX), connected(number) as socket:
        await socket.flood(request, 4 << 20, 2.0)
    assert status_of(await answer(number, http_request("GET", "/v1/mesh", f"127.0.0.1:{number}"))) == 200
