"""The overlay of one node without its sockets: lanes, links and forwarding put together.

Purpose: one sans-IO core that a shell (or a simulator) drives. Frames and time go in; frames per lane, deliveries and events
come out. Leaves out: dialling, the handshake, and who may receive a protocol. Source: architecture §5.

The driver's duties, after each call: transmit `next_frame` of every lane in `take_ready` until it is None, and act on
`take_events`. A lane that must close is already out of its link; the driver closes the socket and then calls `close_lane`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias

from google.protobuf.message import DecodeError

from mesh_data.core.forwarder import Delivery, DropReason, Forwarder, Transmission
from mesh_data.core.handshake import rejection
from mesh_data.core.join_limits import JOIN_PACKETS_PER_S, TokenBucket
from mesh_data.core.lane import Lane, encode_bye
from mesh_data.core.link import FRAME_BYTES_TARGET, Link
from mesh_data.core.timing import OverlayTiming
from meshapi.overlay.v1 import lane_pb2
from meshcommon.ids import NO_NODE, NodeId
from meshwire.buffers import Buffer
from meshwire.errors import WireError
from meshwire.frame import FRAME_HANDSHAKE, decode_handshake, decode_packets, frame_parts, frame_type
from meshwire.packet import PREFIX_BYTES, Protocol, TrafficClass, forwarding_view

REASON_DUPLICATE: Final = "duplicate lane"


@dataclass(frozen=True, slots=True)
class LaneClosing:
    """Close the lane's socket: at once when abrupt, else after what waits for it has been sent."""

    lane_id: int
    reason: str
    is_abrupt: bool


@dataclass(frozen=True, slots=True)
class LinkChanged:
    """The link to a member came up or went down."""

    peer: NodeId
    is_up: bool
    reason: str


OverlayEvent: TypeAlias = LaneClosing | LinkChanged


@dataclass(slots=True)
class _LaneState:
    lane: Lane
    is_join: bool
    output: list[bytes]
    join_bucket: TokenBucket
    is_closing: bool = False


