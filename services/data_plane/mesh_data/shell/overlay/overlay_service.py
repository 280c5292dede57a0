"""OverlayService: how the control plane and routing of the site use the overlay.

Each Attach has a bounded queue towards its caller, in which each source has a share: what does not fit is dropped and counted,
since a slow service of the site must not hold up forwarding, and one peer must not crowd out the others. What a caller
sends wrongly ends its call and nothing else. Link states are sent at once when a link changes, and once a second for their round trips.
"""

from __future__ import annotations

import asyncio
import collections
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, Final

from prometheus_client import Counter

from mesh_data.core.forwarder import Delivery
from mesh_data.core.link import Link
from mesh_data.shell.overlay.overlay import Overlay, Sink
from meshapi.overlay.v1 import overlay_pb2, overlay_pb2_grpc
from meshcommon.address import parse_peer_address
from meshcommon.barrier import barrier
from meshcommon.delegated_keys import DelegatedKeys
from meshcommon.delegation import DelegatedSigner, Use
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId, check_node_name
from meshcommon.logging import get_logger
from meshwire.packet import Protocol, TrafficClass

_log = get_logger(__name__)
QUEUE_BYTES_MAX: Final = 16 * 1024 * 1024
QUEUE_SOURCE_BYTES_MAX: Final = 8 * 1024 * 1024
"""For the packets of one node."""
QUEUE_STRANGERS_BYTES_MAX: Final = 1024 * 1024
"""For the packets of all nodes together that are not yet members: what members say must not wait behind them."""
QUEUE_STRANGER_BYTES_MAX: Final = 256 * 1024
"""Of those, for one lane. One packet of any size always fits: a joiner gets the view of the whole mesh."""
PACKET_BYTES: Final = 128
"""What a queued packet takes beside its payload, so that empty ones count too."""
DELIVER_BYTES_TARGET: Final = 1024 * 1024
LINKS_PERIOD_S: Final = 1.0
_OWN_PROTOCOLS: Final = frozenset(
    {Protocol.LANE, Protocol.PATH_ERROR, Protocol.KEYS, Protocol.REQUEST, Protocol.ECHO, Protocol.RAFT_DSG}
)
"""Protocols of the data plane itself: nobody may bind to them from outside."""


_DROPPED: Final = Counter(
    "mesh_attach_packets_dropped_total", "Packets for services of this site that were not taken in time."
)


class Attachment:
    """What waits for one caller of Attach."""

    def __init__(self) -> None:
        self.dropped = 0
        self._packets: deque[overlay_pb2.InPacket] = deque()
        # By node, or by lane where the node is 0.
        self._bytes: collections.Counter[tuple[int, int]] = collections.Counter()
        self._total_bytes = 0
        self._stranger_bytes = 0
        self._links_changed = True
        self._is_over = False
        self._wake = asyncio.Event()

    def deliver(self, delivery: Delivery) -> None:
        """Queues a packet for the caller, or drops and counts it."""
        size = len(delivery.payload) + PACKET_BYTES
        source = _source(delivery.source, delivery.lane_id)
        if not self._has_room(source, size):
            self.dropped += 1
            _DROPPED.inc()
            return
        self._bytes[source] += size
        self._total_bytes += size
        self._stranger_bytes += 0 if delivery.source else size
        self._packets.append(
            overlay_pb2.InPacket(
                protocol=delivery.protocol,
                traffic_class=delivery.cls,
                source=delivery.source,
                lane_id=delivery.lane_id,
                payload=bytes(delivery.payload),
                lane_public_key=delivery.lane_public_key,
                lane_host=delivery.lane_host,
            )
        )
        self._wake.set()

    def _has_room(self, source: tuple[int, int], size: int) -> bool:
        held = self._bytes.get(source, 0)
        if not source[0] and held:
            return held + size <= QUEUE_STRANGER_BYTES_MAX and self._stranger_bytes + size <= QUEUE_STRANGERS_BYTES_MAX
        if not source[0] and self._stranger_bytes > QUEUE_STRANGERS_BYTES_MAX:
            return False
        return held + size <= QUEUE_SOURCE_BYTES_MAX and self._total_bytes + size <= QUEUE_BYTES_MAX

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
            source = _source(packet.source, packet.lane_id)
            size = len(packet.payload) + PACKET_BYTES
            self._bytes[source] -= size
            self._total_bytes -= size
            self._stranger_bytes -= 0 if packet.source else size
            if not self._bytes[source]:
                del self._bytes[source]
            taken.append(packet)
        return taken


class OverlayServicer(overlay_pb2_grpc.OverlayServiceServicer):
    """See overlay.proto."""

    def __init__(self, overlay: Overlay, keys: DelegatedKeys) -> None:
        """`keys` are this service's own."""
        self._overlay = overlay
        self._keys = keys
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
        """Dials a member. Errors: ILLEGAL_NAME, ADDRESS_UNREACHABLE, WRONG_PROTOCOL, HANDSHAKE_FAILED, VERSION_MISMATCH."""
        identity = request.identity
        check_node_name(identity.name)
        address = str(parse_peer_address(request.address))
        signer = DelegatedSigner.from_proto(identity, self._keys.find, Use.LANES)
        lane = await self._overlay.open_join_lane(address, identity.name, signer)
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
                if request.WhichOneof("kind") == "bind":
                    raise MeshError(ErrorCode.INVALID_ARGUMENT, "Attach binds once, in its first message.")
                for packet in request.send.packets:
                    self._check_and_send(packet)
        finally:
            attachment.end()

    def _check_and_send(self, packet: overlay_pb2.OutPacket) -> None:
        try:
            protocol, cls = Protocol(packet.protocol), TrafficClass(packet.traffic_class)
        except ValueError as error:
            raise MeshError(ErrorCode.INVALID_ARGUMENT, f"A packet cannot be sent: {error}.") from None
        if protocol in _OWN_PROTOCOLS:
            raise _not_yours(protocol)
        with barrier("attach_packet", protocol=protocol.name):
            self._send(packet, protocol, cls)

    def _send(self, packet: overlay_pb2.OutPacket, protocol: Protocol, cls: TrafficClass) -> None:
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
        lane = self._overlay.core.control_lane(link.peer)
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


def _source(node: int, lane_id: int) -> tuple[int, int]:
    return (node, 0 if node else lane_id)


def _protocols(first: overlay_pb2.AttachRequest | None) -> list[Protocol]:
    if first is None or first.WhichOneof("kind") != "bind":
        raise MeshError(ErrorCode.INVALID_ARGUMENT, "Attach begins with a bind: say which protocols you handle.")
    try:
        protocols = [Protocol(number) for number in dict.fromkeys(first.bind.protocols)]
    except ValueError as error:
        raise MeshError(ErrorCode.INVALID_ARGUMENT, f"Attach cannot bind: {error}.") from None
    for protocol in protocols:
        if protocol in _OWN_PROTOCOLS:
            raise _not_yours(protocol)
    return protocols


def _not_yours(protocol: Protocol) -> MeshError:
    return MeshError(ErrorCode.INVALID_ARGUMENT, f"Protocol {protocol.name} belongs to the data plane itself.")
