"""A service's gRPC server: TLS and callers, health, error mapping, correlation ids, size limits, no shared port.

Errors: a MeshError leaves as its gRPC status with `ErrorDetail` in the trailing metadata `mesh-error-bin`; anything
else is logged with its traceback and leaves as INTERNAL without details.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from meshapi.common.v1 import error_pb2
from meshcommon.address import check_listen, is_unix
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.listen import UnixPlace, bind
from meshcommon.logging import CORRELATION_METADATA, correlation_id, get_logger, usable_correlation_id
from meshcommon.site_callers import SiteCallers
from meshcommon.site_files import SiteFiles, SitePair
from meshcommon.tls_files import TlsFiles

MESSAGE_BYTES_MAX: Final = 8 * 1024 * 1024
ERROR_METADATA: Final = "mesh-error-bin"
METADATA_BYTES_MAX: Final = 16 * 1024
STOP_GRACE_S: Final = 3.0
# A gRPC client that sets nothing refuses more than 8 KiB of metadata, and then shows RESOURCE_EXHAUSTED instead.
_DETAIL_BYTES_MAX: Final = 4 * 1024
_TEXT_CHARACTERS_MAX: Final = 200
_HANDSHAKE_MS_MAX: Final = 5_000

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class CallLimits:
    """What a server takes on at a time. A call beyond `calls_max` is refused with RESOURCE_EXHAUSTED (BACKPRESSURE).

    Streams that stay (attachments, watches, followed reads) count as long as they last. So a backend's limit is above
    all that its site's gateway can ask at a time (`PUBLIC_CALLS` + what REST may hold): the rest stays free for
    the other services. gRPC has no limit on connections; one that does nothing ends after `idle_ms_max`.

    Attributes:
        calls_max: Calls at a time, over all connections.
        connection_calls_max: Calls at a time on one connection; its client holds back those beyond, or gets UNAVAILABLE.
        request_bytes_max: One message that comes in.
        idle_ms_max: A connection without a call is closed after this time.
    """

    calls_max: int
    connection_calls_max: int
    request_bytes_max: int
    idle_ms_max: int


BACKEND_CALLS: Final = CallLimits(1_536, 1_536, MESSAGE_BYTES_MAX, 24 * 3_600_000)
PUBLIC_CALLS: Final = CallLimits(512, 256, 2 * 1024 * 1024, 300_000)

PairT = TypeVar("PairT")
Handler = Callable[[Any, Any], Any]
Admit = Callable[[Any], Awaitable[None]]
"""Raises for the context of a call that its caller may not make."""
Admission = Callable[[str, Any], Awaitable[None]]
"""The same for a method (`/SERVICE/METHOD`) and a context."""


def error_detail(error: MeshError) -> error_pb2.ErrorDetail:
    """The error as a message."""
    return error_pb2.ErrorDetail(
        code=str(error.code), message=error.message, retryable=error.retryable, details=error.details
    )


class ErrorInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc,unused-ignore]
    """Maps exceptions of handlers, sets the correlation id for the call, and asks who may call, if there are rules."""

    def __init__(self) -> None:
        self.admission: Admission | None = None
        """Set before the server starts; None: whoever reaches the listener may call."""

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
        given = usable_correlation_id(metadata.get(CORRELATION_METADATA))
        admit = self._admission(handler_call_details.method)
        if handler.response_streaming:
            return _rebuild(handler, _guard_stream(_parsing(handler), given, admit))
        return _rebuild(handler, _guard_unary(_parsing(handler), given, admit))

    def _admission(self, method: str) -> Admit:
        admission = self.admission
        return _anybody if admission is None else lambda context: admission(method, context)


async def _anybody(_context: Any) -> None:
    """Admits."""


def _behaviour(handler: Any) -> Handler:
    behaviour: Handler = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    return behaviour


def _parsing(handler: Any) -> Handler:
    """The handler over the bytes that came: gRPC's own parsing answers UNKNOWN to wrong ones, and logs a traceback."""
    behaviour, parse = _behaviour(handler), handler.request_deserializer
    if parse is None:
        return behaviour
    if handler.request_streaming:
        return lambda requests, context: behaviour(_parse_each(requests, parse), context)
    return lambda request, context: behaviour(_parse(request, parse), context)


def _parse(data: bytes, parse: Callable[[bytes], Any]) -> Any:
    try:
        return parse(data)
    except DecodeError:
        raise MeshError(
            ErrorCode.INVALID_ARGUMENT, "The request is no message of this call: check the version of its protos."
        ) from None


async def _parse_each(requests: AsyncIterator[bytes], parse: Callable[[bytes], Any]) -> AsyncIterator[Any]:
    async for data in requests:
        yield _parse(data, parse)


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
        request_deserializer=None,
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


def _guard_unary(behaviour: Handler, given: str, admit: Admit) -> Handler:
    async def call(request: Any, context: Any) -> Any:
        correlation_id.set(given)
        try:
            await admit(context)
            return await behaviour(request, context)
        except Exception as error:
            if _is_own(error):
                raise
            await _abort(context, error)

    return call


def _guard_stream(behaviour: Handler, given: str, admit: Admit) -> Handler:
    async def call(request: Any, context: Any) -> AsyncIterator[Any]:
        correlation_id.set(given)
        try:
            await admit(context)
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
        ("grpc.max_metadata_size", METADATA_BYTES_MAX),
        ("grpc.absolute_max_metadata_size", METADATA_BYTES_MAX),
    ]


