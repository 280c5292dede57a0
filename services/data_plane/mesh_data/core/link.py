"""The virtual link to one neighbour: it owns its lanes and the bounded queues in front of them, and says what goes next on which.

Purpose: one place that answers "is this neighbour up", "which lane carries this class" and "what goes next on that lane".
Today one lane carries all classes ("collapsed"), with strict priority inside; lanes per class change `_assign` and nothing
else. Leaves out: handshakes, sockets, credits. Source: architecture §5 "VirtualLink".

States of a lane here: *in service* (may carry classes) → *draining* (a bye was said, its own output still goes out) → gone.

Duplicates: both sides may dial at once. Both keep the lane dialled by the larger node id; among lanes of one dialler the
newest, since an older one may be half open. The rule needs no message, so both sides come to the same answer.
"""

from __future__ import annotations

from typing import Final

from mesh_data.core.class_queues import CLASSES, QUEUE_BYTES_MAX, ClassQueues
from mesh_data.core.open_lane import OpenLane
from meshcommon.ids import NodeId
from meshwire.buffers import Buffer
from meshwire.frame import frame_parts
from meshwire.packet import TrafficClass

FRAME_BYTES_TARGET: Final = 256 * 1024
"""A frame is filled up to this: larger ones would let bulk delay control, smaller ones cost system calls."""


class Link:
    """State of one neighbour. Counters run since the link last came up."""

    __slots__ = (
        "_carriers",
        "_in_service",
        "_lanes",
        "_local",
        "_queues",
        "bytes_received",
        "bytes_sent",
        "down_reason",
        "packets_dropped",
        "peer",
        "up_since",
    )

    def __init__(self, local: NodeId, peer: NodeId) -> None:
        self.peer = peer
        self.bytes_sent = 0
        self.bytes_received = 0
        self.packets_dropped = 0
        self.down_reason = ""
        self.up_since = 0.0
        self._local = local
        self._queues = ClassQueues()
        self._lanes: dict[int, OpenLane] = {}
        """All of them, those that drain included."""
        self._in_service: list[OpenLane] = []
        """Of these, those that may carry classes, the best one last."""
        self._carriers: list[OpenLane | None] = [None for _ in CLASSES]
        """By class."""

    @property
    def is_up(self) -> bool:
        """Whether a lane is in service."""
        return bool(self._in_service)

    def carrier(self, cls: TrafficClass) -> OpenLane | None:
        """The lane that carries a class now."""
        return self._carriers[cls]

    def carriers(self) -> list[OpenLane]:
        """The lanes that carry anything, each once."""
        return list(dict.fromkeys(lane for lane in self._carriers if lane is not None))

    def lanes(self) -> list[OpenLane]:
        """All its lanes, those that drain included."""
        return list(self._lanes.values())

    def lane(self, lane_id: int) -> OpenLane | None:
        """One of its lanes."""
        return self._lanes.get(lane_id)

    def add(self, lane: OpenLane, now: float) -> list[OpenLane]:
        """Takes in a lane whose handshake is done.

        Args:
            lane: Its id is larger than that of any lane before.
            now: Monotonic seconds.

        Returns:
            Lanes that are superfluous now, perhaps the new one: say bye on them and `retire` them.
        """
        if not self._in_service:
            self.bytes_sent = self.bytes_received = self.packets_dropped = 0
            self.up_since = now
            self.down_reason = ""
        self._lanes[lane.lane_id] = lane
        self._in_service.append(lane)
        self._in_service.sort(key=self._rank)
        self._assign()
        return self._in_service[:-1]

    def retire(self, lane_id: int, reason: str) -> bool:
        """Takes a lane out of service; its own output still goes out. Returns True when the link went down by it."""
        lane = self._lanes.get(lane_id)
        return lane is not None and self._leave_service(lane, reason)

    def remove(self, lane_id: int, reason: str) -> bool:
        """Forgets a lane; the next best is promoted. Returns True when the link went down by it."""
        lane = self._lanes.pop(lane_id, None)
        return lane is not None and self._leave_service(lane, reason)

    def push(self, cls: TrafficClass, packet: bytes) -> bool:
        """Queues a packet for the lane that carries its class; False when it was dropped for a full queue."""
        if self._queues.push(cls, packet):
            return True
        self.packets_dropped += 1
        return False

    def is_waiting_for(self, lane: OpenLane) -> bool:
        """Whether something waits in the queues that this lane carries."""
        return self._queues.is_waiting(lane.classes)

    def next_frame_parts(self, lane: OpenLane) -> list[Buffer] | None:
        """The next frame to write on a lane, not yet joined; None when nothing waits for it."""
        packets: list[bytes] = []
        room = FRAME_BYTES_TARGET
        if lane.output_bytes:
            room -= lane.output_bytes
            packets = lane.take()
        if lane.classes and (room > 0 or not packets):
            packets += self._queues.take(room, lane.classes)
        if not packets:
            return None
        parts = frame_parts(packets)
        self.bytes_sent += sum(map(len, parts))
        return parts

    def queued_bytes(self, cls: TrafficClass) -> int:
        """Bytes that wait in one class."""
        return self._queues.queued_bytes(cls)

    def drain(self) -> list[bytes]:
        """Takes everything that waits, after the link went down."""
        return self._queues.take(2 * sum(QUEUE_BYTES_MAX.values()))

    def _rank(self, lane: OpenLane) -> tuple[bool, int]:
        """The lane with the highest rank is kept. Lane ids rise, so the larger id is the newer lane."""
        is_dialled_by_larger = lane.lane.is_dialled == (self._local > self.peer)
        return is_dialled_by_larger, lane.lane_id

    def _leave_service(self, lane: OpenLane, reason: str) -> bool:
        """True when it was the last one in service."""
        if lane not in self._in_service:
            return False
        self._in_service.remove(lane)
        lane.classes = ()
        self._assign()
        if self._in_service:
            return False
        self.down_reason = reason
        return True

    def _assign(self) -> None:
        """Decides which lane carries which class: the best one carries all."""
        best = self._in_service[-1] if self._in_service else None
        for lane in self._in_service:
            lane.classes = CLASSES if lane is best else ()
        self._carriers = [best for _ in CLASSES]
