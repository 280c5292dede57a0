"""One error tree with stable codes, and the one table that maps codes to gRPC, HTTP, exit status and effect.

A code says what is wrong, the message says what to do next, `retry` whether the request may have taken effect and what
asking again can change. Whoever decides about another try reads that, and has no list of codes of its own.
Codes are part of the public API: they are added, never renamed. Source: style guide "Errors"; RFC 9457 for HTTP; ADR 0016.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum
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
    MESH_FULL = "MESH_FULL"
    NODE_IS_HEARD = "NODE_IS_HEARD"
    MESH_VERSION_TOO_LOW = "MESH_VERSION_TOO_LOW"
    UPDATE_REQUIRED = "UPDATE_REQUIRED"
    # Joining
    JOIN_CLOSED = "JOIN_CLOSED"
    TOKEN_REQUIRED = "TOKEN_REQUIRED"
    TOKEN_UNKNOWN = "TOKEN_UNKNOWN"
    TOKEN_EXPIRED = "TOKEN_EXPIRED"
    TOKEN_USED_UP = "TOKEN_USED_UP"
    TOKEN_FOR_ANOTHER_NAME = "TOKEN_FOR_ANOTHER_NAME"
    # Certificates
    CA_MISSING = "CA_MISSING"
    CA_EXISTS = "CA_EXISTS"
    CA_CHANGED = "CA_CHANGED"
    ROOT_KEY_MISSING = "ROOT_KEY_MISSING"
    CERTIFICATE_INVALID = "CERTIFICATE_INVALID"
    # Lanes
    HANDSHAKE_FAILED = "HANDSHAKE_FAILED"
    TLS_FAILED = "TLS_FAILED"
    TLS_TERMINATED = "TLS_TERMINATED"
    VERSION_MISMATCH = "VERSION_MISMATCH"
    KEY_MISMATCH = "KEY_MISMATCH"
    CLOCK_SKEW = "CLOCK_SKEW"
    MEMBERSHIP_OUTDATED = "MEMBERSHIP_OUTDATED"
    NO_PATH = "NO_PATH"
    # Between the services of a site
    CERTIFICATE_REFUSED = "CERTIFICATE_REFUSED"
    CALLER_NOT_ALLOWED = "CALLER_NOT_ALLOWED"
    # Streams
    STREAM_NOT_FOUND = "STREAM_NOT_FOUND"
    STREAM_EXISTS = "STREAM_EXISTS"
    STREAM_REPLACED = "STREAM_REPLACED"
    STREAM_NOT_FORMED = "STREAM_NOT_FORMED"
    STREAM_UNAVAILABLE = "STREAM_UNAVAILABLE"
    STREAMS_AT_RISK = "STREAMS_AT_RISK"
    MEMBER_COUNT = "MEMBER_COUNT"
    MEMBERS_CHANGING = "MEMBERS_CHANGING"
    UNKNOWN_GROUP = "UNKNOWN_GROUP"
    WAIT_REQUIRED = "WAIT_REQUIRED"
    EMPTY_BATCH = "EMPTY_BATCH"
    BATCH_UNREADABLE = "BATCH_UNREADABLE"
    OFFSET_PAST_END = "OFFSET_PAST_END"
    OFFSET_BELOW_FLOOR = "OFFSET_BELOW_FLOOR"
    PRODUCER_FENCED = "PRODUCER_FENCED"
    PRODUCER_EXPIRED = "PRODUCER_EXPIRED"
    SEQUENCE_GAP = "SEQUENCE_GAP"
    OUTCOME_UNKNOWN = "OUTCOME_UNKNOWN"
    BACKPRESSURE = "BACKPRESSURE"
    DISK_PRESSURE = "DISK_PRESSURE"
    STORAGE_FAILED = "STORAGE_FAILED"
    # Operator's token, on listeners that other machines reach
    OPERATOR_TOKEN_REQUIRED = "OPERATOR_TOKEN_REQUIRED"
    OPERATOR_TOKEN_WRONG = "OPERATOR_TOKEN_WRONG"
    # Gateway
    ROUTE_NOT_FOUND = "ROUTE_NOT_FOUND"
    METHOD_NOT_ALLOWED = "METHOD_NOT_ALLOWED"
    REQUEST_TOO_SLOW = "REQUEST_TOO_SLOW"
    MEDIA_TYPE_NOT_SUPPORTED = "MEDIA_TYPE_NOT_SUPPORTED"
    ORIGIN_NOT_ALLOWED = "ORIGIN_NOT_ALLOWED"
    HOST_NOT_ALLOWED = "HOST_NOT_ALLOWED"
    # Start-up
    SETTING_INVALID = "SETTING_INVALID"
    SETTING_UNKNOWN = "SETTING_UNKNOWN"
    INSECURE_NOT_ALLOWED = "INSECURE_NOT_ALLOWED"
    TLS_FILES_MISSING = "TLS_FILES_MISSING"
    ADDRESS_IN_USE = "ADDRESS_IN_USE"
    DATA_DIR_FOREIGN = "DATA_DIR_FOREIGN"
    DATA_DIR_NEWER = "DATA_DIR_NEWER"
    STORE_FORMAT_OLD = "STORE_FORMAT_OLD"
    DATA_DIR_INCOMPLETE = "DATA_DIR_INCOMPLETE"
    DATA_DIR_LOCKED = "DATA_DIR_LOCKED"
    DATA_DIR_UNWRITABLE = "DATA_DIR_UNWRITABLE"
    SCHEMA_NEWER = "SCHEMA_NEWER"


class Retry(Enum):
    """What became of the request that failed, and what the same request can come to."""

    NOT_APPLIED = "not applied"
    """It changed nothing; asked again it may succeed."""
    UNKNOWN = "unknown"
    """It may have taken effect. Asking again is safe where a repetition is recognised: a read, a producer's batch."""
    FINAL = "final"
    """Asking again changes nothing: it was refused for good, or met a fault that needs a person."""

    def allows(self, *, is_recognised: bool) -> bool:
        """Whether the request may be sent again. `is_recognised`: a repetition of it changes nothing."""
        return self is Retry.NOT_APPLIED or (self is Retry.UNKNOWN and is_recognised)


