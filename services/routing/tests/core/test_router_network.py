"""Many routers over a network that loses, delays, doubles and reorders: all databases agree soon after it heals."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh_routing.core.config import RoutingConfig, preset
from mesh_routing.core.flooding import FloodingCounters
from mesh_routing.core.lsa import LINKS_MAX, Lsa, LsaKey, LsaLink, LsaMessage
from mesh_routing.core.lsa_codec import decode_message, encode_message
from mesh_routing.core.lsa_signature import LsaSignatures
from mesh_routing.core.origination import LocalLink
from mesh_routing.core.router import Router
from mesh_routing.core.view import View
from meshcommon.delegation import DelegatedSigner, Delegations, Use
from meshcommon.ids import NodeId
from meshcommon.key_signer import KeySigner
from meshtest.delegated import NOW_S, delegated_signer
from meshwire.errors import WireError

CONFIG: RoutingConfig = preset("test")
CONVERGENCE_S = 5.0 + 4 * CONFIG.retransmit_max_s
Pair = frozenset[NodeId]


def signer(node: NodeId, mesh_id: str = "mesh", mesh_epoch: int = 1, seed: bytes = b"") -> DelegatedSigner:
    key = seed or node.to_bytes(32, "big")
    return delegated_signer(key, mesh_id, node, Use.LINK_STATES, mesh_epoch=mesh_epoch, now_s=NOW_S)


def signatures(mesh_id: str = "mesh", mesh_epoch: int = 1) -> LsaSignatures:
    return LsaSignatures(mesh_id, mesh_epoch, Delegations(lambda: NOW_S))


def view(node: NodeId, members: Iterable[NodeId], mesh_epoch: int = 1) -> View:
    keys = {member: signer(member).identity_key for member in members}
    return View(node, "mesh", mesh_epoch, 1, {member: str(member) for member in members}, keys)


def signed(lsa: Lsa, by: NodeId, mesh_id: str = "mesh", mesh_epoch: int = 1) -> Lsa:
    return signatures(mesh_id, mesh_epoch).sign(lsa, signer(by, mesh_id, mesh_epoch))


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
        self.relay_age_s: dict[NodeId, int] = {}
        self.tampering = 0.0
        self.malformed = 0
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
        rng = random.Random(self.rng.random())
        self.routers[node] = Router(CONFIG, self.boots[node], rng, Delegations(lambda: NOW_S + self.now))
        self.configure(node, self.members)
        self.report_links(node, is_fresh=True)

    def configure(self, node: NodeId, members: Iterable[NodeId], mesh_epoch: int = 1) -> None:
        self.routers[node].configure(view(node, members, mesh_epoch), signer(node, mesh_epoch=mesh_epoch), self.now)

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
        for peer, honest in router.take_outgoing():
            self.sent += 1
            payload = self._aged(node, honest)
            if not self.on_sent(node, peer, payload):
                continue
            copies = 2 if self.rng.random() < self.duplication else 1
            for _ in range(copies):
                if self.rng.random() >= self.loss:
                    arrival = self.now + self.rng.uniform(*self.delay_s)
                    heapq.heappush(self._wire, (arrival, next(self._order), node, peer, payload))
        deadline = router.next_deadline()
        self._deadlines[node] = float("inf") if deadline is None else deadline

    def on_sent(self, node: NodeId, peer: NodeId, payload: bytes) -> bool:
        """Whether a message that was sent gets onto the wire."""
        return True

    def receive(self, source: NodeId, destination: NodeId, payload: bytes) -> None:
        """As the driver does: what is malformed is dropped."""
        if self.rng.random() < self.tampering:
            payload = self._tampered(payload)
        try:
            self.routers[destination].receive(source, payload, self.now)
        except WireError:
            self.malformed += 1
        self.settle(destination)

    def _tampered(self, payload: bytes) -> bytes:
        """Damage at random, or LSAs of others that a relay has made up of true ones."""
        if self.rng.random() < 0.5:
            damaged = bytearray(payload)
            for _ in range(self.rng.randrange(1, 4)):
                damaged[self.rng.randrange(len(damaged))] = self.rng.randrange(256)
            return bytes(damaged)
        message = decode_message(payload)
        return encode_message(replace(message, lsas=tuple(self._made_up(lsa) for lsa in message.lsas)))

    def _made_up(self, lsa: Lsa) -> Lsa:
        origin = self.rng.choice([lsa.origin, *sorted(self.members)])
        sequence = lsa.sequence + self.rng.choice([0, 1, 2**40])
        links = self.rng.choice([lsa.links, (), lsa.links[1:]])
        return replace(lsa, origin=origin, sequence=sequence, links=tuple(x for x in links if x.peer != origin))

    def _aged(self, node: NodeId, payload: bytes) -> bytes:
        """What a node that ages the advertisements of others sends instead."""
        age_s = self.relay_age_s.get(node)
        if age_s is None:
            return payload
        message = decode_message(payload)
        lsas = tuple(replace(lsa, age_s=age_s) if lsa.origin != node else lsa for lsa in message.lsas)
        return encode_message(replace(message, lsas=lsas))

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
                    self.receive(source, destination, payload)
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


@pytest.mark.parametrize("seed", range(4))
def test_tampering_on_every_link_leaves_only_true_advertisements(seed: int) -> None:
    network = Network(6, [*ring(6), pair(1, 4)], seed)
    network.tampering, network.loss = 0.3, 0.1
    for _ in range(10):
        network.run(network.rng.uniform(0.0, 1.0))
        network.set_link(pair(1, 4), is_up=pair(1, 4) not in network.up)
        said: dict[NodeId, Lsa | None] = {node: router.lsdb.get(node) for node, router in network.routers.items()}
        for database in network.databases():
            for origin, sequence, _links in database:
                own = said[origin]
                assert own is not None
                assert sequence <= own.sequence
    network.tampering = 0.0
    network.run(CONVERGENCE_S)
    network.assert_converged()
    assert network.malformed > 0
    assert sum(_counters(router).bad_signatures for router in network.routers.values()) > 0


def _counters(router: Router) -> FloodingCounters:
    assert router.flooding is not None
    return router.flooding.counters


def test_flap_storm_keeps_advertisements_and_computations_bounded_and_ends_in_agreement() -> None:
    """100 link events a second for 10 s (RFC 2328 MinLSInterval, RFC 8405 §5): nobody exceeds a budget of another."""
    network = Network(5, [*ring(5), pair(1, 3)], seed=25)
    network.run(10)
    routers = network.routers.values()
    versions = [router.lsdb.lsas()[0].sequence for router in routers]
    computations = [router.computations for router in routers]
    for _ in range(1_001):
        network.set_link(pair(1, 3), is_up=pair(1, 3) not in network.up)
        network.run(0.01)
    assert sum(_counters(router).over_limit for router in routers) == 0
    told = [router.lsdb.lsas()[0].sequence - before for router, before in zip(routers, versions, strict=True)]
    assert max(told) <= CONFIG.origination_burst + 10 / CONFIG.origination_interval_s + 1
    # At once, then one in 20 ms for half a second, then one in 200 ms.
    throttle = CONFIG.throttle
    bound = 1 + throttle.time_to_learn_s / throttle.short_s + 10 / throttle.long_s + 1
    done = [router.computations - before for router, before in zip(routers, computations, strict=True)]
    assert max(done) <= bound
    network.run(2.5)
    network.assert_converged()


def test_member_that_invents_links_to_a_thousand_nodes_changes_no_route_of_others() -> None:
    network = Network(4, ring(4), seed=24)
    network.run(10)
    before = {node: network.routers[node].table.routes for node in (NodeId(1), NodeId(3))}
    held = network.routers[NodeId(2)].lsdb.get(NodeId(2))
    assert held is not None
    invented = tuple(LsaLink(NodeId(2**62 + number), 0) for number in range(LINKS_MAX - 2))
    lie = signed(Lsa(NodeId(2), held.sequence + 1, held.links + invented), NodeId(2))
    # Sent round by the liar itself, which does not outbid it.
    for target in (NodeId(1), NodeId(3)):
        _inject(network, NodeId(2), target, lie)
    network.routers[NodeId(2)].set_links((), network.now, is_fresh=False)
    network.run(1)
    for node in (NodeId(1), NodeId(3)):
        assert network.routers[node].lsdb.get(NodeId(2)) == lie
        assert network.routers[node].table.routes == before[node]


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
    earlier = signed(Lsa(NodeId(1), 2**62, (LsaLink(NodeId(2), 1),)), NodeId(1))
    flooding = network.routers[NodeId(2)].flooding
    assert flooding is not None
    flooding.flood_own(earlier, network.now)
    network.settle(NodeId(2))
    network.run(1.0)
    network.assert_converged()
    assert network.databases()[0][0][1] == 2**62 + 1


def test_newcomer_is_learned_by_nodes_whose_view_came_late() -> None:
    network = Network(3, [pair(1, 2), pair(2, 3)], seed=13)
    old, new = frozenset((NodeId(1), NodeId(2))), network.members
    network.configure(NodeId(1), old)
    network.configure(NodeId(2), old)
    network.run(30)
    assert NodeId(3) not in network.routers[NodeId(1)].table.routes
    for node in (NodeId(2), NodeId(1)):
        network.configure(node, new)
        network.settle(node)
    # The exchange begins at once, not when node 3 repeats itself.
    network.run(0.05)
    network.assert_converged()


def test_view_without_the_node_itself_does_not_silence_it() -> None:
    network = Network(2, [pair(1, 2)], seed=16)
    network.configure(NodeId(1), frozenset((NodeId(2),)))
    network.configure(NodeId(1), network.members)
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
    network.configure(NodeId(2), frozenset((NodeId(2),)))
    flooding = network.routers[NodeId(2)].flooding
    assert flooding is not None
    for neighbour in flooding.neighbours:
        flooding.receive(
            neighbour, LsaMessage(database=network.routers[NodeId(2)].lsdb.digest(network.now)), network.now
        )
    flooding.take_outgoing()
    assert flooding.next_deadline() is None


def test_removed_member_is_forgotten_and_stays_so() -> None:
    network = Network(4, ring(4), seed=14)
    network.run(10)
    remaining = network.members - {NodeId(4)}
    # Node 2 hears of it last and still floods the old advertisement meanwhile.
    for node in (NodeId(1), NodeId(3)):
        network.configure(node, remaining)
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


def _inject(network: Network, source: NodeId, destination: NodeId, *lsas: Lsa) -> None:
    network.routers[destination].receive(source, encode_message(LsaMessage(lsas)), network.now)
    network.settle(destination)


def test_forged_advertisements_change_no_database_anywhere() -> None:
    """Node 2 is a member that lies about node 3, and about node 1 to node 1 itself."""
    network = Network(4, ring(4), seed=18)
    network.run(10)
    before = network.databases()
    two, three, greatest = NodeId(2), NodeId(3), 2**63 - 1
    for target in (NodeId(1), three):
        for origin in (NodeId(1), three, NodeId(4)):
            content = Lsa(origin, greatest, ())
            for forged in (
                signed(content, two),
                signed(content, origin, mesh_id="other"),
                signed(content, origin, mesh_epoch=2),
                signed(content, origin, mesh_epoch=0),
            ):
                _inject(network, two, target, forged)
    network.run(10)
    assert network.databases() == before
    network.assert_converged()


def test_liar_about_its_digest_makes_no_origin_jump() -> None:
    network = Network(3, ring(3), seed=19)
    network.run(10)
    before = network.databases()
    lie = LsaMessage(database=tuple(LsaKey(NodeId(node), 2**63 - 1) for node in (1, 2, 3)))
    network.routers[NodeId(1)].receive(NodeId(2), encode_message(lie), network.now)
    network.settle(NodeId(1))
    network.run(30)
    assert network.databases() == before


def test_relay_that_ages_everything_cuts_nobody_off() -> None:
    """Node 2 claims 1,199 s for all that it passes on; whoever hears it from there first keeps it all the same."""
    network = Network(5, [*ring(5), pair(2, 5)], seed=20)
    network.relay_age_s[NodeId(2)] = 1_199
    for _ in range(22):
        network.run(61)
        network.assert_converged()


def test_another_epoch_of_the_mesh_believes_nothing_of_the_former() -> None:
    network = Network(3, ring(3), seed=21)
    network.run(10)
    routes = network.routers[NodeId(1)].table.routes
    former = network.routers[NodeId(2)].lsdb.get(NodeId(2))
    assert former is not None
    network.configure(NodeId(1), network.members, mesh_epoch=2)
    # Until the others have come over the routes stand.
    assert network.routers[NodeId(1)].table.routes == routes
    _inject(network, NodeId(2), NodeId(1), former)
    assert network.routers[NodeId(1)].lsdb.get(NodeId(2)) is None
    for node in (NodeId(2), NodeId(3)):
        network.configure(node, network.members, mesh_epoch=2)
    for node in sorted(network.members):
        network.report_links(node, is_fresh=True)
    network.run(5)
    network.assert_converged()


def test_node_without_a_key_advertises_nothing_and_still_learns() -> None:
    network = Network(3, ring(3), seed=22)
    network.start(NodeId(1))
    router = Router(CONFIG, 9, random.Random(1), Delegations(lambda: NOW_S))
    network.routers[NodeId(1)] = router
    router.configure(view(NodeId(1), network.members), None, network.now)
    network.report_links(NodeId(1), is_fresh=True)
    network.run(5)
    assert {lsa.origin for lsa in router.lsdb.lsas()} >= {2, 3}
    network.configure(NodeId(1), network.members)
    network.settle(NodeId(1))
    network.run(2)
    network.assert_converged()


def test_member_whose_key_changed_is_believed_only_with_the_new_one() -> None:
    network = Network(3, ring(3), seed=23)
    network.run(10)
    changed = view(NodeId(2), network.members)
    keys = {**changed.keys, NodeId(3): KeySigner(bytes(32)).public_key}
    router = network.routers[NodeId(2)]
    former = router.lsdb.get(NodeId(3))
    assert former is not None
    router.configure(replace(changed, keys=keys), signer(NodeId(2)), network.now)
    _inject(network, NodeId(1), NodeId(2), former)
    assert router.lsdb.get(NodeId(3)) is None
    renewed = signatures().sign(replace(former, sequence=former.sequence + 1), signer(NodeId(3), seed=bytes(32)))
    _inject(network, NodeId(1), NodeId(2), renewed)
    assert router.lsdb.get(NodeId(3)) == replace(renewed, age_s=0.0)
