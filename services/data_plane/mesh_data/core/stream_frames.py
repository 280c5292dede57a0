"""Raft frames as payloads of packets: whole, or in parts when one is larger than a packet.

Almost every frame is whole; a snapshot with a large producer table need not be. Parts that do not all arrive are dropped:
Raft sends again. Leaves out: everything a frame means. Source: architecture §5 "Best effort".

Layout: a frame as it is, whose first byte is its version, 1; or 0 u8, message u32, part u16, parts u16, bytes (network byte
order); or 2 u8, a message about stores (`meshwire.store_message`), or 3 u8, "my disk is short of room" (`disk_room`): neither
is a frame. A whole frame has nothing before it because each byte of it would be copied for that, at both ends.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from meshwire.errors import WireCode, WireError

_WHOLE: Final = 1
_A_PART: Final = 0
_PART: Final = Struct("!BIHH")
_STORE: Final = b"\x02"
NO_ROOM: Final = b"\x03"
"""A payload by itself: the disk of the node that sends it is short of room."""
PART_BYTES: Final = 1536 * 1024
"""Below the largest packet by more than any header."""
FRAME_BYTES_MAX: Final = 64 * 1024 * 1024
_PARTS_MAX: Final = FRAME_BYTES_MAX // PART_BYTES


def split(frame: bytes, message: int, part_bytes: int = PART_BYTES) -> list[bytes]:
    """Payloads for one frame; `message` tells the parts of one frame from those of the next."""
    if len(frame) <= part_bytes:
        return [frame]
    parts = -(-len(frame) // part_bytes)
    view = memoryview(frame)
    return [
        _PART.pack(_A_PART, message & 0xFFFFFFFF, part, parts) + view[part * part_bytes : (part + 1) * part_bytes]
        for part in range(parts)
    ]


def store_payload(message: bytes) -> bytes:
    """The payload that carries a message about stores."""
    return _STORE + message


def is_store_payload(payload: bytes | memoryview) -> bool:
    """Whether the payload carries such a message, after its first byte."""
    return len(payload) > 0 and payload[0] == _STORE[0]


class FrameJoiner:
    """Puts frames of one peer together again; holds at most one unfinished frame."""

    def __init__(self) -> None:
        self._message = -1
        self._parts: list[bytes] = []
        self._expected = 0

    def receive(self, payload: bytes | memoryview) -> bytes | memoryview | None:
        """The frame that this payload completes, or None. A whole one shares memory with it.

        Raises:
            WireError: the payload is malformed.
        """
        if not payload:
            raise WireError("an empty payload carries no Raft frame", WireCode.TRUNCATED)
        if payload[0] == _WHOLE:
            return payload
        if payload[0] != _A_PART or len(payload) < _PART.size:
            raise WireError("the payload is not a Raft frame or a part of one")
        _, message, part, parts = _PART.unpack_from(payload)
        if not part < parts <= _PARTS_MAX:
            raise WireError(f"part {part} of {parts} of a Raft frame is out of range")
        if part == 0:
            self._message, self._parts, self._expected = message, [], parts
        # Lanes keep order within a class, so a part out of order means that one was lost.
        if message != self._message or part != len(self._parts) or parts != self._expected:
            self._parts, self._message = [], -1
            return None
        self._parts.append(bytes(payload[_PART.size :]))
        if len(self._parts) < parts:
            return None
        frame = b"".join(self._parts)
        self._parts, self._message = [], -1
        return frame