@dataclass(frozen=True, slots=True)
class Mapping:
    """What one code means outside.

    Attributes:
        grpc: Name of a grpc.StatusCode.
        http: HTTP status.
        retry: What the same request can come to when it is asked later.
        exit_status: For start-up errors.
        other_node: What it can come to at another node, or at the next leader, where that is not the same: a stopped node
            refuses for good what another one takes, and a refusal of the replicated state, which may pass with time,
            stands at every node.
    """

    grpc: str
    http: int
    retry: Retry = Retry.FINAL
    exit_status: int = 1
    other_node: Retry | None = None

    @property
    def elsewhere(self) -> Retry:
        """What the same request can come to at another node, or at the next leader."""
        return self.retry if self.other_node is None else self.other_node


_BAD: Final = Mapping("INVALID_ARGUMENT", 400)
_CONFLICT: Final = Mapping("FAILED_PRECONDITION", 409)
_OF_THIS_NODE: Final = Mapping("FAILED_PRECONDITION", 409, other_node=Retry.NOT_APPLIED)
_EXISTS: Final = Mapping("ALREADY_EXISTS", 409)
_FORBIDDEN: Final = Mapping("PERMISSION_DENIED", 403)
_UNAUTHENTICATED: Final = Mapping("UNAUTHENTICATED", 401)
_MISSING: Final = Mapping("NOT_FOUND", 404)
_LATER: Final = Mapping("UNAVAILABLE", 503, Retry.NOT_APPLIED)
_OF_THE_STATE: Final = Mapping("UNAVAILABLE", 503, Retry.NOT_APPLIED, other_node=Retry.FINAL)
_UNCERTAIN: Final = Mapping("UNAVAILABLE", 503, Retry.UNKNOWN)