class OverlayCore:
    """Lanes, links and forwarding of one node. `now` is monotonic seconds."""

    def __init__(self, timing: OverlayTiming, first_message_id: int) -> None:
        self.forwarder = Forwarder(NO_NODE, timing, first_message_id)
        self._timing = timing
        self._lanes: dict[int, _LaneState] = {}
        self._links: dict[NodeId, Link] = {}
        self._ready: set[int] = set()
        self._events: list[OverlayEvent] = []

    @property
    def local(self) -> NodeId:
        """This node's id, 0 when it is not a member."""
        return self.forwarder.local

    def set_node(self, local: NodeId, now: float) -> None:
        """Becomes another node, or none: closes every lane, forgets links and routes."""
        if local == self.local:
            return
        self.close_all("the node's membership changed", is_node_stopping=False, now=now)
        self._links.clear()
        self.forwarder.reset(local)

    def open_lane(self, lane_id: int, peer: NodeId, is_dialled: bool, is_join: bool, now: float) -> None:
        """Takes in a lane whose handshake is done. `is_join`: one side is not a member, only JOIN may pass."""
        bucket = TokenBucket(JOIN_PACKETS_PER_S, JOIN_PACKETS_PER_S, now)
        self._lanes[lane_id] = _LaneState(Lane(lane_id, peer, is_dialled, self._timing, now), is_join, [], bucket)
        if is_join:
            return
        link = self._links.setdefault(peer, Link(self.local, peer))
        was_up = link.is_up
        for surplus in link.add_lane(lane_id, is_dialled, now):
            link.remove_lane(surplus, REASON_DUPLICATE)
            self._say_bye(surplus, REASON_DUPLICATE, is_node_stopping=False)
        if not was_up:
            self.forwarder.set_link(peer, is_up=True)
            self._events.append(LinkChanged(peer, True, ""))
        self._mark_ready(link)

    def close_lane(self, lane_id: int, reason: str, now: float) -> None:
        """The lane's socket is gone."""
        state = self._lanes.pop(lane_id, None)
        self._ready.discard(lane_id)
        if state is not None and not state.is_join:
            self._leave_link(state.lane, reason, now)

    def close_peer(self, peer: NodeId, reason: str, now: float) -> None:
        """Closes all lanes to a member, with a bye."""
        for state in list(self._lanes.values()):
            if state.lane.peer == peer and not state.is_join:
                self._close_politely(state.lane, reason, False, now)

    def close_all(self, reason: str, *, is_node_stopping: bool, now: float) -> None:
        """Closes every lane, with a bye."""
        for state in list(self._lanes.values()):
            self._close_politely(state.lane, reason, is_node_stopping, now)

    def close_join_lane(self, lane_id: int, reason: str, now: float) -> None:
        """Closes a lane that carries only the join protocol; another one is left alone."""
        state = self._lanes.get(lane_id)
        if state is not None and state.is_join:
            self._close_politely(state.lane, reason, False, now)

    def send(
        self, protocol: Protocol, cls: TrafficClass, destination: NodeId, payload: bytes, flow: int, now: float
    ) -> bool:
        """Sends a packet to another member; False when it was dropped (and counted)."""
        transmission = self.forwarder.send(protocol, cls, destination, payload, flow, now)
        return transmission is not None and self._transmit(transmission)

    def send_link_local(self, protocol: Protocol, cls: TrafficClass, peer: NodeId, payload: bytes) -> bool:
        """Sends a packet to a direct neighbour only; False when it was dropped (and counted)."""
        data = self.forwarder.link_local(protocol, cls, peer, payload)
        return data is not None and self._transmit(Transmission(peer, cls, data))

    def send_join(self, lane_id: int, cls: TrafficClass, payload: bytes) -> bool:
        """Sends a packet of the join protocol on a lane on which one side is not a member."""
        state = self._lanes.get(lane_id)
        if state is None or not state.is_join:
            self.forwarder.drop(DropReason.NO_ROUTE)
            return False
        data = self.forwarder.link_local(Protocol.JOIN, cls, NO_NODE, payload)
        if data is None:
            return False
        state.output.append(data)
        self._ready.add(lane_id)
        return True

    def receive(self, lane_id: int, frame: bytes, now: float) -> list[Delivery]:
        """Takes a frame from a lane; returns what is for this node, in order."""
        state = self._lanes.get(lane_id)
        if state is None:
            return []
        try:
            if frame_type(frame) == FRAME_HANDSHAKE:
                self._receive_reject(state.lane, frame, now)
                return []
            packets = decode_packets(frame)
        except WireError as error:
            self.forwarder.drop(DropReason.MALFORMED)
            self._close_politely(state.lane, f"malformed frame: {error.reason}", False, now)
            return []
        state.lane.heard(now)
        link = self._links.get(state.lane.peer)
        if link is not None and not state.is_join:
            link.bytes_received += len(frame)
        deliveries: list[Delivery] = []
        for packet in packets:
            delivery = self._receive_join(state, packet, now) if state.is_join else self._receive(state, packet, now)
            if delivery is not None:
                deliveries.append(delivery)
        for transmission in self.forwarder.take_outgoing():
            self._transmit(transmission)
        self._collect_lane_output(state)
        return deliveries

    def tick(self, now: float, stall_s: float) -> None:
        """Beats and silence; `stall_s` is how long this process itself stood still since the last tick."""
        for state in list(self._lanes.values()):
            lane = state.lane
            if stall_s:
                lane.stalled(stall_s, now)
            lane.tick(now)
            self._collect_lane_output(state)
            if lane.is_silent(now):
                self._fail(lane, f"silent for more than {lane.silence_limit_s() * 1000:.0f} ms", now)
            elif state.is_join and now - lane.opened_at > self._timing.join_lane_life_s:
                self._close_politely(lane, "a join lane lives only for a minute", False, now)

    def next_frame(self, lane_id: int) -> bytes | None:
        """The next frame to write on a lane, None when nothing waits for it."""
        parts = self.next_frame_parts(lane_id)
        return None if parts is None else b"".join(parts)

    def next_frame_parts(self, lane_id: int) -> list[Buffer] | None:
        """The same, not yet joined."""
        state = self._lanes.get(lane_id)
        packets: list[bytes] = []
        room = FRAME_BYTES_TARGET
        if state is not None and state.output:
            packets, state.output = state.output, []
            room -= sum(map(len, packets))
        link = self._links.get(state.lane.peer) if state is not None and not state.is_join else None
        if link is not None and link.active_lane == lane_id and link.queues and (room > 0 or not packets):
            packets += link.queues.take(room)
        if not packets:
            self._ready.discard(lane_id)
            return None
        parts = frame_parts(packets)
        if link is not None:
            link.bytes_sent += sum(map(len, parts))
        return parts

    def take_ready(self) -> set[int]:
        """Lanes for which something waits since the last call."""
        ready, self._ready = self._ready, set()
        return ready

    def take_events(self) -> list[OverlayEvent]:
        """What happened, in order."""
        events, self._events = self._events, []
        return events

    def links(self) -> Iterable[Link]:
        """Every neighbour that is or was up since this node is a member."""
        return self._links.values()

    def link(self, peer: NodeId) -> Link | None:
        """The link to one neighbour."""
        return self._links.get(peer)

    def active_lane(self, peer: NodeId) -> Lane | None:
        """The lane that carries the traffic to one neighbour."""
        link = self._links.get(peer)
        lane_id = link.active_lane if link is not None else None
        state = self._lanes.get(lane_id) if lane_id is not None else None
        return state.lane if state is not None else None

    def is_link_up(self, peer: NodeId) -> bool:
        """Whether a lane to that neighbour is up."""
        link = self._links.get(peer)
        return link is not None and link.is_up

    def join_lane_count(self) -> int:
        """Lanes open to nodes that are not yet members."""
        return sum(1 for state in self._lanes.values() if state.is_join and not state.lane.is_dialled)

    def queued_bytes(self, destination: NodeId, now: float) -> int:
        """Bulk bytes that wait on the first hop towards `destination`."""
        path = self.forwarder.path_to(destination, now)
        link = self._links.get(path[1]) if path is not None else None
        return link.queues.queued_bytes(TrafficClass.BULK) if link is not None else 0

    def _receive(self, state: _LaneState, packet: memoryview, now: float) -> Delivery | None:
        result = self.forwarder.receive(state.lane.peer, packet, now)
        if isinstance(result, Transmission):
            self._transmit(result)
            return None
        if result is not None and result.protocol is Protocol.LANE:
            self._receive_lane_control(state.lane, result.payload, now)
            return None
        return result

    def _receive_join(self, state: _LaneState, packet: memoryview, now: float) -> Delivery | None:
        try:
            view = forwarding_view(packet)
        except WireError:
            self.forwarder.drop(DropReason.MALFORMED)
            return None
        if not state.lane.is_dialled and not state.join_bucket.take(now):
            self.forwarder.drop(DropReason.RATE_LIMITED)
            return None
        if view.route or view.protocol not in {Protocol.JOIN, Protocol.LANE}:
            self.forwarder.drop(DropReason.JOIN_ONLY)
            return None
        payload = packet[PREFIX_BYTES:]
        if view.protocol is Protocol.LANE:
            self._receive_lane_control(state.lane, payload, now)
            return None
        return Delivery(NO_NODE, state.lane.lane_id, view.protocol, view.cls, payload)

    def _receive_lane_control(self, lane: Lane, payload: bytes | memoryview, now: float) -> None:
        if not lane.receive(payload, now):
            self.forwarder.drop(DropReason.MALFORMED)
        elif lane.bye is not None:
            why = "the node is stopping" if lane.bye.is_node_stopping else "closed by the peer"
            self._fail(lane, f"{why}: {lane.bye.reason}", now, is_abrupt=False)

    def _receive_reject(self, lane: Lane, frame: bytes, now: float) -> None:
        try:
            message = lane_pb2.LaneHandshake.FromString(bytes(decode_handshake(frame)))
        except DecodeError:
            message = lane_pb2.LaneHandshake()
        if message.WhichOneof("step") == "reject":
            self._fail(lane, f"refused by the peer: {rejection(message.reject).message}", now)
        else:
            self.forwarder.drop(DropReason.MALFORMED)
            self._close_politely(lane, "a handshake frame after the handshake", False, now)

    def _transmit(self, transmission: Transmission) -> bool:
        link = self._links.get(transmission.next_hop)
        if link is None or not link.is_up:
            self.forwarder.drop(DropReason.LINK_DOWN)
            return False
        if not link.push(transmission.cls, transmission.data):
            self.forwarder.drop(DropReason.QUEUE_FULL)
            return False
        self._mark_ready(link)
        return True

    def _mark_ready(self, link: Link) -> None:
        lane_id = link.active_lane
        if lane_id is not None and link.queues:
            self._ready.add(lane_id)

    def _collect_lane_output(self, state: _LaneState) -> None:
        lane = state.lane
        peer = NO_NODE if state.is_join else lane.peer
        for payload in lane.take_outgoing():
            data = self.forwarder.link_local(Protocol.LANE, TrafficClass.CONTROL, peer, payload)
            if data is not None:
                state.output.append(data)
                self._ready.add(lane.lane_id)

    def _say_bye(self, lane_id: int, reason: str, *, is_node_stopping: bool) -> None:
        state = self._lanes.get(lane_id)
        if state is None or state.is_closing:
            return
        state.is_closing = True
        peer = NO_NODE if state.is_join else state.lane.peer
        bye = encode_bye(is_node_stopping, reason)
        data = self.forwarder.link_local(Protocol.LANE, TrafficClass.CONTROL, peer, bye)
        if data is not None:
            state.output.append(data)
            self._ready.add(lane_id)
        self._events.append(LaneClosing(lane_id, reason, is_abrupt=False))

    def _close_politely(self, lane: Lane, reason: str, is_node_stopping: bool, now: float) -> None:
        self._say_bye(lane.lane_id, reason, is_node_stopping=is_node_stopping)
        if not self._lanes[lane.lane_id].is_join:
            self._leave_link(lane, reason, now)

    def _fail(self, lane: Lane, reason: str, now: float, is_abrupt: bool = True) -> None:
        """The lane is over: nothing more is sent on it."""
        state = self._lanes.pop(lane.lane_id, None)
        self._ready.discard(lane.lane_id)
        self._events.append(LaneClosing(lane.lane_id, reason, is_abrupt))
        if state is not None and not state.is_join:
            self._leave_link(lane, reason, now)

    def _leave_link(self, lane: Lane, reason: str, now: float) -> None:
        link = self._links.get(lane.peer)
        if link is None:
            return
        if not link.remove_lane(lane.lane_id, reason):
            self._mark_ready(link)
            return
        self.forwarder.set_link(lane.peer, is_up=False)
        self._events.append(LinkChanged(lane.peer, False, reason))
        for packet in link.drain():
            transmission = self.forwarder.requeue(packet, now)
            if transmission is not None:
                self._transmit(transmission)
        for transmission in self.forwarder.take_outgoing():
            self._transmit(transmission)
