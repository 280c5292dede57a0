"""The virtual link: which lane is kept, and what a full queue does."""

from __future__ import annotations

from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from mesh_data.core.link import FRAME_BYTES_TARGET, QUEUE_BYTES_MAX, ClassQueues, Link
from meshcommon.ids import NodeId
from meshwire.frame import PACKET_OVERHEAD_BYTES
from meshwire.packet import TrafficClass

SMALL, LARGE = NodeId(1), NodeId(2)


def test_lane_dialled_by_the_larger_id_is_kept_at_both_ends() -> None:
    """Both ends see the same two lanes in any order and keep the same one, without a message."""
    for order in permutations(["dialled by small", "dialled by large"]):
        at_small, at_large = Link(SMALL, LARGE), Link(LARGE, SMALL)
        for lane_id, who in enumerate(order, 1):
            at_small.add_lane(lane_id, who == "dialled by small", 0.0)
            at_large.add_lane(lane_id, who == "dialled by large", 0.0)
        kept_at_small = order[(at_small.active_lane or 0) - 1]
        kept_at_large = order[(at_large.active_lane or 0) - 1]
        assert kept_at_small == kept_at_large == "dialled by large"


def test_newer_lane_of_the_same_dialler_replaces_the_older() -> None:
    link = Link(SMALL, LARGE)
    assert link.add_lane(1, False, 0.0) == []
    assert link.add_lane(2, False, 1.0) == [1]
    assert link.active_lane == 2


def test_other_lane_is_promoted_when_the_active_one_dies() -> None:
    link = Link(SMALL, LARGE)
    link.add_lane(1, True, 0.0)
    link.add_lane(2, False, 0.0)
    assert not link.remove_lane(2, "reset")
    assert link.active_lane == 1
    assert link.remove_lane(1, "silent")
    assert not link.is_up
    assert link.down_reason == "silent"


def test_removing_an_unknown_lane_changes_nothing() -> None:
    link = Link(SMALL, LARGE)
    assert not link.remove_lane(7, "gone")
    link.add_lane(8, True, 0.0)
    assert not link.remove_lane(7, "gone")
    assert link.is_up


def test_counters_begin_anew_when_the_link_comes_up() -> None:
    link = Link(SMALL, LARGE)
    link.add_lane(1, True, 0.0)
    link.bytes_sent = 5
    link.remove_lane(1, "reset")
    link.add_lane(2, True, 9.0)
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


def test_control_goes_before_bulk_that_waited_longer() -> None:
    queues = ClassQueues()
    queues.push(TrafficClass.BULK, b"bulk")
    queues.push(TrafficClass.PRIORITY, b"priority")
    queues.push(TrafficClass.CONTROL, b"control")
    assert queues.take(10_000) == [b"control", b"priority", b"bulk"]


def test_packet_larger_than_a_frame_goes_alone() -> None:
    queues = ClassQueues()
    large = b"x" * (FRAME_BYTES_TARGET + 1)
    queues.push(TrafficClass.BULK, large)
    queues.push(TrafficClass.BULK, b"next")
    assert queues.take(FRAME_BYTES_TARGET) == [large]
    assert queues.take(FRAME_BYTES_TARGET) == [b"next"]
    assert not queues


@given(st.lists(st.tuples(st.sampled_from(TrafficClass), st.integers(1, 100_000)), max_size=60))
def test_taking_keeps_order_in_a_class_and_accounts_every_byte(items: list[tuple[TrafficClass, int]]) -> None:
    queues = ClassQueues()
    pushed: dict[TrafficClass, list[bytes]] = {cls: [] for cls in TrafficClass}
    for number, (cls, size) in enumerate(items):
        packet = number.to_bytes(4, "big") + b"." * size
        if queues.push(cls, packet):
            pushed[cls].append(packet)
    assert all(queues.queued_bytes(cls) <= QUEUE_BYTES_MAX[cls] for cls in TrafficClass)
    taken: list[bytes] = []
    while packets := queues.take(FRAME_BYTES_TARGET):
        size = sum(len(packet) + PACKET_OVERHEAD_BYTES for packet in packets)
        assert size <= FRAME_BYTES_TARGET or len(packets) == 1
        taken += packets
    assert taken == [packet for cls in TrafficClass for packet in pushed[cls]]
    assert all(queues.queued_bytes(cls) == 0 for cls in TrafficClass)
