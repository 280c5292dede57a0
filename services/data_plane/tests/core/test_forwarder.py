"""Forwarding: source routes, repair, drops. The properties run over random topologies and random link failures."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import pairwise, permutations

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_plane_testing.identities import delegations, entropy, local_node, view_of
from mesh_data.core.forwarder import (
    Delivery,
    DropReason,
    Forwarder,
    ForwardingCounters,
    Held,
    Transmission,
)
from mesh_data.core.timing import OverlayTiming
from meshapi.data.v1 import data_pb2
from meshcommon.ids import NodeId
from meshwire.packet import (
    FIRST_HOP_LIMIT,
    FLAG_REPAIRED,
    FLAG_SEALED,
    MAX_PACKET_BYTES,
    PREFIX_BYTES,
    SEAL_BYTES,
    VERSION,
    Packet,
    Protocol,
    TrafficClass,
    encode,
    forwarding_view,
)

TIMING = OverlayTiming()
CONTROL = TrafficClass.CONTROL


def paths_of(graph: nx.Graph[int], source: int, destination: int) -> list[list[int]]:
    """The shortest path, and a shortest one that shares no node with its inside (else no link with it)."""
    try:
        first = nx.shortest_path(graph, source, destination)
    except nx.NetworkXNoPath:
        return []
    rest = graph.copy()
    rest.remove_edges_from(pairwise(first))
    rest.remove_nodes_from(first[1:-1])
    try:
        return [first, nx.shortest_path(rest, source, destination)]
    except nx.NetworkXNoPath:
        return [first]


@dataclass
class Net:
    """Forwarders that know the routes of `graph`, of which only some links still work."""

    graph: nx.Graph[int]
    dead: set[frozenset[int]] = field(default_factory=set)
    nodes: dict[int, Forwarder] = field(default_factory=dict)
    crossings: list[int] = field(default_factory=list)
    delivered: list[tuple[int, Delivery]] = field(default_factory=list)

    def __post_init__(self) -> None:
        members = view_of(*self.graph)
        for node in self.graph:
            forwarder = Forwarder(TIMING, node << 32, entropy(node), delegations())
            forwarder.configure(local_node(node), members)
            routes = [
                data_pb2.Route(destination=other, paths=[data_pb2.Path(nodes=path) for path in paths])
                for other in self.graph
                if other != node and (paths := paths_of(self.graph, node, other))
            ]
            forwarder.paths.routes.apply(data_pb2.PushRoutesRequest(version=1, changed=routes))
            for peer in self.graph[node]:
                if frozenset((node, peer)) not in self.dead:
                    forwarder.set_link(NodeId(peer), True, 0.0)
            self.nodes[node] = forwarder
        for one, other in permutations(self.graph, 2):
            agree(self.nodes[one], self.nodes[other])
        for forwarder in self.nodes.values():
            forwarder.take_outgoing()
            forwarder.counters = ForwardingCounters()

    def run(self, source: int, first: Transmission | Held | None, now: float = 0.0) -> list[int]:
        """Carries one packet and what it causes to the end; returns the nodes that the packet itself entered."""
        entered = [source]
        assert not isinstance(first, Held)
        queue = deque([(source, first)] if first is not None else [])
        is_first = True
        while queue:
            at, transmission = queue.popleft()
            assert frozenset((at, transmission.next_hop)) not in self.dead, "sent over a link that is down"
            is_own = forwarding_view(transmission.data).protocol != Protocol.PATH_ERROR
            there = self.nodes[transmission.next_hop]
            result = there.receive(NodeId(at), transmission.data, now)
            if is_own or is_first:
                entered.append(transmission.next_hop)
            is_first = False
            if isinstance(result, Transmission):
                queue.append((transmission.next_hop, result))
            elif result is not None:
                self.delivered.append((transmission.next_hop, result))
            queue.extend((transmission.next_hop, error) for error in there.take_outgoing())
        return entered

    def send(self, source: int, destination: int, now: float = 0.0) -> list[int]:
        sent = self.nodes[source].send(Protocol.ECHO, CONTROL, NodeId(destination), b"hello", 0, now)
        return self.run(source, sent, now)

    def drops(self) -> Counter[DropReason]:
        return sum((node.counters.dropped for node in self.nodes.values()), Counter())

    def total(self, name: str) -> int:
        return sum(getattr(node.counters, name) for node in self.nodes.values())


def agree(asker: Forwarder, other: Forwarder) -> None:
    """Gives `asker` the boot key of the other and the other way round, whatever the links."""
    for node in (asker, other):
        node.keys.take_outgoing()
    asker.keys.link_up(other.local, 0.0)
    sides = (asker, other)
    while packets := [(node, packet) for node in sides for packet in node.keys.take_outgoing()]:
        for node, packet in packets:
            there = next(side for side in sides if side is not node)
            if packet.destination == there.local:
                there.keys.receive(node.local, (node.local, True), packet.payload, 0.0)
    for node in sides:
        node.keys.take_ready()
    assert asker.keys.session(other.local) is not None
    assert other.keys.session(asker.local) is not None


def net(*edges: tuple[int, int], dead: set[tuple[int, int]] | None = None) -> Net:
    return Net(nx.Graph(edges), {frozenset(edge) for edge in dead or set()})


SQUARE = ((1, 2), (2, 4), (1, 3), (3, 4))


def test_packet_follows_its_source_route() -> None:
    item = net((1, 2), (2, 3))
    assert item.send(1, 3) == [1, 2, 3]
    node, delivery = item.delivered[0]
    assert (node, delivery.source, bytes(delivery.payload)) == (3, 1, b"hello")
    assert item.nodes[2].counters.forwarded == 1


def test_source_takes_the_backup_when_its_first_link_is_down() -> None:
    item = net(*SQUARE, dead={(1, 2)})
    assert item.send(1, 4) == [1, 3, 4]


def test_relay_repairs_onto_a_path_that_avoids_where_the_packet_was() -> None:
    item = net((1, 2), (2, 3), (2, 4), (4, 3), dead={(2, 3)})
    assert item.send(1, 3) == [1, 2, 4, 3]
    assert item.nodes[2].counters.repaired == 1


def test_packet_is_repaired_only_once() -> None:
    item = net((1, 2), (2, 3), (2, 4), (4, 3), (4, 5), (5, 3), dead={(2, 3), (4, 3)})
    assert item.send(1, 3) == [1, 2, 4]
    assert item.drops() == {DropReason.ALREADY_REPAIRED: 1}


def test_path_error_makes_the_source_prefer_its_backup_for_a_while() -> None:
    item = net(*SQUARE, dead={(2, 4)})
    assert item.send(1, 4) == [1, 2]
    assert item.drops() == {DropReason.LINK_DOWN: 1}
    assert item.nodes[1].counters.path_errors_received == 1
    assert item.send(1, 4, 0.1) == [1, 3, 4]
    assert item.send(1, 4, 0.1 + TIMING.broken_hold_s)[:2] == [1, 2]


def test_path_errors_are_rate_limited_per_source_and_link() -> None:
    item = net((1, 2), (2, 3), dead={(2, 3)})
    for number in range(100):
        item.send(1, 3, number * 0.001)
    assert item.total("path_errors_sent") == 2
    assert item.drops()[DropReason.LINK_DOWN] == 100


def test_path_that_was_named_broken_is_the_last_resort() -> None:
    item = net((1, 2), (2, 3), dead={(2, 3)})
    item.send(1, 3)
    assert item.nodes[1].paths.path_to(NodeId(3), 0.1) == (1, 2, 3)


def test_direct_link_serves_before_routing_has_computed_anything() -> None:
    item, other = Forwarder(TIMING, 0, entropy(1), delegations()), Forwarder(TIMING, 0, entropy(2), delegations())
    for node, number in ((item, 1), (other, 2)):
        node.configure(local_node(number), view_of(1, 2))
    assert item.send(Protocol.ECHO, CONTROL, NodeId(2), b"", 0, 0.0) is None
    item.set_link(NodeId(2), True, 0.0)
    agree(item, other)
    sent = item.send(Protocol.ECHO, CONTROL, NodeId(2), b"", 0, 0.0)
    assert isinstance(sent, Transmission)
    assert forwarding_view(sent.data).route == (1, 2)


def test_waiting_packets_take_the_backup_when_their_link_goes_down() -> None:
    item = net(*SQUARE)
    source = item.nodes[1]
    sent = source.send(Protocol.ECHO, CONTROL, NodeId(4), b"hello", 0, 0.0)
    assert isinstance(sent, Transmission)
    source.set_link(NodeId(2), False, 0.0)
    again = source.requeue(sent.data, 0.0)
    assert again is not None
    assert (again.next_hop, forwarding_view(again.data).route, forwarding_view(again.data).flags) == (
        3,
        (1, 3, 4),
        FLAG_SEALED,
    )
    assert item.run(1, again) == [1, 3, 4]


def test_waiting_packets_of_others_are_repaired_when_the_link_goes_down() -> None:
    item = net((1, 2), (2, 3), (2, 4), (4, 3))
    sent = item.nodes[1].send(Protocol.ECHO, CONTROL, NodeId(3), b"hello", 0, 0.0)
    assert isinstance(sent, Transmission)
    waiting = item.nodes[2].receive(NodeId(1), sent.data, 0.0)
    assert isinstance(waiting, Transmission)
    item.nodes[2].set_link(NodeId(3), False, 0.0)
    again = item.nodes[2].requeue(waiting.data, 0.0)
    assert again is not None
    view = forwarding_view(again.data)
    assert (view.route, view.position, view.flags) == ((1, 2, 4, 3), 2, FLAG_REPAIRED | FLAG_SEALED)
    assert item.run(2, again) == [2, 4, 3]


def test_largest_packet_that_does_not_fit_a_longer_route_is_dropped_and_counted() -> None:
    """It used to raise, which ended the lane that it came on, or lost all that waited behind it."""
    item = net((1, 2), (2, 3), (2, 4), (4, 3))
    payload = bytes(MAX_PACKET_BYTES - PREFIX_BYTES - SEAL_BYTES - 3 * 8)
    sent = item.nodes[1].send(Protocol.ECHO, CONTROL, NodeId(3), payload, 0, 0.0)
    assert isinstance(sent, Transmission)
    waiting = item.nodes[2].receive(NodeId(1), sent.data, 0.0)
    assert isinstance(waiting, Transmission)
    item.nodes[2].set_link(NodeId(3), False, 0.0)
    assert item.nodes[2].receive(NodeId(1), sent.data, 0.0) is None
    assert item.nodes[2].requeue(waiting.data, 0.0) is None
    assert item.drops() == {DropReason.TOO_LARGE: 2}
    own = net((1, 2), (1, 3), (3, 2))
    direct = bytes(MAX_PACKET_BYTES - PREFIX_BYTES - SEAL_BYTES - 2 * 8)
    sent = own.nodes[1].send(Protocol.ECHO, CONTROL, NodeId(2), direct, 0, 0.0)
    assert isinstance(sent, Transmission)
    own.nodes[1].set_link(NodeId(2), False, 0.0)
    assert own.nodes[1].requeue(sent.data, 0.0) is None
    assert own.drops() == {DropReason.TOO_LARGE: 1}


def packet(**changes: object) -> bytes:
    fields: dict[str, object] = {
        "version": VERSION,
        "cls": CONTROL,
        "protocol": Protocol.ECHO,
        "flags": 0,
        "hop_limit": FIRST_HOP_LIMIT,
        "source": 1,
        "destination": 3,
        "route": (1, 2, 3),
        "position": 1,
    }
    return encode(Packet(**(fields | changes)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", DropReason.MALFORMED),
        (packet()[:-1], DropReason.MALFORMED),
        (packet(position=2), DropReason.WRONG_HOP),
        (packet(position=0), DropReason.WRONG_HOP),
        (packet(source=4, route=(4, 2, 3)), DropReason.WRONG_HOP),
        (packet(route=(), position=0), DropReason.WRONG_HOP),
        (packet(source=9, destination=2, route=(), position=0), DropReason.WRONG_HOP),
        (packet(hop_limit=0), DropReason.HOP_LIMIT),
    ],
)
def test_packet_that_must_not_be_here_is_dropped_and_counted(data: bytes, reason: DropReason) -> None:
    relay = net((1, 2), (2, 3)).nodes[2]
    assert relay.receive(NodeId(1), data, 0.0) is None
    assert relay.counters.dropped == {reason: 1}


def test_link_local_packet_is_for_the_neighbour_only() -> None:
    item = net((1, 2))
    sent = item.nodes[1].send_link_local(Protocol.LSA, CONTROL, NodeId(2), b"lsa", 0.0)
    assert isinstance(sent, Transmission)
    delivery = item.nodes[2].receive(NodeId(1), sent.data, 0.0)
    assert isinstance(delivery, Delivery)
    assert (delivery.protocol, bytes(delivery.payload)) == (Protocol.LSA, b"lsa")


def test_packet_that_is_too_large_is_refused_at_the_source() -> None:
    item = net((1, 2))
    assert item.nodes[1].send(Protocol.ECHO, CONTROL, NodeId(2), bytes(3 << 20), 0, 0.0) is None
    assert item.nodes[1].counters.dropped == {DropReason.TOO_LARGE: 1}


@st.composite
def broken_nets(draw: st.DrawFn) -> Net:
    size = draw(st.integers(2, 8))
    pairs = [(one, other) for one in range(1, size + 1) for other in range(one + 1, size + 1)]
    edges = draw(st.sets(st.sampled_from(pairs), min_size=1))
    graph: nx.Graph[int] = nx.Graph()
    graph.add_nodes_from(range(1, size + 1))
    graph.add_edges_from(edges)
    dead = draw(st.sets(st.sampled_from(sorted(edges)), max_size=5))
    return Net(graph, {frozenset(edge) for edge in dead})


@given(broken_nets())
def test_i12_no_packet_crosses_a_node_twice_and_is_repaired_at_most_once(item: Net) -> None:
    for source in item.graph:
        for destination in item.graph:
            if source == destination:
                continue
            before = item.total("repaired")
            delivered = len(item.delivered)
            entered = item.send(source, destination)
            assert len(set(entered)) == len(entered)
            own = [place for place, delivery in item.delivered[delivered:] if delivery.protocol is Protocol.ECHO]
            assert own in ([], [destination])
            assert (own == [destination]) == (entered[-1] == destination)
            errors = item.total("path_errors_sent")
            # A path error may itself be repaired on its way back.
            assert item.total("repaired") - before <= 1 + errors


@given(broken_nets())
def test_packet_is_delivered_while_its_primary_path_or_the_first_backup_works(item: Net) -> None:
    working = _working(item)
    now = 0.0
    for source in item.graph:
        for destination in item.graph:
            if source == destination:
                continue
            # Far enough apart that no path error of an earlier packet is remembered.
            now += 10.0
            paths = paths_of(item.graph, source, destination)
            usable = next((path for path in paths if frozenset(path[:2]) not in item.dead), None)
            entered = item.send(source, destination, now)
            if usable is not None and all(frozenset(link) not in item.dead for link in pairwise(usable)):
                assert entered == usable
            if not nx.has_path(working, source, destination):
                assert entered[-1] != destination


def _working(item: Net) -> nx.Graph[int]:
    graph = item.graph.copy()
    for link in item.dead:
        graph.remove_edge(*link)
    return graph


@given(broken_nets(), st.data())
def test_every_packet_sent_is_delivered_or_counted_as_dropped(item: Net, data: st.DataObject) -> None:
    nodes = sorted(item.graph)
    for step in range(data.draw(st.integers(1, 20))):
        source, destination = data.draw(st.permutations(nodes))[:2]
        item.send(source, destination, step * 0.01)
    # Path errors end in a node's own bookkeeping, so they count as delivered too.
    created = item.total("sent") + item.total("path_errors_sent")
    refused = item.drops()[DropReason.NO_ROUTE]
    assert created == item.total("delivered") + item.drops().total() - refused


@given(st.binary(max_size=200))
def test_bytes_from_outside_never_raise(data: bytes) -> None:
    relay = Forwarder(TIMING, 0, entropy(0), delegations())
    relay.configure(local_node(2), view_of(1, 2))
    assert relay.receive(NodeId(1), data, 0.0) is None


@given(st.integers(0, 70), st.integers(0, 255))
def test_flipped_header_bytes_never_raise_nor_loop(at: int, value: int) -> None:
    item = net((1, 2), (2, 3), (1, 3))
    data = bytearray(packet())
    data[at % len(data)] = value
    result = item.nodes[2].receive(NodeId(1), bytes(data), 0.0)
    if isinstance(result, Transmission):
        assert result.next_hop == 3
