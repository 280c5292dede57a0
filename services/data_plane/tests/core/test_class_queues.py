"""The queues of a link: priority, order, bounds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh_data.core.class_queues import QUEUE_BYTES_MAX, ClassQueues
from mesh_data.core.link import FRAME_BYTES_TARGET
from meshwire.frame import PACKET_OVERHEAD_BYTES
from meshwire.packet import TrafficClass


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
    assert not queues.is_waiting()


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


def test_only_the_classes_asked_for_are_taken() -> None:
    queues = ClassQueues()
    queues.push(TrafficClass.BULK, b"bulk")
    queues.push(TrafficClass.CONTROL, b"control")
    assert not queues.is_waiting((TrafficClass.PRIORITY,))
    assert queues.take(10_000, (TrafficClass.PRIORITY,)) == []
    assert queues.take(10_000, (TrafficClass.PRIORITY, TrafficClass.BULK)) == [b"bulk"]
    assert queues.is_waiting((TrafficClass.CONTROL,))
