"""The frame: one binary WebSocket message on a lane.

Purpose: many packets in one WebSocket message, because a message costs more than its bytes. Leaves out: the handshake's
content, which is protobuf, and which packets go together (the lane's scheduler). Source: architecture, "Lane".

Layout (network byte order)::

    1 HANDSHAKE   u8, handshake message to the end
    2 PACKETS     u8, then any number of: length u32, packet
    3 SEALED      u8, generation u32, one of the others encrypted to the end (on lanes whose TLS a proxy ends)
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Final

from meshwire.buffers import Buffer
from meshwire.errors import WireCode, WireError
from meshwire.packet import MAX_PACKET_BYTES, PREFIX_BYTES

FRAME_HANDSHAKE: Final = 0x01
FRAME_PACKETS: Final = 0x02
FRAME_SEALED: Final = 0x03
"""Opened before anything else looks at it (`mesh_data.core.frame_seal`); inside there is never another one."""
SEALED_HEAD_BYTES: Final = 5
SEAL_OVERHEAD_BYTES: Final = SEALED_HEAD_BYTES + 16
"""What a seal adds to a frame: its head and its tag."""
MAX_FRAME_BYTES: Final = 4 * 1024 * 1024
"""Largest frame of packets, type byte included."""
MAX_FRAME_PACKETS: Final = 8192
"""Most packets in a frame, which is handled in one go. Nodes fill frames up to 256 KiB: 5,000 of the smallest packets."""
MAX_HANDSHAKE_BYTES: Final = 64 * 1024
"""Largest handshake frame: it is read before the peer has proved who it is."""

_LENGTH: Final = Struct("!I")
FRAME_OVERHEAD_BYTES: Final = 1
PACKET_OVERHEAD_BYTES: Final = _LENGTH.size
"""What a packet adds to a frame beyond its own bytes."""
_PACKETS_LEAD: Final = bytes((FRAME_PACKETS,))


def frame_type(data: Buffer) -> int:
    """`FRAME_HANDSHAKE` or `FRAME_PACKETS`.

    Raises:
        WireError: the frame is empty, of an unknown type, or too large for its type.
    """
    if not len(data):
        raise WireError("the frame is empty", WireCode.TRUNCATED)
    kind = data[0]
    if kind == FRAME_PACKETS:
        _check_size(len(data), MAX_FRAME_BYTES)
    elif kind == FRAME_HANDSHAKE:
        _check_size(len(data), MAX_HANDSHAKE_BYTES)
    else:
        raise WireError(f"frame type {kind} is unknown")
    return kind


def encode_handshake(message: Buffer) -> bytes:
    """Frame around an encoded handshake message.

    Raises:
        WireError: TOO_LARGE beyond `MAX_HANDSHAKE_BYTES`.
    """
    _check_size(FRAME_OVERHEAD_BYTES + len(message), MAX_HANDSHAKE_BYTES)
    return b"".join((bytes((FRAME_HANDSHAKE,)), message))


def decode_handshake(data: Buffer) -> memoryview:
    """The handshake message in a frame, not copied.

    Raises:
        WireError: the frame is malformed or of another type.
    """
    if frame_type(data) != FRAME_HANDSHAKE:
        raise WireError("the frame is not a handshake")
    return memoryview(data)[FRAME_OVERHEAD_BYTES:]


def encode_packets(packets: Sequence[Buffer]) -> bytes:
    """Frame around encoded packets, in their order. Raises WireError as `frame_parts`."""
    return b"".join(frame_parts(packets))


def frame_parts(packets: Sequence[Buffer]) -> list[Buffer]:
    """The same not yet joined, so that whoever carries the frame can join it behind a head of its own.

    Raises:
        WireError: TOO_LARGE when the frame would exceed `MAX_FRAME_BYTES` or `MAX_FRAME_PACKETS`, or a packet
            `MAX_PACKET_BYTES`; BAD_FIELD for bytes too short to be a packet.
    """
    _check_count(len(packets))
    parts: list[Buffer] = [_PACKETS_LEAD]
    size = FRAME_OVERHEAD_BYTES
    for packet in packets:
        length = len(packet)
        _check_packet_size(length)
        size += PACKET_OVERHEAD_BYTES + length
        parts.append(_LENGTH.pack(length))
        parts.append(packet)
    _check_size(size, MAX_FRAME_BYTES)
    return parts


def decode_packets(data: Buffer) -> list[memoryview]:
    """The packets in a frame, neither copied nor parsed.

    Raises:
        WireError: the frame is malformed or of another type. Nothing of such a frame is returned.
    """
    if frame_type(data) != FRAME_PACKETS:
        raise WireError("the frame does not hold packets")
    view = memoryview(data)
    end = len(view)
    at = FRAME_OVERHEAD_BYTES
    packets: list[memoryview] = []
    while at < end:
        if end - at < PACKET_OVERHEAD_BYTES:
            raise WireError("the frame ends inside a packet's length", WireCode.TRUNCATED)
        (length,) = _LENGTH.unpack_from(view, at)
        _check_packet_size(length)
        at += PACKET_OVERHEAD_BYTES
        if end - at < length:
            raise WireError("the frame ends inside a packet", WireCode.TRUNCATED)
        packets.append(view[at : at + length])
        at += length
    _check_count(len(packets))
    return packets


def _check_packet_size(length: int) -> None:
    # The lower bound also keeps a hostile frame of tiny packets from costing far more memory than its own size.
    if length < PREFIX_BYTES:
        raise WireError(f"{length} bytes are too short for a packet")
    if length > MAX_PACKET_BYTES:
        raise WireError(f"a packet of {length} bytes exceeds {MAX_PACKET_BYTES}", WireCode.TOO_LARGE)


def _check_count(packets: int) -> None:
    if packets > MAX_FRAME_PACKETS:
        raise WireError(f"a frame of more than {MAX_FRAME_PACKETS} packets", WireCode.TOO_LARGE)


def _check_size(size_bytes: int, size_bytes_max: int) -> None:
    if size_bytes > size_bytes_max:
        raise WireError(f"a frame of {size_bytes} bytes exceeds {size_bytes_max}", WireCode.TOO_LARGE)
