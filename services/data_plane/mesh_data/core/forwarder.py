"""Forwarding: the source picks the whole path, a relay looks only at the next hop and may repair a path once.

Purpose: decide for each packet whether it is delivered here, passed on, or dropped and counted; seal what this node sends
and open what arrives. Leaves out: which path (`path_choice`), queues and sockets; the caller transmits what it is told to. Source: architecture §5
"Source routes", §11 "Packets".

Invariants: no packet crosses a node twice (a route is loopless, and a repair keeps the part already travelled); a packet is
repaired at most once (FLAG_REPAIRED); malformed input never raises; a path error never causes another. A payload is
delivered only if the packet was sealed by its source for this node and is new, or is of a protocol that proves itself: LANE
comes over the lane's own connection, PATH_ERROR and KEYS are signed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

from mesh_data.core.handshake import LocalNode
from mesh_data.core.held_packets import HeldPacket, HeldPackets
from mesh_data.core.message_ids import MessageIds
from mesh_data.core.packet_keys import Buckets, PacketKeys
from mesh_data.core.packet_session import PacketSession, SealFault
from mesh_data.core.path_choice import PathChoice
from mesh_data.core.path_error import PathError
from mesh_data.core.route_table import Nodes
from mesh_data.core.timing import OverlayTiming
from mesh_data.core.view import View
from meshcommon.delegation import Delegations
from meshcommon.ids import NO_NODE, NodeId
from meshwire.errors import WireCode, WireError
from meshwire.packet import (
    FIRST_HOP_LIMIT,
    FLAG_REPAIRED,
    FLAG_SEALED,
    MAX_ROUTE_NODES,
    PREFIX_BYTES,
    PROTOCOLS,
    VERSION,
    ForwardingView,
    Packet,
    Protocol,
    TrafficClass,
    advance,
    check_arrived,
    encode,
    encode_sealed,
    forwarding_view,
    reroute,
    sealed_part,
)

_LINK_LOCAL_ONLY: Final = frozenset({Protocol.LANE, Protocol.LSA})
_UNSEALED: Final = frozenset({Protocol.LANE, Protocol.PATH_ERROR, Protocol.KEYS})
_PATH_ERRORS_REMEMBERED_MAX: Final = 1024
PATH_ERROR_SIGNATURES_PER_S: Final = 200.0
"""Path errors that are signed for what comes through one neighbour, and signatures of path errors of it that are checked, a second.

Cost: up to 3 % of a core each. By neighbour, so that one that lies does not silence what the others tell."""


class DropReason(StrEnum):
    """Why a packet was dropped; also the metric's label."""

    MALFORMED = "malformed"
    WRONG_HOP = "wrong_hop"
    HOP_LIMIT = "hop_limit"
    LINK_DOWN = "link_down"
    ALREADY_REPAIRED = "already_repaired"
    NO_ROUTE = "no_route"
    QUEUE_FULL = "queue_full"
    TOO_LARGE = "too_large"
    NO_RECEIVER = "no_receiver"
    UNSETTLED = "unsettled"
    JOIN_ONLY = "join_only"
    RATE_LIMITED = "rate_limited"
    NOT_UNDERSTOOD = "not_understood"
    """Well formed, but of a version, class, protocol, flag or suite that is unknown here."""
    UNSEALED = "unsealed"
    NO_SESSION = "no_session"
    """Sealed under keys that are unknown here, or waiting too long for keys."""
    BAD_SEAL = "bad_seal"
    REPLAYED = "replayed"
    BAD_SIGNATURE = "bad_signature"
    """A path error or a boot key that was not signed, not asked for, or too often."""


class Transmission(NamedTuple):
    """Send `data` to the direct neighbour `next_hop`."""

    next_hop: NodeId
    cls: TrafficClass
    data: bytes


class Delivery(NamedTuple):
    """A payload for this node.

    `lane_id`, `lane_public_key` (the key proved in the lane's handshake) and `lane_host` (where the lane comes from) are 0 and
    empty unless it came on a join lane.
    """

    source: NodeId
    lane_id: int
    protocol: Protocol
    cls: TrafficClass
    payload: bytes | memoryview
    lane_public_key: bytes = b""
    lane_host: str = ""


