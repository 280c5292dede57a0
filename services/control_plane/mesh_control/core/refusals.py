"""Refusals as the replicated state remembers them: in short, since a thousand of them travel with each snapshot."""

from __future__ import annotations

from mesh_control.core.limits import REMEMBERED_DETAILS_BYTES_MAX, REMEMBERED_TEXT_BYTES_MAX
from meshapi.control.v1 import mcg_pb2
from meshcommon.errors import MeshError, parse_code


def in_short(refusal: MeshError | None) -> MeshError | None:
    """What a repeat is answered."""
    if refusal is None:
        return None
    details = refusal.details
    if sum(len(f"{key}{value}".encode()) for key, value in details.items()) > REMEMBERED_DETAILS_BYTES_MAX:
        details = {}
    message = refusal.message.encode()[:REMEMBERED_TEXT_BYTES_MAX].decode(errors="ignore")
    return MeshError(refusal.code, message, details, retryable=refusal.retryable)


def write_refusal(message: mcg_pb2.ProposalResult, refusal: MeshError | None) -> None:
    """Into a remembered result; nothing for none."""
    if refusal is None:
        return
    message.error_code = refusal.code
    message.error_message = refusal.message
    message.error_details.update(refusal.details)
    message.error_retryable = refusal.retryable


def read_refusal(message: mcg_pb2.ProposalResult) -> MeshError | None:
    """Back; None when the result is no refusal."""
    if not message.error_code:
        return None
    retryable = message.error_retryable if message.HasField("error_retryable") else None
    details = dict(message.error_details)
    return MeshError(parse_code(message.error_code), message.error_message, details, retryable=retryable)
