"""The client protocol: what an application's library and a data plane say to each other over one WebSocket.

Purpose: publishing and reading in volume without a gateway in between. One binary WebSocket message (a frame) carries any
number of messages, because a WebSocket message costs more than its bytes. Requests carry a correlation number that the
caller chose; every response names the request it belongs to. Batches pass as they are and are not looked into. Leaves out:
the socket, who may connect, and errors' meaning (`meshcommon.errors`). Source: architecture §2, §8.

A name may be given to another stream once its first one was deleted. So a request that names a stream also gives the id that
it expects, or 0 for whichever has the name now; another one is refused (STREAM_REPLACED). Answers tell the id.

Layout (network byte order)::

    frame      at least one message
    message    body length u32, kind u8, correlation u32, body

    requests                                                  responses
    1 DESCRIBE       stream u64 or 0, stream name to the end  → 65 STREAM
    2 INIT_PRODUCER  stream u64 or 0, name length u8,         → 66 PRODUCER
                     stream name, producer name to the end
    3 PUBLISH        stream u64, wait u8, batch to the end    → 67 PUBLISHED
    4 READ           stream u64 or 0, name length u8,         → 68 BATCHES, the first one empty, then any number;
                     stream name, from offset u64,              then, without follow, 69 END
                     credit u32, follow u8
    5 CREDIT         bytes u32; correlation: of the READ
    6 CANCEL         empty; correlation: of the READ          → 69 END

    65 STREAM        stream u64, floor offset u64, next offset u64, leader's name to the end (empty: none)
    66 PRODUCER      stream u64, producer u64, epoch u32, next sequence u64, offset after its last record u64
    67 PUBLISHED     base offset u64, count u32, is duplicate u8
    68 BATCHES       stream u64, next offset of the stream u64, then per batch: base offset u64, time in ms u64, size u32,
                     batch
    69 END           offset to go on from u64
    70 ERROR         an error response of `meshwire.request`; correlation 0: the connection is over
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Final, NamedTuple

from meshwire.buffers import Buffer, Cursor, require_uint, utf8
from meshwire.errors import WireCode, WireError

SUBPROTOCOL: Final = "mesh.client.v3"
"""WebSocket subprotocol; it is the version of everything here."""
MAX_FRAME_BYTES: Final = 2 * 1024 * 1024
"""Room for the largest batch and a chunk of smaller ones; a node may hold one of each connection that waits."""
MAX_FRAME_MESSAGES: Final = 8192
"""Keeps a frame of empty messages from costing far more memory than its own size."""
WAIT_COMMITTED: Final = 1
"""A publish is answered when a quorum of disks has it. The only value for now."""
MAX_NAME_BYTES: Final = 255
ANY_STREAM: Final = 0
"""Expected id of a request that takes whichever stream has the name now."""

_HEAD: Final = Struct("!IBI")
MESSAGE_OVERHEAD_BYTES: Final = _HEAD.size
_PUBLISH: Final = Struct("!QB")
_PUBLISH_HEAD: Final = Struct("!IBIQB")
PUBLISH_OVERHEAD_BYTES: Final = _PUBLISH_HEAD.size
"""What a PUBLISH adds to its batch."""
_PUBLISHED: Final = Struct("!QIB")
_PUBLISHED_MESSAGE: Final = Struct("!IBIQIB")
_READ: Final = Struct("!QIB")
_STREAM: Final = Struct("!QQQ")
_PRODUCER: Final = Struct("!QQIQQ")
_BATCHES: Final = Struct("!QQ")
_BATCH: Final = Struct("!QQI")
_U32: Final = Struct("!I")
_U64: Final = Struct("!Q")


class Kind(IntEnum):
    """What a message is. Requests are below 64."""

    DESCRIBE = 1
    INIT_PRODUCER = 2
    PUBLISH = 3
    READ = 4
    CREDIT = 5
    CANCEL = 6
    STREAM = 65
    PRODUCER = 66
    PUBLISHED = 67
    BATCHES = 68
    END = 69
    ERROR = 70


_KINDS: Final = frozenset(int(kind) for kind in Kind)


class Message(NamedTuple):
    """One message of a frame; the body shares memory with it. A tuple because one is built for each batch that passes."""

    kind: int
    correlation: int
    body: memoryview


@dataclass(frozen=True, slots=True)
class Describe:
    """Asks for a stream's state; `stream_id` is the one expected, or ANY_STREAM."""

    stream: str
    stream_id: int = ANY_STREAM


