"""The public gRPC services through the gateway: four kinds of calls, errors, metadata, deadlines, cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from opentelemetry.instrumentation.grpc import GrpcAioInstrumentorClient, GrpcAioInstrumentorServer
from opentelemetry.instrumentation.utils import suppress_instrumentation

from mesh_gateway.shell.proxy import PASSED_METADATA, pass_through, service_handler
from mesh_gateway.shell.record_exchanges import opened_budget
from meshapi.supervisor.v1 import data_pb2, mesh_pb2, topology_pb2
from meshapi.supervisor.v1.data_pb2_grpc import MeshDataServiceStub
from meshapi.supervisor.v1.mesh_pb2_grpc import MeshServiceStub
from meshapi.supervisor.v1.topology_pb2_grpc import TopologyServiceStub
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.grpc_client import mesh_error, open_channel
from meshcommon.grpc_server import GrpcServer
from meshcommon.logging import usable_correlation_id

if TYPE_CHECKING:
    from tests.conftest import Gateway


@pytest.fixture(params=["plain", "traced"], autouse=True)
def tracing(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test runs as in a service, where the instrumentation wraps each call, and without it."""
    if request.param == "plain":
        yield
        return
    instrumentors: list[Any] = [_untyped(GrpcAioInstrumentorServer), _untyped(GrpcAioInstrumentorClient)]
    for instrumentor in instrumentors:
        instrumentor.instrument()
    yield
    for instrumentor in instrumentors:
        instrumentor.uninstrument()


def _untyped(make: Any) -> Any:
    return make()


@pytest.fixture
async def channel(tracing: None, gateway: Gateway) -> AsyncIterator[grpc.aio.Channel]:
    """To the gateway's gRPC port."""
    server = GrpcServer()
    pass_through(server.server, gateway.backends, gateway.metrics, opened_budget())
    port = await server.start("127.0.0.1:0", "The gateway of the test")
    # The caller is somebody else: never instrumented.
    with suppress_instrumentation():
        client = open_channel(f"127.0.0.1:{port}")
        yield client
    await client.close()
    await server.server.stop(None)


async def test_unary_calls_reach_each_service_unchanged(gateway: Gateway, channel: grpc.aio.Channel) -> None:
    gateway.control.answer("Join", mesh_pb2.JoinResponse(mesh_id="m", node_id=3))
    gateway.routing.answer("ListLinks", topology_pb2.ListLinksResponse(topology_version=7))
    gateway.data.answer("Ping", data_pb2.PingResponse(rtt_us=9))
    request = mesh_pb2.JoinRequest(address="ws://x:1", mesh_id="m")
    assert (await MeshServiceStub(channel).Join(request)).node_id == 3
    assert gateway.control.asked[-1].request == request
    assert (await TopologyServiceStub(channel).ListLinks(topology_pb2.ListLinksRequest())).topology_version == 7
    assert (await MeshDataServiceStub(channel).Ping(data_pb2.PingRequest(node="b"))).rtt_us == 9
    labels = {"method": "MeshService/Join", "status": "OK"}
    assert gateway.registry.get_sample_value("mesh_gateway_grpc_calls_total", labels) == 1


async def test_a_stream_of_answers(gateway: Gateway, channel: grpc.aio.Channel) -> None:
    async def read(request: Any, _context: Any) -> AsyncIterator[data_pb2.ReadBatchesResponse]:
        for offset in range(request.from_offset, 100):
            yield data_pb2.ReadBatchesResponse(next_offset=offset)

    gateway.data.answers["ReadBatches"] = read
    call = MeshDataServiceStub(channel).ReadBatches(data_pb2.ReadBatchesRequest(stream="d/l", from_offset=40))
    assert [answer.next_offset async for answer in call] == list(range(40, 100))


