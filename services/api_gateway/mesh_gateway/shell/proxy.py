"""The public gRPC services, passed to the service that implements them without looking into a message.

Handlers are built from the services' descriptors, with bytes in and bytes out, so a new call of the proto is passed on
without a change here. Passed on: metadata (the correlation id among it), the time that is left, each message, half-close,
cancellation both ways, status, details and trailing metadata. One message a direction is in hand at any time, so the
windows of HTTP/2 carry the backpressure through. Left out: initial metadata of answers; no service sends any.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from opentelemetry import propagate
from opentelemetry.instrumentation.utils import suppress_instrumentation

from mesh_gateway.shell.backends import Backend, Backends
from mesh_gateway.shell.metrics import GatewayMetrics
from meshapi.supervisor.v1 import data_pb2, mesh_pb2, topology_pb2
from meshcommon.grpc_client import is_broken, mesh_error
from meshcommon.logging import CORRELATION_METADATA, correlation_id

_HOP_METADATA: Final = frozenset({"user-agent", "content-type", "te"})
_HANDLERS: Final[dict[tuple[bool, bool], Callable[..., grpc.RpcMethodHandler[Any, Any]]]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}

Metadata = tuple[tuple[str, str | bytes], ...]


def pass_through(server: grpc.aio.Server, backends: Backends, metrics: GatewayMetrics) -> None:
    """Adds the three public services to `server`."""
    for file, name, backend in (
        (mesh_pb2, "MeshService", backends.control),
        (topology_pb2, "TopologyService", backends.routing),
        (data_pb2, "MeshDataService", backends.data),
    ):
        server.add_generic_rpc_handlers((service_handler(file.DESCRIPTOR.services_by_name[name], backend, metrics),))


def service_handler(service: ServiceDescriptor, backend: Backend, metrics: GatewayMetrics) -> grpc.GenericRpcHandler:
    """Handlers for every method of `service`, passing to `backend`."""
    methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
    for method in service.methods:
        passer = _Passer(method, backend, metrics)
        behaviour = passer.pass_stream if method.server_streaming else passer.pass_unary
        methods[method.name] = _HANDLERS[method.client_streaming, method.server_streaming](behaviour)
    return grpc.method_handlers_generic_handler(service.full_name, methods)


class _Passer:
    """Passes the calls of one method."""

    def __init__(self, method: MethodDescriptor, backend: Backend, metrics: GatewayMetrics) -> None:
        self._backend = backend
        self._metrics = metrics
        self._label = f"{method.containing_service.name}/{method.name}"
        channel = backend.channel
        make: dict[tuple[bool, bool], Callable[[str], Any]] = {
            (False, False): channel.unary_unary,
            (False, True): channel.unary_stream,
            (True, False): channel.stream_unary,
            (True, True): channel.stream_stream,
        }
        self._call = make[method.client_streaming, method.server_streaming](
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

    async def pass_stream(self, request: Any, context: Any) -> AsyncIterator[bytes]:
        """Answers as they come; `request` is a message or an iterator of messages."""
        started = time.perf_counter()
        call = self._open(request, context)
        try:
            async for answer in call:
                yield answer
            context.set_trailing_metadata(_passable(await call.trailing_metadata()))
        except grpc.aio.AioRpcError as error:
            await self._fail(context, error)
        finally:
            call.cancel()
            await self._count(call, started)

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
            raise mesh_error(error, self._backend.name) from error
        await context.abort(error.code(), error.details() or "", _passable(error.trailing_metadata()))


def _forwarded(context: Any) -> Metadata:
    """The caller's metadata without what belongs to one hop, with the correlation id that this call has here."""
    own: dict[str, str] = {CORRELATION_METADATA: correlation_id.get()}
    propagate.inject(own)
    given = _passable(context.invocation_metadata())
    return (*((key, value) for key, value in given if key not in _HOP_METADATA and key not in own), *own.items())


def _passable(metadata: Any) -> Metadata:
    return tuple((key, value) for key, value in metadata or () if not key.startswith((":", "grpc-")))
