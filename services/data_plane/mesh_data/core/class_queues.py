"""Packets that wait in front of a link, by class, with strict priority and a bound in bytes for each class (I6).

A full class drops, it never blocks. Leaves out: which lane takes what (`link`). Source: architecture §5 "VirtualLink".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

from meshwire.frame import PACKET_OVERHEAD_BYTES
from meshwire.packet import TrafficClass

CLASSES: Final = tuple(TrafficClass)
"""All classes, the most urgent first."""
QUEUE_BYTES_MAX: Final = {
    TrafficClass.CONTROL: 4 * 1024 * 1024,
    TrafficClass.PRIORITY: 4 * 1024 * 1024,
    TrafficClass.BULK: 16 * 1024 * 1024,
}
"""Bytes that may wait per class. Cost: so much memory per neighbour at worst."""


class ClassQueues:
    """Packets that wait, by class."""

    __slots__ = ("_packets", "_sizes")

    def __init__(self) -> None:
        self._packets: tuple[deque[bytes], ...] = tuple(deque() for _ in CLASSES)
        self._sizes = [0 for _ in CLASSES]

    def push(self, cls: TrafficClass, packet: bytes) -> bool:
        """Queues a packet; False when its class has no room for it."""
        size = self._sizes[cls] + len(packet)
        if size > QUEUE_BYTES_MAX[cls]:
            return False
        self._sizes[cls] = size
        self._packets[cls].append(packet)
        return True

    def take(self, bytes_max: int, classes: Iterable[TrafficClass] = CLASSES) -> list[bytes]:
        """The next packets of these classes, in their order, up to `bytes_max` with their overhead, but at least one."""
        taken: list[bytes] = []
        room = bytes_max
        for cls in classes:
            packets = self._packets[cls]
            while packets:
                size = len(packets[0])
                if taken and size + PACKET_OVERHEAD_BYTES > room:
                    return taken
                room -= size + PACKET_OVERHEAD_BYTES
                self._sizes[cls] -= size
                taken.append(packets.popleft())
        return taken

    def is_waiting(self, classes: Iterable[TrafficClass] = CLASSES) -> bool:
        """Whether a packet of one of these classes waits."""
        return any(self._packets[cls] for cls in classes)

    def queued_bytes(self, cls: TrafficClass) -> int:
        """Bytes that wait in one class."""
        return self._sizes[cls]
