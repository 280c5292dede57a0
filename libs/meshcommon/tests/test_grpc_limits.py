"""gRPC where it is bounded and where it listens: calls at a time, metadata, message sizes, unix sockets, leave."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from meshcommon.errors import ErrorCode, MeshError
from meshcommon.grpc_client import mesh_error, open_channel
from meshcommon.grpc_server import BACKEND_CALLS, METADATA_BYTES_MAX, PUBLIC_CALLS, CallLimits, GrpcServer
from meshtest.waiting import eventually

SERVICE = "test.v1.Limits"
FEW = CallLimits(calls_max=4, connection_calls_max=2, request_bytes_max=1_000, idle_ms_max=60_000)


@asynccontextmanager
async def serving(listen: str, limits: CallLimits = BACKEND_CALLS) -> AsyncIterator[tuple[GrpcServer, asyncio.Event]]:
    """A server whose call `Wait` answers when the event is set."""
    release = asyncio.Event()
    waiting: list[int] = []

    async def wait(request: bytes, _context: Any) -> bytes:
        waiting.append(1)
        await release.wait()
        return request

    async def echo(request: bytes, context: Any) -> bytes:
        return request + str(len(waiting)).encode()

    server = GrpcServer(limits=limits)
    handlers: dict[str, Any] = {
        "Wait": grpc.unary_unary_rpc_method_handler(wait),
        "Count": grpc.unary_unary_rpc_method_handler(echo),
    }
    server.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    await server.start(listen, "The test")
    try:
        yield server, release
    finally:
        release.set()
        await server.stop()


def ask(channel: Any, method: str, request: bytes = b"", metadata: Any = ()) -> Any:
    return channel.unary_unary(f"/{SERVICE}/{method}")(request, timeout=10, metadata=metadata)


async def refusal(call: Any) -> MeshError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return mesh_error(caught.value, "data plane")


async def test_a_call_too_many_is_told_to_come_later() -> None:
    """Not that its message is too large, as gRPC's one status for both would have it."""
    async with serving("127.0.0.1:0", FEW) as (server, release), AsyncExitStack() as stack:
        target = f"127.0.0.1:{server.port}"
        # Options differ, so that gRPC does not share one connection between the channels.
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(target, options=[("test.number", number)]))
            for number in range(3)
        ]
        held = [asyncio.ensure_future(ask(channel, "Wait")) for channel in channels[:2] for _ in range(2)]

        async def is_full() -> bool:
            try:
                return bool(await ask(channels[2], "Count") == b"4")
            except grpc.aio.AioRpcError:
                return True

        await eventually("the server is full", is_full)
        error = await refusal(ask(channels[2], "Count"))
        assert (error.code, error.retryable) == (ErrorCode.BACKPRESSURE, True)
        release.set()
        await asyncio.gather(*held)
        assert await ask(channels[2], "Count") == b"4"


async def test_one_connection_cannot_take_what_is_there_for_all() -> None:
    limits = CallLimits(calls_max=100, connection_calls_max=4, request_bytes_max=1_000, idle_ms_max=60_000)
    async with serving("127.0.0.1:0", limits) as (server, release), AsyncExitStack() as stack:
        target = f"127.0.0.1:{server.port}"
        greedy, other = [
            await stack.enter_async_context(grpc.aio.insecure_channel(target, options=[("test.number", number)]))
            for number in range(2)
        ]
        held = [asyncio.ensure_future(ask(greedy, "Wait")) for _ in range(40)]
        await asyncio.wait(held, timeout=0.5)
        assert int(await ask(other, "Count")) <= limits.connection_calls_max
        release.set()
        outcomes = await asyncio.gather(*held, return_exceptions=True)
        refused = [mesh_error(item, "test") for item in outcomes if isinstance(item, grpc.aio.AioRpcError)]
        assert len(refused) < len(held)
        assert all(error.code is ErrorCode.UNAVAILABLE and error.retryable for error in refused)


async def test_messages_and_metadata_are_bounded() -> None:
    async with serving("127.0.0.1:0", FEW) as (server, _), open_channel(f"127.0.0.1:{server.port}") as channel:
        error = await refusal(ask(channel, "Count", bytes(FEW.request_bytes_max + 1)))
        assert error.code is ErrorCode.MESSAGE_TOO_LARGE
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(channel, "Count", metadata=(("x-large", "a" * 2 * METADATA_BYTES_MAX),))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await ask(channel, "Count", b"x") == b"x0"


def test_the_public_api_leaves_a_backend_room_for_the_other_services() -> None:
    rest_calls_max = 2 * 384
    assert PUBLIC_CALLS.calls_max + rest_calls_max + 200 <= BACKEND_CALLS.calls_max


async def test_a_unix_socket_serves_its_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "run" / "a.sock"
    previous = os.umask(0)
    try:
        async with serving(f"unix:{path}"), open_channel(f"unix:{path}") as channel:
            assert path.stat().st_mode & 0o777 == 0o600
            assert path.parent.stat().st_mode & 0o777 == 0o700
            assert await ask(channel, "Count", b"x") == b"x0"
    finally:
        os.umask(previous)
    assert not path.exists()


async def test_a_unix_socket_in_use_is_told_and_goes_on(tmp_path: Path) -> None:
    listen = f"unix:{tmp_path}/run/a.sock"
    async with serving(listen), open_channel(listen) as channel:
        second = GrpcServer()
        with pytest.raises(MeshError) as caught:
            await second.start(listen, "The second")
        assert caught.value.code is ErrorCode.ADDRESS_IN_USE
        await second.stop()
        assert await ask(channel, "Count", b"x") == b"x0"


async def test_a_dead_socket_is_replaced_and_clients_come_back(tmp_path: Path) -> None:
    path = tmp_path / "run" / "a.sock"
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with open_channel(f"unix:{path}") as channel:
        for _ in range(2):
            async with serving(f"unix:{path}"):

                async def answers() -> bool:
                    try:
                        return bool(await ask(channel, "Count", b"x") == b"x0")
                    except grpc.aio.AioRpcError:
                        return False

                await eventually("the client is connected", answers)


async def test_other_machines_reach_no_listener_unasked() -> None:
    with pytest.raises(MeshError, match="MESH_NODE_TLS_DIR") as caught:
        await GrpcServer().start("0.0.0.0:0", "A backend")
    assert caught.value.code is ErrorCode.INSECURE_NOT_ALLOWED
