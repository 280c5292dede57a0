"""The record batch, format 2: a clear header, and a body that nobody between producer and reader opens.

Purpose: hops, logs and replicas handle a batch by its header alone; the body may be compressed and, in a later version,
sealed under a tenant's key. Leaves out: the body (`records`), offsets and append times (the log's entry gives them, outside of
the batch, so that nobody has to change a byte of it). Source: ADR 0014 and docs/design/batches.md; the idea is Kafka's
record batch.

Layout (network byte order)::

     0 magic "MB"       8 count u32                   29 uncompressed size u32   54 nonce 12 bytes
     2 format u8, 2    12 first timestamp ms u64      33 suite u8                66 producer id u64
     3 flags u8        20 greatest timestamp ms u64   34 key version u32         74 epoch u32
     4 crc32c u32      28 codec u8                    38 salt 16 bytes           78 base sequence u64
                                                                                 86 body

The checksum covers every byte from offset 8. Flag 1 marks a chunk of a larger message. Suite 0 means that the body is not
sealed; then key version, salt and nonce are zero. This version refuses chunks and every other suite as of a later version.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from struct import Struct
from typing import Final, NamedTuple

from crc32c import crc32c

from meshwire.buffers import Buffer
from meshwire.errors import WireCode, WireError

MAGIC: Final = b"MB"
FORMAT: Final = 2
FLAG_CHUNK: Final = 1
"""The batch is a part of a message that is larger than a batch. Kept for large messages, refused until they exist."""

_BEGINNING: Final = MAGIC + bytes((FORMAT, 0))
"""Magic, format and flags of every batch that this version takes."""
_UNSEALED: Final = bytes(33)
"""Suite, key version, salt and nonce of a body that is not sealed."""
_LEAD: Final = Struct("!4sI")
_COVERED: Final = Struct("!IQQBI33xQIQ")
_HEADER: Final = Struct("!4sIIQQBI33sQIQ")

HEADER_BYTES: Final = _HEADER.size
RECORD_OVERHEAD_BYTES: Final = 7
"""What a record takes at least, beyond its key, value and headers."""
MAX_RECORD_BYTES: Final = 1024 * 1024
"""Largest record, key and value together."""
MAX_RECORD_HEADERS_BYTES: Final = 16 * 1024
"""Largest headers of one record, with what each of them takes besides its name and value."""
MAX_BODY_BYTES: Final = MAX_RECORD_BYTES + MAX_RECORD_HEADERS_BYTES + RECORD_OVERHEAD_BYTES
"""Largest body as it is stored. A batch has room for one record of the largest size."""
MAX_UNCOMPRESSED_BYTES: Final = 16 * 1024 * 1024
"""Largest body once it is decompressed; so much memory a reader may need for one batch."""
MAX_BATCH_BYTES: Final = HEADER_BYTES + MAX_BODY_BYTES
MAX_RECORDS: Final = 65_536
TIMESTAMP_MS_MAX: Final = (1 << 63) - 1
_SEQUENCE_END: Final = 1 << 64


class Codec(IntEnum):
    """How a body is compressed."""

    NONE = 0
    ZSTD = 1


_NONE: Final = int(Codec.NONE)
_ZSTD: Final = int(Codec.ZSTD)


class BatchHeader(NamedTuple):
    """Everything about a batch but its records. A tuple because each node builds one for each batch that passes.

    Attributes:
        crc32c: checksum as stored.
        record_count: 1 to `MAX_RECORDS`. What the body holds is known only to who opens it.
        first_timestamp_ms: the producer's clock when it took the first record, milliseconds since 1970. Nobody relies on it.
        greatest_timestamp_ms: the same of the latest record.
        codec: see `Codec`.
        uncompressed_bytes: length of the body once it is decompressed, at most `MAX_UNCOMPRESSED_BYTES`.
        producer_id: log index of the producer's InitProducer; 0 means no producer, hence no deduplication.
        producer_epoch: fences earlier runs of the same producer.
        base_sequence: the first record's sequence; the others follow it without a gap.
    """

    crc32c: int
    record_count: int
    first_timestamp_ms: int
    greatest_timestamp_ms: int
    codec: int
    uncompressed_bytes: int
    producer_id: int
    producer_epoch: int
    base_sequence: int

    @property
    def last_sequence(self) -> int:
        """The last record's sequence."""
        return self.base_sequence + self.record_count - 1


def assemble(
    body: bytes,
    *,
    record_count: int,
    uncompressed_bytes: int,
    codec: Codec = Codec.NONE,
    timestamps_ms: tuple[int, int] = (0, 0),
    producer_id: int = 0,
    producer_epoch: int = 0,
    base_sequence: int = 0,
) -> bytes:
    """Bytes of a batch around a body that is encoded already. `timestamps_ms`: the first and the greatest.

    Raises:
        WireError: BAD_FIELD or TOO_LARGE when `decode_header` would refuse the result.
    """
    if not _fits(len(body), codec, uncompressed_bytes, record_count, base_sequence, timestamps_ms):
        raise _misfit(len(body), codec, uncompressed_bytes, record_count, base_sequence, timestamps_ms)
    first_ms, greatest_ms = timestamps_ms
    try:
        covered = _COVERED.pack(
            record_count, first_ms, greatest_ms, codec, uncompressed_bytes, producer_id, producer_epoch, base_sequence
        )
    except struct.error as error:
        raise WireError(f"a batch field does not fit its width: {error}") from None
    return b"".join((_LEAD.pack(_BEGINNING, crc32c(body, crc32c(covered))), covered, body))