def _server_options(limits: CallLimits) -> list[tuple[str, Any]]:
    return [
        *(option for option in channel_options() if option[0] != "grpc.max_receive_message_length"),
        ("grpc.max_receive_message_length", limits.request_bytes_max),
        ("grpc.max_concurrent_streams", limits.connection_calls_max),
        ("grpc.max_connection_idle_ms", limits.idle_ms_max),
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS_MAX),
        # A client that pings more often than `min_ping_interval_without_data_ms` is disconnected at the third time.
        ("grpc.http2.max_ping_strikes", 2),
        # Without this a second process would silently share the port instead of being told.
        ("grpc.so_reuseport", 0),
    ]


def _user_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Credentials for users, of whom no certificate is asked."""
    return _following(
        lambda: files.pair, lambda pair: grpc.ssl_server_certificate_configuration([(pair.key, pair.certificate)])
    )


def _site_credentials(files: SiteFiles) -> grpc.ServerCredentials:
    """Credentials for services of the site, which have to show a certificate of its authority."""

    def present() -> SitePair:
        if files.pair is None:
            raise RuntimeError("a server before the service has its certificate: await SiteFiles.wait first")
        return files.pair

    def configuration(pair: SitePair) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(pair.key, pair.certificate)], pair.authority)

    return _following(present, configuration, asks_caller=True)


def _following(
    present: Callable[[], PairT],
    configuration: Callable[[PairT], grpc.ServerCertificateConfiguration],
    *,
    asks_caller: bool = False,
) -> grpc.ServerCredentials:
    """Credentials that follow files. gRPC gives no choice of the version: TLS 1.2 or 1.3."""
    shown = present()

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        # In a thread of gRPC, at each connection; None: as before.
        nonlocal shown
        found = present()
        if found is shown:
            return None
        shown = found
        return configuration(found)

    # The stubs do not know of None.
    return grpc.dynamic_ssl_server_credentials(configuration(shown), cast(Any, fetch), asks_caller)


class GrpcServer:
    """A gRPC server with `grpc.health.v1`. Add servicers to `server`, then `start`."""

    def __init__(self, interceptors: Iterable[Any] = (), limits: CallLimits = BACKEND_CALLS) -> None:
        self._errors = ErrorInterceptor()
        self.server = grpc.aio.server(
            interceptors=[*interceptors, self._errors],
            options=_server_options(limits),
            maximum_concurrent_rpcs=limits.calls_max,
        )
        self._place: UnixPlace | None = None
        self._health = health_aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.server)
        self._is_serving = False
        self._guard = self._until_the_loop_ends()
        self.port = 0

    async def start(
        self,
        listen: str,
        what: str,
        *,
        is_insecure_dev: bool = False,
        tls: TlsFiles | None = None,
        callers: SiteCallers | None = None,
        admission: Admission | None = None,
    ) -> int:
        """Binds and serves; returns the port (of no meaning for a unix socket).

        Args:
            listen: `host:port` or `unix:/path`.
            what: What listens there, for the text of an error.
            is_insecure_dev: Whether an address that other machines reach is accepted.
            tls: What the server shows to users; None, or a unix socket, which only its own user reaches: in clear.
            callers: Who may call, for a server of the site's services: its files are shown, and each caller has to
                show a certificate. It is not asked on a unix socket.
            admission: Who may call, for a server of users.

        Raises:
            MeshError: INSECURE_NOT_ALLOWED, ADDRESS_IN_USE or SETTING_INVALID.
        """
        check_listen(
            listen,
            what,
            is_insecure_dev=is_insecure_dev,
            is_encrypted=tls is not None or callers is not None,
            is_authenticated=admission is not None or callers is not None,
        )
        self._errors.admission = admission
        credentials = _user_credentials(tls) if tls is not None else None
        if callers is not None and not is_unix(listen):
            self._errors.admission = callers.admit
            credentials = _site_credentials(callers.files)
        self._bind(listen, what, credentials)
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

    def _bind(self, listen: str, what: str, credentials: grpc.ServerCredentials | None) -> None:
        # gRPC cannot be given a socket, and its own failure to bind says neither why nor anything in JSON: try first.
        # It would also replace the unix socket of a process that serves it.
        if is_unix(listen):
            self._place = UnixPlace.take(listen, what)
        else:
            bind(listen, what).close()
        try:
            if credentials is None or self._place is not None:
                self.port = self.server.add_insecure_port(listen)
            else:
                self.port = self.server.add_secure_port(listen, credentials)
            if self._place is not None:
                self._place.protect()
        except (RuntimeError, OSError) as error:
            self._leave()
            raise MeshError(
                ErrorCode.ADDRESS_IN_USE,
                f"{what} cannot listen on {listen}: the port is in use. Stop the other process or choose another port.",
                {"address": listen},
            ) from error

    def _leave(self) -> None:
        if self._place is not None:
            self._place.close()

    async def _until_the_loop_ends(self) -> AsyncIterator[None]:
        """Begun once and never finished: the loop finishes it before it closes, also after the service has failed.

        grpc.aio would try only then to stop a server that is still running, and print a traceback about the closed loop.
        """
        try:
            yield
        finally:
            await self.server.stop(None)
            self._leave()

    async def set_serving(self, is_serving: bool) -> None:
        """What `grpc.health.v1` answers for the whole server; not serving until told."""
        self._is_serving = is_serving
        status = health_pb2.HealthCheckResponse.SERVING if is_serving else health_pb2.HealthCheckResponse.NOT_SERVING
        await self._health.set("", status)

    async def stop(self) -> None:
        """Refuses new calls, gives running ones a moment, then ends them. May be called again, also before `start`."""
        await self._health.enter_graceful_shutdown()
        await asyncio.shield(self.server.stop(STOP_GRACE_S))
        self._leave()
