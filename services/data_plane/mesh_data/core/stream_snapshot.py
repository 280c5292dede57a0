"""Bytes of a stream group's state: deterministic, versioned, checksummed.

Purpose: what a group stores at its floor and sends to a member that comes late. Equal states give equal bytes. Leaves
out: how the state came about (`stream_state`). Source: architecture §7 "DSG".

Layout (network byte order)::

    magic "MS", version u8, zero u8, crc32c u32 of the rest,
    config   stream id u64, retained bytes max u64, checkpoint bytes u64, producers max u32
    state    applied index u64, next offset u64, time u64, total bytes u64, sealed revision u64, chain 32 bytes,
             members revision u64 (version 2)
    floor    a checkpoint: index u64, offset u64, time u64, total bytes u64
    count u32, checkpoints
    count u32, producers: id u64, epoch u32, next sequence u64, used index u64, name length u8, run count u8,
               name, runs: sequence u64, offset u64, count u64
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Any, Final

from crc32c import crc32c

from mesh_data.core.producers import RUNS_MAX, Producer, Run
from meshcommon.ids import StreamId
from meshwire.errors import WireCode, WireError

MAGIC: Final = b"MS"
VERSION: Final = 2
_WITHOUT_MEMBERS: Final = 1
"""Version that did not know the revision of the members; still read."""
RETAINED_BYTES_DEFAULT: Final = 8 * 1024**3
CHECKPOINT_BYTES_MIN: Final = 8 * 1024**2
PRODUCERS_MAX: Final = 10_000

_LEAD: Final = Struct("!2sBBI")
_CONFIG: Final = Struct("!QQQI")
_STATE: Final = Struct("!QQQQQ32s")
_MEMBERS: Final = Struct("!Q")
_CHECKPOINT: Final = Struct("!QQQQ")
_COUNT: Final = Struct("!I")
_PRODUCER: Final = Struct("!QIQQBB")
_RUN: Final = Struct("!QQQ")


@dataclass(frozen=True, slots=True)
class StreamConfig:
    """Constants of a group. They are in its first snapshot, so that all members, late ones too, have the same.

    Attributes:
        stream_id: the stream.
        retained_bytes_max: the leader moves the floor when more is retained.
        checkpoint_bytes: bytes of entries between two checkpoints.
        producers_max: beyond it the longest unused producer expires.
    """

    stream_id: StreamId
    retained_bytes_max: int
    checkpoint_bytes: int
    producers_max: int = PRODUCERS_MAX

    @classmethod
    def of(cls, stream_id: StreamId, retained_bytes_max: int) -> StreamConfig:
        """The config of a stream of the catalogue; a cap of 0 is the default."""
        cap = retained_bytes_max or RETAINED_BYTES_DEFAULT
        return cls(stream_id, cap, max(cap // 8, CHECKPOINT_BYTES_MIN))

    def encode(self) -> bytes:
        """Fixed-size bytes."""
        return _CONFIG.pack(self.stream_id, self.retained_bytes_max, self.checkpoint_bytes, self.producers_max)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A log index at which every member kept a snapshot.

    Attributes:
        index: log index, applied.
        offset: next offset there.
        time_ms: state time there.
        total_bytes: bytes of entries applied since the stream began.
    """

    index: int
    offset: int
    time_ms: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything in a state; see `StreamState` for the meaning of the fields."""

    config: StreamConfig
    applied_index: int
    next_offset: int
    time_ms: int
    total_bytes: int
    sealed_revision: int
    chain: bytes
    members_revision: int
    floor: Checkpoint
    checkpoints: tuple[Checkpoint, ...]
    producers: tuple[Producer, ...]


def encode_snapshot(snapshot: Snapshot) -> bytes:
    """Bytes of a state."""
    parts = [
        snapshot.config.encode(),
        _STATE.pack(
            snapshot.applied_index,
            snapshot.next_offset,
            snapshot.time_ms,
            snapshot.total_bytes,
            snapshot.sealed_revision,
            snapshot.chain,
        ),
        _MEMBERS.pack(snapshot.members_revision),
        _encode_checkpoint(snapshot.floor),
        _COUNT.pack(len(snapshot.checkpoints)),
        *map(_encode_checkpoint, snapshot.checkpoints),
        _COUNT.pack(len(snapshot.producers)),
    ]
    for producer in snapshot.producers:
        name = producer.name.encode()
        parts.append(
            _PRODUCER.pack(
                producer.producer_id,
                producer.epoch,
                producer.next_sequence,
                producer.used_index,
                len(name),
                len(producer.runs),
            )
        )
        parts.append(name)
        parts += [_RUN.pack(run.sequence, run.offset, run.count) for run in producer.runs]
    body = b"".join(parts)
    return _LEAD.pack(MAGIC, VERSION, 0, crc32c(body)) + body


def _encode_checkpoint(checkpoint: Checkpoint) -> bytes:
    return _CHECKPOINT.pack(checkpoint.index, checkpoint.offset, checkpoint.time_ms, checkpoint.total_bytes)


def decode_snapshot(data: bytes) -> Snapshot:
    """State from bytes.

    Raises:
        WireError: BAD_MAGIC, BAD_VERSION, BAD_CHECKSUM, TRUNCATED or BAD_FIELD.
    """
    if len(data) < _LEAD.size:
        raise WireError("the snapshot is too short", WireCode.TRUNCATED)
    magic, version, _, checksum = _LEAD.unpack_from(data)
    if magic != MAGIC:
        raise WireError("these bytes are not a stream's snapshot", WireCode.BAD_MAGIC)
    if version not in (VERSION, _WITHOUT_MEMBERS):
        raise WireError(f"snapshot version {version} is not {VERSION}", WireCode.BAD_VERSION)
    body = memoryview(data)[_LEAD.size :]
    if crc32c(body) != checksum:
        raise WireError("the snapshot's checksum does not match its bytes", WireCode.BAD_CHECKSUM)
    reader = _Reader(body)
    stream_id, retained, checkpoint_bytes, producers_max = reader.take(_CONFIG)
    applied_index, next_offset, time_ms, total_bytes, sealed_revision, chain = reader.take(_STATE)
    members_revision = 0 if version == _WITHOUT_MEMBERS else reader.take(_MEMBERS)[0]
    floor = Checkpoint(*reader.take(_CHECKPOINT))
    checkpoints = tuple(Checkpoint(*reader.take(_CHECKPOINT)) for _ in range(reader.take(_COUNT)[0]))
    producers = tuple(_read_producer(reader) for _ in range(reader.take(_COUNT)[0]))
    reader.finish()
    return Snapshot(
        StreamConfig(StreamId(stream_id), retained, checkpoint_bytes, producers_max),
        applied_index=applied_index,
        next_offset=next_offset,
        time_ms=time_ms,
        total_bytes=total_bytes,
        sealed_revision=sealed_revision,
        chain=chain,
        members_revision=members_revision,
        floor=floor,
        checkpoints=checkpoints,
        producers=producers,
    )


def _read_producer(reader: _Reader) -> Producer:
    producer_id, epoch, next_sequence, used_index, name_bytes, run_count = reader.take(_PRODUCER)
    if run_count > RUNS_MAX:
        raise WireError(f"{run_count} runs of a producer exceed {RUNS_MAX}")
    name = reader.text(name_bytes)
    runs = [Run(*reader.take(_RUN)) for _ in range(run_count)]
    return Producer(producer_id, name, epoch, next_sequence, used_index, runs)


class _Reader:
    """Unpacks structures from the front of a buffer."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    def take(self, layout: Struct) -> tuple[Any, ...]:
        start = self._advance(layout.size)
        return layout.unpack_from(self._data, start)

    def text(self, size_bytes: int) -> str:
        start = self._advance(size_bytes)
        try:
            return str(self._data[start : self._at], "utf-8")
        except UnicodeDecodeError:
            raise WireError("a producer's name is not valid UTF-8") from None

    def finish(self) -> None:
        if self._at != len(self._data):
            raise WireError("bytes follow the end of the snapshot")

    def _advance(self, count: int) -> int:
        start = self._at
        if start + count > len(self._data):
            raise WireError("the snapshot ends too early", WireCode.TRUNCATED)
        self._at = start + count
        return start
