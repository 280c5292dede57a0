"""The virtual link: which lane is kept, what goes next on it, and what a full queue does."""

from __future__ import annotations

from itertools import permutations

from mesh_data.core.lane import Lane
from mesh_data.core.link import FRAME_BYTES_TARGET, Link
from mesh_data.core.open_lane import OpenLane
from mesh_data.core.timing import OverlayTiming
from meshcommon.ids import NodeId
from meshwire.frame import decode_packets
from meshwire.packet import TrafficClass

SMALL, LARGE = NodeId(1), NodeId(2)


def add(link: Link, lane_id: int, is_dialled: bool, now: float) -> list[int]:
    """Takes in a lane; returns the ids of those that are superfluous now."""
    lane = OpenLane(Lane(lane_id, link.peer, is_dialled, OverlayTiming(), now))
    return [item.lane_id for item in link.add(lane, now)]


def carrier(link: Link) -> int | None:
    """The lane that carries everything."""
    found = {item.lane_id if (item := link.carrier(cls)) is not None else None for cls in TrafficClass}
    assert len(found) == 1
    return found.pop()


def packets_of(link: Link, lane_id: int) -> list[bytes]:
    """What the next frame on a lane holds."""
    lane = link.lane(lane_id)
    assert lane is not None
    parts = link.next_frame_parts(lane)
    return [] if parts is None else list(map(bytes, decode_packets(b"".join(parts))))


def test_lane_dialled_by_the_larger_id_is_kept_at_both_ends() -> None:
    """Both ends see the same two lanes in any order and keep the same one, without a message."""
    for order in permutations(["dialled by small", "dialled by large"]):
        at_small, at_large = Link(SMALL, LARGE), Link(LARGE, SMALL)
        for lane_id, who in enumerate(order, 1):
            add(at_small, lane_id, who == "dialled by small", 0.0)
            add(at_large, lane_id, who == "dialled by large", 0.0)
        kept_at_small = order[(carrier(at_small) or 0) - 1]
        kept_at_large = order[(carrier(at_large) or 0) - 1]
        assert kept_at_small == kept_at_large == "dialled by large"


def test_newer_lane_of_the_same_dialler_replaces_the_older() -> None:
    link = Link(SMALL, LARGE)
    assert add(link, 1, False, 0.0) == []
    assert add(link, 2, False, 1.0) == [1]
    assert carrier(link) == 2


def test_other_lane_is_promoted_when_the_active_one_dies() -> None:
    link = Link(SMALL, LARGE)
    add(link, 1, True, 0.0)
    add(link, 2, False, 0.0)
    assert not link.remove(2, "reset")
    assert carrier(link) == 1
    assert link.remove(1, "silent")
    assert not link.is_up
    assert link.down_reason == "silent"


def test_removing_an_unknown_lane_changes_nothing() -> None:
    link = Link(SMALL, LARGE)
    assert not link.remove(7, "gone")
    add(link, 8, True, 0.0)
    assert not link.remove(7, "gone")
    assert link.is_up


def test_counters_begin_anew_when_the_link_comes_up() -> None:
    link = Link(SMALL, LARGE)
    add(link, 1, True, 0.0)
    link.bytes_sent = 5
    link.remove(1, "reset")
    add(link, 2, True, 9.0)
    assert (link.bytes_sent, link.up_since, link.down_reason) == (0, 9.0, "")


def test_full_queue_drops_and_counts_without_touching_other_classes() -> None:
    """I6: every queue has a bound."""
    link = Link(SMALL, LARGE)
    packet = b"x" * 1024 * 1024
    for _ in range(16):
        assert link.push(TrafficClass.BULK, packet)
    assert not link.push(TrafficClass.BULK, b"y")
    assert link.packets_dropped == 1
    assert link.push(TrafficClass.CONTROL, b"y")


PACKET = b"p" * 64
"""Long enough to be one."""


def test_own_output_goes_before_the_queues_and_only_the_carrier_takes_from_them() -> None:
    link = Link(SMALL, LARGE)
    add(link, 1, True, 0.0)
    add(link, 2, False, 0.0)
    link.push(TrafficClass.BULK, PACKET + b"bulk")
    link.push(TrafficClass.CONTROL, PACKET + b"control")
    for lane in link.lanes():
        lane.put(PACKET + b"beat")
    assert packets_of(link, 1) == [PACKET + b"beat"]
    assert packets_of(link, 1) == []
    assert packets_of(link, 2) == [PACKET + b"beat", PACKET + b"control", PACKET + b"bulk"]
    assert packets_of(link, 2) == []


def test_what_waits_goes_out_on_the_promoted_lane() -> None:
    link = Link(SMALL, LARGE)
    add(link, 1, True, 0.0)
    add(link, 2, False, 0.0)
    link.push(TrafficClass.CONTROL, PACKET)
    assert not link.retire(2, "bye")
    (promoted,) = link.carriers()
    assert (promoted.lane_id, link.is_waiting_for(promoted)) == (1, True)
    assert packets_of(link, 2) == []
    assert packets_of(link, 1) == [PACKET]


def test_retired_lane_sends_its_own_output_and_nothing_else() -> None:
    link = Link(SMALL, LARGE)
    add(link, 1, True, 0.0)
    link.push(TrafficClass.BULK, PACKET)
    lane = link.lane(1)
    assert lane is not None
    lane.put(PACKET + b"bye")
    assert link.retire(1, "bye")
    assert not link.is_up
    assert packets_of(link, 1) == [PACKET + b"bye"]
    assert link.drain() == [PACKET]
    assert not link.remove(1, "closed"), "it was down already"
    assert link.down_reason == "bye"
    assert link.lane(1) is None


def test_frame_is_filled_up_to_its_target() -> None:
    link = Link(SMALL, LARGE)
    add(link, 1, True, 0.0)
    for _ in range(3):
        link.push(TrafficClass.BULK, b"x" * (FRAME_BYTES_TARGET // 2))
    assert [len(packets_of(link, 1)) for _ in range(4)] == [1, 1, 1, 0]
