"""The record batch: what a producer sends, a group commits as one log entry, and a reader gets back unchanged.

Purpose: many records behind one header and one checksum, so that a hop, a log or a replica handles a batch without looking
inside. Leaves out: offsets and time (the log gives them), compression and encryption (a flag of a later version), and
record headers. Source: architecture, "Consensus" and "Streams"; the idea is Kafka's record batch.

Layout (network byte order)::

    0 magic "MB"   3 flags u8, zero   8  producer id u64      20 base sequence u64   32 body length u32
    2 version u8   4 crc32c u32       16 producer epoch u32   28 record count u32    36 body

    record: key length u16 (0xFFFF: no key), key, value length u32, value

The checksum covers every byte from offset 8.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Final, NamedTuple

from crc32c import crc32c

from meshwire.buffers import Buffer
from meshwire.errors import WireCode, WireError

MAGIC: Final = b"MB"
VERSION: Final = 1

_LEAD: Final = Struct("!2sBBI")
_COVERED: Final = Struct("!QIQII")
_HEADER: Final = Struct("!2sBBIQIQII")
_RECORD: Final = Struct("!HI")
_U16: Final = Struct("!H")
_U32: Final = Struct("!I")
_NO_KEY: Final = 0xFFFF

HEADER_BYTES: Final = _HEADER.size
RECORD_OVERHEAD_BYTES: Final = _RECORD.size
"""What a record takes beyond its key and value."""
MAX_RECORD_BYTES: Final = 1024 * 1024
"""Largest record, key and value together."""
MAX_KEY_BYTES: Final = _NO_KEY - 1
MAX_BODY_BYTES: Final = MAX_RECORD_BYTES + RECORD_OVERHEAD_BYTES
"""A batch has room for one record of the largest size."""
MAX_BATCH_BYTES: Final = HEADER_BYTES + MAX_BODY_BYTES
MAX_RECORDS: Final = 65_536


@dataclass(frozen=True, slots=True)
class Record:
    """One message: an opaque value, and optionally a key, which may be empty."""

    value: bytes
    key: bytes | None = None


class BatchHeader(NamedTuple):
    """Everything about a batch but its records. A tuple because each node builds one for each batch that passes.

    Attributes:
        version: always `VERSION`.
        flags: always 0 in this version.
        crc32c: checksum as stored.
        producer_id: log index of the producer's InitProducer; 0 means no producer, hence no deduplication.
        producer_epoch: fences earlier runs of the same producer.
        base_sequence: the first record's sequence; the others follow it without a gap.
        record_count: 1 to `MAX_RECORDS`.
        body_bytes: length of what follows the header.
    """

    version: int
    flags: int
    crc32c: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    record_count: int
    body_bytes: int

    @property
    def last_sequence(self) -> int:
        """The last record's sequence."""
        return self.base_sequence + self.record_count - 1


class BatchBuilder:
    """Gathers records for one batch; each is encoded as it comes, so that closing the batch costs one join.

    Limits are those of `encode_batch`, and the same errors; a record that is refused leaves the batch as it was.
    """

    __slots__ = ("_parts", "body_bytes", "count")

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self.body_bytes = 0
        self.count = 0

    def append(self, value: bytes, key: bytes | None = None) -> None:
        """Adds a record.

        Raises:
            WireError: TOO_LARGE when the key or the record exceeds its limit, or the batch would.
        """
        added_bytes = RECORD_OVERHEAD_BYTES + len(value)
        if key is not None:
            added_bytes += len(key)
        if self.count == MAX_RECORDS or self.body_bytes + added_bytes > MAX_BODY_BYTES:
            raise _too_large((Record(value, key),), self.body_bytes + added_bytes)
        if key is None:
            self._parts += (_RECORD.pack(_NO_KEY, len(value)), value)
        else:
            _append_key(self._parts, key, len(value))
            self._parts.append(value)
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
                    if added_bytes > MAX_BODY_BYTES:
                        raise _too_large((Record(value),), added_bytes)
                    head = heads[size_bytes] = _RECORD.pack(_NO_KEY, size_bytes)
                parts.append(head)
                parts.append(value)
                body_bytes += added_bytes
                count += 1
                at += 1
        finally:
            self.body_bytes, self.count = body_bytes, count
        return at

    def encode(self, producer_id: int = 0, producer_epoch: int = 0, base_sequence: int = 0) -> bytes:
        """Bytes of the batch.

        Raises:
            WireError: BAD_FIELD when there is no record or a number does not fit its width.
        """
        _check_counts(self.count, base_sequence)
        try:
            covered = _COVERED.pack(producer_id, producer_epoch, base_sequence, self.count, self.body_bytes)
        except struct.error as error:
            raise WireError(f"a batch field does not fit its width: {error}") from None
        body = b"".join(self._parts)
        return b"".join((_LEAD.pack(MAGIC, VERSION, 0, crc32c(body, crc32c(covered))), covered, body))


def encode_batch(
    records: Sequence[Record], producer_id: int = 0, producer_epoch: int = 0, base_sequence: int = 0
) -> bytes:
    """Bytes of a batch of 1 to `MAX_RECORDS` records.

    Raises:
        WireError: TOO_LARGE when a key, a record, the number of records or the batch exceeds its limit; BAD_FIELD when
            there is no record or a number does not fit its width.
    """
    _check_counts(len(records), base_sequence)
    builder = BatchBuilder()
    for record in records:
        builder.append(record.value, record.key)
    return builder.encode(producer_id, producer_epoch, base_sequence)


