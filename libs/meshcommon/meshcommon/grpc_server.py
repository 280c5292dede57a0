"""A service's gRPC server: health, error mapping, correlation ids, size limits, no shared port.

Errors: a MeshError leaves as its gRPC status with `ErrorDetail` in the trailing metadata `mesh-error-bin`; anything
else is logged with its traceback and leaves as INTERNAL without details.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, Final

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from meshapi.common.v1 import error_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.listen import bind
from meshcommon.logging import CORRELATION_METADATA, correlation_id, get_logger, new_correlation_id

MESSAGE_BYTES_MAX: Final = 8 * 1024 * 1024
ERROR_METADATA: Final = "mesh-error-bin"
STOP_GRACE_S: Final = 3.0
# A gRPC client that sets nothing refuses more than 8 KiB of metadata, and then shows RESOURCE_EXHAUSTED instead.
_DETAIL_BYTES_MAX: Final = 4 * 1024
_TEXT_CHARACTERS_MAX: Final = 200

_log = get_logger(__name__)
Handler = Callable[[Any, Any], Any]


def error_detail(error: MeshError) -> error_pb2.ErrorDetail:
    """The error as a message."""
    return error_pb2.ErrorDetail(
        code=str(error.code), message=error.message, retryable=error.retryable, details=error.details
    )


class ErrorInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc,unused-ignore]
    """Maps exceptions of handlers and sets the correlation id for the call."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wraps the handler by its kind (unary or streaming response)."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        metadata = dict(handler_call_details.invocation_metadata or ())
        given = str(metadata.get(CORRELATION_METADATA, "")) or new_correlation_id()
        if handler.response_streaming:
            return _rebuild(handler, _guard_stream(_behaviour(handler), given))
        return _rebuild(handler, _guard_unary(_behaviour(handler), given))


def _behaviour(handler: Any) -> Handler:
    behaviour: Handler = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    return behaviour


def _rebuild(handler: Any, behaviour: Handler) -> Any:
    kinds = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    make = kinds[bool(handler.request_streaming), bool(handler.response_streaming)]
    return make(
        behaviour,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


async def _abort(context: Any, error: Exception) -> None:
    if isinstance(error, MeshError):
        detail = error_detail(error)
        status = grpc.StatusCode[error.mapping.grpc]
    else:
        _log.error("call_failed", exc_info=error)
        detail = error_pb2.ErrorDetail(code=str(ErrorCode.INTERNAL), message="Internal error; the log has the details.")
        status = grpc.StatusCode.INTERNAL
    _shorten(detail)
    text = f"{detail.code}: {detail.message}"[:_TEXT_CHARACTERS_MAX]
    await context.abort(status, text, ((ERROR_METADATA, detail.SerializeToString()),))


def _shorten(detail: error_pb2.ErrorDetail) -> None:
    """Gives up the longest details first, then the end of the message, until the whole fits into metadata."""
    while detail.ByteSize() > _DETAIL_BYTES_MAX and detail.details:
        del detail.details[max(detail.details, key=lambda key: len(key) + len(detail.details[key]))]
    if detail.ByteSize() > _DETAIL_BYTES_MAX:
        detail.message = detail.message[: _DETAIL_BYTES_MAX // 5] + "…"


def _is_own(error: Exception) -> bool:
    """Whether the exception belongs to gRPC itself (abort, or the peer's status passed through)."""
    return isinstance(error, grpc.aio.AbortError | grpc.aio.UsageError)


def _guard_unary(behaviour: Handler, given: str) -> Handler:
    async def call(request: Any, context: Any) -> Any:
        correlation_id.set(given)
        try:
            return await behaviour(request, context)
        except Exception as error:
            if _is_own(error):
                raise
            await _abort(context, error)

    return call


def _guard_stream(behaviour: Handler, given: str) -> Handler:
    async def call(request: Any, context: Any) -> AsyncIterator[Any]:
        correlation_id.set(given)
        try:
            answers = behaviour(request, context)
            if inspect.isawaitable(answers):
                # A streaming handler may also write through the context, as grpc_health's Watch does.
                await answers
                return
            async for response in answers:
                yield response
        except Exception as error:
            if _is_own(error):
                raise
            await _abort(context, error)

    return call


def channel_options() -> list[tuple[str, Any]]:
    """Options that both sides of our gRPC share."""
    return [
        ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


class GrpcServer:
    """A gRPC server with `grpc.health.v1`. Add servicers to `server`, then `start`."""

    def __init__(self, interceptors: Iterable[Any] = ()) -> None:
        self.server = grpc.aio.server(
            interceptors=[*interceptors, ErrorInterceptor()],
            # Without so_reuseport=0 a second process would silently share the port instead of being told.
            options=[*channel_options(), ("grpc.so_reuseport", 0)],
        )
        self._health = health_aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.server)
        self._is_serving = False
        self._guard = self._until_the_loop_ends()
        self.port = 0

    async def start(self, listen: str, what: str) -> int:
        """Binds and serves; returns the port.

        Raises:
            MeshError: ADDRESS_IN_USE or SETTING_INVALID.
        """
        # gRPC cannot be given a socket, and its own failure to bind says neither why nor anything in JSON: try first.
        bind(listen, what).close()
        try:
            self.port = self.server.add_insecure_port(listen)
        except RuntimeError as error:
            raise MeshError(
                ErrorCode.ADDRESS_IN_USE,
                f"{what} cannot listen on {listen}: the port is in use. Stop the other process or choose another port.",
                {"address": listen},
            ) from error
        # grpc_health itself begins as serving; a service that is still starting is not.
        await self.set_serving(self._is_serving)
        starting = asyncio.ensure_future(self.server.start())
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            # A start that is cut short, or left alone, takes the process down when the loop closes: finish it, then stop.
            await starting
            await self.server.stop(None)
            raise
        await anext(self._guard)
        return self.port

    async def _until_the_loop_ends(self) -> AsyncIterator[None]:
        """Begun once and never finished: the loop finishes it before it closes, also after the service has failed.

        grpc.aio would try only then to stop a server that is still running, and print a traceback about the closed loop.
        """
        try:
            yield
        finally:
            await self.server.stop(None)

    async def set_serving(self, is_serving: bool) -> None:
        """What `grpc.health.v1` answers for the whole server; not serving until told."""
        self._is_serving = is_serving
        status = health_pb2.HealthCheckResponse.SERVING if is_serving else health_pb2.HealthCheckResponse.NOT_SERVING
        await self._health.set("", status)

    async def stop(self) -> None:
        """Refuses new calls, gives running ones a moment, then ends them. May be called again, also before `start`."""
        await self._health.enter_graceful_shutdown()
        await asyncio.shield(self.server.stop(STOP_GRACE_S))
