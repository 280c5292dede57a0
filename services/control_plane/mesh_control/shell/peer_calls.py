"""Requests between control planes, over the overlay or over the lane of a node that is not yet a member.

Which methods there are and how much of them may execute at once; `OverlayCalls` does the rest.
"""

from __future__ import annotations

import time
from enum import IntEnum
from typing import Final, Protocol

from meshapi.overlay.v1 import overlay_pb2
from meshcommon.ids import NodeId
from meshcommon.overlay_calls import OverlayCalls
from meshcommon.requests import Outgoing, RequestLimits
from meshwire import packet
from meshwire.packet import TrafficClass

LIMITS: Final = RequestLimits(requests_max=256, peer_requests_max=32)
"""Smaller than the data plane's: each waits for a commit of the one control group."""


class Method(IntEnum):
    """Calls that control planes make to each other."""

    JOIN = 1
    PROPOSE = 2
    STANDING = 3
    CERTIFY = 4


class PacketSender(Protocol):
    """The overlay as far as requests need it."""

    def send(
        self,
        protocol: packet.Protocol,
        traffic_class: TrafficClass,
        destination: NodeId,
        payload: bytes,
        lane_id: int = 0,
    ) -> object:
        """Sends one packet, best effort."""


class PeerCalls(OverlayCalls):
    """The requests of one control plane: packets of Protocol.JOIN."""

    def __init__(self, overlay: PacketSender, first_id: int) -> None:
        """Does nothing until `run`."""

        def send(traffic_class: TrafficClass, outgoing: Outgoing) -> None:
            peer = NodeId(outgoing.peer)
            overlay.send(packet.Protocol.JOIN, traffic_class, peer, outgoing.payload, outgoing.lane_id)

        super().__init__(
            "control_request",
            send,
            time.monotonic,
            first_id,
            request_class=TrafficClass.CONTROL,
            limits=LIMITS,
        )

    def receive_packet(self, arrived: overlay_pb2.InPacket) -> None:
        """Takes a packet of Protocol.JOIN."""
        self.receive(
            NodeId(arrived.source), arrived.payload, arrived.lane_id, arrived.lane_public_key, arrived.lane_host
        )
