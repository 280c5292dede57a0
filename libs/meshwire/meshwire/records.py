"""The records in a batch's body: for producers and readers. A service that only passes batches on never imports this.

Purpose: key, value and headers of each record, compressed together or not. Leaves out: the batch's header (`batch`). Trace
context and correlation id are headers like any other; their names are here, so that all writers use the same ones.
Source: ADR 0014; zstd is RFC 8878, `traceparent` the W3C's Trace Context.

Layout of a body, uncompressed (network byte order)::

    record: header count u8, key length u16 (0xFFFF: no key), value length u32, key, value, headers
    header: name length u8, name in UTF-8, value length u16, value

A compressed body is one zstd frame that tells its content's size, with nothing behind it. A header of the batch may lie about
the body. Then opening it raises WireError, without having taken more memory than the header announced.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Final, TypeAlias

import zstandard

from meshwire.batch import (
    HEADER_BYTES,
    MAX_BODY_BYTES,
    MAX_RECORD_BYTES,
    MAX_RECORD_HEADERS_BYTES,
    MAX_RECORDS,
    MAX_UNCOMPRESSED_BYTES,
    RECORD_OVERHEAD_BYTES,
    BatchHeader,
    Codec,
    assemble,
    decode_header,
)
from meshwire.buffers import Buffer, utf8
from meshwire.errors import WireCode, WireError

Headers: TypeAlias = tuple[tuple[str, bytes], ...]
"""Names and values, each name once."""

MAX_KEY_BYTES: Final = 0xFFFE
MAX_HEADERS: Final = 64
MAX_HEADER_NAME_BYTES: Final = 255
TRACE_PARENT: Final = "traceparent"
TRACE_STATE: Final = "tracestate"
CORRELATION_ID: Final = "correlation-id"

_RECORD: Final = Struct("!BHI")
_VALUE_LENGTH: Final = Struct("!H")
_NO_KEY: Final = 0xFFFF
_NONE: Final = Codec.NONE
_HEADER_OVERHEAD_BYTES: Final = 3
_ZSTD_LEVEL: Final = 3
_FRAME_OVERHEAD_BYTES: Final = 18
"""The longest header of a zstd frame."""


@dataclass(frozen=True, slots=True)
class Record:
    """One message: an opaque value, optionally a key, which may be empty, and headers."""

    value: bytes
    key: bytes | None = None
    headers: Headers = ()


class BatchBuilder:
    """Gathers records for one batch; each is encoded as it comes, so that closing the batch costs one join.

    Limits are those of `encode_batch`, and the same errors; a record that is refused leaves the batch as it was.
    """

    __slots__ = ("_parts", "body_bytes", "count")

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self.body_bytes = 0
        """Bytes of the body, uncompressed."""
        self.count = 0

    def append(self, value: bytes, key: bytes | None = None, headers: Headers = ()) -> None:
        """Adds a record.

        Raises:
            WireError: TOO_LARGE when the key, the record or its headers exceed their limit, or the batch would; BAD_FIELD
                for a header that has no name, one that another one has, or one that UTF-8 cannot express.
        """
        size_bytes = len(value)
        if key is None and not headers and size_bytes <= MAX_RECORD_BYTES:
            # By far the most frequent: without a call.
            added_bytes = RECORD_OVERHEAD_BYTES + size_bytes
            parts: tuple[bytes, ...] = (_RECORD.pack(0, _NO_KEY, size_bytes), value)
        else:
            head, tail = _record_head(size_bytes, key, len(headers)), _encode_headers(headers)
            added_bytes = RECORD_OVERHEAD_BYTES + size_bytes + len(key or b"") + len(tail)
            parts = (head, key or b"", value, tail)
        if self.count == MAX_RECORDS:
            raise WireError(f"a batch of {self.count + 1} records exceeds {MAX_RECORDS}", WireCode.TOO_LARGE)
        if self.body_bytes + added_bytes > MAX_BODY_BYTES:
            raise _too_large(self.body_bytes + added_bytes)
        self._parts += parts
        self.body_bytes += added_bytes
        self.count += 1

    def extend(self, values: Sequence[bytes], start: int, body_bytes_max: int, count_max: int) -> int:
        """Adds values without keys from `values[start]` on; it is `append` without a call for each.

        Stops before a value with which the body would exceed `body_bytes_max` (an empty batch takes one in any case) or the
        count `count_max`. Returns the index of the first value that was not added.

        Raises:
            WireError: TOO_LARGE for a value that no batch can hold; those before it are in.
        """
        parts, body_bytes, count = self._parts, self.body_bytes, self.count
        heads: dict[int, bytes] = {}
        count_max = min(count_max, MAX_RECORDS)
        at = start
        try:
            while at < len(values) and count < count_max:
                value = values[at]
                size_bytes = len(value)
                added_bytes = RECORD_OVERHEAD_BYTES + size_bytes
                if count and body_bytes + added_bytes > body_bytes_max:
                    break
                head = heads.get(size_bytes)
                if head is None:
                    head = heads[size_bytes] = _record_head(size_bytes, None, 0)
                parts.append(head)
                parts.append(value)
                body_bytes += added_bytes
                count += 1
                at += 1
        finally:
            self.body_bytes, self.count = body_bytes, count
        return at

    def encode(
        self,
        producer_id: int = 0,
        producer_epoch: int = 0,
        base_sequence: int = 0,
        *,
        timestamps_ms: tuple[int, int] = (0, 0),
        codec: Codec = Codec.NONE,
    ) -> bytes:
        """Bytes of the batch. With a codec that does not make it smaller the body stays as it is.

        Raises:
            WireError: BAD_FIELD when there is no record or a number does not fit its width.
        """
        body = b"".join(self._parts)
        if codec is not _NONE:
            # A compressor must not be shared between threads, and an application may have a client in each.
            compressed = zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(body)
            if len(compressed) < len(body):
                body = compressed
            else:
                codec = _NONE
        return assemble(
            body,
            record_count=self.count,
            uncompressed_bytes=self.body_bytes,
            codec=codec,
            timestamps_ms=timestamps_ms,
            producer_id=producer_id,
            producer_epoch=producer_epoch,
            base_sequence=base_sequence,
        )


def headers_bytes(headers: Headers) -> int:
    """What headers take of a body, beyond what a record without any takes. Raises WireError for one that is not allowed."""
    return len(_encode_headers(headers))


def encode_batch(
    records: Sequence[Record],
    producer_id: int = 0,
    producer_epoch: int = 0,
    base_sequence: int = 0,
    *,
    timestamps_ms: tuple[int, int] = (0, 0),
    codec: Codec = Codec.NONE,
) -> bytes:
    """Bytes of a batch of 1 to `MAX_RECORDS` records. `timestamps_ms`: when the first and the latest were made.

    Raises:
        WireError: TOO_LARGE when a key, a record, its headers, the number of records or the batch exceeds its limit;
            BAD_FIELD when there is no record, a number does not fit its width, or a header's name is not allowed.
    """
    builder = BatchBuilder()
    for record in records:
        builder.append(record.value, record.key, record.headers)
    return builder.encode(producer_id, producer_epoch, base_sequence, timestamps_ms=timestamps_ms, codec=codec)


def decode_records(data: Buffer) -> list[Record]:
    """All records of a batch, checksum verified; keys and values are copies.

    Raises:
        WireError: as `decode_header`; the body cannot be decompressed to the announced size, or does not hold exactly the
            announced number of records within their limits.
    """
    header, body = _opened(data)
    return [Record(value, key, headers) for key, value, headers in _iter_body(body, header.record_count)]


def iter_values(data: Buffer) -> Iterator[bytes]:
    """Values of a batch in order, without building records. The header and checksum are verified before this returns.

    Raises:
        WireError: as `decode_records`; for records that do not fill the body, only once the iteration gets there.
    """
    header, body = _opened(data)
    return (value for _, value, _ in _iter_body(body, header.record_count))


def _opened(data: Buffer) -> tuple[BatchHeader, bytes]:
    """Header, and body without compression."""
    header = decode_header(data, verify=True)
    body = bytes(memoryview(data)[HEADER_BYTES:])
    if header.codec == Codec.ZSTD:
        body = _decompressed(body, header.uncompressed_bytes)
    return header, body


def _decompressed(frame: bytes, size_bytes: int) -> bytes:
    """The content of a zstd frame, which has `size_bytes` or is refused before memory is taken for it."""
    try:
        announced_bytes = zstandard.frame_content_size(frame[:_FRAME_OVERHEAD_BYTES])
        if announced_bytes != size_bytes:
            raise WireError(f"the body's frame announces {announced_bytes} bytes, the batch's header {size_bytes}")
        # The library takes memory for the frame's own number, which is within its bound by now, and fails beyond it.
        decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_UNCOMPRESSED_BYTES)
        body = decompressor.decompress(frame, max_output_size=size_bytes, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise WireError(f"the body cannot be decompressed: {error}") from None
    if len(body) != size_bytes:
        raise WireError(f"the body has {len(body)} bytes, the batch's header announces {size_bytes}")
    return body


def _iter_body(body: bytes, count: int) -> Iterator[tuple[bytes | None, bytes, Headers]]:
    unpack = _RECORD.unpack_from
    size = len(body)
    at = 0
    for _ in range(count):
        if size - at < RECORD_OVERHEAD_BYTES:
            raise WireError("the batch's body ends inside a record", WireCode.TRUNCATED)
        header_count, key_bytes, value_bytes = unpack(body, at)
        at += RECORD_OVERHEAD_BYTES
        key: bytes | None = None
        if key_bytes != _NO_KEY:
            if key_bytes > size - at:
                raise WireError("the batch's body ends inside a key", WireCode.TRUNCATED)
            key = body[at : at + key_bytes]
            at += key_bytes
        else:
            key_bytes = 0
        if value_bytes > size - at:
            raise WireError("the batch's body ends inside a value", WireCode.TRUNCATED)
        if key_bytes + value_bytes > MAX_RECORD_BYTES:
            raise _record_too_large(key_bytes + value_bytes)
        value = body[at : at + value_bytes]
        at += value_bytes
        headers: Headers = ()
        if header_count:
            headers, at = _decode_headers(body, at, header_count)
        yield key, value, headers
    if at != size:
        raise WireError(f"{size - at} bytes follow the batch's last record")


def _decode_headers(body: bytes, at: int, count: int) -> tuple[Headers, int]:
    """A record's headers, and where they end."""
    if count > MAX_HEADERS:
        raise WireError(f"a record of {count} headers exceeds {MAX_HEADERS}", WireCode.TOO_LARGE)
    start, size = at, len(body)
    found: dict[str, bytes] = {}
    for _ in range(count):
        name_bytes = body[at] if at < size else 0
        value_at = at + 1 + name_bytes
        if value_at + 2 > size:
            raise WireError("the batch's body ends inside a header", WireCode.TRUNCATED)
        try:
            name = body[at + 1 : value_at].decode()
        except UnicodeDecodeError:
            raise WireError("a header's name is not valid UTF-8") from None
        (value_bytes,) = _VALUE_LENGTH.unpack_from(body, value_at)
        at = value_at + 2 + value_bytes
        if at > size:
            raise WireError("the batch's body ends inside a header", WireCode.TRUNCATED)
        if at - start > MAX_RECORD_HEADERS_BYTES:
            raise _headers_too_large(at - start)
        _check_name(name, found)
        found[name] = body[value_at + 2 : at]
    return tuple(found.items()), at


