"""Errors as problem documents: what every HTTP listener answers instead of what was asked. Source: RFC 9457."""

from __future__ import annotations

from typing import Final, TypedDict

from meshcommon.error_meanings import MEANINGS
from meshcommon.errors import MeshError

MEDIA_TYPE: Final = "application/problem+json"


class Problem(TypedDict):
    """A problem document. `type` is a name, not an address: it is never looked up."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    retryable: bool
    details: dict[str, str]
    correlation_id: str


def problem_of(error: MeshError, correlation_id: str) -> Problem:
    """The document for `error`; `details` are the error's values for programs."""
    return {
        "type": f"urn:mesh:error:{error.code}",
        "title": MEANINGS[error.code],
        "status": error.mapping.http,
        "detail": error.message,
        "code": str(error.code),
        "retryable": error.retryable,
        "details": error.details,
        "correlation_id": correlation_id,
    }