def decode_header(data: Buffer, verify: bool = False) -> BatchHeader:
    """Header of a batch; `data` must hold exactly the whole batch. The body is not opened.

    Args:
        data: the batch.
        verify: also compare the checksum, which reads every byte.

    Raises:
        WireError: BAD_MAGIC, BAD_VERSION, TRUNCATED, TOO_LARGE, BAD_FIELD, or BAD_CHECKSUM with `verify`.
    """
    size_bytes = len(data)
    if size_bytes < HEADER_BYTES:
        raise too_short(data)
    (
        beginning, checksum, count, first_ms, greatest_ms, codec, uncompressed_bytes, seal,
        producer_id, epoch, base_sequence,
    ) = _HEADER.unpack_from(data)  # fmt: skip
    if beginning != _BEGINNING:
        raise _foreign(beginning)
    if codec > _ZSTD or seal != _UNSEALED:
        raise _later(codec, seal)
    body_bytes = size_bytes - HEADER_BYTES
    times_ms = (first_ms, greatest_ms)
    if not _fits(body_bytes, codec, uncompressed_bytes, count, base_sequence, times_ms):
        raise _misfit(body_bytes, codec, uncompressed_bytes, count, base_sequence, times_ms)
    if verify and crc32c(memoryview(data)[_LEAD.size :]) != checksum:
        raise WireError("the batch's checksum does not match its bytes", WireCode.BAD_CHECKSUM)
    return BatchHeader(
        checksum, count, first_ms, greatest_ms, codec, uncompressed_bytes, producer_id, epoch, base_sequence
    )


def too_short(data: Buffer) -> WireError:
    """Why fewer bytes than a header's are no batch: one of another format, whose header may be shorter, is called by it."""
    if len(data) > 3 and data[:2] == MAGIC and data[2] != FORMAT:
        return _foreign(bytes(data[:4]))
    return WireError(f"{len(data)} bytes are too short for a batch", WireCode.TRUNCATED)


def _foreign(beginning: bytes) -> WireError:
    if beginning[:2] != MAGIC:
        return WireError("these bytes are not a record batch", WireCode.BAD_MAGIC)
    if beginning[2] != FORMAT:
        return WireError(f"batch format {beginning[2]} is not {FORMAT}", WireCode.BAD_VERSION)
    return WireError(f"batch flags {beginning[3]:#x} are of a later version", WireCode.BAD_VERSION)


def _later(codec: int, seal: bytes) -> WireError:
    suite = seal[0]
    if codec > _ZSTD or suite:
        return WireError(f"batch codec {codec} with suite {suite} is of a later version", WireCode.BAD_VERSION)
    return WireError("the batch has a key version, salt or nonce but no suite")


def _fits(
    body_bytes: int, codec: int, uncompressed_bytes: int, count: int, base_sequence: int, times_ms: tuple[int, int]
) -> bool:
    """Whether the numbers of a header are within their limits and agree. One look, for every batch; `_misfit` says why not."""
    return (
        body_bytes <= MAX_BODY_BYTES
        and (uncompressed_bytes == body_bytes if codec == _NONE else uncompressed_bytes <= MAX_UNCOMPRESSED_BYTES)
        and 0 < count <= MAX_RECORDS
        and count * RECORD_OVERHEAD_BYTES <= uncompressed_bytes
        and base_sequence + count <= _SEQUENCE_END
        and 0 <= times_ms[0] <= times_ms[1] <= TIMESTAMP_MS_MAX
    )


def _misfit(
    body_bytes: int, codec: int, uncompressed_bytes: int, count: int, base_sequence: int, times_ms: tuple[int, int]
) -> WireError:
    if body_bytes > MAX_BODY_BYTES:
        return WireError(f"a batch body of {body_bytes} bytes exceeds {MAX_BODY_BYTES}", WireCode.TOO_LARGE)
    if uncompressed_bytes > MAX_UNCOMPRESSED_BYTES:
        text = f"a batch body of {uncompressed_bytes} uncompressed bytes exceeds {MAX_UNCOMPRESSED_BYTES}"
        return WireError(text, WireCode.TOO_LARGE)
    if not count:
        return WireError("a batch holds at least one record")
    if count > MAX_RECORDS:
        return WireError(f"a batch of {count} records exceeds {MAX_RECORDS}", WireCode.TOO_LARGE)
    if codec == _NONE and uncompressed_bytes != body_bytes:
        code = WireCode.TRUNCATED if body_bytes < uncompressed_bytes else WireCode.BAD_FIELD
        return WireError(f"the batch's body has {body_bytes} bytes, its header says {uncompressed_bytes}", code)
    if count * RECORD_OVERHEAD_BYTES > uncompressed_bytes:
        return WireError(f"{count} records cannot fit a body of {uncompressed_bytes} bytes")
    if base_sequence + count > _SEQUENCE_END:
        return WireError("the batch's last sequence does not fit 64 unsigned bits")
    return WireError(f"the batch's timestamps {times_ms[0]} and {times_ms[1]} are not in order")