def decode_header(data: Buffer, verify: bool = False) -> BatchHeader:
    """Header of a batch; `data` must hold exactly the whole batch.

    Args:
        data: the batch.
        verify: also compare the checksum, which reads every byte.

    Raises:
        WireError: BAD_MAGIC, BAD_VERSION, TRUNCATED, TOO_LARGE, BAD_FIELD, or BAD_CHECKSUM with `verify`.
    """
    if len(data) < HEADER_BYTES:
        raise WireError(f"{len(data)} bytes are too short for a batch", WireCode.TRUNCATED)
    magic, version, flags, checksum, producer_id, epoch, base_sequence, count, body_bytes = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise WireError("these bytes are not a record batch", WireCode.BAD_MAGIC)
    if version != VERSION:
        raise WireError(f"batch version {version} is not {VERSION}", WireCode.BAD_VERSION)
    if flags:
        raise WireError(f"batch flags {flags:#x} hold bits that version {VERSION} does not know")
    if body_bytes > MAX_BODY_BYTES:
        raise WireError(f"a batch body of {body_bytes} bytes exceeds {MAX_BODY_BYTES}", WireCode.TOO_LARGE)
    if len(data) < HEADER_BYTES + body_bytes:
        raise WireError("the batch ends inside its body", WireCode.TRUNCATED)
    if len(data) > HEADER_BYTES + body_bytes:
        raise WireError(f"{len(data) - HEADER_BYTES - body_bytes} bytes follow the end of the batch")
    _check_counts(count, base_sequence)
    if count * RECORD_OVERHEAD_BYTES > body_bytes:
        raise WireError(f"{count} records cannot fit a body of {body_bytes} bytes")
    if verify and crc32c(memoryview(data)[_LEAD.size :]) != checksum:
        raise WireError("the batch's checksum does not match its bytes", WireCode.BAD_CHECKSUM)
    return BatchHeader(version, flags, checksum, producer_id, epoch, base_sequence, count, body_bytes)


def decode_records(data: Buffer) -> list[Record]:
    """All records of a batch, checksum verified; keys and values are copies.

    Raises:
        WireError: as `decode_header`, and when the records do not fill the body exactly.
    """
    header, body = _verified_body(data)
    return [Record(value, key) for key, value in _iter_body(body, header.record_count)]


def check_records(data: Buffer) -> None:
    """Checks a batch to its last record, and keeps nothing.

    Raises:
        WireError: as `decode_records`.
    """
    header, body = _verified_body(data)
    for _ in _iter_body(body, header.record_count):
        pass


def iter_values(data: Buffer) -> Iterator[bytes]:
    """Values of a batch in order, without building records. The header and checksum are verified before this returns.

    Raises:
        WireError: as `decode_records`; for records that do not fill the body, only once the iteration gets there.
    """
    header, body = _verified_body(data)
    return (value for _, value in _iter_body(body, header.record_count))


def _verified_body(data: Buffer) -> tuple[BatchHeader, bytes]:
    header = decode_header(data, verify=True)
    return header, bytes(memoryview(data)[HEADER_BYTES:])


def _iter_body(body: bytes, count: int) -> Iterator[tuple[bytes | None, bytes]]:
    unpack = _RECORD.unpack_from
    size = len(body)
    at = 0
    for _ in range(count):
        if size - at < RECORD_OVERHEAD_BYTES:
            raise WireError("the batch's body ends inside a record", WireCode.TRUNCATED)
        # One unpack serves the common record without a key, whose value length follows at once.
        key_bytes, value_bytes = unpack(body, at)
        key: bytes | None = None
        if key_bytes == _NO_KEY:
            at += RECORD_OVERHEAD_BYTES
        else:
            if size - at < RECORD_OVERHEAD_BYTES + key_bytes:
                raise WireError("the batch's body ends inside a key", WireCode.TRUNCATED)
            key = body[at + 2 : at + 2 + key_bytes]
            (value_bytes,) = _U32.unpack_from(body, at + 2 + key_bytes)
            at += RECORD_OVERHEAD_BYTES + key_bytes
        if value_bytes > size - at:
            raise WireError("the batch's body ends inside a value", WireCode.TRUNCATED)
        yield key, body[at : at + value_bytes]
        at += value_bytes
    if at != size:
        raise WireError(f"{size - at} bytes follow the batch's last record")


def _append_key(parts: list[bytes], key: bytes, value_bytes: int) -> None:
    if len(key) > MAX_KEY_BYTES:
        raise WireError(f"a key of {len(key)} bytes exceeds {MAX_KEY_BYTES}", WireCode.TOO_LARGE)
    parts += (_U16.pack(len(key)), key, _U32.pack(value_bytes))


def _check_counts(count: int, base_sequence: int) -> None:
    if not count:
        raise WireError("a batch holds at least one record")
    if count > MAX_RECORDS:
        raise WireError(f"a batch of {count} records exceeds {MAX_RECORDS}", WireCode.TOO_LARGE)
    if base_sequence + count > 1 << 64:
        raise WireError("the batch's last sequence does not fit 64 unsigned bits")


def _too_large(records: Sequence[Record], body_bytes: int) -> WireError:
    largest = max(len(record.value) + len(record.key or b"") for record in records)
    if largest > MAX_RECORD_BYTES:
        return WireError(f"a record of {largest} bytes exceeds {MAX_RECORD_BYTES}", WireCode.TOO_LARGE)
    return WireError(f"a batch body of {body_bytes} bytes exceeds {MAX_BODY_BYTES}", WireCode.TOO_LARGE)
