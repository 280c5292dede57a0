"""Channels to other services, and their errors as MeshError."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio

from meshapi.common.v1 import error_pb2
from meshcommon.errors import ErrorCode, MeshError, parse_code
from meshcommon.grpc_server import ERROR_METADATA, channel_options
from meshcommon.logging import CORRELATION_METADATA, correlation_id


def open_channel(target: str) -> grpc.aio.Channel:
    """An insecure channel to a service of the same site; it connects and reconnects (backoff ≤ 1 s) by itself."""
    options = [
        *channel_options(),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),
    ]
    return grpc.aio.insecure_channel(target, options=options)


def call_metadata() -> tuple[tuple[str, str], ...]:
    """Metadata that passes the correlation id on."""
    current = correlation_id.get()
    return ((CORRELATION_METADATA, current),) if current else ()


def mesh_error(error: grpc.RpcError, service: str) -> MeshError:
    """The MeshError that the other side raised, or UNAVAILABLE/DEADLINE_EXCEEDED for a fault on the way.

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
    if code == grpc.StatusCode.UNAVAILABLE:
        return MeshError(ErrorCode.UNAVAILABLE, f"The {service} of this site does not answer; it may be restarting.")
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        return MeshError(ErrorCode.MESSAGE_TOO_LARGE, f"The {service} refused the message for its size.")
    return MeshError(ErrorCode.INTERNAL, f"The {service} failed: {call.details()}.")


def from_detail(detail: error_pb2.ErrorDetail) -> MeshError:
    """The error that `detail` describes."""
    return MeshError(parse_code(detail.code), detail.message, dict(detail.details), retryable=detail.retryable)