async def test_a_stream_both_ways_with_half_close(gateway: Gateway, channel: grpc.aio.Channel) -> None:
    async def publish(requests: Any, _context: Any) -> AsyncIterator[data_pb2.PublishBatchResponse]:
        count = 0
        async for request in requests:
            count += 1
            yield data_pb2.PublishBatchResponse(base_offset=request.stream_id)
        yield data_pb2.PublishBatchResponse(count=count)

    async def requests() -> AsyncIterator[data_pb2.PublishBatchRequest]:
        for sequence in range(50):
            yield data_pb2.PublishBatchRequest(stream_id=sequence)

    gateway.data.answers["PublishBatch"] = publish
    answers = [answer async for answer in MeshDataServiceStub(channel).PublishBatch(requests())]
    assert [answer.base_offset for answer in answers[:-1]] == list(range(50))
    assert answers[-1].count == 50


async def test_a_stream_of_requests_with_one_answer(gateway: Gateway) -> None:
    """No call of today's proto is of this kind; the gateway would pass one on all the same."""
    file = descriptor_pb2.FileDescriptorProto(name="sum.proto", package="test", syntax="proto3")
    file.message_type.add(name="Number")
    method = file.service.add(name="Sum").method.add(name="Add", input_type=".test.Number", output_type=".test.Number")
    method.client_streaming = True
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)

    async def add(requests: Any, _context: Any) -> bytes:
        return bytes([sum([request[0] async for request in requests])])

    back, front = GrpcServer(), GrpcServer()
    handlers: dict[str, Any] = {"Add": grpc.stream_unary_rpc_method_handler(add)}
    back.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Sum", handlers),))
    port = await back.start("127.0.0.1:0", "The backend of the test")
    async with open_channel(f"127.0.0.1:{port}") as to_back:
        backend = type(gateway.backends.data)("backend", f"127.0.0.1:{port}", to_back)
        service = pool.FindServiceByName("test.Sum")
        front.server.add_generic_rpc_handlers((service_handler(service, backend, gateway.metrics),))
        async with open_channel(f"127.0.0.1:{await front.start('127.0.0.1:0', 'The gateway of the test')}") as client:

            async def numbers() -> AsyncIterator[bytes]:
                for number in (1, 2, 39):
                    yield bytes([number])

            call: Any = client.stream_unary("/test.Sum/Add")
            assert await call(numbers()) == bytes([42])
    await front.server.stop(None)
    await back.server.stop(None)


async def test_refusals_come_back_with_status_details_and_error_detail(
    gateway: Gateway, channel: grpc.aio.Channel
) -> None:
    refusal = MeshError(ErrorCode.STREAMS_AT_RISK, "Two streams would stop.", {"streams": "a/b c/d"}, retryable=True)
    gateway.control.answer("Leave", refusal)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await MeshServiceStub(channel).Leave(mesh_pb2.LeaveRequest())
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert caught.value.details() == "STREAMS_AT_RISK: Two streams would stop."
    error = mesh_error(caught.value, "gateway")
    assert (error.code, error.message, error.details, error.retryable) == (
        refusal.code,
        refusal.message,
        refusal.details,
        True,
    )


async def test_a_refusal_after_some_answers(gateway: Gateway, channel: grpc.aio.Channel) -> None:
    async def read(_request: Any, _context: Any) -> AsyncIterator[data_pb2.ReadBatchesResponse]:
        yield data_pb2.ReadBatchesResponse(next_offset=1)
        raise MeshError(ErrorCode.OFFSET_BELOW_FLOOR, "Gone.", {"floor_offset": "9"})

    gateway.data.answers["ReadBatches"] = read
    call = MeshDataServiceStub(channel).ReadBatches(data_pb2.ReadBatchesRequest())
    answers = aiter(call)
    assert (await anext(answers)).next_offset == 1
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await anext(answers)
    assert caught.value.code() == grpc.StatusCode.OUT_OF_RANGE
    assert mesh_error(caught.value, "gateway").details == {"floor_offset": "9"}


