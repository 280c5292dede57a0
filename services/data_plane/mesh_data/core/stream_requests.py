"""Bodies of the data plane's overlay requests about streams, and of their answers.

Purpose: what a node that does not hold a stream, or does not lead it, asks of one that does. Leaves out: the request frame
around it (`meshwire.request`) and errors, which travel there. Source: architecture §5 "Overlay request".

Another node may be faulty or worse, so what it says is taken only as it must be: bodies have exactly their length, numbers fit
what is stored (63 bits), flags are 0 or 1, and fetched batches follow each other from the offset that was asked for. Anything
else is a WireError of that one request.

Layout (network byte order)::

    PUBLISH        stream u64, batch                         → base offset u64, count u32, is duplicate u8
    INIT_PRODUCER  stream u64, name in UTF-8                  → id u64, epoch u32, next sequence u64, last offset next u64
    FETCH          stream u64, offset u64, bytes max u32, wait ms u32
                   → next offset u64, floor offset u64, is confirmed u8, applied index u64, has age u8, age ms u64,
                     then per batch: base offset u64, time u64, size u32, batch
    DESCRIBE       stream u64                                 → meshapi.supervisor.v1.DescribeStreamResponse
    TRANSFER       stream u64, node u64                       → term u64
    CHAIN          stream u64                                 → meshapi.data.v1.ChainMarks
    VERIFY_LOG     stream u64, meshapi.data.v1.VerifyLogRequest → meshapi.data.v1.VerifyLogResponse
    VOUCH          (not about a stream)                       → meshapi.common.v1.MembershipVouch
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from struct import Struct, error
from typing import Final

from mesh_data.core.stream_state import ProducerReady
from meshcommon.ids import StreamId
from meshwire.batch import decode_header
from meshwire.errors import WireCode, WireError

_STREAM: Final = Struct("!Q")
_PUBLISHED: Final = Struct("!QIB")
_PRODUCER: Final = Struct("!QIQQ")
_FETCH: Final = Struct("!QQII")
_FETCHED: Final = Struct("!QQBQBQ")
_BATCH: Final = Struct("!QQI")


STORED_MAX: Final = (1 << 63) - 1
"""Offsets, log indexes and times are at most this."""


class Method(IntEnum):
    """Numbers of the overlay requests."""

    PUBLISH = 1
    INIT_PRODUCER = 2
    FETCH = 3
    DESCRIBE = 4
    TRANSFER = 5
    CHAIN = 6
    VERIFY_LOG = 7
    VOUCH = 8


@dataclass(slots=True)
class Published:
    """A batch is committed. Not frozen, because each batch makes one.

    Attributes:
        base_offset: offset of its first record.
        count: records in it.
        is_duplicate: it had been committed before; the offset is that of the first time.
    """

    base_offset: int
    count: int
    is_duplicate: bool


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """A committed batch as a reader gets it; `batch` may share memory with the log's entry."""

    base_offset: int
    time_ms: int
    batch: bytes | memoryview


@dataclass(frozen=True, slots=True)
class Fetch:
    """Asks for batches from the one that holds `offset` on; at the end it waits up to `wait_ms` for more.

    With `bytes_max` 0 it asks for no batch but for the stream's end, which the leader may take up to `wait_ms` to confirm.
    """

    stream_id: StreamId
    offset: int
    bytes_max: int
    wait_ms: int


@dataclass(frozen=True, slots=True)
class Freshness:
    """How new a replica's view of its stream is.

    Attributes:
        applied_index: last log index in it.
        age_ms_max: every record acknowledged so long ago, or earlier, is in it; None when that is not known.
    """

    applied_index: int
    age_ms_max: int | None


UNKNOWN_FRESHNESS: Final = Freshness(0, None)


@dataclass(frozen=True, slots=True)
class Fetched:
    """Consecutive batches; none when there was nothing new.

    Attributes:
        batches: what was found.
        next_offset: end of the stream as known there.
        floor_offset: first offset that can be read there.
        is_confirmed: the leader confirmed the end: everything acknowledged before the question is below it.
        freshness: of the replica that answered.
    """

    batches: Sequence[StoredBatch]
    next_offset: int
    floor_offset: int
    is_confirmed: bool = False
    freshness: Freshness = UNKNOWN_FRESHNESS


def encode_stream_body(stream_id: StreamId, body: bytes | memoryview = b"") -> bytes:
    """Stream id, then `body`: the requests PUBLISH, INIT_PRODUCER and DESCRIBE."""
    return b"".join((_STREAM.pack(stream_id), body))


def decode_stream_body(data: bytes) -> tuple[StreamId, bytes]:
    """Stream id and the rest. Raises WireError."""
    (stream_id,) = _unpack(_STREAM, data)
    return StreamId(stream_id), data[_STREAM.size :]


def encode_published(published: Published) -> bytes:
    """Answer to PUBLISH."""
    return _PUBLISHED.pack(published.base_offset, published.count, published.is_duplicate)


def decode_published(data: bytes) -> Published:
    """Answer to PUBLISH. Raises WireError."""
    base_offset, count, is_duplicate = _exactly(_PUBLISHED, data)
    if not count:
        raise WireError("a committed batch of no records")
    _check_stored(base_offset + count, "the offset")
    return Published(base_offset, count, _flag(is_duplicate, "is duplicate"))


