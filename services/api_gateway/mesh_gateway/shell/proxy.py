"""The public gRPC services, passed to the service that implements them without looking into a message.

Handlers are built from the services' descriptors, with bytes in and bytes out, so a new call of the proto is passed on
without a change here. Two calls speak of records, which the data plane does not know: `Publish` and `Read` go on as
`PublishBatch` and `ReadBatches` (`record_exchanges`). Passed on: what PASSED_METADATA names, the time that is left, each
message, half-close, cancellation both ways, status, details and trailing metadata. One message a direction is in hand at any time, so the
windows of HTTP/2 carry the backpressure through. Other metadata ends here: backends believe their
gateway, so nothing that a caller claims may look like the gateway's word, and no secret of a caller goes further. Left out: initial metadata of answers; no service sends any.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import Any, Final, TypeAlias

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from opentelemetry import propagate
from opentelemetry.instrumentation.utils import suppress_instrumentation

from mesh_gateway.core.byte_budget import ByteBudget
from mesh_gateway.shell.backends import Backend, Backends
from mesh_gateway.shell.metrics import GatewayMetrics
from mesh_gateway.shell.record_exchanges import PublishExchange, ReadExchange
from meshapi.supervisor.v1 import ca_pb2, data_pb2, mesh_pb2, topology_pb2
from meshcommon.grpc_client import is_broken, site_error
from meshcommon.logging import CORRELATION_METADATA, correlation_id

PASSED_METADATA: Final = frozenset({CORRELATION_METADATA, "x-request-id", "traceparent", "tracestate"})
"""What backends are told of a caller's metadata; of each the first value."""
_HANDLERS: Final[dict[tuple[bool, bool], Callable[..., grpc.RpcMethodHandler[Any, Any]]]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}

Metadata = tuple[tuple[str, str | bytes], ...]
Handlers: TypeAlias = "Mapping[str, grpc.RpcMethodHandler[Any, Any]]"


def pass_through(server: grpc.aio.Server, backends: Backends, metrics: GatewayMetrics, opened: ByteBudget) -> None:
    """Adds the four public services to `server`. `opened` bounds the batches that are open at a time."""
    for file, name, backend in (
        (mesh_pb2, "MeshService", backends.control),
        (ca_pb2, "CaService", backends.control),
        (topology_pb2, "TopologyService", backends.routing),
        (data_pb2, "MeshDataService", backends.data),
    ):
        service = file.DESCRIPTOR.services_by_name[name]
        own = _record_handlers(service, backends, metrics, opened) if backend is backends.data else {}
        server.add_generic_rpc_handlers((service_handler(service, backend, metrics, own),))


def service_handler(
    service: ServiceDescriptor, backend: Backend, metrics: GatewayMetrics, own: Handlers | None = None
) -> grpc.GenericRpcHandler:
    """Handlers for every method of `service`: those in `own`, and for the others such as pass to `backend`."""
    methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = dict(own or {})
    for method in service.methods:
        if method.name in methods:
            continue
        passer = _Passer(method, backend, metrics)
        behaviour = passer.pass_stream if method.server_streaming else passer.pass_unary
        methods[method.name] = _HANDLERS[method.client_streaming, method.server_streaming](behaviour)
    return grpc.method_handlers_generic_handler(service.full_name, methods)


def _record_handlers(
    service: ServiceDescriptor, backends: Backends, metrics: GatewayMetrics, opened: ByteBudget
) -> Handlers:
    """Handlers of the two calls that speak of records."""
    publish = _PublishPasser(service.methods_by_name["Publish"], backends, metrics)
    read = _ReadPasser(service.methods_by_name["Read"], backends, metrics, opened)
    return {
        "Publish": grpc.stream_stream_rpc_method_handler(
            publish.pass_stream,
            request_deserializer=data_pb2.PublishRequest.FromString,
            response_serializer=data_pb2.PublishResponse.SerializeToString,
        ),
        "Read": grpc.unary_stream_rpc_method_handler(
            read.pass_stream,
            request_deserializer=data_pb2.ReadRequest.FromString,
            response_serializer=data_pb2.ReadResponse.SerializeToString,
        ),
    }


