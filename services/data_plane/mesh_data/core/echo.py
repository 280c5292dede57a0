"""Echo: the overlay's ping. Layout: kind u8 (0 request, 1 reply), id u64 in network byte order."""

from __future__ import annotations

from struct import Struct
from typing import Final

_LAYOUT: Final = Struct("!BQ")
_REQUEST: Final = 0
_REPLY: Final = 1


def encode_echo(echo_id: int) -> bytes:
    """Payload that asks for a reply."""
    return _LAYOUT.pack(_REQUEST, echo_id)


def reply_to(payload: bytes | memoryview) -> bytes | None:
    """The reply to an echo request; None for anything else."""
    if len(payload) != _LAYOUT.size or payload[0] != _REQUEST:
        return None
    return bytes((_REPLY,)) + bytes(payload[1:])


def replied_id(payload: bytes | memoryview) -> int | None:
    """The id in a reply; None for anything else."""
    if len(payload) != _LAYOUT.size or payload[0] != _REPLY:
        return None
    return int.from_bytes(payload[1:], "big")
