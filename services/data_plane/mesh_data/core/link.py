"""The virtual link to one neighbour: its lanes, which of them carries traffic, and the bounded queues in front of it.

Purpose: one place that answers "is this neighbour up" and "what goes next". All classes share one lane ("collapsed"), with
strict priority inside; each class has a queue bounded in bytes, and a full queue drops, it never blocks. Leaves out: lanes
per class and credits. Source: architecture §5 "VirtualLink".

Duplicates: both sides may dial at once. Both keep the lane dialled by the larger node id; among lanes of one dialler the
newest, since an older one may be half open. The rule needs no message, so both sides come to the same answer.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from meshcommon.ids import NodeId
from meshwire.frame import PACKET_OVERHEAD_BYTES
from meshwire.packet import TrafficClass

QUEUE_BYTES_MAX: Final = {
    TrafficClass.CONTROL: 4 * 1024 * 1024,
    TrafficClass.PRIORITY: 4 * 1024 * 1024,
    TrafficClass.BULK: 16 * 1024 * 1024,
}
"""Bytes that may wait per class. Cost: so much memory per neighbour at worst."""
FRAME_BYTES_TARGET: Final = 256 * 1024
"""A frame is filled up to this: larger ones would let bulk delay control, smaller ones cost system calls."""


class ClassQueues:
    """Packets that wait, by class, with strict priority."""

    __slots__ = ("_packets", "_sizes")

    def __init__(self) -> None:
        self._packets: tuple[deque[bytes], ...] = tuple(deque() for _ in TrafficClass)
        self._sizes = [0 for _ in TrafficClass]

    def push(self, cls: TrafficClass, packet: bytes) -> bool:
        """Queues a packet; False when its class has no room for it."""
        size = self._sizes[cls] + len(packet)
        if size > QUEUE_BYTES_MAX[cls]:
            return False
        self._sizes[cls] = size
        self._packets[cls].append(packet)
        return True

    def take(self, bytes_max: int) -> list[bytes]:
        """The next packets, highest class first, up to `bytes_max` with their overhead, but at least one."""
        taken: list[bytes] = []
        room = bytes_max
        for cls, packets in enumerate(self._packets):
            while packets:
                size = len(packets[0])
                if taken and size + PACKET_OVERHEAD_BYTES > room:
                    return taken
                room -= size + PACKET_OVERHEAD_BYTES
                self._sizes[cls] -= size
                taken.append(packets.popleft())
        return taken

    def queued_bytes(self, cls: TrafficClass) -> int:
        """Bytes that wait in one class."""
        return self._sizes[cls]

    def __bool__(self) -> bool:
        return any(self._packets)


@dataclass(frozen=True, slots=True)
class LinkLane:
    """A lane as the link sees it. Lane ids rise, so the larger id is the newer lane."""

    lane_id: int
    is_dialled_by_larger: bool

    @property
    def rank(self) -> tuple[bool, int]:
        """The lane with the highest rank is kept."""
        return self.is_dialled_by_larger, self.lane_id


class Link:
    """State of one neighbour. Counters run since the link last came up."""

    __slots__ = (
        "_lanes",
        "_local",
        "bytes_received",
        "bytes_sent",
        "down_reason",
        "packets_dropped",
        "peer",
        "queues",
        "up_since",
    )

    def __init__(self, local: NodeId, peer: NodeId) -> None:
        self.peer = peer
        self.queues = ClassQueues()
        self.bytes_sent = 0
        self.bytes_received = 0
        self.packets_dropped = 0
        self.down_reason = ""
        self.up_since = 0.0
        self._local = local
        self._lanes: list[LinkLane] = []

    @property
    def is_up(self) -> bool:
        """Whether a lane carries traffic."""
        return bool(self._lanes)

    @property
    def active_lane(self) -> int | None:
        """The lane that carries traffic."""
        return self._lanes[-1].lane_id if self._lanes else None

    def lane_ids(self) -> list[int]:
        """All lanes, the active one last."""
        return [lane.lane_id for lane in self._lanes]

    def add_lane(self, lane_id: int, is_dialled: bool, now: float) -> list[int]:
        """Takes in a lane whose handshake is done.

        Args:
            lane_id: Larger than that of any lane before.
            is_dialled: Whether this node dialled it.
            now: Monotonic seconds.

        Returns:
            Lanes that are now superfluous, perhaps the new one: close them with a bye.
        """
        if not self._lanes:
            self.bytes_sent = self.bytes_received = self.packets_dropped = 0
            self.up_since = now
            self.down_reason = ""
        self._lanes.append(LinkLane(lane_id, is_dialled == (self._local > self.peer)))
        self._lanes.sort(key=lambda lane: lane.rank)
        return [lane.lane_id for lane in self._lanes[:-1]]

    def remove_lane(self, lane_id: int, reason: str) -> bool:
        """Forgets a lane; the next best is promoted. Returns True when the link went down by it."""
        before = len(self._lanes)
        self._lanes = [lane for lane in self._lanes if lane.lane_id != lane_id]
        if before and not self._lanes:
            self.down_reason = reason
            return True
        return False

    def push(self, cls: TrafficClass, packet: bytes) -> bool:
        """Queues a packet for the active lane; False when it was dropped for a full queue."""
        if self.queues.push(cls, packet):
            return True
        self.packets_dropped += 1
        return False

    def drain(self) -> list[bytes]:
        """Takes everything that waits, after the link went down."""
        queues, self.queues = self.queues, ClassQueues()
        return queues.take(sum(QUEUE_BYTES_MAX.values()) * 2)
