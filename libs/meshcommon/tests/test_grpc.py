"""gRPC between services: errors of every kind of call, correlation ids, health, limits, ports."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from meshapi.common.v1 import error_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.grpc_client import call_metadata, from_detail, mesh_error, open_channel
from meshcommon.grpc_server import ERROR_METADATA, MESSAGE_BYTES_MAX, GrpcServer, error_detail
from meshcommon.logging import correlation_id
from meshtest.ports import free_ports

TIMEOUT_S = 10.0
SERVICE = "test.v1.Echo"
_CANCELLED_START = """
import asyncio, uvloop
from meshcommon.grpc_server import GrpcServer

async def main():
    server = GrpcServer()
    starting = asyncio.create_task(server.start("127.0.0.1:0", "The test"))
    await asyncio.sleep(0)
    starting.cancel()
    try:
        await starting
    except asyncio.CancelledError:
        print("cancelled")

uvloop.run(main())
"""
KINDS = ["UnaryUnary", "UnaryStream", "StreamUnary", "StreamStream"]


def act(request: bytes) -> bytes:
    """Does what the request says: echoes, names the correlation id, or fails in one of several ways."""
    match request.partition(b" "):
        case (b"refuse", _, size):
            raise MeshError(
                ErrorCode.NOT_LEADER, "Ask the leader." + "." * int(size or b"0"), {"leader": "3"}, retryable=False
            )
        case (b"crash", _, _):
            raise ZeroDivisionError("a secret of the service")
        case (b"correlation", _, _):
            return correlation_id.get().encode()
        case _:
            return request


async def unary_unary(request: bytes, _context: Any) -> bytes:
    return act(request)


async def unary_stream(request: bytes, _context: Any) -> AsyncIterator[bytes]:
    yield b"first"
    yield act(request)


async def stream_unary(requests: AsyncIterator[bytes], _context: Any) -> bytes:
    return b"".join([act(request) async for request in requests])


async def stream_stream(requests: AsyncIterator[bytes], _context: Any) -> AsyncIterator[bytes]:
    async for request in requests:
        yield act(request)


async def silent(_request: bytes, _context: Any) -> bytes:
    await asyncio.get_running_loop().create_future()
    return b"never"


@pytest.fixture
async def server() -> AsyncIterator[GrpcServer]:
    """A running server with a call of each kind."""
    server = GrpcServer()
    handlers: dict[str, Any] = {
        "UnaryUnary": grpc.unary_unary_rpc_method_handler(unary_unary),
        "UnaryStream": grpc.unary_stream_rpc_method_handler(unary_stream),
        "StreamUnary": grpc.stream_unary_rpc_method_handler(stream_unary),
        "StreamStream": grpc.stream_stream_rpc_method_handler(stream_stream),
        "Silent": grpc.unary_unary_rpc_method_handler(silent),
    }
    server.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    await server.start("127.0.0.1:0", "The test")
    yield server
    await server.stop()


@pytest.fixture
async def channel(server: GrpcServer) -> AsyncIterator[Any]:
    """A channel to it. Of no type: what is called here has neither stubs nor messages."""
    async with open_channel(f"127.0.0.1:{server.port}") as channel:
        yield channel


async def call(channel: Any, kind: str, request: bytes, timeout: float = TIMEOUT_S) -> list[bytes]:
    """All responses to one request, whatever the kind of call."""

    async def requests() -> AsyncIterator[bytes]:
        yield request

    path, metadata = f"/{SERVICE}/{kind}", call_metadata()
    match kind:
        case "UnaryStream":
            return [item async for item in channel.unary_stream(path)(request, timeout=timeout, metadata=metadata)]
        case "StreamUnary":
            return [await channel.stream_unary(path)(requests(), timeout=timeout, metadata=metadata)]
        case "StreamStream":
            answers = channel.stream_stream(path)(requests(), timeout=timeout, metadata=metadata)
            return [item async for item in answers]
        case _:
            return [await channel.unary_unary(path)(request, timeout=timeout, metadata=metadata)]


async def failure(channel: Any, kind: str, request: bytes, timeout: float = TIMEOUT_S) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        await call(channel, kind, request, timeout)
    return caught.value


@pytest.mark.parametrize("kind", KINDS)
async def test_good_call_passes_unchanged(channel: Any, kind: str) -> None:
    assert (await call(channel, kind, b"hello"))[-1] == b"hello"


@pytest.mark.parametrize("kind", KINDS)
async def test_mesh_error_arrives_whole(channel: Any, kind: str) -> None:
    raised: Any = await failure(channel, kind, b"refuse")
    assert raised.code() is grpc.StatusCode.UNAVAILABLE
    assert raised.details() == "NOT_LEADER: Ask the leader."
    error = mesh_error(raised, "test")
    assert (error.code, error.message, error.details) == (ErrorCode.NOT_LEADER, "Ask the leader.", {"leader": "3"})
    assert not error.retryable


@pytest.mark.parametrize("kind", KINDS)
async def test_unexpected_exception_is_internal_and_tells_nothing(
    channel: Any, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    raised: Any = await failure(channel, kind, b"crash")
    assert raised.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in raised.details()
    error = mesh_error(raised, "test")
    assert (error.code, error.retryable) == (ErrorCode.INTERNAL, False)
    assert "secret" not in error.message


async def test_responses_before_a_failure_still_arrive(channel: Any) -> None:
    answers = channel.unary_stream(f"/{SERVICE}/UnaryStream")(b"refuse", timeout=TIMEOUT_S)
    assert await answers.read() == b"first"
    with pytest.raises(grpc.RpcError):
        await answers.read()


@pytest.mark.parametrize("size", [3_000, 9_000, 60_000])
async def test_long_error_keeps_its_code_for_clients_with_default_limits(server: GrpcServer, size: int) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as plain:
        raised: Any = await failure(plain, "UnaryUnary", b"refuse %d" % size)
    error = mesh_error(raised, "test")
    assert (raised.code(), error.code) == (grpc.StatusCode.UNAVAILABLE, ErrorCode.NOT_LEADER)
    assert error.message.startswith("Ask the leader...")


@pytest.mark.parametrize("kind", KINDS)
async def test_correlation_id_is_passed_on(channel: Any, kind: str) -> None:
    token = correlation_id.set("call-7")
    try:
        assert (await call(channel, kind, b"correlation"))[-1] == b"call-7"
    finally:
        correlation_id.reset(token)


@pytest.mark.parametrize("kind", KINDS)
async def test_call_without_correlation_id_gets_a_new_one(channel: Any, kind: str) -> None:
    ids = {(await call(channel, kind, b"correlation"))[-1] for _ in range(2)}
    assert len(ids) == 2
    assert {len(given) for given in ids} == {32}


async def test_deadline_and_unknown_call_and_size(channel: Any) -> None:
    late = mesh_error(await failure(channel, "Silent", b"", 0.05), "data plane")
    assert (late.code, late.retryable) == (ErrorCode.DEADLINE_EXCEEDED, True)
    assert "data plane" in late.message
    unknown = mesh_error(await failure(channel, "Nothing", b""), "data plane")
    assert unknown.code is ErrorCode.INTERNAL
    large = mesh_error(await failure(channel, "UnaryUnary", bytes(MESSAGE_BYTES_MAX + 1)), "data plane")
    assert large.code is ErrorCode.MESSAGE_TOO_LARGE
    assert len((await call(channel, "UnaryUnary", bytes(MESSAGE_BYTES_MAX - 100)))[0]) == MESSAGE_BYTES_MAX - 100


async def test_bytes_that_are_no_message_are_refused(server: GrpcServer, channel: Any) -> None:
    """By itself gRPC answers UNKNOWN, and logs a traceback for each."""
    await server.set_serving(True)
    call = channel.unary_unary("/grpc.health.v1.Health/Check")
    assert await call(b"", timeout=TIMEOUT_S)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"\xff\xff\xff", timeout=TIMEOUT_S)
    assert mesh_error(caught.value, "health").code is ErrorCode.INVALID_ARGUMENT


async def test_service_that_is_away_is_unavailable() -> None:
    async with open_channel(f"127.0.0.1:{free_ports(1)[0]}") as channel:
        error = mesh_error(await failure(channel, "UnaryUnary", b""), "routing")
    assert (error.code, error.retryable) == (ErrorCode.UNAVAILABLE, True)
    assert "routing" in error.message


async def test_port_in_use_is_told_although_linux_could_share_it(server: GrpcServer) -> None:
    second = GrpcServer()
    with pytest.raises(MeshError) as caught:
        await second.start(f"127.0.0.1:{server.port}", "The second")
    assert caught.value.code is ErrorCode.ADDRESS_IN_USE
    assert "The second" in caught.value.message
    await second.stop()


async def test_health_is_not_serving_until_told(server: GrpcServer, channel: Any) -> None:
    stub: Any = health_pb2_grpc.HealthStub(channel)

    async def status() -> int:
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        return int(answer.status)

    assert await status() == health_pb2.HealthCheckResponse.NOT_SERVING
    await server.set_serving(True)
    assert await status() == health_pb2.HealthCheckResponse.SERVING
    await server.set_serving(False)
    assert await status() == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_health_can_be_watched(server: GrpcServer, channel: Any) -> None:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
    answers = aiter(watch)
    assert (await anext(answers)).status == health_pb2.HealthCheckResponse.NOT_SERVING
    await server.set_serving(True)
    assert (await anext(answers)).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()


async def test_stopping_server_says_so_to_watchers_and_ends_silent_calls(server: GrpcServer, channel: Any) -> None:
    await server.set_serving(True)
    stub: Any = health_pb2_grpc.HealthStub(channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
    answers = aiter(watch)
    assert (await anext(answers)).status == health_pb2.HealthCheckResponse.SERVING
    stopping = asyncio.create_task(server.stop())
    assert (await anext(answers)).status == health_pb2.HealthCheckResponse.NOT_SERVING
    watch.cancel()
    await stopping


def test_start_that_is_cancelled_leaves_no_traceback_behind() -> None:
    """Another listener of the service failed in the same moment: only that failure is worth a line."""
    ended = subprocess.run([sys.executable, "-c", _CANCELLED_START], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "cancelled\n", "")


def test_error_survives_its_message() -> None:
    error = MeshError(ErrorCode.SEQUENCE_GAP, "Send again from 4.", {"expected": "4"}, retryable=True)
    back = from_detail(error_detail(error))
    assert (back.code, back.message, back.details, back.retryable) == (
        error.code,
        error.message,
        error.details,
        error.retryable,
    )


def test_error_of_a_newer_version_becomes_internal_but_keeps_its_text() -> None:
    detail = error_pb2.ErrorDetail(code="FROM_THE_FUTURE", message="Wait.", retryable=True)
    error = from_detail(detail)
    assert (error.code, error.message, error.retryable) == (ErrorCode.INTERNAL, "Wait.", True)


def test_no_metadata_without_a_correlation_id() -> None:
    assert call_metadata() == ()
    assert ERROR_METADATA.endswith("-bin")
