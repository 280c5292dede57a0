"""A lane that is open, with what waits for it alone: its beats and echoes, its bye, on a join lane also packets.

Purpose: what a link and a join lane have in common. Leaves out: the queues of a link, which go to whichever lane carries a
class (`link`), and the lane's timers (`lane`).
"""

from __future__ import annotations

from typing import Final

from mesh_data.core.lane import Lane
from meshwire.packet import TrafficClass

OUTPUT_BYTES_MAX: Final = 64 * 1024
"""What may wait on a lane besides its link's queues."""


class OpenLane:
    """One lane. What waits here goes out before anything of the link's queues."""

    __slots__ = ("_output", "classes", "is_closing", "lane", "lane_id", "output_bytes")

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.lane_id = lane.lane_id
        self.classes: tuple[TrafficClass, ...] = ()
        """Classes of its link that it carries; the link assigns them."""
        self.is_closing = False
        """A bye was said: it sends what waits and nothing more."""
        self._output: list[bytes] = []
        self.output_bytes = 0
        """Bytes that wait for this lane alone."""

    @property
    def is_full(self) -> bool:
        """Whether so much waits that nothing but a bye may be added."""
        return self.output_bytes > OUTPUT_BYTES_MAX

    def put(self, packet: bytes) -> None:
        """Queues a packet for this lane alone."""
        self._output.append(packet)
        self.output_bytes += len(packet)

    def take(self) -> list[bytes]:
        """What waits for this lane alone; it waits no longer."""
        output, self._output, self.output_bytes = self._output, [], 0
        return output
