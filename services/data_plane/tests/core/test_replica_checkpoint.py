"""Checkpoints as bytes, and when one is due."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh_data.core.offset_index import IndexImage, OffsetIndex, Position
from mesh_data.core.replica_checkpoint import (
    DISTANCE_ALL_BYTES,
    DISTANCE_BYTES,
    WRITTEN_SHARE,
    ReplicaCheckpoint,
    Unsaved,
    decode_checkpoint,
    due,
    encode_checkpoint,
)
from meshcommon.ids import MemberId, StreamId
from meshwire.errors import WireCode, WireError

numbers = st.integers(0, 2**64 - 1)


@st.composite
def checkpoints(draw: st.DrawFn) -> ReplicaCheckpoint:
    marks = draw(st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=20))
    offsets, indexes, times = (array("Q", column) for column in zip(*marks, strict=True))
    image = IndexImage(
        offsets, indexes, times, array("Q", draw(st.lists(numbers))), draw(numbers), draw(st.integers(0, 2**32 - 1))
    )
    return ReplicaCheckpoint(
        StreamId(draw(numbers)),
        MemberId(draw(numbers)),
        draw(numbers),
        draw(st.binary()),
        draw(st.binary()),
        draw(st.dictionaries(numbers, st.binary(), max_size=4)),
        image,
    )


@given(checkpoints())
def test_what_was_written_is_read(checkpoint: ReplicaCheckpoint) -> None:
    assert decode_checkpoint(encode_checkpoint(checkpoint)) == checkpoint


@given(checkpoints(), st.data())
def test_any_damage_is_noticed(checkpoint: ReplicaCheckpoint, data: st.DataObject) -> None:
    whole = encode_checkpoint(checkpoint)
    with pytest.raises(WireError):
        decode_checkpoint(whole[: data.draw(st.integers(0, len(whole) - 1))])
    # Byte 3 is not used yet.
    at = data.draw(st.integers(0, len(whole) - 1).filter(lambda at: at != 3))
    damaged = bytearray(whole)
    damaged[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(WireError):
        decode_checkpoint(bytes(damaged))


def test_another_version_is_refused() -> None:
    image = OffsetIndex(Position(0, 2, 0)).image()
    data = bytearray(encode_checkpoint(ReplicaCheckpoint(StreamId(1), MemberId(2), 3, b"", b"", {}, image)))
    data[2] = 9
    with pytest.raises(WireError) as refused:
        decode_checkpoint(bytes(data))
    assert refused.value.code == WireCode.BAD_VERSION


def test_the_image_of_an_index_does_not_change_with_it() -> None:
    index = OffsetIndex(Position(0, 2, 0))
    for number in range(1000):
        index.append(Position(number, number + 2, number), 100)
    index.refuse(1002)
    before, copy = index.image(), index.image()
    for number in range(1000, 2000):
        index.append(Position(number, number + 3, number), 100)
    assert before == copy
    again = OffsetIndex.of(before)
    for number in range(1000, 2000):
        again.append(Position(number, number + 3, number), 100)
    assert again.image() == index.image()


def test_a_checkpoint_is_due_after_its_distance() -> None:
    assert due([("a", Unsaved(DISTANCE_BYTES - 1, 0))]) is None
    assert due([("a", Unsaved(DISTANCE_BYTES, 0)), ("b", Unsaved(DISTANCE_BYTES + 1, 0))]) == "b"
    assert due([]) is None


def test_many_small_replicas_take_turns_and_large_checkpoints_wait() -> None:
    each = DISTANCE_ALL_BYTES // 100
    assert due([(name, Unsaved(each, 0)) for name in range(99)]) is None
    assert due([*((name, Unsaved(each, 0)) for name in range(100)), (100, Unsaved(each + 1, 0))]) == 100
    assert due([("large", Unsaved(DISTANCE_BYTES, DISTANCE_BYTES // WRITTEN_SHARE + 1))]) is None
    assert due([("large", Unsaved(2 * DISTANCE_BYTES, 2 * DISTANCE_BYTES // WRITTEN_SHARE))]) == "large"