def _encode_headers(headers: Headers) -> bytes:
    parts: list[bytes] = []
    names: dict[str, bytes] = {}
    size_bytes = 0
    for name, value in headers:
        encoded = utf8(name, MAX_HEADER_NAME_BYTES, "a header's name")
        _check_name(name, names)
        names[name] = value
        size_bytes += _HEADER_OVERHEAD_BYTES + len(encoded) + len(value)
        if size_bytes > MAX_RECORD_HEADERS_BYTES:
            raise _headers_too_large(size_bytes)
        parts += (bytes((len(encoded),)), encoded, _VALUE_LENGTH.pack(len(value)), value)
    return b"".join(parts)


def _check_name(name: str, others: dict[str, bytes]) -> None:
    if not name:
        raise WireError("a header has no name")
    if name in others:
        raise WireError("two headers of a record have the same name")


def _record_head(value_bytes: int, key: bytes | None, header_count: int) -> bytes:
    key_bytes = 0 if key is None else len(key)
    if key_bytes > MAX_KEY_BYTES:
        raise WireError(f"a key of {key_bytes} bytes exceeds {MAX_KEY_BYTES}", WireCode.TOO_LARGE)
    if key_bytes + value_bytes > MAX_RECORD_BYTES:
        raise _record_too_large(key_bytes + value_bytes)
    if header_count > MAX_HEADERS:
        raise WireError(f"a record of {header_count} headers exceeds {MAX_HEADERS}", WireCode.TOO_LARGE)
    return _RECORD.pack(header_count, _NO_KEY if key is None else key_bytes, value_bytes)


def _record_too_large(size_bytes: int) -> WireError:
    return WireError(f"a record of {size_bytes} bytes exceeds {MAX_RECORD_BYTES}", WireCode.TOO_LARGE)


def _headers_too_large(size_bytes: int) -> WireError:
    return WireError(
        f"the headers of a record take {size_bytes} bytes, more than {MAX_RECORD_HEADERS_BYTES}", WireCode.TOO_LARGE
    )


def _too_large(body_bytes: int) -> WireError:
    return WireError(f"a batch body of {body_bytes} bytes exceeds {MAX_BODY_BYTES}", WireCode.TOO_LARGE)
