"""Packets that wait for the keys of their destination: a little, for a moment, so that a first vote is not lost.

Purpose: hold what is sent while two nodes agree on keys, which takes one round trip. Leaves out: what is done with it then.
Bounds: see the constants; what does not fit is the caller's to drop and count.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final, NamedTuple

from meshcommon.ids import NodeId
from meshwire.packet import Protocol, TrafficClass

HELD_S: Final = 1.0
"""What has waited longer is dropped: its sender has repeated it by then."""
HELD_PACKETS_MAX: Final = 64
"""Per destination."""
HELD_BYTES_MAX: Final = 256 * 1024
"""Payload per destination."""
HELD_BYTES_TOTAL_MAX: Final = 4 * 1024 * 1024
"""Payload for all destinations."""


class HeldPacket(NamedTuple):
    """A packet before it is sealed and put on a path."""

    protocol: Protocol
    cls: TrafficClass
    payload: bytes
    flow: int
    is_link_local: bool
    held_at: float


class HeldPackets:
    """Packets by destination, in order. `now` is monotonic seconds."""

    def __init__(self) -> None:
        self._queues: dict[NodeId, deque[HeldPacket]] = {}
        self._sizes: dict[NodeId, int] = {}
        self.total_bytes = 0

    def hold(self, destination: NodeId, packet: HeldPacket) -> bool:
        """Keeps a packet; False when there is no room for it."""
        size = len(packet.payload)
        queue = self._queues.get(destination)
        held = self._sizes.get(destination, 0)
        if held + size > HELD_BYTES_MAX or self.total_bytes + size > HELD_BYTES_TOTAL_MAX:
            return False
        if queue is None:
            queue = self._queues[destination] = deque()
        elif len(queue) >= HELD_PACKETS_MAX:
            return False
        queue.append(packet)
        self._sizes[destination] = held + size
        self.total_bytes += size
        return True

    def take(self, destination: NodeId) -> deque[HeldPacket]:
        """What waits for a destination; it waits no longer."""
        self.total_bytes -= self._sizes.pop(destination, 0)
        return self._queues.pop(destination, deque())

    def expire(self, now: float) -> int:
        """Forgets what has waited for too long; returns how many packets that were."""
        expired = 0
        for destination in list(self._queues):
            queue = self._queues[destination]
            while queue and now >= queue[0].held_at + HELD_S:
                size = len(queue.popleft().payload)
                self._sizes[destination] -= size
                self.total_bytes -= size
                expired += 1
            if not queue:
                del self._queues[destination], self._sizes[destination]
        return expired

    def next_deadline(self) -> float:
        """When `expire` has something to forget; infinity when nothing waits."""
        return min((queue[0].held_at + HELD_S for queue in self._queues.values()), default=math.inf)

    def clear(self) -> int:
        """Forgets everything; returns how many packets that were."""
        count = sum(map(len, self._queues.values()))
        self._queues.clear()
        self._sizes.clear()
        self.total_bytes = 0
        return count