class Held(NamedTuple):
    """The packet waits here until there are keys for its destination; it comes out of `take_outgoing` then."""

    destination: NodeId


@dataclass(slots=True)
class ForwardingCounters:
    """Since the start of the process."""

    sent: int = 0
    forwarded: int = 0
    forwarded_bytes: int = 0
    delivered: int = 0
    repaired: int = 0
    path_errors_sent: int = 0
    path_errors_received: int = 0
    dropped: Counter[DropReason] = field(default_factory=Counter)


class Forwarder:
    """Forwarding of one node. `now` is monotonic seconds."""

    def __init__(
        self,
        timing: OverlayTiming,
        first_message_id: int,
        entropy: Callable[[int], bytes],
        delegations: Delegations,
    ) -> None:
        """Begins as no member.

        Args:
            timing: see there.
            first_message_id: random, so that ids of an earlier incarnation of this node are not met again.
            entropy: gives so many fresh random bytes.
            delegations: checks what others signed.
        """
        self.local = NO_NODE
        self.paths = PathChoice(NO_NODE, timing.broken_hold_s)
        self.counters = ForwardingCounters()
        self.keys = PacketKeys(entropy, delegations)
        self._timing = timing
        self._path_error_at: dict[tuple[NodeId, NodeId], float] = {}
        self._signing = Buckets(PATH_ERROR_SIGNATURES_PER_S, PATH_ERROR_SIGNATURES_PER_S)
        self._checking = Buckets(PATH_ERROR_SIGNATURES_PER_S, PATH_ERROR_SIGNATURES_PER_S)
        self._message_ids = MessageIds(first_message_id)
        self._held = HeldPackets()
        self._outgoing: list[Transmission] = []
        self._deadline = math.inf

    def configure(self, local: LocalNode | None, view: View | None) -> None:
        """Takes the identity and view; as another node, or none, it forgets routes and links. Counters go on."""
        old = self.keys.identity
        if local is None or view is None or old is None or local != old.local:
            self.local = local.node_id if local is not None and view is not None else NO_NODE
            self.paths = PathChoice(self.local, self._timing.broken_hold_s)
            self._path_error_at.clear()
            self._outgoing.clear()
            self._drop_held(self._held.clear())
        self.keys.configure(local, view)

    def set_link(self, peer: NodeId, is_up: bool, now: float) -> None:
        """The link to a neighbour came up or went down."""
        self.paths.set_link(peer, is_up)
        if is_up:
            self.keys.link_up(peer, now)
            self._send_keys(None, now)

    def tick(self, now: float) -> None:
        """Repeats asks for keys, and gives up on packets that waited too long for them."""
        self.keys.tick(now)
        self._send_keys(None, now)
        self._drop_held(self._held.expire(now))
        self._plan()

    def next_deadline(self) -> float:
        """When `tick` must be called; infinity when it has nothing to do. Perhaps too early, never too late."""
        return self._deadline

    def take_outgoing(self) -> list[Transmission]:
        """What this node sends of its own accord: path errors, messages about keys, packets that waited for keys."""
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

    def send(
        self, protocol: Protocol, cls: TrafficClass, destination: NodeId, payload: bytes, flow: int, now: float
    ) -> Transmission | Held | None:
        """A packet of this node's own; None when it was dropped."""
        path = self.paths.path_to(destination, now)
        if path is None:
            self.drop(DropReason.NO_ROUTE)
            return None
        session = self.keys.session(destination)
        if session is None:
            return self._hold(HeldPacket(protocol, cls, payload, flow, False, now), destination, now)
        return self._seal(session, (protocol, cls, payload), destination, path, flow, now)

    def send_link_local(
        self, protocol: Protocol, cls: TrafficClass, peer: NodeId, payload: bytes, now: float
    ) -> Transmission | Held | None:
        """The same for the direct neighbour only, without a route."""
        if not self.paths.is_up(peer):
            self.drop(DropReason.LINK_DOWN)
            return None
        session = self.keys.session(peer)
        if session is None:
            return self._hold(HeldPacket(protocol, cls, payload, 0, True, now), peer, now)
        return self._seal(session, (protocol, cls, payload), peer, (), 0, now)

    def lane_packet(
        self, protocol: Protocol, cls: TrafficClass, peer: NodeId, payload: bytes, now: float
    ) -> bytes | None:
        """A packet for one lane itself, not sealed: LANE, or JOIN where one side is no member (0); None when dropped."""
        return self._encode(protocol, cls, peer, payload, (), now)

    def lane_payload(self, peer: NodeId, data: memoryview) -> memoryview | None:
        """The payload of a LANE packet of the member `peer`, for a lane that carries nothing else; None when it was dropped."""
        try:
            view = forwarding_view(data)
            if view.route or view.protocol != Protocol.LANE:
                self.drop(DropReason.UNSETTLED)
                return None
            check_arrived(data)
        except WireError:
            self.drop(DropReason.MALFORMED)
            return None
        if view.source != peer or view.destination != self.local or view.flags & FLAG_SEALED:
            self.drop(DropReason.WRONG_HOP)
            return None
        return data[PREFIX_BYTES:]

    def receive(self, peer: NodeId, data: bytes | memoryview, now: float) -> Delivery | Transmission | None:
        """A packet that came in on a lane of the member `peer`; None when it ended here."""
        try:
            view = forwarding_view(data)
        except WireError:
            self.drop(DropReason.MALFORMED)
            return None
        route = view.route
        if not route:
            if view.source != peer or view.destination != self.local:
                self.drop(DropReason.WRONG_HOP)
                return None
            return self._deliver(peer, view, data, now)
        position = view.position
        if position == 0 or route[position] != self.local or route[position - 1] != peer:
            self.drop(DropReason.WRONG_HOP)
            return None
        if position == len(route) - 1:
            return self._deliver(peer, view, data, now)
        if view.hop_limit == 0:
            self.drop(DropReason.HOP_LIMIT)
            return None
        next_hop = NodeId(route[position + 1])
        if not self.paths.is_up(next_hop):
            return self._repair(view, position, view.hop_limit - 1, data, now)
        self.counters.forwarded += 1
        self.counters.forwarded_bytes += len(data)
        return Transmission(next_hop, view.cls, advance(data, position + 1, view.hop_limit - 1))

    def requeue(self, data: bytes, now: float) -> Transmission | None:
        """Another way for a packet that waited for a link which went down; None when there is none."""
        view = forwarding_view(data)
        if not view.route:
            self.drop(DropReason.LINK_DOWN)
            return None
        if view.source != self.local:
            return self._repair(view, view.position - 1, view.hop_limit, data, now)
        path = self.paths.path_to(NodeId(view.destination), now)
        if path is None:
            self.drop(DropReason.NO_ROUTE)
            return None
        return self._rerouted(view, data, path, 1, view.flags, view.hop_limit)

    def drop(self, reason: DropReason) -> None:
        """Counts a dropped packet."""
        self.counters.dropped[reason] += 1

    def _encode(
        self, protocol: Protocol, cls: TrafficClass, destination: NodeId, payload: bytes, path: Nodes, now: float
    ) -> bytes | None:
        """A packet that is not sealed."""
        packet = Packet(
            version=VERSION,
            cls=cls,
            protocol=protocol,
            flags=0,
            hop_limit=FIRST_HOP_LIMIT,
            source=self.local,
            destination=destination,
            message_id=self._message_ids.next(now),
            route=path,
            position=1 if path else 0,
            payload=payload,
        )
        try:
            return encode(packet)
        except WireError as error:
            self._drop_unencoded(error)
            return None

    def _seal(
        self,
        session: PacketSession,
        packet: tuple[Protocol, TrafficClass, bytes],
        destination: NodeId,
        path: Nodes,
        flow: int,
        now: float,
    ) -> Transmission | None:
        protocol, cls, payload = packet
        message_id, ends = self._message_ids.next(now), (self.local, destination)
        try:
            data = encode_sealed(session, cls, protocol, ends, path, payload, flow=flow, message_id=message_id)
        except WireError as error:
            self._drop_unencoded(error)
            return None
        self.counters.sent += 1
        return Transmission(path[1] if path else destination, cls, data)

    def _drop_unencoded(self, error: WireError) -> None:
        self.drop(DropReason.TOO_LARGE if error.code is WireCode.TOO_LARGE else DropReason.MALFORMED)

    def _hold(self, packet: HeldPacket, destination: NodeId, now: float) -> Held | None:
        self.keys.want(destination, now)
        self._send_keys(None, now)
        if self._held.hold(destination, packet):
            self._plan()
            return Held(destination)
        self.drop(DropReason.NO_SESSION)
        return None

    def _plan(self) -> None:
        """Notes the next deadline; everything that may bring one nearer is seldom and ends here, unlike packets."""
        self._deadline = min(self.keys.next_deadline(), self._held.next_deadline())

    def _drop_held(self, count: int) -> None:
        if count:
            self.counters.dropped[DropReason.NO_SESSION] += count

    def _send_keys(self, back: Nodes | None, now: float) -> None:
        """Sends what the keys have to say, then what waited for a session, in this order.

        `back` is the way back to the node from which something just came: what worked a moment ago is tried first.
        """
        for destination, payload in self.keys.take_outgoing():
            is_way_back = back is not None and back[-1] == destination and self.paths.is_up(back[1])
            path = back if is_way_back else self.paths.path_to(destination, now)
            if path is None:
                self.drop(DropReason.NO_ROUTE)
                continue
            data = self._encode(Protocol.KEYS, TrafficClass.CONTROL, destination, payload, path, now)
            if data is not None:
                self._outgoing.append(Transmission(path[1], TrafficClass.CONTROL, data))
        for peer in self.keys.take_ready():
            for held in self._held.take(peer):
                if held.is_link_local:
                    sent = self.send_link_local(held.protocol, held.cls, peer, held.payload, now)
                else:
                    sent = self.send(held.protocol, held.cls, peer, held.payload, held.flow, now)
                if isinstance(sent, Transmission):
                    self._outgoing.append(sent)
        self._plan()

    def _deliver(self, peer: NodeId, view: ForwardingView, data: bytes | memoryview, now: float) -> Delivery | None:
        """Checks everything that relays leave to the destination."""
        try:
            check_arrived(data)
        except WireError:
            self.drop(DropReason.NOT_UNDERSTOOD)
            return None
        protocol, source = PROTOCOLS[view.protocol], NodeId(view.source)
        if view.route and protocol in _LINK_LOCAL_ONLY:
            self.drop(DropReason.WRONG_HOP)
            return None
        if protocol in _UNSEALED:
            return self._deliver_unsealed(peer, protocol, view, data, now)
        if not view.flags & FLAG_SEALED:
            self.drop(DropReason.UNSEALED)
            return None
        try:
            part = sealed_part(data, len(view.route))
        except WireError:
            self.drop(DropReason.NOT_UNDERSTOOD)
            return None
        payload = self.keys.open(source, view.cls, part, now)
        if isinstance(payload, SealFault):
            self.drop(DropReason(payload))
            if payload is SealFault.NO_SESSION:
                self._send_keys(_way_back(view, len(view.route) - 1), now)
            return None
        self.counters.delivered += 1
        return Delivery(source, 0, protocol, view.cls, payload)

    def _deliver_unsealed(
        self, peer: NodeId, protocol: Protocol, view: ForwardingView, data: bytes | memoryview, now: float
    ) -> Delivery | None:
        if view.flags & FLAG_SEALED:
            self.drop(DropReason.NOT_UNDERSTOOD)
            return None
        source = NodeId(view.source)
        payload = memoryview(data)[PREFIX_BYTES + 8 * len(view.route) :]
        self.counters.delivered += 1
        if protocol is Protocol.PATH_ERROR:
            self._receive_path_error(source, peer, payload, now)
            return None
        if protocol is Protocol.KEYS:
            back = _way_back(view, len(view.route) - 1)
            # No honest relay of this node's own way there lets anybody else send along it in the name of its far end.
            is_own_way = back is None or back == self.paths.path_to(source, now)
            if not self.keys.receive(source, (peer, is_own_way), payload, now):
                self.drop(DropReason.BAD_SIGNATURE)
            self._send_keys(back, now)
            return None
        return Delivery(source, 0, protocol, view.cls, payload)

    def _receive_path_error(self, source: NodeId, via: NodeId, payload: memoryview, now: float) -> None:
        error = PathError.decode(payload)
        # Only the near end of a link may speak for it, and only about a packet of this node.
        if error is None or error.near != source:
            self.drop(DropReason.MALFORMED)
            return
        identity = self.keys.identity
        if (
            identity is None
            or not self._message_ids.is_recent(error.message_id, now)
            or not self._checking.take(via, now, identity.checks_needed(source, error.delegation))
            or not error.is_genuine(identity)
        ):
            self.drop(DropReason.BAD_SIGNATURE)
            return
        self.counters.path_errors_received += 1
        self.paths.name_broken(error.near, error.far, now)

    def _repair(
        self, view: ForwardingView, position: int, hop_limit: int, data: bytes | memoryview, now: float
    ) -> Transmission | None:
        """Puts a packet whose next link is down on a path that is disjoint from the part already travelled."""
        if view.flags & FLAG_REPAIRED:
            self._send_path_error(view, position, now)
            self.drop(DropReason.ALREADY_REPAIRED)
            return None
        destination = NodeId(view.destination)
        path = self.paths.detour(destination, frozenset(view.route[:position]), now)
        if path is None or position + len(path) > MAX_ROUTE_NODES:
            self._send_path_error(view, position, now)
            self.drop(DropReason.LINK_DOWN)
            return None
        route = tuple(map(NodeId, view.route[: position + 1])) + path[1:]
        repaired = self._rerouted(view, data, route, position + 1, view.flags | FLAG_REPAIRED, hop_limit)
        self.counters.repaired += repaired is not None
        return repaired

    def _rerouted(
        self, view: ForwardingView, data: bytes | memoryview, route: Nodes, position: int, flags: int, hop_limit: int
    ) -> Transmission | None:
        """The packet on another route; None when it is so large that a longer route does not fit it any more."""
        try:
            again = reroute(data, route, position, flags, hop_limit)
        except WireError as error:
            self._drop_unencoded(error)
            return None
        return Transmission(NodeId(route[position]), view.cls, again)

    def _send_path_error(self, view: ForwardingView, position: int, now: float) -> None:
        if view.protocol == Protocol.PATH_ERROR:
            return
        identity, source, far = self.keys.identity, NodeId(view.source), NodeId(view.route[position + 1])
        # Only a member can check the signature, and a forged source must not cost one.
        if identity is None or not identity.is_member(source):
            return
        last = self._path_error_at.get((source, far))
        if last is not None and now - last < self._timing.path_error_gap_s:
            return
        travelled = _way_back(view, position)
        back = (
            travelled if travelled is not None and self.paths.is_up(travelled[1]) else self.paths.path_to(source, now)
        )
        came_from = view.route[position - 1] if position else self.local
        if back is None or not self._signing.take(came_from, now):
            return
        if len(self._path_error_at) >= _PATH_ERRORS_REMEMBERED_MAX:
            self._path_error_at.clear()
        self._path_error_at[source, far] = now
        error = PathError.signed(identity, source, NodeId(view.destination), far, view.message_id)
        data = self._encode(Protocol.PATH_ERROR, TrafficClass.CONTROL, source, error.encode(), back, now)
        if data is not None:
            self.counters.path_errors_sent += 1
            self._outgoing.append(Transmission(back[1], TrafficClass.CONTROL, data))


def _way_back(view: ForwardingView, position: int) -> Nodes | None:
    """The way that a packet came, from the node at `position` back to its source; None for a packet without a route."""
    if position <= 0:
        return None
    return tuple(NodeId(node) for node in reversed(view.route[: position + 1]))
