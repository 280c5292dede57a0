"""The one error that this library raises.

Purpose: let a caller drop malformed input and count it by a stable code. Leaves out: gRPC and HTTP statuses, which belong
to `meshcommon.errors`. Source: architecture, "The overlay" (anything malformed is dropped and counted).
"""

from __future__ import annotations

from enum import StrEnum


class WireCode(StrEnum):
    """Why bytes, or the values to be put into bytes, were refused. Safe to use as a metric label."""

    TRUNCATED = "TRUNCATED"
    BAD_MAGIC = "BAD_MAGIC"
    BAD_VERSION = "BAD_VERSION"
    BAD_CHECKSUM = "BAD_CHECKSUM"
    TOO_LARGE = "TOO_LARGE"
    BAD_FIELD = "BAD_FIELD"


class WireError(ValueError):
    """Malformed bytes on decoding, or values that do not fit the format on encoding.

    Args:
        reason: a sentence for people; names the field and the limit.
        code: stable reason for programs and metrics.
    """

    def __init__(self, reason: str, code: WireCode = WireCode.BAD_FIELD) -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code

    def __reduce__(self) -> tuple[type[WireError], tuple[str, WireCode]]:
        # Exceptions pickle by their args, which hold only the reason: without this a code would be lost on the way
        # from a worker process.
        return type(self), (self.reason, self.code)
