"""What a data stream group proposes to its Raft log: one typed command per log entry.

Purpose: commands that every member applies alike, because all that varies (time, names) is inside them. Leaves out: what
applying them does (the data plane's core), and the group's own configuration changes, which Raft encodes itself. Source:
architecture, "Consensus" (apply is deterministic) and "Streams".

*Time and offset* of a batch are not in it: the leader's stamp stands before it here, and its offset follows from the entries
before. So the leader changes no byte of a batch, which may be sealed.

*Versions*. The layout of a kind never changes: what a later version needs gets a new kind, or a new batch format. A kind is
proposed only when the mesh's committed version is at least the one that introduced it (`INTRODUCED`), so that every member
knows it. A member that meets one all the same (`decode_entry` fails with BAD_VERSION) stops applying there.

Layout (network byte order)::

    kind u8, then
    1 BATCH           stamp_ms u64, batch bytes to the end
    2 INIT_PRODUCER   stamp_ms u64, name length u8, name in UTF-8
    3 MOVE_FLOOR      index u64
    4 SEAL            revision u64
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Final, NamedTuple, TypeAlias

from meshwire.batch import HEADER_BYTES, MAX_BATCH_BYTES, decode_header, too_short
from meshwire.buffers import Buffer, Cursor, require_uint, utf8
from meshwire.errors import WireCode, WireError

MAX_PRODUCER_NAME_BYTES: Final = 255
_KIND_AND_U64: Final = Struct("!BQ")
BATCH_LEAD_BYTES: Final = _KIND_AND_U64.size
"""What an entry adds to its batch."""
MAX_ENTRY_BYTES: Final = _KIND_AND_U64.size + MAX_BATCH_BYTES


class EntryKind(IntEnum):
    """First byte of an entry."""

    BATCH = 1
    INIT_PRODUCER = 2
    MOVE_FLOOR = 3
    SEAL = 4


INTRODUCED: Final[dict[int, int]] = {
    EntryKind.BATCH: 1,
    EntryKind.INIT_PRODUCER: 1,
    EntryKind.MOVE_FLOOR: 1,
    EntryKind.SEAL: 1,
}
"""Mesh version that introduced each kind: no group proposes it before the mesh has that version."""
_BATCH: Final = int(EntryKind.BATCH)


class BatchEntry(NamedTuple):
    """Append a record batch. A tuple because each member builds one for each batch.

    Attributes:
        stamp_ms: the leader's clock, milliseconds since the epoch; applied time is max(previous, stamp).
        batch: the encoded batch, not looked into here. After `decode_entry` a view that shares memory with the input.
    """

    stamp_ms: int
    batch: bytes | memoryview


@dataclass(frozen=True, slots=True)
class InitProducerEntry:
    """Give out a producer id (this entry's log index) or, to a known name, the next epoch.

    Attributes:
        stamp_ms: the leader's clock, milliseconds since the epoch.
        name: the caller's stable name, at most 255 bytes of UTF-8; empty for a producer that is not to be recognised.
    """

    stamp_ms: int
    name: str


@dataclass(frozen=True, slots=True)
class MoveFloorEntry:
    """Forget log entries below `index`."""

    index: int


@dataclass(frozen=True, slots=True)
class SealEntry:
    """Accept nothing more: the stream was deleted at this revision of the catalogue."""

    revision: int


class BatchLine(NamedTuple):
    """A batch entry without its records: see `BatchEntry` and `meshwire.batch.BatchHeader`."""

    stamp_ms: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    record_count: int


Entry: TypeAlias = BatchEntry | InitProducerEntry | MoveFloorEntry | SealEntry


def encode_entry(entry: Entry) -> bytes:
    """Bytes of an entry.

    Raises:
        WireError: a number does not fit 64 bits, or the name or batch is too long.
    """
    match entry:
        case BatchEntry(stamp_ms, batch):
            return encode_batch_entry(stamp_ms, batch)
        case InitProducerEntry(stamp_ms, name):
            encoded = utf8(name, MAX_PRODUCER_NAME_BYTES, "the producer's name")
            return _lead(EntryKind.INIT_PRODUCER, stamp_ms, "stamp_ms") + bytes((len(encoded),)) + encoded
        case MoveFloorEntry(index):
            return _lead(EntryKind.MOVE_FLOOR, index, "index")
        case SealEntry(revision):
            return _lead(EntryKind.SEAL, revision, "revision")


def encode_batch_entry(stamp_ms: int, batch: bytes | memoryview) -> bytes:
    """Bytes of a `BatchEntry`, without building one.

    Raises:
        WireError: as `encode_entry`.
    """
    _check_batch_size(batch)
    return b"".join((_lead(EntryKind.BATCH, stamp_ms, "stamp_ms"), batch))


def decode_entry(data: Buffer) -> Entry:
    """Entry from bytes.

    Raises:
        WireError: the bytes are not exactly one well-formed entry; BAD_VERSION for a kind that only a later version knows.
    """
    if len(data) > _KIND_AND_U64.size and data[0] == _BATCH:
        # By far the most frequent, and on the hot path: without a cursor.
        _, stamp_ms = _KIND_AND_U64.unpack_from(data)
        batch = memoryview(data)[_KIND_AND_U64.size :]
        _check_batch_size(batch)
        return BatchEntry(stamp_ms, batch)
    cursor = Cursor(data)
    kind = cursor.u8("the entry's kind")
    if kind and kind not in INTRODUCED:
        raise WireError(f"entry kind {kind} is of a later version", WireCode.BAD_VERSION)
    number = cursor.u64("the entry's stamp, index or revision")
    if kind == EntryKind.BATCH:
        _check_batch_size(b"")
    if kind == EntryKind.INIT_PRODUCER:
        name = cursor.text(cursor.u8("the name's length"), "the producer's name")
        cursor.finish("the entry")
        return InitProducerEntry(number, name)
    if kind == EntryKind.MOVE_FLOOR:
        cursor.finish("the entry")
        return MoveFloorEntry(number)
    if kind == EntryKind.SEAL:
        cursor.finish("the entry")
        return SealEntry(number)
    raise WireError("entry kind 0 is never used")


def peek_batch(data: bytes) -> BatchLine | None:
    """What applying a batch needs; None for whatever `decode_entry` and `decode_header` would not both accept.

    Without a `BatchEntry`, because every member does this for every batch. The checksum is not compared here either.
    """
    if len(data) < BATCH_LEAD_BYTES or data[0] != _BATCH:
        return None
    _, stamp_ms = _KIND_AND_U64.unpack_from(data)
    try:
        header = decode_header(memoryview(data)[BATCH_LEAD_BYTES:])
    except WireError:
        return None
    return BatchLine(stamp_ms, header.producer_id, header.producer_epoch, header.base_sequence, header.record_count)


def introduced_in(data: bytes) -> int:
    """Mesh version from which on the encoded entry `data` may be proposed."""
    return INTRODUCED[data[0]]


def _lead(kind: EntryKind, number: int, field: str) -> bytes:
    return _KIND_AND_U64.pack(kind, require_uint(number, 64, field))


def _check_batch_size(batch: Buffer) -> None:
    if len(batch) < HEADER_BYTES:
        raise too_short(batch)
    if len(batch) > MAX_BATCH_BYTES:
        raise WireError(f"a batch of {len(batch)} bytes exceeds {MAX_BATCH_BYTES}", WireCode.TOO_LARGE)
