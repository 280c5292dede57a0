"""Channels to other services, and their errors as MeshError."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Self, cast

import grpc
import grpc.aio

from meshapi.common.v1 import error_pb2
from meshcommon.address import check_target, is_unix
from meshcommon.errors import ErrorCode, MeshError, parse_code
from meshcommon.grpc_server import ERROR_METADATA, channel_options
from meshcommon.logging import CORRELATION_METADATA, correlation_id
from meshcommon.service_certificates import Service
from meshcommon.site_channel import SiteChannel
from meshcommon.site_files import SiteFiles
from meshcommon.tls_contexts import fault_of, tls_failed

_WRITE_FAILED: Final = "Internal error from Core"
_TLS_FAILED: Final = ("handshake failed", "verification check failed")
_KINDS_OF_CALLS: Final = frozenset({"unary_unary", "unary_stream", "stream_unary", "stream_stream"})
_CALLS_FULL: Final = "Concurrent RPC limit exceeded"


def open_channel(target: str, credentials: grpc.ChannelCredentials | None = None, token: str = "") -> grpc.aio.Channel:
    """A channel that connects and reconnects (backoff ≤ 1 s) by itself.

    Args:
        target: `host:port` or `unix:/path`.
        credentials: For TLS; None: in clear, to a service of the same site.
        token: The operator's token, which every call shows; empty: none.
    """
    options = _options()
    if credentials is not None:
        channel = grpc.aio.secure_channel(target, credentials, options=options)
    else:
        channel = grpc.aio.insecure_channel(target, options=options)
    return cast(grpc.aio.Channel, _TokenChannel(channel, token)) if token else channel


def _options() -> list[tuple[str, Any]]:
    return [
        *channel_options(),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),
    ]


class _TokenChannel:
    """A channel whose calls show the operator's token.

    Not by an interceptor of gRPC: those replace the call objects, and the replaced ones cancel and end differently.
    """

    def __init__(self, channel: grpc.aio.Channel, token: str) -> None:
        self._channel = channel
        self._shown = ("authorization", f"Bearer {token}")

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._channel, name)
        if name not in _KINDS_OF_CALLS:
            return found

        def multi_callable(*arguments: Any, **options: Any) -> Callable[..., Any]:
            method = found(*arguments, **options)

            def call(*given: Any, metadata: Any = None, **how: Any) -> Any:
                return method(*given, metadata=(*(metadata or ()), self._shown), **how)

            return call

        return multi_callable

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self._channel.close()


def open_service(
    target: str, service: Service, files: SiteFiles | None, *, is_insecure_dev: bool = False
) -> grpc.aio.Channel:
    """A channel to another service of this node: mutual TLS where there are `files`, in clear on unix sockets.

    Args:
        target: `host:port` or `unix:/path`.
        service: Which service is expected there.
        files: This service's certificate. None: in clear, which is for the loopback.
        is_insecure_dev: Whether other machines may be called in clear.

    Raises:
        MeshError: INSECURE_NOT_ALLOWED.
    """
    if files is not None and not is_unix(target):
        return SiteChannel(target, files, service, _options())
    check_target(target, f"The {service.value} service", is_insecure_dev=is_insecure_dev)
    return open_channel(target)


def call_metadata() -> tuple[tuple[str, str], ...]:
    """Metadata that passes the correlation id on."""
    current = correlation_id.get()
    return ((CORRELATION_METADATA, current),) if current else ()


def mesh_error(error: grpc.RpcError, service: str) -> MeshError:
    """The MeshError that the other side raised, or UNAVAILABLE/DEADLINE_EXCEEDED/TLS_FAILED for a fault on the way.

    Args:
        error: From `grpc` or `grpc.aio`.
        service: Name of the service called, for the text.
    """
    call: Any = error
    for key, value in call.trailing_metadata() or ():
        if key == ERROR_METADATA:
            return from_detail(error_pb2.ErrorDetail.FromString(value))
    code = call.code()
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return MeshError(ErrorCode.DEADLINE_EXCEEDED, f"The {service} did not answer in time; try again.")
    if is_broken(error):
        said = call.details() or ""
        if any(words in said.lower() for words in _TLS_FAILED) and fault_of(said) is not None:
            return tls_failed(f"the {service}", said)
        return MeshError(ErrorCode.UNAVAILABLE, f"The {service} of this site does not answer; it may be restarting.")
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED and (call.details() or "").startswith(_CALLS_FULL):
        return MeshError(ErrorCode.BACKPRESSURE, f"The {service} has as many calls as it takes; try again in a while.")
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        return MeshError(ErrorCode.MESSAGE_TOO_LARGE, f"The {service} refused the message for its size.")
    return MeshError(ErrorCode.INTERNAL, f"The {service} failed: {call.details()}.")


def site_error(error: grpc.RpcError, service: str) -> MeshError:
    """As `mesh_error`, for a call to a service of the same site.

    There a refused certificate passes: files are renewed within seconds, as when the site issuer is new. So it is
    UNAVAILABLE, which may be tried again, with the cause in its text.
    """
    found = mesh_error(error, service)
    call: Any = error
    is_answer = any(key == ERROR_METADATA for key, _ in call.trailing_metadata() or ())
    if is_answer or found.code is not ErrorCode.TLS_FAILED:
        return found
    return MeshError(
        ErrorCode.UNAVAILABLE,
        f"The {service} of this site shows a certificate that is not accepted; services take new files within seconds, so "
        f"try again. {found.message}",
    )


def is_broken(error: grpc.RpcError) -> bool:
    """Whether the call broke on the way, rather than being refused by the other side.

    grpcio hides the status of a call that the other side ended while a message was being written, and reports INTERNAL
    with a text of its own (grpc/grpc#36066). Without this a service that restarts would look like a fault for good.
    """
    call: Any = error
    if any(key == ERROR_METADATA for key, _ in call.trailing_metadata() or ()):
        return False
    return call.code() == grpc.StatusCode.UNAVAILABLE or (call.details() or "").startswith(_WRITE_FAILED)


def from_detail(detail: error_pb2.ErrorDetail) -> MeshError:
    """The error that `detail` describes."""
    return MeshError(parse_code(detail.code), detail.message, dict(detail.details), retryable=detail.retryable)
