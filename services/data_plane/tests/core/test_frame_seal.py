"""Sealed frames: only the next frame that the other side sealed opens, and keys are replaced by time and by bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh_data.core import frame_seal
from mesh_data.core.frame_seal import REKEY_S, FrameSeal
from meshwire.errors import WireError
from meshwire.frame import FRAME_SEALED, MAX_FRAME_BYTES, SEAL_OVERHEAD_BYTES, SEALED_HEAD_BYTES

ONE, OTHER = b"\x01" * 32, b"\x02" * 32


def pair() -> tuple[FrameSeal, FrameSeal]:
    return FrameSeal(ONE, OTHER), FrameSeal(OTHER, ONE)


def test_frames_pass_both_ways_and_show_nothing() -> None:
    here, there = pair()
    for at in range(5):
        frame = b"what a proxy must not read %d" % at
        sealed = here.seal(frame, 0.0)
        assert len(sealed) == len(frame) + SEAL_OVERHEAD_BYTES
        assert frame not in sealed
        assert there.open(sealed) == frame
        assert here.open(there.seal(frame, 0.0)) == frame


def test_equal_frames_look_different_each_time_and_in_each_direction() -> None:
    here, there = pair()
    assert len({here.seal(b"same", 0.0), here.seal(b"same", 0.0), there.seal(b"same", 0.0)}) == 3


@given(data=st.data())
def test_any_changed_bit_ends_the_lane(data: st.DataObject) -> None:
    here, there = pair()
    sealed = bytearray(here.seal(b"frame", 0.0))
    bit = data.draw(st.integers(0, 8 * len(sealed) - 1))
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(WireError):
        there.open(bytes(sealed))


def test_frame_that_is_doubled_lost_moved_or_sent_back_does_not_open() -> None:
    here, there = pair()
    first, second, third = (here.seal(b"frame", 0.0) for _ in range(3))
    assert there.open(first) == b"frame"
    for wrong in (first, third, second[:-1], second + b"\x00"):
        _, fresh = pair()
        assert fresh.open(first) == b"frame"
        with pytest.raises(WireError):
            fresh.open(wrong)
    with pytest.raises(WireError):
        here.open(first)
    assert there.open(second) == b"frame"


@pytest.mark.parametrize("size", [0, 1, SEALED_HEAD_BYTES, SEAL_OVERHEAD_BYTES - 1])
def test_truncated_frame_is_refused(size: int) -> None:
    here, there = pair()
    with pytest.raises(WireError):
        there.open(here.seal(b"frame", 0.0)[:size])


def test_frame_in_clear_is_refused_on_a_sealed_lane() -> None:
    _, there = pair()
    with pytest.raises(WireError, match="in clear"):
        there.open(b"\x02" + bytes(64))


def test_frame_beyond_the_largest_is_not_opened() -> None:
    _, there = pair()
    with pytest.raises(WireError, match="size"):
        there.open(bytes((FRAME_SEALED,)) + bytes(MAX_FRAME_BYTES + SEAL_OVERHEAD_BYTES))


def test_key_is_replaced_every_hour_and_the_old_one_opens_nothing_more() -> None:
    here, there = pair()
    old = here.seal(b"frame", 0.0)
    assert there.open(old) == b"frame"
    assert there.open(here.seal(b"frame", REKEY_S - 1)) == b"frame"
    assert here.generation == 0
    assert there.open(here.seal(b"frame", REKEY_S)) == b"frame"
    assert here.generation == 1
    assert there.open(here.seal(b"frame", REKEY_S + 1)) == b"frame"
    assert here.generation == 1
    with pytest.raises(WireError, match="another time"):
        there.open(old)


def test_key_is_replaced_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_seal, "REKEY_BYTES", 10)
    here, there = pair()
    for _ in range(5):
        assert there.open(here.seal(bytes(4), 0.0)) == bytes(4)
    assert here.generation == 2


def test_key_that_skips_a_generation_is_refused() -> None:
    here, there = pair()
    here.seal(b"first", 0.0)
    here.seal(b"second", 2 * REKEY_S)
    with pytest.raises(WireError):
        there.open(here.seal(b"third", 4 * REKEY_S))
