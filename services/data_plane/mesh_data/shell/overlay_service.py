"""OverlayService: how the control plane and routing of the site use the overlay.

Each Attach has a bounded queue towards its caller: what does not fit is dropped and counted, since a slow service of the
site must not hold up forwarding. Link states are sent at once when a link changes, and once a second for their round trips.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, Final

from mesh_data.core.forwarder import Delivery
from mesh_data.core.link import Link
from mesh_data.shell.overlay import Overlay, Sink
from meshapi.overlay.v1 import overlay_pb2, overlay_pb2_grpc
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId
from meshcommon.logging import get_logger
from meshwire.packet import Protocol, TrafficClass

_log = get_logger(__name__)
QUEUE_BYTES_MAX: Final = 16 * 1024 * 1024
DELIVER_BYTES_TARGET: Final = 1024 * 1024
LINKS_PERIOD_S: Final = 1.0
_OWN_PROTOCOLS: Final = frozenset(
    {Protocol.LANE, Protocol.PATH_ERROR, Protocol.REQUEST, Protocol.ECHO, Protocol.RAFT_DSG}
)
"""Protocols of the data plane itself: nobody may bind to them from outside."""


class Attachment:
    """What waits for one caller of Attach."""

    def __init__(self) -> None:
        self.dropped = 0
        self._packets: deque[overlay_pb2.InPacket] = deque()
        self._bytes = 0
        self._links_changed = True
        self._is_over = False
        self._wake = asyncio.Event()

    def deliver(self, delivery: Delivery) -> None:
        """Queues a packet for the caller, or drops and counts it."""
        size = len(delivery.payload)
        if self._bytes + size > QUEUE_BYTES_MAX:
            self.dropped += 1
            return
        self._bytes += size
        self._packets.append(
            overlay_pb2.InPacket(
                protocol=delivery.protocol,
                traffic_class=delivery.cls,
                source=delivery.source,
                lane_id=delivery.lane_id,
                payload=bytes(delivery.payload),
            )
        )
        self._wake.set()

    def links_changed(self) -> None:
        """A link changed."""
        self._links_changed = True
        self._wake.set()

    def end(self) -> None:
        """The caller has closed its side."""
        self._is_over = True
        self._wake.set()

    async def wait(self, timeout_s: float) -> bool:
        """Waits until something waits for the caller, at most `timeout_s`; False when the attachment is over."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._wake.wait()
        except TimeoutError:
            self._links_changed = True
        self._wake.clear()
        return not self._is_over

    def take_links_changed(self) -> bool:
        """Whether link states are to be sent."""
        changed, self._links_changed = self._links_changed, False
        return changed

    def take_packets(self) -> list[overlay_pb2.InPacket]:
        """Packets for one message, empty when none wait."""
        taken: list[overlay_pb2.InPacket] = []
        room = DELIVER_BYTES_TARGET
        while self._packets and (not taken or len(self._packets[0].payload) <= room):
            packet = self._packets.popleft()
            room -= len(packet.payload)
            self._bytes -= len(packet.payload)
            taken.append(packet)
        return taken


