"""One error tree with stable codes, and the one table that maps codes to gRPC, HTTP and exit status.

A code says what is wrong, the message says what to do next, `retryable` whether the same request can succeed later.
Codes are part of the public API: they are added, never renamed. Source: style guide "Errors"; RFC 9457 for HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class ErrorCode(StrEnum):
    """Stable codes. The comment beside each group says who raises it."""

    # Any service
    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    INTERNAL = "INTERNAL"
    UNAVAILABLE = "UNAVAILABLE"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    ILLEGAL_NAME = "ILLEGAL_NAME"
    MESSAGE_TOO_LARGE = "MESSAGE_TOO_LARGE"
    # Membership
    ALREADY_MEMBER = "ALREADY_MEMBER"
    NOT_A_MEMBER = "NOT_A_MEMBER"
    NODE_STOPPED = "NODE_STOPPED"
    MESH_ID_MISMATCH = "MESH_ID_MISMATCH"
    ADDRESS_UNREACHABLE = "ADDRESS_UNREACHABLE"
    WRONG_PROTOCOL = "WRONG_PROTOCOL"
    NAME_TAKEN = "NAME_TAKEN"
    KEY_TAKEN = "KEY_TAKEN"
    UNKNOWN_NODE = "UNKNOWN_NODE"
    LAST_NODE = "LAST_NODE"
    NO_QUORUM = "NO_QUORUM"
    NOT_LEADER = "NOT_LEADER"
    MESH_CRITICAL = "MESH_CRITICAL"
    # Lanes
    HANDSHAKE_FAILED = "HANDSHAKE_FAILED"
    VERSION_MISMATCH = "VERSION_MISMATCH"
    KEY_MISMATCH = "KEY_MISMATCH"
    NO_PATH = "NO_PATH"
    # Streams
    STREAM_NOT_FOUND = "STREAM_NOT_FOUND"
    STREAM_EXISTS = "STREAM_EXISTS"
    STREAM_NOT_FORMED = "STREAM_NOT_FORMED"
    STREAM_UNAVAILABLE = "STREAM_UNAVAILABLE"
    STREAMS_AT_RISK = "STREAMS_AT_RISK"
    MEMBER_COUNT = "MEMBER_COUNT"
    MEMBERS_CHANGING = "MEMBERS_CHANGING"
    UNKNOWN_GROUP = "UNKNOWN_GROUP"
    WAIT_REQUIRED = "WAIT_REQUIRED"
    EMPTY_BATCH = "EMPTY_BATCH"
    OFFSET_PAST_END = "OFFSET_PAST_END"
    OFFSET_BELOW_FLOOR = "OFFSET_BELOW_FLOOR"
    PRODUCER_FENCED = "PRODUCER_FENCED"
    PRODUCER_EXPIRED = "PRODUCER_EXPIRED"
    SEQUENCE_GAP = "SEQUENCE_GAP"
    OUTCOME_UNKNOWN = "OUTCOME_UNKNOWN"
    BACKPRESSURE = "BACKPRESSURE"
    DISK_PRESSURE = "DISK_PRESSURE"
    STORAGE_FAILED = "STORAGE_FAILED"
    # Gateway
    ROUTE_NOT_FOUND = "ROUTE_NOT_FOUND"
    METHOD_NOT_ALLOWED = "METHOD_NOT_ALLOWED"
    MEDIA_TYPE_NOT_SUPPORTED = "MEDIA_TYPE_NOT_SUPPORTED"
    ORIGIN_NOT_ALLOWED = "ORIGIN_NOT_ALLOWED"
    # Start-up
    SETTING_INVALID = "SETTING_INVALID"
    SETTING_UNKNOWN = "SETTING_UNKNOWN"
    INSECURE_NOT_ALLOWED = "INSECURE_NOT_ALLOWED"
    ADDRESS_IN_USE = "ADDRESS_IN_USE"
    DATA_DIR_FOREIGN = "DATA_DIR_FOREIGN"
    DATA_DIR_NEWER = "DATA_DIR_NEWER"
    DATA_DIR_INCOMPLETE = "DATA_DIR_INCOMPLETE"
    DATA_DIR_LOCKED = "DATA_DIR_LOCKED"
    DATA_DIR_UNWRITABLE = "DATA_DIR_UNWRITABLE"
    SCHEMA_NEWER = "SCHEMA_NEWER"


@dataclass(frozen=True, slots=True)
class Mapping:
    """How one code shows outside. `grpc` is the name of a grpc.StatusCode; `exit_status` is for start-up errors."""

    grpc: str
    http: int
    retryable: bool = False
    exit_status: int = 1


_BAD: Final = Mapping("INVALID_ARGUMENT", 400)
_CONFLICT: Final = Mapping("FAILED_PRECONDITION", 409)
_EXISTS: Final = Mapping("ALREADY_EXISTS", 409)
_MISSING: Final = Mapping("NOT_FOUND", 404)
_LATER: Final = Mapping("UNAVAILABLE", 503, retryable=True)

MAPPINGS: Final[dict[ErrorCode, Mapping]] = {
    ErrorCode.INVALID_ARGUMENT: _BAD,
    ErrorCode.INTERNAL: Mapping("INTERNAL", 500),
    ErrorCode.UNAVAILABLE: _LATER,
    ErrorCode.DEADLINE_EXCEEDED: Mapping("DEADLINE_EXCEEDED", 504, retryable=True),
    ErrorCode.ILLEGAL_NAME: _BAD,
    ErrorCode.MESSAGE_TOO_LARGE: Mapping("INVALID_ARGUMENT", 413),
    ErrorCode.ALREADY_MEMBER: _CONFLICT,
    ErrorCode.NOT_A_MEMBER: _CONFLICT,
    ErrorCode.NODE_STOPPED: _CONFLICT,
    ErrorCode.MESH_ID_MISMATCH: _CONFLICT,
    ErrorCode.ADDRESS_UNREACHABLE: Mapping("UNAVAILABLE", 502, retryable=True),
    ErrorCode.WRONG_PROTOCOL: Mapping("FAILED_PRECONDITION", 502),
    ErrorCode.NAME_TAKEN: _EXISTS,
    ErrorCode.KEY_TAKEN: _EXISTS,
    ErrorCode.UNKNOWN_NODE: _MISSING,
    ErrorCode.LAST_NODE: _CONFLICT,
    ErrorCode.NO_QUORUM: _LATER,
    ErrorCode.NOT_LEADER: _LATER,
    ErrorCode.MESH_CRITICAL: _LATER,
    ErrorCode.HANDSHAKE_FAILED: Mapping("UNAVAILABLE", 502, retryable=True),
    ErrorCode.VERSION_MISMATCH: Mapping("FAILED_PRECONDITION", 502),
    ErrorCode.KEY_MISMATCH: Mapping("PERMISSION_DENIED", 403),
    ErrorCode.NO_PATH: _LATER,
    ErrorCode.STREAM_NOT_FOUND: _MISSING,
    ErrorCode.STREAM_EXISTS: _EXISTS,
    ErrorCode.STREAM_NOT_FORMED: _LATER,
    ErrorCode.STREAM_UNAVAILABLE: _LATER,
    ErrorCode.STREAMS_AT_RISK: _CONFLICT,
    ErrorCode.MEMBER_COUNT: _BAD,
    ErrorCode.MEMBERS_CHANGING: _LATER,
    ErrorCode.UNKNOWN_GROUP: _LATER,
    ErrorCode.WAIT_REQUIRED: _BAD,
    ErrorCode.EMPTY_BATCH: _BAD,
    ErrorCode.OFFSET_PAST_END: Mapping("OUT_OF_RANGE", 416),
    ErrorCode.OFFSET_BELOW_FLOOR: Mapping("OUT_OF_RANGE", 416),
    ErrorCode.PRODUCER_FENCED: Mapping("FAILED_PRECONDITION", 409),
    ErrorCode.PRODUCER_EXPIRED: Mapping("FAILED_PRECONDITION", 409),
    ErrorCode.SEQUENCE_GAP: Mapping("FAILED_PRECONDITION", 409),
    ErrorCode.OUTCOME_UNKNOWN: _LATER,
    ErrorCode.BACKPRESSURE: Mapping("RESOURCE_EXHAUSTED", 429, retryable=True),
    ErrorCode.DISK_PRESSURE: Mapping("RESOURCE_EXHAUSTED", 507, retryable=True),
    ErrorCode.STORAGE_FAILED: Mapping("UNAVAILABLE", 503),
    ErrorCode.ROUTE_NOT_FOUND: _MISSING,
    ErrorCode.METHOD_NOT_ALLOWED: Mapping("UNIMPLEMENTED", 405),
    ErrorCode.MEDIA_TYPE_NOT_SUPPORTED: Mapping("INVALID_ARGUMENT", 415),
    ErrorCode.ORIGIN_NOT_ALLOWED: Mapping("PERMISSION_DENIED", 403),
    ErrorCode.SETTING_INVALID: Mapping("INVALID_ARGUMENT", 400, exit_status=78),
    ErrorCode.SETTING_UNKNOWN: Mapping("INVALID_ARGUMENT", 400, exit_status=78),
    ErrorCode.INSECURE_NOT_ALLOWED: Mapping("FAILED_PRECONDITION", 409, exit_status=77),
    ErrorCode.ADDRESS_IN_USE: Mapping("FAILED_PRECONDITION", 409, exit_status=71),
    ErrorCode.DATA_DIR_FOREIGN: Mapping("FAILED_PRECONDITION", 409, exit_status=81),
    ErrorCode.DATA_DIR_NEWER: Mapping("FAILED_PRECONDITION", 409, exit_status=82),
    ErrorCode.DATA_DIR_INCOMPLETE: Mapping("FAILED_PRECONDITION", 409, exit_status=83),
    ErrorCode.DATA_DIR_LOCKED: Mapping("FAILED_PRECONDITION", 409, exit_status=84),
    ErrorCode.DATA_DIR_UNWRITABLE: Mapping("FAILED_PRECONDITION", 409, exit_status=85),
    ErrorCode.SCHEMA_NEWER: Mapping("FAILED_PRECONDITION", 409, exit_status=86),
}


class MeshError(Exception):
    """Everything that a service refuses or fails at, on purpose.

    Args:
        code: Stable code.
        message: One sentence that says what happened and what to do next.
        details: Values that the message speaks of, as text, for programs.
        retryable: Overrides the code's default.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        details: dict[str, str] | None = None,
        *,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.details = details or {}
        self.retryable = MAPPINGS[code].retryable if retryable is None else retryable

    @property
    def mapping(self) -> Mapping:
        """gRPC, HTTP and exit status of the code."""
        return MAPPINGS[self.code]


def parse_code(text: str) -> ErrorCode:
    """The code named `text`, or INTERNAL for one that this version does not know."""
    try:
        return ErrorCode(text)
    except ValueError:
        return ErrorCode.INTERNAL