async def test_other_statuses_and_trailing_metadata_pass(gateway: Gateway, channel: grpc.aio.Channel) -> None:
    async def stop(_request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.ALREADY_EXISTS, "twice", (("x-note", "kept"), ("x-bytes-bin", b"\x00\xff")))

    async def start(_request: Any, context: Any) -> Any:
        context.set_trailing_metadata((("x-note", "fine"),))
        return mesh_pb2.StartResponse()

    gateway.control.answers |= {"Stop": stop, "Start": start}
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await MeshServiceStub(channel).Stop(mesh_pb2.StopRequest())
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.ALREADY_EXISTS, "twice")
    trailing = dict(caught.value.trailing_metadata())
    assert (trailing["x-note"], trailing["x-bytes-bin"]) == ("kept", b"\x00\xff")
    call = MeshServiceStub(channel).Start(mesh_pb2.StartRequest())
    await call
    assert dict(await call.trailing_metadata())["x-note"] == "fine"


@pytest.mark.parametrize("kind", ["unary", "answers", "both"])
async def test_a_backend_that_is_down_is_named(gateway: Gateway, channel: grpc.aio.Channel, kind: str) -> None:
    await gateway.data.server.server.stop(None)
    stub = MeshDataServiceStub(channel)

    async def requests() -> AsyncIterator[data_pb2.PublishBatchRequest]:
        yield data_pb2.PublishBatchRequest()

    calls: dict[str, Any] = {
        "unary": lambda: stub.Ping(data_pb2.PingRequest()),
        "answers": lambda: anext(aiter(stub.ReadBatches(data_pb2.ReadBatchesRequest()))),
        "both": lambda: anext(aiter(stub.PublishBatch(requests()))),
    }
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await calls[kind]()
    error = mesh_error(caught.value, "gateway")
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert (error.code, error.retryable) == (ErrorCode.UNAVAILABLE, True)
    assert "data plane" in error.message


async def test_of_a_callers_metadata_only_ids_and_the_trace_are_passed_on(
    gateway: Gateway, channel: grpc.aio.Channel
) -> None:
    gateway.control.answer("Stop", mesh_pb2.StopResponse())
    stub = MeshServiceStub(channel)
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    claims = (
        *(("x-tenant", "t"), ("authorization", "Bearer secret"), ("x-forwarded-for", "10.0.0.1")),
        *(("x-spiffe-id", "spiffe://m/node/a/control"), ("note-bin", b"x"), ("cookie", "c=1"), ("baggage", "a=b")),
    )
    told = (("x-correlation-id", "order-17"), ("x-request-id", "r-1"), ("x-request-id", "r-2"), ("tracestate", "v=1"))
    await stub.Stop(mesh_pb2.StopRequest(), metadata=(*claims, *told, ("traceparent", trace)))
    metadata = gateway.control.asked[-1].metadata
    assert (metadata["x-correlation-id"], metadata["x-request-id"], metadata["tracestate"]) == (
        "order-17",
        "r-1",
        "v=1",
    )
    assert str(metadata["traceparent"]).startswith(trace[:36]), (
        "the same trace; its span is the gateway's where it is traced"
    )
    assert set(metadata) - PASSED_METADATA <= {"user-agent"}, "user-agent is that of the gateway's own connection"
    await stub.Stop(mesh_pb2.StopRequest())
    assert gateway.control.asked[-1].metadata["x-correlation-id"]


async def test_the_time_that_is_left_is_passed_on(gateway: Gateway, channel: grpc.aio.Channel) -> None:
    gateway.control.answer("Stop", mesh_pb2.StopResponse())
    stub = MeshServiceStub(channel)
    await stub.Stop(mesh_pb2.StopRequest(), timeout=20)
    remaining = gateway.control.asked[-1].time_remaining_s
    assert remaining is not None
    # gRPC rounds the rest up on its way, once for each hop.
    assert 10 < remaining < 22
    await stub.Stop(mesh_pb2.StopRequest())
    unlimited = gateway.control.asked[-1].time_remaining_s
    assert unlimited is None or unlimited > 1_000