@dataclass(frozen=True, slots=True)
class InitProducer:
    """Asks for a producer id; a named producer gets its id again and the next epoch.

    Attributes:
        stream: its name.
        producer: the producer's name, empty for an anonymous one.
        stream_id: the one expected, or ANY_STREAM.
    """

    stream: str
    producer: str
    stream_id: int = ANY_STREAM


@dataclass(frozen=True, slots=True)
class Read:
    """Asks for batches from the one that holds `from_offset` on.

    Attributes:
        stream: its name.
        from_offset: first record wanted.
        credit_bytes: bytes of batches that may be sent before more credit comes; at least one batch is always sent for
            credit above 0, however large.
        is_following: goes on at the end of the stream, until cancelled.
        stream_id: the one that the offset belongs to, or ANY_STREAM.
    """

    stream: str
    from_offset: int
    credit_bytes: int
    is_following: bool
    stream_id: int = ANY_STREAM


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """A stream as its leader sees it; `leader` is a node's name, empty when there is none now."""

    stream_id: int
    floor_offset: int
    next_offset: int
    leader: str


@dataclass(frozen=True, slots=True)
class ProducerInfo:
    """A producer may publish.

    Attributes:
        stream_id: of the stream that was named.
        producer_id: goes into its batches, as does the epoch.
        epoch: earlier holders of the name are fenced.
        next_sequence: sequence of its next record.
        last_offset_next: offset after its last record, 0 when it has none.
    """

    stream_id: int
    producer_id: int
    epoch: int
    next_sequence: int
    last_offset_next: int


@dataclass(slots=True)
class Published:
    """A batch is committed; `is_duplicate`: it had been before, and the offset is that of the first time.

    Not frozen: that doubles what it costs to make one, and each batch makes one.
    """

    base_offset: int
    count: int
    is_duplicate: bool


@dataclass(frozen=True, slots=True)
class ReadBatch:
    """A committed batch: the offset of its first record, its time, and its bytes as the producer sent them."""

    base_offset: int
    time_ms: int
    batch: bytes | memoryview


@dataclass(frozen=True, slots=True)
class Batches:
    """Consecutive batches of one stream, and where that ends as known at the node."""

    stream_id: int
    next_offset: int
    batches: list[ReadBatch]


def decode_messages(data: Buffer) -> list[Message]:
    """The messages of a frame; their bodies are not parsed.

    Raises:
        WireError: the frame is malformed. Nothing of such a frame is returned.
    """
    view = memoryview(data)
    end = len(view)
    if end > MAX_FRAME_BYTES:
        raise WireError(f"a frame of {end} bytes exceeds {MAX_FRAME_BYTES}", WireCode.TOO_LARGE)
    if not end:
        raise WireError("a frame holds at least one message", WireCode.TRUNCATED)
    messages: list[Message] = []
    unpack = _HEAD.unpack_from
    at = 0
    while at < end:
        if end - at < MESSAGE_OVERHEAD_BYTES:
            raise WireError("the frame ends inside a message's head", WireCode.TRUNCATED)
        length, kind, correlation = unpack(view, at)
        at += MESSAGE_OVERHEAD_BYTES
        if kind not in _KINDS:
            raise WireError(f"message kind {kind} is unknown")
        if length > end - at:
            raise WireError("the frame ends inside a message", WireCode.TRUNCATED)
        if len(messages) == MAX_FRAME_MESSAGES:
            raise WireError(f"a frame of more than {MAX_FRAME_MESSAGES} messages", WireCode.TOO_LARGE)
        messages.append(Message(kind, correlation, view[at : at + length]))
        at += length
    return messages


def encode_message(kind: Kind, correlation: int, body: bytes | memoryview = b"") -> bytes:
    """One message. A frame is such messages, one after the other.

    Raises:
        WireError: the correlation does not fit 32 bits.
    """
    require_uint(correlation, 32, "correlation")
    return b"".join((_HEAD.pack(len(body), kind, correlation), body))


