"""Which pairs are protected, and what an event changes, compared with networkx and with the changed graph itself."""

from __future__ import annotations

import random
from itertools import combinations

import networkx as nx
from hypothesis import given
from hypothesis import strategies as st

from mesh_routing.core.bhandari import link_disjoint_pair
from mesh_routing.core.protection import PAIRS_NAMED_MAX, Pair, effect_of, reach_of, without_link, without_node
from mesh_routing.core.spf import Graph
from meshcommon.ids import NodeId
from tests.core.graphs import MutableGraph, graphs, oracle


def pairs(graph: Graph) -> tuple[set[Pair], set[Pair]]:
    """Pairs with a path, and with two that share no link."""
    undirected = oracle(graph).to_undirected()
    every = list(combinations(sorted(graph), 2))
    connected = {pair for pair in every if nx.has_path(undirected, *pair)}
    return connected, {pair for pair in connected if link_disjoint_pair(graph, *pair) is not None}


@given(graphs())
def test_pair_is_protected_when_two_disjoint_paths_exist(graph: MutableGraph) -> None:
    connected, protected = pairs(graph)
    counts = reach_of(graph).counts()
    assert (counts.connected, counts.protected) == (len(connected), len(protected))
    assert counts.pairs == len(graph) * (len(graph) - 1) // 2
    assert counts.ratio == len(protected) / counts.pairs


@given(graphs(), st.randoms(use_true_random=False))
def test_what_if_tells_what_the_event_then_does(graph: MutableGraph, rng: random.Random) -> None:
    links = [(left, right) for left, edges in sorted(graph.items()) for right in sorted(edges)]
    gone = rng.choice(sorted(graph))
    events = [(without_node(graph, gone), frozenset(graph.keys() - {gone}))]
    if links:
        events.append((without_link(graph, *rng.choice(links)), frozenset(graph)))
    before = pairs(graph)
    for changed, remaining in events:
        effect = effect_of(reach_of(graph), changed, remaining)
        after = pairs(changed)
        connected, protected = ({pair for pair in kind if set(pair) <= remaining} for kind in before)
        assert set(effect.lost) == connected - after[0]
        assert set(effect.unprotected) == (protected & after[0]) - after[1]
        assert (effect.lost_count, effect.unprotected_count) == (len(effect.lost), len(effect.unprotected))
        assert (effect.before.connected, effect.before.protected) == (len(connected), len(protected))
        assert (effect.after.connected, effect.after.protected) == (len(after[0]), len(after[1]))


def test_line_of_a_thousand_nodes_is_worked_out_and_the_names_are_bounded() -> None:
    graph: MutableGraph = {NodeId(node): {} for node in range(1, 1_001)}
    for node in range(1, 1_000):
        graph[NodeId(node)][NodeId(node + 1)] = graph[NodeId(node + 1)][NodeId(node)] = 1
    reach = reach_of(graph)
    assert (reach.counts().connected, reach.counts().protected) == (499_500, 0)
    effect = effect_of(reach, without_link(graph, NodeId(500), NodeId(501)), graph)
    assert (effect.lost_count, len(effect.lost)) == (250_000, PAIRS_NAMED_MAX)