class OverlayServicer(overlay_pb2_grpc.OverlayServiceServicer):
    """See overlay.proto."""

    def __init__(self, overlay: Overlay) -> None:
        self._overlay = overlay
        self._attachments: set[Attachment] = set()

    def close(self) -> None:
        """Ends every Attach: the service stops and must not wait for callers that stay for ever."""
        for attachment in self._attachments:
            attachment.end()

    async def Attach(  # noqa: N802
        self, request_iterator: AsyncIterator[overlay_pb2.AttachRequest], context: Any
    ) -> AsyncIterator[overlay_pb2.AttachResponse]:
        """Packets both ways, and link states."""
        protocols = _protocols(await anext(aiter(request_iterator), None))
        attachment = Attachment()
        self._attachments.add(attachment)
        # One bound method object: unbinding compares it.
        sink: Sink = attachment.deliver
        for protocol in protocols:
            self._overlay.bind(protocol, sink)
        self._overlay.on_links(attachment.links_changed)
        reader = asyncio.create_task(self._read(request_iterator, attachment), name="attach reader")
        _log.info("attached", protocols=[protocol.name for protocol in protocols])
        try:
            attachment.links_changed()
            while await attachment.wait(LINKS_PERIOD_S):
                if attachment.take_links_changed():
                    yield overlay_pb2.AttachResponse(links=self._links())
                while packets := attachment.take_packets():
                    yield overlay_pb2.AttachResponse(deliver=overlay_pb2.AttachDeliver(packets=packets))
            if reader.done():
                # What the caller did wrong is told to it.
                await reader
        finally:
            self._attachments.discard(attachment)
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            self._overlay.off_links(attachment.links_changed)
            for protocol in protocols:
                self._overlay.unbind(protocol, sink)

    async def OpenJoinLane(  # noqa: N802
        self, request: overlay_pb2.OpenJoinLaneRequest, context: Any
    ) -> overlay_pb2.OpenJoinLaneResponse:
        """Dials a member. Errors: ADDRESS_UNREACHABLE, WRONG_PROTOCOL, HANDSHAKE_FAILED, VERSION_MISMATCH."""
        if len(request.private_key) != 32:
            raise MeshError(ErrorCode.INVALID_ARGUMENT, "The private key must have 32 bytes.")
        if not request.address.startswith(("ws://", "wss://")):
            raise MeshError(
                ErrorCode.INVALID_ARGUMENT,
                f"{request.address!r} is no address of a node: use ws://host:port or wss://host:port.",
            )
        lane = await self._overlay.open_join_lane(request.address, request.name, request.private_key)
        return overlay_pb2.OpenJoinLaneResponse(
            lane_id=lane.lane_id, mesh_id=lane.peer.mesh_id, node_id=lane.peer.node_id, name=lane.peer.name
        )

    async def CloseJoinLane(  # noqa: N802
        self, request: overlay_pb2.CloseJoinLaneRequest, context: Any
    ) -> overlay_pb2.CloseJoinLaneResponse:
        """Closes a lane of OpenJoinLane."""
        self._overlay.close_join_lane(request.lane_id)
        return overlay_pb2.CloseJoinLaneResponse()

    async def _read(self, request_iterator: AsyncIterator[overlay_pb2.AttachRequest], attachment: Attachment) -> None:
        try:
            async for request in request_iterator:
                for packet in request.send.packets:
                    self._send(packet)
        finally:
            attachment.end()

    def _send(self, packet: overlay_pb2.OutPacket) -> None:
        try:
            protocol, cls = Protocol(packet.protocol), TrafficClass(packet.traffic_class)
        except ValueError as error:
            raise MeshError(ErrorCode.INVALID_ARGUMENT, f"A packet cannot be sent: {error}.") from None
        if protocol in _OWN_PROTOCOLS:
            raise _not_yours(protocol)
        destination = NodeId(packet.destination)
        if not destination:
            self._overlay.send_join(packet.lane_id, cls, packet.payload)
        elif packet.is_link_local:
            self._overlay.send_link_local(protocol, cls, destination, packet.payload)
        else:
            self._overlay.send(protocol, cls, destination, packet.payload)

    def _links(self) -> overlay_pb2.AttachLinks:
        links = sorted(self._overlay.core.links(), key=lambda link: link.peer)
        states = [self._link_state(link) for link in links]
        return overlay_pb2.AttachLinks(node_id=self._overlay.node_id, links=states)

    def _link_state(self, link: Link) -> overlay_pb2.LinkState:
        lane = self._overlay.core.active_lane(link.peer)
        return overlay_pb2.LinkState(
            peer=link.peer,
            is_up=link.is_up,
            rtt_us=int((lane.srtt_s or 0.0) * 1e6) if lane is not None else 0,
            rtt_var_us=int(lane.rttvar_s * 1e6) if lane is not None else 0,
            bytes_sent=link.bytes_sent,
            bytes_received=link.bytes_received,
            packets_dropped=link.packets_dropped,
            down_reason=link.down_reason,
        )


def _protocols(first: overlay_pb2.AttachRequest | None) -> list[Protocol]:
    if first is None or first.WhichOneof("kind") != "bind":
        raise MeshError(ErrorCode.INVALID_ARGUMENT, "Attach begins with a bind: say which protocols you handle.")
    try:
        protocols = [Protocol(number) for number in first.bind.protocols]
    except ValueError as error:
        raise MeshError(ErrorCode.INVALID_ARGUMENT, f"Attach cannot bind: {error}.") from None
    for protocol in protocols:
        if protocol in _OWN_PROTOCOLS:
            raise _not_yours(protocol)
    return protocols


def _not_yours(protocol: Protocol) -> MeshError:
    return MeshError(ErrorCode.INVALID_ARGUMENT, f"Protocol {protocol.name} belongs to the data plane itself.")