def encode_publish(correlation: int, stream_id: int, batch: bytes | memoryview, wait: int = WAIT_COMMITTED) -> bytes:
    """A whole PUBLISH message.

    Raises:
        WireError: a number does not fit its width.
    """
    try:
        head = _PUBLISH_HEAD.pack(_PUBLISH.size + len(batch), Kind.PUBLISH, correlation, stream_id, wait)
    except struct.error as error:
        raise WireError(f"a field of the publish does not fit its width: {error}") from None
    return b"".join((head, batch))


def decode_publish(body: memoryview) -> tuple[int, int, memoryview]:
    """Stream, wait and batch of a PUBLISH. Raises WireError."""
    if len(body) < _PUBLISH.size:
        raise WireError("the publish ends before its batch", WireCode.TRUNCATED)
    stream_id, wait = _PUBLISH.unpack_from(body)
    return stream_id, wait, body[_PUBLISH.size :]


def encode_published(correlation: int, base_offset: int, count: int, is_duplicate: bool) -> bytes:
    """A whole PUBLISHED message.

    Raises:
        WireError: a number does not fit its width.
    """
    try:
        return _PUBLISHED_MESSAGE.pack(
            _PUBLISHED.size, Kind.PUBLISHED, correlation, base_offset, count, 1 if is_duplicate else 0
        )
    except struct.error as error:
        raise WireError(f"a field of the answer does not fit its width: {error}") from None


def decode_published(body: memoryview) -> Published:
    """Raises WireError."""
    if len(body) != _PUBLISHED.size:
        raise WireError(f"an answer to a publish has {_PUBLISHED.size} bytes, not {len(body)}", WireCode.TRUNCATED)
    base_offset, count, is_duplicate = _PUBLISHED.unpack(body)
    return Published(base_offset, count, _flag(is_duplicate, "is_duplicate"))


def encode_describe(request: Describe) -> bytes:
    """Body of a DESCRIBE. Raises WireError."""
    return _stream_id(request.stream_id) + utf8(request.stream, MAX_NAME_BYTES, "the stream's name")


def decode_describe(body: memoryview) -> Describe:
    """Body of a DESCRIBE. Raises WireError."""
    cursor = Cursor(body)
    stream_id = cursor.u64("the stream")
    return Describe(_text_to_end(cursor, len(body) - _U64.size, "the stream's name"), stream_id)


def encode_init_producer(request: InitProducer) -> bytes:
    """Body of an INIT_PRODUCER. Raises WireError."""
    producer = utf8(request.producer, MAX_NAME_BYTES, "the producer's name")
    return _stream_id(request.stream_id) + _short(request.stream) + producer


def decode_init_producer(body: memoryview) -> InitProducer:
    """Body of an INIT_PRODUCER. Raises WireError."""
    cursor = Cursor(body)
    stream_id = cursor.u64("the stream")
    length = cursor.u8("the name's length")
    stream = cursor.text(length, "the stream's name")
    producer = _text_to_end(cursor, len(body) - _U64.size - 1 - length, "the producer's name")
    return InitProducer(stream, producer, stream_id)


def encode_read(request: Read) -> bytes:
    """Body of a READ. Raises WireError."""
    try:
        numbers = _READ.pack(request.from_offset, request.credit_bytes, 1 if request.is_following else 0)
    except struct.error as error:
        raise WireError(f"a field of the read does not fit its width: {error}") from None
    return _stream_id(request.stream_id) + _short(request.stream) + numbers


def decode_read(body: memoryview) -> Read:
    """Body of a READ. Raises WireError."""
    cursor = Cursor(body)
    stream_id = cursor.u64("the stream")
    stream = cursor.text(cursor.u8("the name's length"), "the stream's name")
    from_offset, credit_bytes = cursor.u64("the offset"), cursor.u32("the credit")
    is_following = _flag(cursor.u8("follow"), "follow")
    cursor.finish("the read")
    return Read(stream, from_offset, credit_bytes, is_following, stream_id)


def encode_credit(credit_bytes: int) -> bytes:
    """Body of a CREDIT. Raises WireError."""
    return _U32.pack(require_uint(credit_bytes, 32, "credit"))


