"""The overlay of one node without its sockets: links, join lanes and forwarding put together.

Purpose: one sans-IO core that a shell (or a simulator) drives. Frames and time go in; frames per lane, deliveries and events
come out. Leaves out: dialling, the handshake, who may receive a protocol, and what a link does with its lanes (`link`).
Source: architecture §5.

The driver's duties, after each call: transmit `next_frame` of every lane in `take_ready` until it is None, and act on
`take_events`. A lane that must close is already out of service; the driver closes the socket and then calls `close_lane`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias

from google.protobuf.message import DecodeError

from mesh_data.core.forwarder import Delivery, DropReason, Forwarder, Held, Transmission
from mesh_data.core.handshake import LocalNode, PeerNode, Standing, rejection
from mesh_data.core.join_lane import JoinLane
from mesh_data.core.lane import Lane, encode_bye
from mesh_data.core.link import Link
from mesh_data.core.membership_desk import MembershipDesk
from mesh_data.core.open_lane import OpenLane
from mesh_data.core.settlement import NO_MEMBER, Settlement, SettlementEvent
from mesh_data.core.settling_lane import SettlingLane
from mesh_data.core.timing import OverlayTiming
from mesh_data.core.view import View
from meshapi.overlay.v1 import lane_pb2
from meshcommon.delegation import Delegations
from meshcommon.ids import NO_NODE, NodeId
from meshcommon.membership import Vouch
from meshcommon.peer_text import printable
from meshwire.buffers import Buffer
from meshwire.errors import WireError
from meshwire.frame import FRAME_HANDSHAKE, decode_handshake, decode_packets, frame_type
from meshwire.packet import (
    Protocol,
    TrafficClass,
)

REASON_DUPLICATE: Final = "duplicate lane"
_NO_LANE: Final = (None, None)


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


OverlayEvent: TypeAlias = LaneClosing | LinkChanged | SettlementEvent


class OverlayCore:
    """Lanes, links and forwarding of one node. `now` is monotonic seconds."""

    def __init__(
        self,
        timing: OverlayTiming,
        first_message_id: int,
        entropy: Callable[[int], bytes],
        delegations: Delegations,
    ) -> None:
        """As no member. See `Forwarder` for the arguments."""
        self.forwarder = Forwarder(timing, first_message_id, entropy, delegations)
        self._timing = timing
        self._node: LocalNode | None = None
        self._links: dict[NodeId, Link] = {}
        self._desk = MembershipDesk()
        self._owners: dict[int, tuple[Link | JoinLane | SettlingLane, OpenLane]] = {}
        """By the id of each lane that is open: what owns it, and the lane."""
        self._ready: set[int] = set()
        self._lanes_deadline = math.inf
        self._events: list[OverlayEvent] = []
        self._settlement = Settlement(self, self._desk, self._events.append)

    @property
    def local(self) -> NodeId:
        """This node's id, 0 when it is not a member."""
        return self.forwarder.local

    @property
    def membership(self) -> MembershipDesk:
        """What this node knows of the membership, to read from."""
        return self._desk

    def configure(self, local: LocalNode | None, view: View | None, now: float, *, vouch: Vouch | None = None) -> None:
        """Takes the identity and view, both None for no member. As another node it closes every lane and forgets links.

        `vouch` is this node's own, for the membership in `view`.
        """
        if local != self._node:
            # Another mesh, epoch or key: nothing that was agreed under the old identity holds.
            self.close_all("the node's membership changed", is_node_stopping=False, now=now)
            self._links.clear()
        self._node = local
        self._desk.configure(local, view, vouch)
        self._membership_changed(now)

    def open_lane(
        self,
        lane_id: int,
        peer: NodeId,
        is_dialled: bool,
        is_join: bool,
        now: float,
        public_key: bytes = b"",
        *,
        host: str = "",
        shown: PeerNode | None = None,
    ) -> None:
        """Takes in a lane whose handshake is done.

        Args:
            lane_id: larger than any before.
            peer: the member at the other end, 0 when it is none.
            is_dialled: whether this node dialled.
            is_join: one side is not a member, only JOIN may pass.
            now: monotonic seconds.
            public_key: what the peer proved in the handshake; goes with what comes on a join lane.
            host: where the lane comes from; goes with it, too.
            shown: what the handshake says of the membership that the peer knows; None: the same as this node.
        """
        lane = OpenLane(Lane(lane_id, peer, is_dialled, self._timing, now))
        self._lanes_deadline = min(self._lanes_deadline, lane.lane.next_deadline())
        if is_join:
            self._owners[lane_id] = JoinLane(lane, public_key, host, now), lane
        elif shown is not None and shown.standing is not Standing.SAME:
            settling = SettlingLane(lane, shown, now)
            self._owners[lane_id] = settling, lane
            self._lanes_deadline = min(self._lanes_deadline, settling.deadline)
            self._settlement.open(settling, now)
        else:
            self.take_into_service(lane, now)

    def is_settling(self, lane_id: int) -> bool:
        """Whether a lane waits until both ends know the same membership."""
        return isinstance(self._owners.get(lane_id, _NO_LANE)[0], SettlingLane)

    def add_vouch(self, vouch: Vouch, now: float) -> bool:
        """Takes what a member vouches for, and answers those who wait for it; False when it is for another membership."""
        return self._settlement.add_vouch(vouch, now)

    def take_into_service(self, lane: OpenLane, now: float) -> None:
        """The lane carries packets from now on. For `Settlement`, as the four methods below."""
        peer = lane.lane.peer
        link = self._links.setdefault(peer, Link(self.local, peer))
        self._owners[lane.lane_id] = link, lane
        was_up = link.is_up
        for superfluous in link.add(lane, now):
            link.retire(superfluous.lane_id, REASON_DUPLICATE)
            self._say_bye(superfluous, REASON_DUPLICATE, is_node_stopping=False, now=now)
        if not was_up:
            self.forwarder.set_link(peer, True, now)
            self._events.append(LinkChanged(peer, True, ""))
            self._transmit_own()
        self._mark_ready(link)

    def put_control(self, lane: OpenLane, payload: bytes, now: float) -> None:
        """Queues a payload of protocol LANE."""
        self._put(lane, payload, now)

    def close_politely(self, lane: OpenLane, reason: str, now: float) -> None:
        """Says bye, sends what waits and closes."""
        self._close_politely(lane, reason, False, now)

    def settling_lanes(self) -> list[SettlingLane]:
        """Lanes that are not in service yet."""
        return [owner for owner, _ in self._owners.values() if isinstance(owner, SettlingLane)]

    def members_learned(self, now: float) -> None:
        """Another node has shown a newer membership, and the desk believes it."""
        self._membership_changed(now)

    def close_lane(self, lane_id: int, reason: str, now: float) -> None:
        """The lane's socket is gone."""
        self._forget(lane_id, reason, now)

    def close_peer(self, peer: NodeId, reason: str, now: float) -> None:
        """Closes all lanes to a member, with a bye."""
        link = self._links.get(peer)
        lanes = link.lanes() if link is not None else []
        lanes += [item.open_lane for item in self.settling_lanes() if item.open_lane.lane.peer == peer]
        for lane in lanes:
            self._close_politely(lane, reason, False, now)

    def close_all(self, reason: str, *, is_node_stopping: bool, now: float) -> None:
        """Closes every lane, with a bye."""
        for _, lane in list(self._owners.values()):
            self._close_politely(lane, reason, is_node_stopping, now)

    def close_join_lane(self, lane_id: int, reason: str, now: float) -> None:
        """Closes a lane that carries only the join protocol; another one is left alone."""
        owner, lane = self._owners.get(lane_id, _NO_LANE)
        if lane is not None and isinstance(owner, JoinLane):
            self._close_politely(lane, reason, False, now)

    def send(
        self, protocol: Protocol, cls: TrafficClass, destination: NodeId, payload: bytes, flow: int, now: float
    ) -> bool:
        """Sends a packet to another member; False when it was dropped (and counted)."""
        return self._sent(self.forwarder.send(protocol, cls, destination, payload, flow, now))

    def send_link_local(self, protocol: Protocol, cls: TrafficClass, peer: NodeId, payload: bytes, now: float) -> bool:
        """Sends a packet to a direct neighbour only; False when it was dropped (and counted)."""
        return self._sent(self.forwarder.send_link_local(protocol, cls, peer, payload, now))

    def send_join(self, lane_id: int, cls: TrafficClass, payload: bytes, now: float) -> bool:
        """Sends a packet of the join protocol on a lane on which one side is not a member."""
        owner, _ = self._owners.get(lane_id, _NO_LANE)
        if not isinstance(owner, JoinLane):
            self.forwarder.drop(DropReason.NO_ROUTE)
            return False
        data = self.forwarder.lane_packet(Protocol.JOIN, cls, NO_NODE, payload, now)
        if data is None:
            return False
        if owner.open_lane.is_full:
            # One large answer may wait, not one behind the other: the neighbour has to read.
            self.forwarder.drop(DropReason.QUEUE_FULL)
            self._fail(owner.open_lane, "the neighbour does not read what waits for it", now)
            return False
        owner.open_lane.put(data)
        self._ready.add(lane_id)
        return True

    def receive(self, lane_id: int, frame: bytes, now: float) -> list[Delivery]:
        """Takes a frame from a lane; returns what is for this node, in order."""
        owner, lane = self._owners.get(lane_id, _NO_LANE)
        if lane is None:
            return []
        try:
            if frame_type(frame) == FRAME_HANDSHAKE:
                self._receive_reject(lane, frame, now)
                return []
            packets = decode_packets(frame)
        except WireError as error:
            self.forwarder.drop(DropReason.MALFORMED)
            self._close_politely(lane, f"malformed frame: {error.reason}", False, now)
            return []
        lane.lane.heard(now)
        deliveries: list[Delivery] = []
        if isinstance(owner, Link):
            owner.bytes_received += len(frame)
            for packet in packets:
                if (delivery := self._receive(lane, packet, now)) is not None:
                    deliveries.append(delivery)  # noqa: PERF401 - one packet a frame is the rule, and a loop is cheaper then
        else:
            for packet in packets:
                if (delivery := self._receive_apart(lane, packet, now)) is not None:
                    deliveries.append(delivery)
                if lane_id not in self._owners:
                    break  # what a stranger put behind it is not worth a look
        self._transmit_own()
        self._collect_lane_output(lane, now)
        return deliveries

    def tick(self, now: float, stall_s: float) -> None:
        """Beats, silence, keys; `stall_s` is how long this process itself stood still before this tick."""
        for lane_id in self.lane_ids():
            self.tick_lane(lane_id, now, stall_s)
        self.end_tick(now)

    def end_tick(self, now: float) -> None:
        """The part of `tick` that comes after the lanes: packet keys, and when to tick next."""
        self.forwarder.tick(now)
        self._transmit_own()
        self._lanes_deadline = min(map(self._deadline_of, self._owners), default=math.inf)

    def next_deadline(self) -> float:
        """When `tick` must be called next; infinity when nothing is due. Perhaps too early, never too late.

        Cheap: it is asked after every packet.
        """
        return min(self._lanes_deadline, self.forwarder.next_deadline())

    def lane_ids(self) -> list[int]:
        """Every lane that is open."""
        return list(self._owners)

    def tick_lane(self, lane_id: int, now: float, stall_s: float) -> None:
        """`tick` of one lane, for a driver that keeps the failure of one from the others."""
        owner, open_lane = self._owners.get(lane_id, _NO_LANE)
        if open_lane is None:
            return
        lane = open_lane.lane
        if stall_s:
            lane.stalled(stall_s, now)
        lane.tick(now)
        self._collect_lane_output(open_lane, now)
        if lane.is_silent(now):
            self._fail(open_lane, f"silent for more than {lane.silence_limit_s() * 1000:.0f} ms", now)
        elif isinstance(owner, JoinLane) and now >= lane.opened_at + self._timing.join_lane_life_s:
            self._close_politely(open_lane, "a join lane lives only for a minute", False, now)
        elif isinstance(owner, SettlingLane) and now >= owner.deadline:
            self._settlement.unsettled(owner, "no membership that this node believes came in time", now)

    def abort_lane(self, lane_id: int, reason: str, now: float) -> None:
        """Ends a lane at once; one that is gone is left alone."""
        lane = self.lane(lane_id)
        if lane is not None:
            self._fail(lane, reason, now)

    def next_frame(self, lane_id: int) -> bytes | None:
        """The next frame to write on a lane, None when nothing waits for it."""
        parts = self.next_frame_parts(lane_id)
        return None if parts is None else b"".join(parts)

    def next_frame_parts(self, lane_id: int) -> list[Buffer] | None:
        """The same, not yet joined."""
        owner, lane = self._owners.get(lane_id, _NO_LANE)
        parts = owner.next_frame_parts(lane) if owner is not None and lane is not None else None
        if parts is None:
            self._ready.discard(lane_id)
        return parts

    def take_ready(self) -> set[int]:
        """Lanes for which something waits since the last call."""
        ready, self._ready = self._ready, set()
        return ready

    def take_events(self) -> list[OverlayEvent]:
        """What happened, in order."""
        events = self._events.copy()
        self._events.clear()
        return events

    def links(self) -> Iterable[Link]:
        """Every neighbour that is or was up since this node is a member."""
        return self._links.values()

    def link(self, peer: NodeId) -> Link | None:
        """The link to one neighbour."""
        return self._links.get(peer)

    def control_lane(self, peer: NodeId) -> Lane | None:
        """The lane that carries the control class to one neighbour: its round trip stands for the link's."""
        link = self._links.get(peer)
        carrier = link.carrier(TrafficClass.CONTROL) if link is not None else None
        return carrier.lane if carrier is not None else None

    def lane(self, lane_id: int) -> OpenLane | None:
        """One lane, whoever is at its other end."""
        return self._owners.get(lane_id, _NO_LANE)[1]

    def is_link_up(self, peer: NodeId) -> bool:
        """Whether a lane to that neighbour is up."""
        link = self._links.get(peer)
        return link is not None and link.is_up

    def join_lane_count(self) -> int:
        """Lanes open to nodes that are not yet members."""
        return sum(isinstance(owner, JoinLane) and owner.is_of_stranger for owner, _ in self._owners.values())

    def queued_bytes(self, destination: NodeId, now: float) -> int:
        """Bulk bytes that wait on the first hop towards `destination`."""
        path = self.forwarder.paths.path_to(destination, now)
        link = self._links.get(path[1]) if path is not None else None
        return link.queued_bytes(TrafficClass.BULK) if link is not None else 0

    def _receive(self, lane: OpenLane, packet: memoryview, now: float) -> Delivery | None:
        result = self.forwarder.receive(lane.lane.peer, packet, now)
        if isinstance(result, Transmission):
            self._transmit(result)
            return None
        if result is not None and result.protocol is Protocol.LANE:
            self._receive_lane_control(lane, result.payload, now)
            return None
        return result

    def _receive_join(self, owner: JoinLane, packet: memoryview, now: float) -> Delivery | None:
        result = owner.receive(packet, now)
        if isinstance(result, Delivery):
            return result
        if isinstance(result, DropReason):
            self.forwarder.drop(result)
            if result is DropReason.RATE_LIMITED:
                self._fail(owner.open_lane, "more packets than a node that joins may send", now)
            return None
        self._receive_lane_control(owner.open_lane, result, now)
        return None

    def _receive_apart(self, lane: OpenLane, packet: memoryview, now: float) -> Delivery | None:
        """A packet on a lane that was no link's when its frame came; one before it may have brought it into service."""
        owner = self._owners[lane.lane_id][0]
        if isinstance(owner, JoinLane):
            return self._receive_join(owner, packet, now)
        if isinstance(owner, SettlingLane):
            self._receive_settling(owner, packet, now)
            return None
        return self._receive(lane, packet, now)

    def _receive_settling(self, owner: SettlingLane, packet: memoryview, now: float) -> None:
        """Only what belongs to the lane itself is looked at."""
        lane = owner.open_lane
        payload = self.forwarder.lane_payload(lane.lane.peer, packet)
        if payload is not None and not lane.is_closing and not self._settlement.receive(owner, payload, now):
            self._receive_lane_control(lane, payload, now)

    def _membership_changed(self, now: float) -> None:
        """Puts the members that are known now into force, and goes on with the lanes that wait for them."""
        view = self._desk.view
        self.forwarder.configure(self._node, view)
        for link in list(self._links.values()) if view is not None else ():
            if link.is_up and view is not None and link.peer not in view.nodes:
                self.close_peer(link.peer, NO_MEMBER, now)
        self._settlement.membership_changed(now)

    def _receive_lane_control(self, lane: OpenLane, payload: bytes | memoryview, now: float) -> None:
        if not lane.lane.receive(payload, now):
            self.forwarder.drop(DropReason.MALFORMED)
        elif (bye := lane.lane.bye) is not None:
            why = "the node is stopping" if bye.is_node_stopping else "closed by the peer"
            self._fail(lane, f"{why}: {printable(bye.reason)}", now, is_abrupt=False)

    def _receive_reject(self, lane: OpenLane, frame: bytes, now: float) -> None:
        try:
            message = lane_pb2.LaneHandshake.FromString(bytes(decode_handshake(frame)))
        except DecodeError:
            message = lane_pb2.LaneHandshake()
        if message.WhichOneof("step") == "reject":
            self._fail(lane, f"refused by the peer: {printable(rejection(message.reject).message)}", now)
        else:
            self.forwarder.drop(DropReason.MALFORMED)
            self._close_politely(lane, "a handshake frame after the handshake", False, now)

    def _sent(self, result: Transmission | Held | None) -> bool:
        self._transmit_own()
        return self._transmit(result) if isinstance(result, Transmission) else result is not None

    def _transmit_own(self) -> None:
        for transmission in self.forwarder.take_outgoing():
            self._transmit(transmission)

    def _transmit(self, transmission: Transmission) -> bool:
        link = self._links.get(transmission.next_hop)
        if link is None or not link.is_up:
            self.forwarder.drop(DropReason.LINK_DOWN)
            return False
        if not link.push(transmission.cls, transmission.data):
            self.forwarder.drop(DropReason.QUEUE_FULL)
            return False
        carrier = link.carrier(transmission.cls)
        if carrier is not None:
            self._ready.add(carrier.lane_id)
        return True

    def _mark_ready(self, link: Link) -> None:
        self._ready.update(lane.lane_id for lane in link.carriers() if link.is_waiting_for(lane))

    def _deadline_of(self, lane_id: int) -> float:
        owner, lane = self._owners[lane_id]
        deadline = lane.lane.next_deadline()
        if isinstance(owner, JoinLane) and not lane.is_closing:
            return min(deadline, lane.lane.opened_at + self._timing.join_lane_life_s)
        if isinstance(owner, SettlingLane) and not lane.is_closing:
            return min(deadline, owner.deadline)
        return deadline

    def _collect_lane_output(self, lane: OpenLane, now: float) -> None:
        for payload in lane.lane.take_outgoing():
            if lane.is_full:
                # Nothing has left for many seconds: the socket ends such a lane, and more beats help nobody.
                self.forwarder.drop(DropReason.QUEUE_FULL)
                continue
            self._put(lane, payload, now)

    def _say_bye(self, lane: OpenLane, reason: str, *, is_node_stopping: bool, now: float) -> None:
        if lane.is_closing:
            return
        lane.is_closing = True
        self._put(lane, encode_bye(is_node_stopping, reason), now)
        self._events.append(LaneClosing(lane.lane_id, reason, is_abrupt=False))

    def _put(self, lane: OpenLane, payload: bytes, now: float) -> None:
        """Queues a payload of protocol LANE. A join lane's peer is no member: its packets have no ids."""
        peer = NO_NODE if isinstance(self._owners.get(lane.lane_id, _NO_LANE)[0], JoinLane) else lane.lane.peer
        data = self.forwarder.lane_packet(Protocol.LANE, TrafficClass.CONTROL, peer, payload, now)
        if data is not None:
            lane.put(data)
            self._ready.add(lane.lane_id)

    def _close_politely(self, lane: OpenLane, reason: str, is_node_stopping: bool, now: float) -> None:
        self._say_bye(lane, reason, is_node_stopping=is_node_stopping, now=now)
        owner, _ = self._owners.get(lane.lane_id, _NO_LANE)
        if isinstance(owner, Link):
            self._left(owner, owner.retire(lane.lane_id, reason), reason, now)

    def _fail(self, lane: OpenLane, reason: str, now: float, is_abrupt: bool = True) -> None:
        """The lane is over: nothing more is sent on it."""
        self._events.append(LaneClosing(lane.lane_id, reason, is_abrupt))
        self._forget(lane.lane_id, reason, now)

    def _forget(self, lane_id: int, reason: str, now: float) -> None:
        owner, _ = self._owners.pop(lane_id, _NO_LANE)
        self._ready.discard(lane_id)
        if isinstance(owner, Link):
            self._left(owner, owner.remove(lane_id, reason), reason, now)

    def _left(self, link: Link, is_down: bool, reason: str, now: float) -> None:
        """A lane of the link is out of service; what waits goes out on another one, or another way."""
        if not is_down:
            self._mark_ready(link)
            return
        self.forwarder.set_link(link.peer, False, now)
        self._events.append(LinkChanged(link.peer, False, reason))
        for packet in link.drain():
            transmission = self.forwarder.requeue(packet, now)
            if transmission is not None:
                self._transmit(transmission)
        self._transmit_own()
