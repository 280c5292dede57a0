"""Lane timing with a clock of the test's own (RFC 6298 §2; architecture §5 "Detection")."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh_data.core.lane import BEATS_MAX, CONTROL_BYTES_MAX, ECHOES_MAX, Lane, encode_bye
from mesh_data.core.timing import OverlayTiming
from meshapi.overlay.v1 import lane_pb2
from meshcommon.ids import NodeId

TIMING = OverlayTiming()


def lane(now: float = 0.0) -> Lane:
    return Lane(1, NodeId(2), True, TIMING, now)


def sample(item: Lane, sent_at: float, rtt_s: float) -> None:
    """One beat at `sent_at`, answered after `rtt_s`."""
    item.tick(sent_at)
    beat = lane_pb2.LaneControl.FromString(item.take_outgoing()[-1]).beat
    item.receive(lane_pb2.LaneControl(echo=beat).SerializeToString(), sent_at + rtt_s)


def test_first_sample_follows_rfc_6298() -> None:
    item = lane()
    sample(item, 0.0, 0.08)
    assert item.srtt_s == pytest.approx(0.08)
    assert item.rttvar_s == pytest.approx(0.04)


def test_later_samples_follow_rfc_6298() -> None:
    item = lane()
    sample(item, 0.0, 0.08)
    sample(item, 0.1, 0.16)
    assert item.rttvar_s == pytest.approx(0.75 * 0.04 + 0.25 * 0.08)
    assert item.srtt_s == pytest.approx(0.875 * 0.08 + 0.125 * 0.16)


def test_beat_is_due_every_period_whatever_the_ticker() -> None:
    item = lane()
    beats = 0
    for tick in range(200):
        item.tick(tick * 0.0501)
        beats += len(item.take_outgoing())
    assert 95 <= beats <= 101


def test_beat_is_echoed_unchanged() -> None:
    item = lane()
    beat = lane_pb2.LaneBeat(sequence=7, sent_at_us=99)
    assert item.receive(lane_pb2.LaneControl(beat=beat).SerializeToString(), 0.0)
    assert lane_pb2.LaneControl.FromString(item.take_outgoing()[0]).echo == beat


def test_echo_that_was_never_asked_for_changes_nothing() -> None:
    item = lane()
    echo = lane_pb2.LaneControl(echo=lane_pb2.LaneBeat(sequence=42))
    assert item.receive(echo.SerializeToString(), 5.0)
    assert item.srtt_s is None


def test_silence_on_a_fast_path_is_found_after_the_floor() -> None:
    item = lane()
    for beat in range(50):
        sample(item, beat * 0.11, 0.001)
    item.heard(6.0)
    assert not item.is_silent(6.29)
    assert item.is_silent(6.31)


def test_silence_limit_adapts_to_a_slow_path() -> None:
    item = lane()
    for beat in range(200):
        sample(item, beat * 0.11, 0.2)
    assert item.silence_limit_s() == pytest.approx(0.2 + 1.5 * 0.2, abs=0.01)


def test_any_frame_counts_as_a_sign_of_life() -> None:
    item = lane()
    item.heard(0.25)
    assert not item.is_silent(0.5)


def test_own_stall_is_not_the_peers_silence() -> None:
    item = lane()
    item.heard(1.0)
    item.stalled(2.0, 3.1)
    assert not item.is_silent(3.1)
    assert item.is_silent(3.1 + 0.31)


def test_own_stall_spoils_open_samples() -> None:
    item = lane()
    item.tick(0.0)
    beat = lane_pb2.LaneControl.FromString(item.take_outgoing()[0]).beat
    item.stalled(2.0, 2.0)
    item.receive(lane_pb2.LaneControl(echo=beat).SerializeToString(), 2.0)
    assert item.srtt_s is None


def test_bye_is_kept_with_its_reason() -> None:
    item = lane()
    assert item.receive(encode_bye(True, "upgrade"), 0.0)
    assert item.bye is not None
    assert (item.bye.is_node_stopping, item.bye.reason) == (True, "upgrade")


def test_unanswered_beats_are_bounded() -> None:
    item = lane()
    for beat in range(1000):
        item.tick(beat * 0.1)
        item.take_outgoing()
    assert len(item._unanswered) <= 64


@given(st.binary(max_size=64))
def test_malformed_payload_never_raises(payload: bytes) -> None:
    lane().receive(payload, 0.0)


@given(st.lists(st.floats(0.0, 5.0), max_size=40))
def test_limit_is_never_below_the_floor_nor_endless(rtts: list[float]) -> None:
    item = lane()
    for number, rtt_s in enumerate(rtts):
        sample(item, number * 0.11, rtt_s)
    assert TIMING.silence_floor_s <= item.silence_limit_s() <= 0.2 + 1.5 * 5.0 + 4 * 5.0


def test_an_echo_holds_only_what_is_known_of_a_beat() -> None:
    """A beat padded with fields that nobody knows must not come back as large as it was."""
    item = lane()
    padded = lane_pb2.LaneControl(beat=lane_pb2.LaneBeat(sequence=7, sent_at_us=99)).SerializeToString()
    unknown = lane_pb2.LaneBeat(sequence=7).SerializeToString() + b"\x7a\x40" + bytes(64)
    item.receive(b"\x0a" + bytes((len(unknown),)) + unknown, 0.0)
    assert item.receive(padded, 0.0)
    first, second = item.take_outgoing()
    assert lane_pb2.LaneControl.FromString(first) == lane_pb2.LaneControl(echo=lane_pb2.LaneBeat(sequence=7))
    assert lane_pb2.LaneControl.FromString(second).echo == lane_pb2.LaneBeat(sequence=7, sent_at_us=99)


def test_a_large_control_message_is_malformed() -> None:
    item = lane()
    beat = lane_pb2.LaneControl(beat=lane_pb2.LaneBeat(sequence=7)).SerializeToString()
    assert item.receive(beat + b"\x7a\x80\x07" + bytes(896), 0.0)
    assert len(item.take_outgoing()) == 1
    assert not item.receive(beat + b"\x7a\x80\x08" + bytes(1024), 0.0)
    assert item.take_outgoing() == []


def test_what_waits_is_bounded_whatever_the_peer_sends() -> None:
    item = lane()
    beat = lane_pb2.LaneControl(beat=lane_pb2.LaneBeat(sequence=7)).SerializeToString()
    for number in range(1_000):
        item.receive(beat, 0.0)
        item.tick(number * TIMING.beat_s)
    assert len(item.take_outgoing()) == ECHOES_MAX + BEATS_MAX
    assert item.echoes_dropped == 1_000 - ECHOES_MAX
    item.receive(beat, 0.0)
    item.tick(2_000.0)
    assert len(item.take_outgoing()) == 2


def test_a_bye_says_little() -> None:
    encoded = encode_bye(False, "\x01" * 20_000)
    assert len(encoded) <= CONTROL_BYTES_MAX
    assert lane().receive(encoded, 0.0)
