"""Forwarding: the source picks the whole path, a relay looks only at the next hop and may repair a path once.

Purpose: decide for each packet whether it is delivered here, passed on, or dropped and counted. Leaves out: queues and
sockets; the caller transmits what it is told to. Source: architecture §5 "Source routes".

Invariants: no packet crosses a node twice (a route is loopless, and a repair keeps the part already travelled); a packet is
repaired at most once (FLAG_REPAIRED); malformed input never raises; a path error never causes another.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import Final, NamedTuple

from mesh_data.core.path_error import PathError
from mesh_data.core.route_table import Nodes, RouteTable
from mesh_data.core.timing import OverlayTiming
from meshcommon.ids import NodeId
from meshwire.errors import WireCode, WireError
from meshwire.packet import (
    FLAG_REPAIRED,
    MAX_ROUTE_NODES,
    PREFIX_BYTES,
    VERSION,
    ForwardingView,
    Packet,
    Protocol,
    TrafficClass,
    advance,
    encode,
    forwarding_view,
    reroute,
)

HOP_LIMIT: Final = MAX_ROUTE_NODES
"""Links that a packet may cross; a source route cannot be longer anyway, so this only stops what should not exist."""
_LINK_LOCAL_ONLY: Final = frozenset({Protocol.LANE, Protocol.LSA})
_PATH_ERRORS_REMEMBERED_MAX: Final = 1024
_MESSAGE_ID_MASK: Final = 0xFFFFFFFFFFFFFFFF


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
    JOIN_ONLY = "join_only"
    RATE_LIMITED = "rate_limited"


class Transmission(NamedTuple):
    """Send `data` to the direct neighbour `next_hop`."""

    next_hop: NodeId
    cls: TrafficClass
    data: bytes


class Delivery(NamedTuple):
    """A payload for this node. `lane_id` is 0 unless it came from a neighbour that is not a member."""

    source: NodeId
    lane_id: int
    protocol: Protocol
    cls: TrafficClass
    payload: bytes | memoryview


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

    def __init__(self, local: NodeId, timing: OverlayTiming, first_message_id: int) -> None:
        """`first_message_id` is random, so that ids of an earlier life of this node are not met again."""
        self.local = local
        self.routes = RouteTable(local)
        self.counters = ForwardingCounters()
        self._timing = timing
        self._up: set[NodeId] = set()
        self._broken_until: dict[tuple[NodeId, NodeId], float] = {}
        self._path_error_at: dict[tuple[NodeId, NodeId], float] = {}
        self._message_id = first_message_id & _MESSAGE_ID_MASK
        self._outgoing: list[Transmission] = []

    def reset(self, local: NodeId) -> None:
        """Becomes another node, or none (0): forgets routes and links; counters go on."""
        self.local = local
        self.routes = RouteTable(local)
        self._up.clear()
        self._broken_until.clear()
        self._path_error_at.clear()
        self._outgoing.clear()

    def set_link(self, peer: NodeId, is_up: bool) -> None:
        """The link to a neighbour came up or went down."""
        if is_up:
            self._up.add(peer)
        else:
            self._up.discard(peer)

    def take_outgoing(self) -> list[Transmission]:
        """Path errors to send."""
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

    def path_to(self, destination: NodeId, now: float) -> Nodes | None:
        """The path that a packet would take now.

        That is the first whose first link is up and that no path error named; else the direct link (routing may not have
        computed anything yet); else, as a last try, a path that a path error named.
        """
        path = self.routes.choose(destination, lambda nodes: nodes[1] in self._up and not self._is_broken(nodes, now))
        if path is not None:
            return path
        if destination in self._up:
            return (self.local, destination)
        return self.routes.choose(destination, lambda nodes: nodes[1] in self._up)

    def backup_to(self, destination: NodeId, now: float) -> Nodes | None:
        """The path that would be taken if the one in use broke."""
        current = self.path_to(destination, now)
        return self.routes.choose(destination, lambda nodes: nodes != current and nodes[1] in self._up)

    def send(
        self, protocol: Protocol, cls: TrafficClass, destination: NodeId, payload: bytes, flow: int, now: float
    ) -> Transmission | None:
        """A packet of this node's own; None when it was dropped."""
        path = self.path_to(destination, now)
        if path is None:
            self.drop(DropReason.NO_ROUTE)
            return None
        data = self._encode(protocol, cls, destination, payload, flow, path)
        if data is None:
            return None
        self.counters.sent += 1
        return Transmission(path[1], cls, data)

    def link_local(self, protocol: Protocol, cls: TrafficClass, peer: NodeId, payload: bytes) -> bytes | None:
        """A packet for the direct neighbour only (0: one that is not a member); None when it was dropped."""
        return self._encode(protocol, cls, peer, payload, 0, ())

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
            return self._deliver(view, data, now)
        position = view.position
        if position == 0 or route[position] != self.local or route[position - 1] != peer:
            self.drop(DropReason.WRONG_HOP)
            return None
        if view.protocol in _LINK_LOCAL_ONLY:
            self.drop(DropReason.WRONG_HOP)
            return None
        if position == len(route) - 1:
            return self._deliver(view, data, now)
        if view.hop_limit == 0:
            self.drop(DropReason.HOP_LIMIT)
            return None
        next_hop = NodeId(route[position + 1])
        if next_hop not in self._up:
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
        path = self.path_to(NodeId(view.destination), now)
        if path is None:
            self.drop(DropReason.NO_ROUTE)
            return None
        return Transmission(path[1], view.cls, reroute(data, path, 1, view.flags, view.hop_limit))

    def drop(self, reason: DropReason) -> None:
        """Counts a dropped packet."""
        self.counters.dropped[reason] += 1

    def _encode(
        self, protocol: Protocol, cls: TrafficClass, destination: NodeId, payload: bytes, flow: int, path: Nodes
    ) -> bytes | None:
        self._message_id = (self._message_id + 1) & _MESSAGE_ID_MASK
        packet = Packet(
            version=VERSION,
            cls=cls,
            protocol=protocol,
            flags=0,
            hop_limit=HOP_LIMIT - 1,
            source=self.local,
            destination=destination,
            flow=flow,
            message_id=self._message_id,
            route=path,
            position=1 if path else 0,
            payload=payload,
        )
        try:
            return encode(packet)
        except WireError as error:
            self.drop(DropReason.TOO_LARGE if error.code is WireCode.TOO_LARGE else DropReason.MALFORMED)
            return None

    def _deliver(self, view: ForwardingView, data: bytes | memoryview, now: float) -> Delivery | None:
        payload = memoryview(data)[PREFIX_BYTES + 8 * len(view.route) :]
        self.counters.delivered += 1
        if view.protocol is Protocol.PATH_ERROR:
            self._receive_path_error(NodeId(view.source), payload, now)
            return None
        return Delivery(NodeId(view.source), 0, view.protocol, view.cls, payload)

    def _receive_path_error(self, source: NodeId, payload: memoryview, now: float) -> None:
        error = PathError.decode(payload)
        # Only the near end of a link may speak for it.
        if error is None or error.near != source:
            self.drop(DropReason.MALFORMED)
            return
        self.counters.path_errors_received += 1
        self._broken_until[_link(error.near, error.far)] = now + self._timing.broken_hold_s

    def _is_broken(self, nodes: Nodes, now: float) -> bool:
        if not self._broken_until:
            return False
        for link in [link for link, until in self._broken_until.items() if until <= now]:
            del self._broken_until[link]
        return any(_link(near, far) in self._broken_until for near, far in pairwise(nodes))

    def _repair(
        self, view: ForwardingView, position: int, hop_limit: int, data: bytes | memoryview, now: float
    ) -> Transmission | None:
        """Puts a packet whose next link is down on a path that is disjoint from the part already travelled."""
        if view.flags & FLAG_REPAIRED:
            self._send_path_error(view, position, now)
            self.drop(DropReason.ALREADY_REPAIRED)
            return None
        destination = NodeId(view.destination)
        travelled = frozenset(view.route[:position])
        path = self.routes.choose(
            destination,
            lambda nodes: nodes[1] in self._up and travelled.isdisjoint(nodes) and not self._is_broken(nodes, now),
        )
        if path is None and destination in self._up:
            path = (self.local, destination)
        if path is None or position + len(path) > MAX_ROUTE_NODES:
            self._send_path_error(view, position, now)
            self.drop(DropReason.LINK_DOWN)
            return None
        route = view.route[: position + 1] + path[1:]
        self.counters.repaired += 1
        repaired = reroute(data, route, position + 1, view.flags | FLAG_REPAIRED, hop_limit)
        return Transmission(path[1], view.cls, repaired)

    def _send_path_error(self, view: ForwardingView, position: int, now: float) -> None:
        if view.protocol is Protocol.PATH_ERROR:
            return
        source, far = NodeId(view.source), NodeId(view.route[position + 1])
        last = self._path_error_at.get((source, far))
        if last is not None and now - last < self._timing.path_error_gap_s:
            return
        travelled = tuple(NodeId(node) for node in reversed(view.route[: position + 1]))
        back = travelled if travelled[1] in self._up else self.path_to(source, now)
        if back is None:
            return
        if len(self._path_error_at) >= _PATH_ERRORS_REMEMBERED_MAX:
            self._path_error_at.clear()
        self._path_error_at[source, far] = now
        payload = PathError(NodeId(view.destination), self.local, far).encode()
        data = self._encode(Protocol.PATH_ERROR, TrafficClass.CONTROL, source, payload, 0, back)
        if data is not None:
            self.counters.path_errors_sent += 1
            self._outgoing.append(Transmission(back[1], TrafficClass.CONTROL, data))


def _link(one: NodeId, other: NodeId) -> tuple[NodeId, NodeId]:
    """A link has no direction: a lane that is down is down both ways."""
    return (one, other) if one < other else (other, one)
