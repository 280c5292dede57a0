"""Body of an overlay request and of its response.

Purpose: what packets of `Protocol.REQUEST` carry. Leaves out: matching a response to its request (by the message id and
`FLAG_RESPONSE` of the packet), resending, and the meaning of methods and bodies. Source: architecture, "Overlay request".

Layout (network byte order)::

    request    method u8, deadline_ms u32, body to the end
    response   0 u8, body to the end
               1 u8, code length u8, code, message length u16, message, retryable u8 (0 or 1),
                     details u8, each: key length u8, key, value length u16, value; all text in UTF-8

An error can always be encoded: what is longer than its field is cut, and details beyond `MAX_DETAILS_BYTES` are left out.
It may quote a peer, and an answer that cannot be sent would leave the caller waiting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from struct import Struct
from typing import Final, TypeAlias

from meshwire.buffers import Buffer, Cursor, require_uint
from meshwire.errors import WireError

STATUS_OK: Final = 0
STATUS_ERROR: Final = 1
MAX_DETAILS: Final = 255
MAX_DETAILS_BYTES: Final = 64 * 1024
"""All details of an error together, keys and values."""
_REQUEST: Final = Struct("!BI")
_U16: Final = Struct("!H")
_MAX_SHORT_TEXT_BYTES: Final = 0xFF
_MAX_TEXT_BYTES: Final = 0xFFFF


@dataclass(frozen=True, slots=True)
class Request:
    """One call.

    Attributes:
        method: which call, 0 to 255; the receiver's protocol defines the numbers.
        deadline_ms: how long the caller still waits, from the moment of sending; relative, because clocks differ.
        body: opaque. After `decode_request` a view that shares memory with the input.
    """

    method: int
    deadline_ms: int
    body: bytes | memoryview


@dataclass(frozen=True, slots=True)
class OkResponse:
    """The call succeeded; after `decode_response` the body is a view that shares memory with the input."""

    body: bytes | memoryview


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """The call failed.

    Attributes:
        code: stable error code, at most 255 bytes of UTF-8.
        message: a sentence for people, at most 65,535 bytes.
        retryable: whether the same call may succeed later.
        details: up to 255 pairs, for example the leader after NOT_LEADER.
    """

    code: str
    message: str
    retryable: bool = False
    # A mapping has no hash; two equal errors still hash alike by the other fields.
    details: Mapping[str, str] = field(default_factory=dict, hash=False)


Response: TypeAlias = OkResponse | ErrorResponse


def encode_request(request: Request) -> bytes:
    """Bytes of a request.

    Raises:
        WireError: the method or the deadline does not fit its width.
    """
    method = require_uint(request.method, 8, "method")
    deadline_ms = require_uint(request.deadline_ms, 32, "deadline_ms")
    return b"".join((_REQUEST.pack(method, deadline_ms), request.body))


def decode_request(data: Buffer) -> Request:
    """Request from bytes.

    Raises:
        WireError: the bytes are too short.
    """
    cursor = Cursor(data)
    return Request(cursor.u8("the method"), cursor.u32("the deadline"), cursor.rest())


def encode_response(body: bytes | memoryview) -> bytes:
    """Bytes of the response of a call that succeeded."""
    return b"".join((b"\x00", body))


def encode_error(code: str, message: str, retryable: bool = False, details: Mapping[str, str] | None = None) -> bytes:
    """Bytes of the response of a call that failed; what does not fit is cut or left out."""
    taken: dict[bytes, bytes] = {}
    room_bytes = MAX_DETAILS_BYTES
    for key, value in (details or {}).items():
        short, long = _cut(key, _MAX_SHORT_TEXT_BYTES), _cut(value, _MAX_TEXT_BYTES)
        room_bytes -= len(short) + len(long)
        if room_bytes < 0 or len(taken) == MAX_DETAILS:
            break
        taken.setdefault(short, long)
    short, long = _cut(code, _MAX_SHORT_TEXT_BYTES), _cut(message, _MAX_TEXT_BYTES)
    parts = [bytes((STATUS_ERROR, len(short))), short, _U16.pack(len(long)), long]
    parts.append(bytes((1 if retryable else 0, len(taken))))
    for short, long in taken.items():
        parts += (bytes((len(short),)), short, _U16.pack(len(long)), long)
    return b"".join(parts)


def decode_response(data: Buffer) -> Response:
    """Response from bytes.

    Raises:
        WireError: the bytes are not exactly one well-formed response.
    """
    cursor = Cursor(data)
    status = cursor.u8("the status")
    if status == STATUS_OK:
        return OkResponse(cursor.rest())
    if status != STATUS_ERROR:
        raise WireError(f"response status {status} is unknown")
    code = cursor.text(cursor.u8("the code's length"), "the error's code")
    message = cursor.text(cursor.u16("the message's length"), "the error's message")
    retryable = cursor.u8("retryable")
    if retryable > 1:
        raise WireError(f"retryable is {retryable}, not 0 or 1")
    details: dict[str, str] = {}
    for _ in range(cursor.u8("the number of details")):
        key = cursor.text(cursor.u8("a key's length"), "a detail's key")
        if key in details:
            raise WireError("an error detail's key occurs twice")
        details[key] = cursor.text(cursor.u16("a value's length"), "a detail's value")
    cursor.finish("the response")
    return ErrorResponse(code, message, bool(retryable), details)


def _cut(text: object, bytes_max: int) -> bytes:
    """`text` in UTF-8, cut between two characters; what UTF-8 cannot express becomes `?`."""
    # Cut before it is encoded: the text may be megabytes long. No character has less than one byte.
    encoded = str(text)[: bytes_max + 1].encode(errors="replace")
    if len(encoded) <= bytes_max:
        return encoded
    return encoded[:bytes_max].decode(errors="ignore").encode()
