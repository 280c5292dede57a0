"""Many routers over a network that loses, delays, doubles and reorders: all databases agree soon after it heals."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh_routing.core.config import RoutingConfig, preset
from mesh_routing.core.lsa import Lsa, LsaLink, LsaMessage
from mesh_routing.core.origination import LocalLink
from mesh_routing.core.router import Router
from meshcommon.ids import NodeId

CONFIG: RoutingConfig = preset("test")
CONVERGENCE_S = 5.0 + 4 * CONFIG.retransmit_max_s
Pair = frozenset[NodeId]


def pair(left: int, right: int) -> Pair:
    return frozenset((NodeId(left), NodeId(right)))


class Network:
    """Routers in one thread, driven by a virtual clock and a seeded RNG."""

    def __init__(self, count: int, links: Iterable[Pair], seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.loss = self.duplication = 0.0
        self.delay_s = (0.0005, 0.002)
        self.members = frozenset(NodeId(number) for number in range(1, count + 1))
        self.boots = dict.fromkeys(self.members, 0)
        self.up: set[Pair] = set()
        self.rtt_us: dict[Pair, int] = {}
        self.sent = 0
        self._order = itertools.count()
        self._wire: list[tuple[float, int, NodeId, NodeId, bytes]] = []
        self.routers: dict[NodeId, Router] = {}
        self._deadlines: dict[NodeId, float] = {}
        for node in sorted(self.members):
            self.start(node)
        for link in links:
            self.set_link(link, is_up=True)

    def start(self, node: NodeId, boot: int | None = None) -> None:
        """Starts the routing of `node` with nothing but its boot number."""
        self.boots[node] = self.boots[node] + 1 if boot is None else boot
        self.routers[node] = Router(CONFIG, self.boots[node], random.Random(self.rng.random()))
        self.routers[node].configure(node, self.members, self.now)
        self.report_links(node, is_fresh=True)

    def set_link(self, link: Pair, *, is_up: bool) -> None:
        (self.up.add if is_up else self.up.discard)(link)
        for node in sorted(link):
            self.report_links(node)

    def report_links(self, node: NodeId, *, is_fresh: bool = False) -> None:
        peers = sorted(next(iter(link - {node})) for link in self.up if node in link)
        links = [LocalLink(peer, self.rtt_us.get(frozenset((node, peer)), 10_000), 0) for peer in peers]
        self.routers[node].set_links(links, self.now, is_fresh=is_fresh)
        self.settle(node)

    def settle(self, node: NodeId) -> None:
        router = self.routers[node]
        router.tick(self.now)
        for peer, payload in router.take_outgoing():
            self.sent += 1
            copies = 2 if self.rng.random() < self.duplication else 1
            for _ in range(copies):
                if self.rng.random() >= self.loss:
                    arrival = self.now + self.rng.uniform(*self.delay_s)
                    heapq.heappush(self._wire, (arrival, next(self._order), node, peer, payload))
        deadline = router.next_deadline()
        self._deadlines[node] = float("inf") if deadline is None else deadline

    def run(self, duration_s: float) -> None:
        """Lets the time pass."""
        end = self.now + duration_s
        while True:
            timer, node = min((self._deadlines[node], node) for node in self.routers)
            arrival = self._wire[0][0] if self._wire else float("inf")
            if min(timer, arrival) > end:
                self.now = end
                return
            if arrival <= timer:
                self.now, _, source, destination, payload = heapq.heappop(self._wire)
                if frozenset((source, destination)) in self.up:
                    self.routers[destination].receive(source, payload, self.now)
                    self.settle(destination)
            else:
                self.now = max(self.now, timer)
                self.settle(node)

    def databases(self) -> list[list[tuple[NodeId, int, tuple[LsaLink, ...]]]]:
        return [
            [(lsa.origin, lsa.sequence, lsa.links) for lsa in router.lsdb.lsas()] for router in self.routers.values()
        ]

    def assert_converged(self) -> None:
        """All databases are equal, hold every node, and tell the links that are up."""
        databases = self.databases()
        assert all(database == databases[0] for database in databases)
        assert {entry[0] for entry in databases[0]} == self.members
        told = {frozenset((origin, link.peer)) for origin, _, links in databases[0] for link in links}
        assert told == self.up
        for node, router in self.routers.items():
            assert set(router.table.routes) == self.component(node) - {node}

    def component(self, node: NodeId) -> set[NodeId]:
        reached, edge = {node}, [node]
        while edge:
            here = edge.pop()
            found = {peer for link in self.up if here in link for peer in link} - reached
            reached |= found
            edge.extend(found)
        return reached


def ring(count: int) -> list[Pair]:
    return [pair(number, number % count + 1) for number in range(1, count + 1)]


def test_three_nodes_agree_and_route() -> None:
    network = Network(3, ring(3), seed=1)
    network.run(1.5)
    network.assert_converged()
    paths = network.routers[NodeId(1)].table.routes[NodeId(3)].paths
    assert [path.nodes for path in paths] == [(1, 3), (1, 2, 3)]


def test_link_down_is_known_everywhere_within_two_hops_of_delay() -> None:
    network = Network(5, ring(5), seed=2)
    network.run(10)
    network.set_link(pair(1, 2), is_up=False)
    network.run(5 * network.delay_s[1])
    network.assert_converged()
    assert network.routers[NodeId(1)].table.routes[NodeId(2)].paths[0].nodes == (1, 5, 4, 3, 2)


def test_quiet_network_falls_silent() -> None:
    network = Network(4, ring(4), seed=3)
    network.run(10)
    network.set_link(pair(1, 2), is_up=False)
    network.run(1)
    before = network.sent
    network.run(CONFIG.refresh_s / 2)
    assert network.sent == before


@settings(max_examples=10)
@given(st.data())
def test_databases_agree_after_faults_heal(data: st.DataObject) -> None:
    """I9, for routing: bounded time after the heal, whatever happened before."""
    seed = data.draw(st.integers(0, 2**32), label="SEED")
    count = data.draw(st.integers(3, 10))
    rng = random.Random(seed)
    every = [pair(left, right) for left in range(1, count + 1) for right in range(left + 1, count + 1)]
    links = set(ring(count)) | set(rng.sample(every, rng.randrange(len(every) + 1)))
    network = Network(count, sorted(links, key=sorted), seed)
    network.loss, network.duplication, network.delay_s = 0.3, 0.2, (0.0, 0.3)
    for _ in range(rng.randrange(1, 12)):
        network.run(rng.uniform(0.0, 1.0))
        link = rng.choice(sorted(links, key=sorted))
        action = rng.random()
        if action < 0.6:
            network.set_link(link, is_up=link not in network.up)
        elif action < 0.8:
            network.rtt_us[link] = rng.randrange(100, 100_000)
            for node in sorted(link):
                network.report_links(node)
        else:
            network.start(rng.choice(sorted(network.members)))
    # A partition in two halves, then everything heals, still with some loss.
    for link in links:
        network.set_link(link, is_up=len({node <= count // 2 for node in link}) == 1)
    network.run(rng.uniform(0.0, 5.0))
    network.loss = 0.1
    for link in links:
        network.set_link(link, is_up=True)
    network.run(CONVERGENCE_S)
    network.assert_converged()


def test_same_seed_gives_same_trace() -> None:
    """I10."""
    traces = []
    for _ in range(2):
        network = Network(5, ring(5), seed=7)
        network.loss = 0.2
        network.run(20)
        traces.append((network.sent, network.databases()))
    assert traces[0] == traces[1]


@pytest.mark.parametrize("boot", [2, 1, 0])
def test_restarted_origin_outbids_its_old_advertisement(boot: int) -> None:
    """Also when the boot number was lost and counts from an earlier value again."""
    network = Network(3, ring(3), seed=11)
    network.run(10)
    network.up.discard(pair(1, 3))
    network.start(NodeId(1), boot)
    network.report_links(NodeId(3))
    network.run(1.0)
    network.assert_converged()


def test_origin_outbids_even_the_greatest_honest_sequence() -> None:
    network = Network(3, ring(3), seed=12)
    network.run(10)
    forged = Lsa(NodeId(1), 2**62, (LsaLink(NodeId(2), 1),))
    flooding = network.routers[NodeId(2)].flooding
    assert flooding is not None
    flooding.flood_own(forged, network.now)
    network.settle(NodeId(2))
    network.run(1.0)
    network.assert_converged()
    assert network.databases()[0][0][1] == 2**62 + 1


def test_newcomer_is_learned_by_nodes_whose_view_came_late() -> None:
    network = Network(3, [pair(1, 2), pair(2, 3)], seed=13)
    old, new = frozenset((NodeId(1), NodeId(2))), network.members
    network.routers[NodeId(1)].configure(NodeId(1), old, network.now)
    network.routers[NodeId(2)].configure(NodeId(2), old, network.now)
    network.run(30)
    assert NodeId(3) not in network.routers[NodeId(1)].table.routes
    for node in (NodeId(2), NodeId(1)):
        network.routers[node].configure(node, new, network.now)
        network.settle(node)
    # The exchange begins at once, not when node 3 repeats itself.
    network.run(0.05)
    network.assert_converged()


def test_view_without_the_node_itself_does_not_silence_it() -> None:
    network = Network(2, [pair(1, 2)], seed=16)
    router = network.routers[NodeId(1)]
    router.configure(NodeId(1), frozenset((NodeId(2),)), network.now)
    router.configure(NodeId(1), network.members, network.now)
    network.settle(NodeId(1))
    network.run(2)
    network.assert_converged()


def test_removed_member_is_not_repeated_to_a_neighbour_that_does_not_answer() -> None:
    network = Network(3, ring(3), seed=17)
    network.run(10)
    network.loss = 1.0
    network.rtt_us[pair(1, 2)] = 90_000
    network.report_links(NodeId(2))
    network.run(3)
    network.routers[NodeId(2)].configure(NodeId(2), frozenset((NodeId(2),)), network.now)
    flooding = network.routers[NodeId(2)].flooding
    assert flooding is not None
    for neighbour in flooding.neighbours:
        flooding.receive(neighbour, LsaMessage(database=network.routers[NodeId(2)].lsdb.digest()), network.now)
    flooding.take_outgoing()
    assert flooding.next_deadline() is None


def test_removed_member_is_forgotten_and_stays_so() -> None:
    network = Network(4, ring(4), seed=14)
    network.run(10)
    remaining = network.members - {NodeId(4)}
    # Node 2 hears of it last and still floods the old advertisement meanwhile.
    for node in (NodeId(1), NodeId(3)):
        network.routers[node].configure(node, remaining, network.now)
        network.settle(node)
    network.run(5)
    assert NodeId(4) not in network.routers[NodeId(1)].table.routes
    assert network.routers[NodeId(1)].lsdb.get(NodeId(4)) is None


def test_silent_node_ages_out_and_others_are_refreshed() -> None:
    network = Network(3, ring(3), seed=15)
    network.run(10)
    for link in (pair(1, 3), pair(2, 3)):
        network.set_link(link, is_up=False)
    del network.routers[NodeId(3)]
    network.run(CONFIG.max_age_s + 1)
    for router in network.routers.values():
        assert [lsa.origin for lsa in router.lsdb.lsas()] == [1, 2]