class _Passer:
    """Passes the calls of one method."""

    def __init__(self, method: MethodDescriptor, backend: Backend, metrics: GatewayMetrics, call: Any = None) -> None:
        """`call` is what it passes to, when that is another method."""
        self._backend = backend
        self._metrics = metrics
        self._label = f"{method.containing_service.name}/{method.name}"
        self._call = call or self._same(method, backend.channel)

    @staticmethod
    def _same(method: MethodDescriptor, channel: grpc.aio.Channel) -> Any:
        make: dict[tuple[bool, bool], Callable[[str], Any]] = {
            (False, False): channel.unary_unary,
            (False, True): channel.unary_stream,
            (True, False): channel.stream_unary,
            (True, True): channel.stream_stream,
        }
        return make[method.client_streaming, method.server_streaming](
            f"/{method.containing_service.full_name}/{method.name}"
        )

    async def pass_unary(self, request: Any, context: Any) -> bytes:
        """One answer; `request` is a message or an iterator of messages."""
        started = time.perf_counter()
        call = self._open(request, context)
        try:
            answer: bytes = await call
            context.set_trailing_metadata(_passable(await call.trailing_metadata()))
        except grpc.aio.AioRpcError as error:
            await self._fail(context, error)
            raise
        finally:
            call.cancel()
            await self._count(call, started)
        return answer

    async def pass_stream(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """Answers as they come; `request` is a message or an iterator of messages."""
        started = time.perf_counter()
        request, translate = self._translated(request)
        call = self._open(request, context)
        try:
            # Closed here and now when the caller goes: what an exchange holds open is given back.
            async with aclosing(translate(call)) as answers:
                async for answer in answers:
                    yield answer
            context.set_trailing_metadata(_passable(await call.trailing_metadata()))
        except grpc.aio.AioRpcError as error:
            await self._fail(context, error)
        finally:
            call.cancel()
            await self._count(call, started)

    def _translated(self, request: Any) -> tuple[Any, Callable[[Any], AsyncGenerator[Any]]]:
        """The request for the backend, and what becomes of the backend's answers."""
        return request, _as_they_are

    def _open(self, request: Any, context: Any) -> Any:
        # No client span: the instrumentation would lose cancellation of unary calls, and the span of the server above
        # already tells the time. The trace goes on through `_forwarded`.
        with suppress_instrumentation():
            return self._call(request, timeout=context.time_remaining(), metadata=_forwarded(context))

    async def _count(self, call: Any, started: float) -> None:
        # A cancelled call has its code at once; awaiting it cannot block.
        code: grpc.StatusCode = await call.code()
        self._metrics.calls.labels(self._label, code.name).inc()
        self._metrics.call_seconds.labels(self._label).observe(time.perf_counter() - started)

    async def _fail(self, context: Any, error: grpc.aio.AioRpcError) -> None:
        if is_broken(error):
            raise site_error(error, self._backend.name) from error
        await context.abort(error.code(), error.details() or "", _passable(error.trailing_metadata()))


class _PublishPasser(_Passer):
    """Publish: records in, batches on."""

    def __init__(self, method: MethodDescriptor, backends: Backends, metrics: GatewayMetrics) -> None:
        super().__init__(method, backends.data, metrics, backends.data_service.PublishBatch)

    def _translated(self, request: Any) -> tuple[Any, Callable[[Any], AsyncGenerator[Any]]]:
        exchange = PublishExchange()
        return exchange.requests(request), exchange.answers


class _ReadPasser(_Passer):
    """Read: batches in, records out."""

    def __init__(
        self, method: MethodDescriptor, backends: Backends, metrics: GatewayMetrics, opened: ByteBudget
    ) -> None:
        super().__init__(method, backends.data, metrics, backends.data_service.ReadBatches)
        self._opened = opened

    def _translated(self, request: Any) -> tuple[Any, Callable[[Any], AsyncGenerator[Any]]]:
        exchange = ReadExchange(request, self._opened)
        return exchange.request, exchange.answers


async def _as_they_are(answers: Any) -> AsyncGenerator[Any]:
    async for answer in answers:
        yield answer


def _forwarded(context: Any) -> Metadata:
    """Of the caller's metadata what is in PASSED_METADATA, with the correlation id and the trace that this call has here."""
    passed: dict[str, str | bytes] = {}
    for key, value in context.invocation_metadata() or ():
        if key in PASSED_METADATA:
            passed.setdefault(key, value)
    own: dict[str, str] = {CORRELATION_METADATA: correlation_id.get()}
    propagate.inject(own)
    passed |= {key: value for key, value in own.items() if key in PASSED_METADATA}
    return tuple(passed.items())


def _passable(metadata: Any) -> Metadata:
    return tuple((key, value) for key, value in metadata or () if not key.startswith((":", "grpc-")))
