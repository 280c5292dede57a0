"""A lane on which one side is no member: only the join protocol, only to this neighbour, at a bounded rate.

Purpose: what may pass on such a lane and how much waits there. It belongs to no link: nothing is routed over it. Leaves out:
who gets one (`join_limits`), and beats (`lane`). Source: architecture §5 "Lane".
"""

from __future__ import annotations

from typing import TypeAlias

from mesh_data.core.forwarder import Delivery, DropReason
from mesh_data.core.join_limits import JOIN_PACKETS_PER_S
from mesh_data.core.open_lane import OpenLane
from meshcommon.ids import NO_NODE
from meshcommon.token_bucket import TokenBucket
from meshwire.buffers import Buffer
from meshwire.errors import WireError
from meshwire.frame import frame_parts
from meshwire.packet import FLAG_SEALED, PREFIX_BYTES, Protocol, check_arrived, forwarding_view

Received: TypeAlias = Delivery | memoryview | DropReason
"""A packet of the join protocol, the payload of a LANE packet, or why there is neither."""


class JoinLane:
    """One such lane. `now` is monotonic seconds."""

    __slots__ = ("_bucket", "_host", "_public_key", "open_lane")

    def __init__(self, open_lane: OpenLane, public_key: bytes, host: str, now: float) -> None:
        """`public_key` is what the peer proved in the handshake, `host` where it is; both go with each packet."""
        self.open_lane = open_lane
        self._public_key = public_key
        self._host = host
        self._bucket = TokenBucket(JOIN_PACKETS_PER_S, JOIN_PACKETS_PER_S, now)

    @property
    def is_of_stranger(self) -> bool:
        """Whether the other side dialled: it is the one that is no member."""
        return not self.open_lane.lane.is_dialled

    def receive(self, packet: memoryview, now: float) -> Received:
        """Takes a packet. RATE_LIMITED ends the lane: to drop a stranger's packets singly costs more than to send them."""
        if self.is_of_stranger and not self._bucket.take(now):
            return DropReason.RATE_LIMITED
        try:
            view = forwarding_view(packet)
        except WireError:
            return DropReason.MALFORMED
        if view.route or view.protocol not in {Protocol.JOIN, Protocol.LANE}:
            return DropReason.JOIN_ONLY
        try:
            check_arrived(packet)
        except WireError:
            return DropReason.NOT_UNDERSTOOD
        if view.flags & FLAG_SEALED:
            return DropReason.NOT_UNDERSTOOD
        payload = packet[PREFIX_BYTES:]
        if view.protocol == Protocol.LANE:
            return payload
        return Delivery(NO_NODE, self.open_lane.lane_id, Protocol.JOIN, view.cls, payload, self._public_key, self._host)

    def next_frame_parts(self, lane: OpenLane) -> list[Buffer] | None:
        """The next frame to write on its lane, not yet joined; None when nothing waits."""
        packets = lane.take()
        return frame_parts(packets) if packets else None