MAPPINGS: Final[dict[ErrorCode, Mapping]] = {
    ErrorCode.INVALID_ARGUMENT: _BAD,
    ErrorCode.INTERNAL: Mapping("INTERNAL", 500),
    ErrorCode.UNAVAILABLE: _UNCERTAIN,
    ErrorCode.DEADLINE_EXCEEDED: Mapping("DEADLINE_EXCEEDED", 504, Retry.UNKNOWN),
    ErrorCode.ILLEGAL_NAME: _BAD,
    ErrorCode.MESSAGE_TOO_LARGE: Mapping("INVALID_ARGUMENT", 413),
    ErrorCode.ALREADY_MEMBER: _CONFLICT,
    ErrorCode.NOT_A_MEMBER: _OF_THIS_NODE,
    ErrorCode.NODE_STOPPED: _OF_THIS_NODE,
    ErrorCode.MESH_ID_MISMATCH: _CONFLICT,
    ErrorCode.ADDRESS_UNREACHABLE: Mapping("UNAVAILABLE", 502, Retry.NOT_APPLIED),
    ErrorCode.WRONG_PROTOCOL: Mapping("FAILED_PRECONDITION", 502),
    ErrorCode.NAME_TAKEN: _EXISTS,
    ErrorCode.KEY_TAKEN: _EXISTS,
    ErrorCode.UNKNOWN_NODE: _MISSING,
    ErrorCode.LAST_NODE: _CONFLICT,
    ErrorCode.NO_QUORUM: _UNCERTAIN,
    ErrorCode.NOT_LEADER: _LATER,
    ErrorCode.MESH_CRITICAL: _OF_THE_STATE,
    ErrorCode.MESH_FULL: Mapping("RESOURCE_EXHAUSTED", 409),
    ErrorCode.NODE_IS_HEARD: _CONFLICT,
    ErrorCode.MESH_VERSION_TOO_LOW: _CONFLICT,
    ErrorCode.UPDATE_REQUIRED: Mapping("UNAVAILABLE", 503, other_node=Retry.NOT_APPLIED),
    ErrorCode.JOIN_CLOSED: _FORBIDDEN,
    ErrorCode.TOKEN_REQUIRED: _FORBIDDEN,
    ErrorCode.TOKEN_UNKNOWN: _FORBIDDEN,
    ErrorCode.TOKEN_EXPIRED: _FORBIDDEN,
    ErrorCode.TOKEN_USED_UP: _FORBIDDEN,
    ErrorCode.TOKEN_FOR_ANOTHER_NAME: _FORBIDDEN,
    ErrorCode.CA_MISSING: _OF_THIS_NODE,
    ErrorCode.CA_EXISTS: _CONFLICT,
    ErrorCode.CA_CHANGED: _CONFLICT,
    ErrorCode.ROOT_KEY_MISSING: _OF_THIS_NODE,
    ErrorCode.CERTIFICATE_INVALID: _FORBIDDEN,
    ErrorCode.HANDSHAKE_FAILED: Mapping("UNAVAILABLE", 502, Retry.NOT_APPLIED),
    ErrorCode.TLS_FAILED: Mapping("FAILED_PRECONDITION", 502),
    ErrorCode.TLS_TERMINATED: Mapping("FAILED_PRECONDITION", 502),
    ErrorCode.VERSION_MISMATCH: Mapping("FAILED_PRECONDITION", 502),
    ErrorCode.KEY_MISMATCH: _FORBIDDEN,
    ErrorCode.CLOCK_SKEW: Mapping("UNAVAILABLE", 502, Retry.NOT_APPLIED),
    ErrorCode.MEMBERSHIP_OUTDATED: Mapping("UNAVAILABLE", 502, Retry.NOT_APPLIED),
    ErrorCode.NO_PATH: _UNCERTAIN,
    ErrorCode.CERTIFICATE_REFUSED: _FORBIDDEN,
    ErrorCode.CALLER_NOT_ALLOWED: _FORBIDDEN,
    ErrorCode.STREAM_NOT_FOUND: _MISSING,
    ErrorCode.STREAM_EXISTS: _EXISTS,
    ErrorCode.STREAM_REPLACED: _CONFLICT,
    ErrorCode.STREAM_NOT_FORMED: _OF_THE_STATE,
    ErrorCode.STREAM_UNAVAILABLE: _LATER,
    ErrorCode.STREAMS_AT_RISK: _CONFLICT,
    ErrorCode.MEMBER_COUNT: _BAD,
    ErrorCode.MEMBERS_CHANGING: _OF_THE_STATE,
    ErrorCode.UNKNOWN_GROUP: _LATER,
    ErrorCode.WAIT_REQUIRED: _BAD,
    ErrorCode.EMPTY_BATCH: _BAD,
    ErrorCode.BATCH_UNREADABLE: Mapping("DATA_LOSS", 422),
    ErrorCode.OFFSET_PAST_END: Mapping("OUT_OF_RANGE", 416),
    ErrorCode.OFFSET_BELOW_FLOOR: Mapping("OUT_OF_RANGE", 416),
    ErrorCode.PRODUCER_FENCED: Mapping("FAILED_PRECONDITION", 409),
    ErrorCode.PRODUCER_EXPIRED: Mapping("FAILED_PRECONDITION", 409),
    ErrorCode.SEQUENCE_GAP: Mapping("FAILED_PRECONDITION", 409),
    ErrorCode.OUTCOME_UNKNOWN: _UNCERTAIN,
    ErrorCode.BACKPRESSURE: Mapping("RESOURCE_EXHAUSTED", 429, Retry.NOT_APPLIED),
    ErrorCode.DISK_PRESSURE: Mapping("RESOURCE_EXHAUSTED", 507, Retry.NOT_APPLIED),
    ErrorCode.STORAGE_FAILED: Mapping("UNAVAILABLE", 503, other_node=Retry.UNKNOWN),
    ErrorCode.OPERATOR_TOKEN_REQUIRED: _UNAUTHENTICATED,
    ErrorCode.OPERATOR_TOKEN_WRONG: _UNAUTHENTICATED,
    ErrorCode.ROUTE_NOT_FOUND: _MISSING,
    ErrorCode.METHOD_NOT_ALLOWED: Mapping("UNIMPLEMENTED", 405),
    ErrorCode.REQUEST_TOO_SLOW: Mapping("DEADLINE_EXCEEDED", 408, Retry.NOT_APPLIED),
    ErrorCode.MEDIA_TYPE_NOT_SUPPORTED: Mapping("INVALID_ARGUMENT", 415),
    ErrorCode.ORIGIN_NOT_ALLOWED: _FORBIDDEN,
    ErrorCode.HOST_NOT_ALLOWED: _FORBIDDEN,
    ErrorCode.SETTING_INVALID: Mapping("INVALID_ARGUMENT", 400, exit_status=78),
    ErrorCode.SETTING_UNKNOWN: Mapping("INVALID_ARGUMENT", 400, exit_status=78),
    ErrorCode.INSECURE_NOT_ALLOWED: Mapping("FAILED_PRECONDITION", 409, exit_status=77),
    ErrorCode.TLS_FILES_MISSING: Mapping("FAILED_PRECONDITION", 409, exit_status=79),
    ErrorCode.ADDRESS_IN_USE: Mapping("FAILED_PRECONDITION", 409, exit_status=71),
    ErrorCode.DATA_DIR_FOREIGN: Mapping("FAILED_PRECONDITION", 409, exit_status=81),
    ErrorCode.DATA_DIR_NEWER: Mapping("FAILED_PRECONDITION", 409, exit_status=82),
    ErrorCode.DATA_DIR_INCOMPLETE: Mapping("FAILED_PRECONDITION", 409, exit_status=83),
    ErrorCode.DATA_DIR_LOCKED: Mapping("FAILED_PRECONDITION", 409, exit_status=84),
    ErrorCode.DATA_DIR_UNWRITABLE: Mapping("FAILED_PRECONDITION", 409, exit_status=85),
    ErrorCode.SCHEMA_NEWER: Mapping("FAILED_PRECONDITION", 409, exit_status=86),
    ErrorCode.STORE_FORMAT_OLD: Mapping("FAILED_PRECONDITION", 409, exit_status=87),
}


class MeshError(Exception):
    """Everything that a service refuses or fails at, on purpose.

    Args:
        code: Stable code.
        message: One sentence that says what happened and what to do next.
        details: Values that the message speaks of, as text, for programs.
        retryable: Whether the same request may succeed later, where this error knows better than its code.
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
        self.retryable = MAPPINGS[code].retry is not Retry.FINAL if retryable is None else retryable

    @property
    def retry(self) -> Retry:
        """What became of the request, and what it can come to when it is asked later."""
        listed = MAPPINGS[self.code].retry
        if listed is Retry.UNKNOWN or (self.code is ErrorCode.INTERNAL and self.retryable):
            # No flag undoes what may have happened; and INTERNAL that may be retried is a code of a later version.
            return Retry.UNKNOWN
        return Retry.NOT_APPLIED if self.retryable else Retry.FINAL

    @property
    def elsewhere(self) -> Retry:
        """What the request can come to at another node, or at the next leader."""
        return MAPPINGS[self.code].elsewhere

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
