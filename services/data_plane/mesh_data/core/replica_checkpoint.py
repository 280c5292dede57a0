"""What a replica keeps on its own disk so that a restart replays only what came after: bytes, and when to write them.

A checkpoint is the replica's state and offset index at one applied index, with the applied state at which Raft opens the group
again. It is a short cut, never the truth: one that is damaged, of another member, or that the log does not bear out is
passed over, and replaying the retained log gives the same state. Leaves out: files (`checkpoint_files`).

Not to be mixed up with the state's own checkpoints (`stream_state`), which are replicated: every member has those at the same
indexes, and the floor moves to them. Their snapshots are in here, because the floor may move to one after a restart.

Layout (network byte order)::

    magic "MC", version u8, zero u8, crc32c u32 of the rest,
    stream id u64, member id u64, applied index u64, state size u64, applied state size u32, kept snapshots u32,
    applied state, state,
    kept snapshots: index u64, size u64, bytes
    marks u64, refused u64, bytes since the last mark u64, entries since u32,
    marks' offsets u64 each, marks' indexes, marks' times, refused indexes
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from struct import Struct
from typing import Any, Final, TypeVar

from crc32c import crc32c

from mesh_data.core.offset_index import IndexImage
from meshcommon.ids import MemberId, StreamId
from meshwire.errors import WireCode, WireError

MAGIC: Final = b"MC"
VERSION: Final = 1
DISTANCE_BYTES: Final = 64 * 1024**2
"""A replica is due when it has applied so much since its last checkpoint: about 0.3 s of replay."""
DISTANCE_ALL_BYTES: Final = 256 * 1024**2
"""Many small replicas: past this sum the one that has most is due."""
WRITTEN_SHARE: Final = 16
"""Checkpoints are written at most as often as makes them this part of what is applied: a large one waits longer."""
CLOSING_BYTES: Final = 1024**2
"""At a clean stop a replica that has applied less than this writes nothing: replaying is as quick."""

_LEAD: Final = Struct("!2sBBI")
_HEAD: Final = Struct("!QQQQII")
_KEPT: Final = Struct("!QQ")
_INDEX: Final = Struct("!QQQI")
_U64_BYTES: Final = 8

Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class ReplicaCheckpoint:
    """One replica at one index.

    Attributes:
        stream_id: the stream.
        member_id: whose log it goes with.
        applied_index: where the state is.
        applied_state: for `RaftHost.open_group`.
        state: a snapshot of the stream's state (`stream_snapshot`).
        kept: snapshots of the state's checkpoints above the floor, by log index.
        index: the offset index.
    """

    stream_id: StreamId
    member_id: MemberId
    applied_index: int
    applied_state: bytes
    state: bytes
    kept: dict[int, bytes]
    index: IndexImage


@dataclass(frozen=True, slots=True)
class Unsaved:
    """What a replica has applied since its last checkpoint, and how large that one was."""

    applied_bytes: int
    saved_bytes: int


def due(replicas: Iterable[tuple[Key, Unsaved]]) -> Key | None:
    """The replica whose checkpoint should be written next, or None."""
    total_bytes, most_bytes = 0, 0
    chosen: Key | None = None
    for key, unsaved in replicas:
        total_bytes += unsaved.applied_bytes
        if unsaved.applied_bytes > most_bytes and unsaved.applied_bytes >= WRITTEN_SHARE * unsaved.saved_bytes:
            chosen, most_bytes = key, unsaved.applied_bytes
    return chosen if most_bytes >= DISTANCE_BYTES or total_bytes >= DISTANCE_ALL_BYTES else None


def encode_checkpoint(checkpoint: ReplicaCheckpoint) -> bytes:
    """Bytes of a checkpoint. May take tens of milliseconds: not for the event loop."""
    index = checkpoint.index
    parts = [
        _HEAD.pack(
            checkpoint.stream_id,
            checkpoint.member_id,
            checkpoint.applied_index,
            len(checkpoint.state),
            len(checkpoint.applied_state),
            len(checkpoint.kept),
        ),
        checkpoint.applied_state,
        checkpoint.state,
    ]
    for at, snapshot in sorted(checkpoint.kept.items()):
        parts += (_KEPT.pack(at, len(snapshot)), snapshot)
    parts.append(_INDEX.pack(len(index.offsets), len(index.refused), index.bytes_since, index.entries_since))
    parts += [_network_bytes(numbers) for numbers in (index.offsets, index.indexes, index.times, index.refused)]
    body = b"".join(parts)
    return _LEAD.pack(MAGIC, VERSION, 0, crc32c(body)) + body


def decode_checkpoint(data: bytes) -> ReplicaCheckpoint:
    """A checkpoint from bytes; the state in it is opened by `StreamState.restore`.

    Raises:
        WireError: BAD_MAGIC, BAD_VERSION, BAD_CHECKSUM, TRUNCATED or BAD_FIELD.
    """
    if len(data) < _LEAD.size:
        raise WireError("the checkpoint is too short", WireCode.TRUNCATED)
    magic, version, _, checksum = _LEAD.unpack_from(data)
    if magic != MAGIC:
        raise WireError("these bytes are not a replica's checkpoint", WireCode.BAD_MAGIC)
    if version != VERSION:
        raise WireError(f"checkpoint version {version} is not {VERSION}", WireCode.BAD_VERSION)
    body = memoryview(data)[_LEAD.size :]
    if crc32c(body) != checksum:
        raise WireError("the checkpoint's checksum does not match its bytes", WireCode.BAD_CHECKSUM)
    reader = _Reader(body)
    stream_id, member_id, applied_index, state_bytes, applied_state_bytes, kept_count = reader.take(_HEAD)
    applied_state, state = reader.bytes(applied_state_bytes), reader.bytes(state_bytes)
    kept: dict[int, bytes] = {}
    for _ in range(kept_count):
        at, size_bytes = reader.take(_KEPT)
        kept[at] = reader.bytes(size_bytes)
    marks, refused, bytes_since, entries_since = reader.take(_INDEX)
    if not marks:
        raise WireError("the offset index has no mark")
    image = IndexImage(
        offsets=reader.numbers(marks),
        indexes=reader.numbers(marks),
        times=reader.numbers(marks),
        refused=reader.numbers(refused),
        bytes_since=bytes_since,
        entries_since=entries_since,
    )
    reader.finish()
    return ReplicaCheckpoint(StreamId(stream_id), MemberId(member_id), applied_index, applied_state, state, kept, image)


def _network_bytes(numbers: array[int]) -> bytes:
    if sys.byteorder == "little":
        numbers = numbers[:]
        numbers.byteswap()
    return numbers.tobytes()


class _Reader:
    """Unpacks parts from the front of a buffer."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    def take(self, layout: Struct) -> tuple[Any, ...]:
        return layout.unpack(self._part(layout.size))

    def bytes(self, size_bytes: int) -> bytes:
        return bytes(self._part(size_bytes))

    def numbers(self, count: int) -> array[int]:
        numbers = array("Q", self.bytes(count * _U64_BYTES))
        if sys.byteorder == "little":
            numbers.byteswap()
        return numbers

    def finish(self) -> None:
        if self._at != len(self._data):
            raise WireError("bytes follow the end of the checkpoint")

    def _part(self, size_bytes: int) -> memoryview:
        start = self._at
        if size_bytes > len(self._data) - start:
            raise WireError("the checkpoint ends too early", WireCode.TRUNCATED)
        self._at = start + size_bytes
        return self._data[start : self._at]