def decode_credit(body: memoryview) -> int:
    """Body of a CREDIT. Raises WireError."""
    cursor = Cursor(body)
    credit_bytes = cursor.u32("the credit")
    cursor.finish("the credit")
    return credit_bytes


def encode_stream(info: StreamInfo) -> bytes:
    """Body of a STREAM. Raises WireError."""
    try:
        numbers = _STREAM.pack(info.stream_id, info.floor_offset, info.next_offset)
    except struct.error as error:
        raise WireError(f"a field of the stream does not fit its width: {error}") from None
    return numbers + utf8(info.leader, MAX_NAME_BYTES, "the leader's name")


def decode_stream(body: memoryview) -> StreamInfo:
    """Body of a STREAM. Raises WireError."""
    cursor = Cursor(body)
    stream_id, floor_offset, next_offset = cursor.u64("the stream"), cursor.u64("the floor"), cursor.u64("the end")
    leader = _text_to_end(cursor, len(body) - _STREAM.size, "the leader's name")
    return StreamInfo(stream_id, floor_offset, next_offset, leader)


def encode_producer(info: ProducerInfo) -> bytes:
    """Body of a PRODUCER. Raises WireError."""
    try:
        return _PRODUCER.pack(info.stream_id, info.producer_id, info.epoch, info.next_sequence, info.last_offset_next)
    except struct.error as error:
        raise WireError(f"a field of the producer does not fit its width: {error}") from None


def decode_producer(body: memoryview) -> ProducerInfo:
    """Body of a PRODUCER. Raises WireError."""
    if len(body) != _PRODUCER.size:
        raise WireError(f"a producer has {_PRODUCER.size} bytes, not {len(body)}", WireCode.TRUNCATED)
    return ProducerInfo(*_PRODUCER.unpack(body))


def encode_batches(stream_id: int, next_offset: int, batches: Iterable[ReadBatch]) -> bytes:
    """Body of a BATCHES. Raises WireError."""
    try:
        parts: list[bytes | memoryview] = [_BATCHES.pack(stream_id, next_offset)]
        for item in batches:
            parts += (_BATCH.pack(item.base_offset, item.time_ms, len(item.batch)), item.batch)
    except struct.error as error:
        raise WireError(f"a field of the batches does not fit its width: {error}") from None
    return b"".join(parts)


def decode_batches(body: memoryview) -> Batches:
    """Body of a BATCHES; the batches share memory with it. Raises WireError."""
    cursor = Cursor(body)
    stream_id, next_offset = cursor.u64("the stream"), cursor.u64("the end")
    end = len(body)
    at = _BATCHES.size
    batches: list[ReadBatch] = []
    while at < end:
        if end - at < _BATCH.size:
            raise WireError("the message ends inside a batch's head", WireCode.TRUNCATED)
        base_offset, time_ms, size_bytes = _BATCH.unpack_from(body, at)
        at += _BATCH.size
        if size_bytes > end - at:
            raise WireError("the message ends inside a batch", WireCode.TRUNCATED)
        batches.append(ReadBatch(base_offset, time_ms, body[at : at + size_bytes]))
        at += size_bytes
    return Batches(stream_id, next_offset, batches)


def encode_end(offset: int) -> bytes:
    """Body of an END. Raises WireError."""
    return _U64.pack(require_uint(offset, 64, "offset"))


def decode_end(body: memoryview) -> int:
    """Body of an END. Raises WireError."""
    cursor = Cursor(body)
    offset = cursor.u64("the offset")
    cursor.finish("the end")
    return offset


def _stream_id(stream_id: int) -> bytes:
    return _U64.pack(require_uint(stream_id, 64, "stream id"))


def _short(name: str) -> bytes:
    encoded = utf8(name, MAX_NAME_BYTES, "the stream's name")
    return bytes((len(encoded),)) + encoded


def _text_to_end(cursor: Cursor, size_bytes: int, field: str) -> str:
    if size_bytes > MAX_NAME_BYTES:
        raise WireError(f"{field} is {size_bytes} bytes, the limit is {MAX_NAME_BYTES}", WireCode.TOO_LARGE)
    return cursor.text(size_bytes, field)


def _flag(value: int, field: str) -> bool:
    if value > 1:
        raise WireError(f"{field} is {value}, not 0 or 1")
    return value == 1
