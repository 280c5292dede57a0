"""The graph that is kept up to date, and the cache of paths that no change fools (P4)."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh_routing.core.k_paths import k_shortest_paths
from mesh_routing.core.lsa import Lsa, LsaLink
from mesh_routing.core.lsdb import Lsdb
from mesh_routing.core.path_cache import PAIRS_MAX, PathCache
from mesh_routing.core.spf import path_cost
from mesh_routing.core.topology_graph import JOURNAL_MAX, TopologyGraph
from meshcommon.cost_weights import CostWeights
from meshcommon.ids import NodeId
from tests.core.graphs import MutableGraph, random_graph

PLAIN = CostWeights(hop_us=1)


def lsa_of(graph: MutableGraph, origin: NodeId) -> Lsa:
    links = tuple(LsaLink(peer, cost - 1) for peer, cost in sorted(graph[origin].items()))
    return Lsa(origin, 1, links)


def topology_of(graph: MutableGraph) -> TopologyGraph:
    made = TopologyGraph(PLAIN)
    for origin in graph:
        made.put(lsa_of(graph, origin))
    return made


def test_journal_tells_each_change_once_and_says_when_it_is_too_short() -> None:
    graph = random_graph(5, 3, random.Random(1))
    topology = topology_of(graph)
    assert topology.edges == graph
    position = topology.position
    peer = min(graph[NodeId(1)])
    for step in range(JOURNAL_MAX):
        graph[NodeId(1)][peer] += 1
        topology.put(lsa_of(graph, NodeId(1)))
        changes = topology.since(position)
        assert changes is not None
        assert len(changes) == step + 1
        assert not changes[-1].is_better
    graph[NodeId(1)][peer] -= 2
    topology.put(lsa_of(graph, NodeId(1)))
    assert topology.since(position) is None
    changes = topology.since(topology.position - 1)
    assert changes is not None
    (change,) = changes
    assert (change.left, change.right, change.after, change.is_better) == (1, peer, graph[NodeId(1)][peer], True)


@settings(max_examples=30)
@given(st.integers(0, 2**32))
def test_graph_kept_up_to_date_is_the_graph_made_anew(seed: int) -> None:
    """Whatever comes, in any order: one-sided links, other costs, nodes that go."""
    rng = random.Random(seed)
    lsdb = Lsdb(100.0)
    nodes = [NodeId(number) for number in range(1, 7)]
    lsdb.set_members(frozenset(nodes))
    kept = lsdb.topology(min(lsdb._weights))
    for sequence in range(1, 40):
        origin = rng.choice(nodes)
        if rng.random() < 0.1:
            lsdb.drop([origin])
            continue
        peers = sorted(rng.sample([node for node in nodes if node != origin], rng.randrange(6)))
        lsdb.offer(Lsa(origin, sequence, tuple(LsaLink(peer, rng.randrange(9)) for peer in peers)), 0.0)
        held = {lsa.origin: {link.peer: link for link in lsa.links} for lsa in lsdb.lsas()}
        expected = {
            left: {peer: link.latency_us + 2_000 for peer, link in links.items() if left in held.get(peer, {})}
            for left, links in held.items()
        }
        assert kept.edges == expected
        assert lsdb.graph() == expected


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6))
def test_cache_answers_what_a_computation_would(seed: int, count: int) -> None:
    """P4, through any history of links that come, go, and get cheaper and dearer."""
    rng = random.Random(seed)
    nodes = rng.randrange(3, 12)
    graph = random_graph(nodes, rng.randrange(2, 5), rng)
    topology = topology_of(graph)
    cache = PathCache(topology)
    pairs = [tuple(NodeId(node) for node in rng.sample(range(1, nodes + 1), 2)) for _ in range(3)]
    for _ in range(30):
        for source, target in pairs:
            found = cache.paths(source, target, count)
            costs = [path_cost(graph, path) for path in found]
            assert costs == [path_cost(graph, path) for path in k_shortest_paths(graph, source, target, count)]
        for _ in range(rng.randrange(1, 3)):
            _change(graph, topology, rng)


def _change(graph: MutableGraph, topology: TopologyGraph, rng: random.Random) -> None:
    left, right = (NodeId(node) for node in rng.sample(sorted(graph), 2))
    if right not in graph[left]:
        graph[left][right], graph[right][left] = rng.randrange(3_000, 100_000), rng.randrange(3_000, 100_000)
    elif rng.random() < 0.3:
        del graph[left][right], graph[right][left]
    else:
        graph[left][right] = max(1, round(graph[left][right] * rng.choice([0.1, 0.7, 0.95, 1.05, 1.5, 8])))
    topology.put(lsa_of(graph, left))
    topology.put(lsa_of(graph, right))


@pytest.mark.parametrize("factor", [0.999, 1.5])
def test_change_far_away_costs_no_computation(factor: float) -> None:
    graph = random_graph(200, 6, random.Random(5))
    topology = topology_of(graph)
    cache = PathCache(topology)
    found = cache.paths(NodeId(1), NodeId(2), 4)
    used = {node for path in found for node in path}
    far = next(node for node in sorted(graph, reverse=True) if node not in used and not used & graph[node].keys())
    peer = min(graph[far])
    graph[far][peer] = round(graph[far][peer] * factor)
    topology.put(lsa_of(graph, far))
    assert cache.paths(NodeId(1), NodeId(2), 4) == found
    assert (cache.hits, cache.misses) == (1, 1)
    left, right = found[0][0], found[0][1]
    graph[left][right] += 1
    topology.put(lsa_of(graph, left))
    cache.paths(NodeId(1), NodeId(2), 4)
    assert (cache.hits, cache.misses) == (1, 2)


def test_cache_forgets_the_pair_that_was_not_asked_for_longest() -> None:
    graph = random_graph(PAIRS_MAX + 3, 3, random.Random(2))
    cache = PathCache(topology_of(graph))
    for node in range(2, PAIRS_MAX + 4):
        cache.paths(NodeId(1), NodeId(node), 1)
    assert len(cache._kept) == PAIRS_MAX
    cache.paths(NodeId(1), NodeId(PAIRS_MAX + 3), 1)
    cache.paths(NodeId(1), NodeId(2), 1)
    assert (cache.hits, cache.misses) == (1, PAIRS_MAX + 3)