def encode_producer(producer: ProducerReady) -> bytes:
    """Answer to INIT_PRODUCER."""
    return _PRODUCER.pack(producer.producer_id, producer.epoch, producer.next_sequence, producer.last_offset_next)


def decode_producer(data: bytes) -> ProducerReady:
    """Answer to INIT_PRODUCER. Raises WireError."""
    producer_id, epoch, next_sequence, last_offset_next = _exactly(_PRODUCER, data)
    if not producer_id or not epoch:
        raise WireError("a producer has an id and an epoch above 0")
    _check_stored(last_offset_next, "the last offset")
    return ProducerReady(producer_id, epoch, next_sequence, last_offset_next)


def encode_number(number: int) -> bytes:
    """A node, or a term: request and answer of TRANSFER."""
    return _STREAM.pack(number)


def decode_number(data: bytes) -> int:
    """Request and answer of TRANSFER, without the stream. Raises WireError."""
    return _exactly(_STREAM, data)[0]


def encode_fetch(fetch: Fetch) -> bytes:
    """Request FETCH."""
    return _FETCH.pack(fetch.stream_id, fetch.offset, fetch.bytes_max, fetch.wait_ms)


def decode_fetch(data: bytes) -> Fetch:
    """Request FETCH. Raises WireError."""
    stream_id, offset, bytes_max, wait_ms = _exactly(_FETCH, data)
    return Fetch(StreamId(stream_id), offset, bytes_max, wait_ms)


def encode_fetched(fetched: Fetched) -> bytes:
    """Answer to FETCH."""
    age_ms = fetched.freshness.age_ms_max
    parts: list[bytes | memoryview] = [
        _FETCHED.pack(
            fetched.next_offset,
            fetched.floor_offset,
            fetched.is_confirmed,
            fetched.freshness.applied_index,
            age_ms is not None,
            age_ms or 0,
        )
    ]
    for item in fetched.batches:
        parts.append(_BATCH.pack(item.base_offset, item.time_ms, len(item.batch)))
        parts.append(item.batch)
    return b"".join(parts)


def decode_fetched(data: bytes) -> Fetched:
    """Answer to FETCH. Raises WireError."""
    next_offset, floor_offset, is_confirmed, applied_index, has_age, age_ms = _unpack(_FETCHED, data)
    for number, field in ((next_offset, "the end"), (applied_index, "the index"), (age_ms, "the age")):
        _check_stored(number, field)
    if floor_offset > next_offset:
        raise WireError(f"the floor {floor_offset} is behind the end {next_offset}")
    view = memoryview(data)
    batches: list[StoredBatch] = []
    at = _FETCHED.size
    while at < len(view):
        base_offset, time_ms, size_bytes = _unpack(_BATCH, view[at:])
        at += _BATCH.size
        if at + size_bytes > len(view):
            raise WireError("the answer ends inside a batch", WireCode.TRUNCATED)
        batches.append(StoredBatch(base_offset, time_ms, view[at : at + size_bytes]))
        at += size_bytes
    freshness = Freshness(applied_index, age_ms if _flag(has_age, "has age") else None)
    return Fetched(batches, next_offset, floor_offset, _flag(is_confirmed, "is confirmed"), freshness)


def check_fetched(fetched: Fetched, offset: int) -> Fetched:
    """What another node answered to a FETCH of `offset`, if it is one: up to the first batch of a later format.

    Raises:
        WireError: its batches do not follow each other from `offset` on; BAD_VERSION when already the first one has a format
            of a later version.
    """
    expected = None
    for place, stored in enumerate(fetched.batches):
        try:
            count = decode_header(stored.batch).record_count
        except WireError as error:
            if error.code is WireCode.BAD_VERSION and place:
                return replace(fetched, batches=fetched.batches[:place])
            raise
        after = stored.base_offset + count
        if stored.base_offset != expected if expected is not None else not stored.base_offset <= offset < after:
            raise WireError(f"a batch of offset {stored.base_offset} is not the next one")
        expected = after
        _check_stored(after, "a batch's offset")
        _check_stored(stored.time_ms, "a batch's time")
    if expected is not None and expected > fetched.next_offset:
        raise WireError(f"the batches reach {expected}, the stream ends at {fetched.next_offset}")
    return fetched


def _exactly(layout: Struct, data: bytes | memoryview) -> tuple[int, ...]:
    if len(data) > layout.size:
        raise WireError(f"{len(data) - layout.size} bytes follow the end of the body")
    return _unpack(layout, data)


def _check_stored(number: int, field: str) -> None:
    if number > STORED_MAX:
        raise WireError(f"{field} is {number}, more than can be stored")


def _flag(value: int, field: str) -> bool:
    if value > 1:
        raise WireError(f"{field} is {value}, not 0 or 1")
    return value == 1


def _unpack(layout: Struct, data: bytes | memoryview) -> tuple[int, ...]:
    try:
        return layout.unpack_from(data)
    except error:
        raise WireError("the request's body is too short", WireCode.TRUNCATED) from None
