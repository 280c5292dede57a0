"""Raft messages as tests write and read them: frames of `eraftpb.Message`, without a protobuf runtime.

Only what the tests look at; the source of the field numbers is raft-proto's `eraftpb.proto`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum

FRAME_VERSION = b"\x01"


class Kind(IntEnum):
    """`MessageType` of eraftpb."""

    HUP = 0
    BEAT = 1
    PROPOSE = 2
    APPEND = 3
    APPEND_RESPONSE = 4
    REQUEST_VOTE = 5
    REQUEST_VOTE_RESPONSE = 6
    SNAPSHOT = 7
    HEARTBEAT = 8
    HEARTBEAT_RESPONSE = 9
    UNREACHABLE = 10
    SNAP_STATUS = 11
    CHECK_QUORUM = 12
    TRANSFER_LEADER = 13
    TIMEOUT_NOW = 14
    READ_INDEX = 15
    READ_INDEX_RESPONSE = 16
    REQUEST_PRE_VOTE = 17
    REQUEST_PRE_VOTE_RESPONSE = 18


@dataclass(slots=True)
class LogEntry:
    """One entry inside an append."""

    index: int
    term: int
    data: bytes = b""


@dataclass(slots=True)
class Message:
    """One message; what a test leaves out is protobuf's default."""

    kind: Kind
    to: int
    sender: int
    term: int = 0
    log_term: int = 0
    index: int = 0
    entries: list[LogEntry] = field(default_factory=list)
    commit: int = 0
    reject: bool = False
    reject_hint: int = 0
    context: bytes = b""


def frame(group: int, *messages: Message) -> bytes:
    """A frame with `messages`, all of `group`."""
    return FRAME_VERSION + b"".join(part(group, encode(message)) for message in messages)


def part(group: int, body: bytes) -> bytes:
    """One message's place in a frame."""
    return struct.pack("!QI", group, len(body)) + body


def unpack(data: bytes) -> list[tuple[int, Message]]:
    """The messages of a frame, each with its group."""
    found = []
    position = 1
    while position < len(data):
        group, length = struct.unpack_from("!QI", data, position)
        position += 12
        found.append((group, decode(data[position : position + length])))
        position += length
    return found


def encode(message: Message) -> bytes:
    """The protobuf bytes of a message."""
    entries = b"".join(
        _bytes(7, _number(2, entry.term) + _number(3, entry.index) + _bytes(4, entry.data)) for entry in message.entries
    )
    return (
        _number(1, message.kind)
        + _number(2, message.to)
        + _number(3, message.sender)
        + _number(4, message.term)
        + _number(5, message.log_term)
        + _number(6, message.index)
        + entries
        + _number(8, message.commit)
        + _number(10, message.reject)
        + _number(11, message.reject_hint)
        + _bytes(12, message.context)
    )


NUMBERS = {2: "to", 3: "sender", 4: "term", 5: "log_term", 6: "index", 8: "commit", 11: "reject_hint"}
ENTRY_FIELDS = {2: "term", 3: "index", 4: "data"}


def decode(data: bytes) -> Message:
    """A message from its protobuf bytes; fields that no test looks at are passed over."""
    message = Message(Kind.HUP, 0, 0)
    for number, value in _fields(data):
        if number in NUMBERS:
            setattr(message, NUMBERS[number], value)
        elif number == 1:
            message.kind = Kind(int(value))
        elif number == 7 and isinstance(value, bytes):
            message.entries.append(_entry(value))
        elif number == 10:
            message.reject = bool(value)
        elif number == 12 and isinstance(value, bytes):
            message.context = value
    return message


def _entry(data: bytes) -> LogEntry:
    entry = LogEntry(0, 0)
    for number, value in _fields(data):
        if number in ENTRY_FIELDS:
            setattr(entry, ENTRY_FIELDS[number], value)
    return entry


def _fields(data: bytes) -> list[tuple[int, int | bytes]]:
    found: list[tuple[int, int | bytes]] = []
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        value, position = _varint(data, position)
        if key & 7 == 2:
            found.append((key >> 3, data[position : position + value]))
            position += value
        else:
            found.append((key >> 3, value))
    return found


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _encode_varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(number: int, value: int) -> bytes:
    return _encode_varint(number << 3) + _encode_varint(value) if value else b""


def _bytes(number: int, value: bytes) -> bytes:
    return _encode_varint(number << 3 | 2) + _encode_varint(len(value)) + value if value else b""