class Endless:
    """A ReadBatches or PublishBatch that never ends by itself, and tells when it was cancelled."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()
        self.begun = asyncio.Event()
        self.sent = 0

    async def read(self, _request: Any, _context: Any) -> AsyncIterator[data_pb2.ReadBatchesResponse]:
        batch = data_pb2.ReadBatch(batch=b"x" * 100_000)
        self.begun.set()
        try:
            while True:
                yield data_pb2.ReadBatchesResponse(batches=[batch])
                self.sent += 1
        finally:
            self.cancelled.set()

    async def publish(self, requests: Any, _context: Any) -> AsyncIterator[data_pb2.PublishBatchResponse]:
        self.begun.set()
        try:
            async for _ in requests:
                yield data_pb2.PublishBatchResponse()
        finally:
            self.cancelled.set()

    async def silent(self, _request: Any, _context: Any) -> Any:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()


@pytest.mark.parametrize("kind", ["unary", "answers", "both"])
async def test_a_caller_that_cancels_cancels_the_backend(
    gateway: Gateway, channel: grpc.aio.Channel, kind: str
) -> None:
    endless = Endless()
    gateway.data.answers |= {"Ping": endless.silent, "ReadBatches": endless.read, "PublishBatch": endless.publish}
    stub = MeshDataServiceStub(channel)

    async def requests() -> AsyncIterator[data_pb2.PublishBatchRequest]:
        yield data_pb2.PublishBatchRequest()
        await asyncio.Event().wait()

    calls: dict[str, Any] = {
        "unary": lambda: stub.Ping(data_pb2.PingRequest()),
        "answers": lambda: stub.ReadBatches(data_pb2.ReadBatchesRequest(follow=True)),
        "both": lambda: stub.PublishBatch(requests()),
    }
    call = calls[kind]()
    waiting = asyncio.ensure_future(call if kind == "unary" else anext(aiter(call)))
    async with asyncio.timeout(10):
        await endless.begun.wait()
        call.cancel()
        await endless.cancelled.wait()
    await asyncio.wait([waiting])


async def test_a_backend_that_ends_ends_the_call_of_a_caller_that_still_sends(
    gateway: Gateway, channel: grpc.aio.Channel
) -> None:
    async def ends(requests: Any, context: Any) -> AsyncIterator[Any]:
        async for _ in requests:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")
        yield None

    async def requests() -> AsyncIterator[data_pb2.PublishBatchRequest]:
        yield data_pb2.PublishBatchRequest()
        await asyncio.Event().wait()

    gateway.data.answers["PublishBatch"] = ends
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async with asyncio.timeout(10):
            await anext(aiter(MeshDataServiceStub(channel).PublishBatch(requests())))
    error = mesh_error(caught.value, "gateway")
    assert (error.code, error.retryable) == (ErrorCode.UNAVAILABLE, True)


async def test_i6_a_slow_caller_slows_the_backend(gateway: Gateway, channel: grpc.aio.Channel) -> None:
    """I6: nothing is queued in between, so a backend that could send for ever stops by itself."""
    endless = Endless()
    gateway.data.answers["ReadBatches"] = endless.read
    call = MeshDataServiceStub(channel).ReadBatches(data_pb2.ReadBatchesRequest(follow=True))
    await anext(aiter(call))
    assert await settled(lambda: endless.sent) < 400
    call.cancel()


async def settled(read: Any) -> int:
    """The value of `read()` once it no longer changes for a while."""
    before = -1
    async with asyncio.timeout(30):
        while (now := int(read())) != before:
            before = now
            await asyncio.sleep(0.5)
    return before


async def test_an_unknown_method_is_unimplemented(channel: grpc.aio.Channel) -> None:
    call: Any = channel.unary_unary("/meshapi.supervisor.v1.MeshService/Evict")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"")
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_a_correlation_id_that_could_forge_a_log_is_replaced(gateway: Gateway, channel: grpc.aio.Channel) -> None:
    gateway.control.answer("GetStatus", mesh_pb2.GetStatusResponse(name="a"))
    for given in ("a b", "x" * 65, '{"event": "forged"}'):
        await MeshServiceStub(channel).GetStatus(mesh_pb2.GetStatusRequest(), metadata=(("x-correlation-id", given),))
        passed = gateway.control.asked[-1].metadata["x-correlation-id"]
        assert passed == usable_correlation_id(passed) != given
