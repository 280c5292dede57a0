"""The k shortest loopless paths and disjoint pairs (Yen 1971, Lawler 1972, Bhandari 1999), compared with networkx."""

from __future__ import annotations

import random
from itertools import combinations, islice, pairwise

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh_routing.core.bhandari import link_disjoint_pair, node_disjoint_pair
from mesh_routing.core.k_paths import Distances, k_shortest_paths
from mesh_routing.core.spf import Graph, NodePath, path_cost
from meshcommon.ids import NodeId
from tests.core.graphs import MutableGraph, graphs, oracle, random_graph

A, B = NodeId(1), NodeId(2)


def expected_costs(graph: Graph, source: NodeId, target: NodeId, count: int) -> list[int]:
    try:
        found = list(islice(nx.shortest_simple_paths(oracle(graph), source, target, weight="weight"), count))
    except nx.NetworkXNoPath:
        return []
    return [path_cost(graph, tuple(map(NodeId, path))) for path in found]


def assert_are_k_shortest(graph: Graph, found: list[NodePath], expected: list[int]) -> None:
    assert [path_cost(graph, path) for path in found] == expected
    assert len(set(found)) == len(found)
    assert all(len(set(path)) == len(path) for path in found)


@given(graphs(), st.integers(1, 12))
def test_paths_cost_what_networkx_finds(graph: MutableGraph, count: int) -> None:
    assert_are_k_shortest(graph, k_shortest_paths(graph, A, B, count), expected_costs(graph, A, B, count))


@pytest.mark.parametrize("seed", range(6))
def test_paths_in_a_larger_mesh_cost_what_networkx_finds(seed: int) -> None:
    rng = random.Random(seed)
    graph = random_graph(120, 6, rng)
    for _ in range(5):
        source, target = (NodeId(node) for node in rng.sample(range(1, 121), 2))
        found = k_shortest_paths(graph, source, target, 8)
        assert_are_k_shortest(graph, found, expected_costs(graph, source, target, 8))


@given(graphs(), st.randoms(use_true_random=False))
def test_order_in_which_links_are_known_decides_nothing(graph: MutableGraph, rng: random.Random) -> None:
    shuffled: MutableGraph = {}
    for node in rng.sample(sorted(graph), len(graph)):
        shuffled[node] = {peer: graph[node][peer] for peer in rng.sample(sorted(graph[node]), len(graph[node]))}
    assert k_shortest_paths(graph, A, B, 6) == k_shortest_paths(shuffled, A, B, 6)


@given(graphs(), st.integers(0, 12))
def test_distances_that_grow_as_needed_are_true_or_bounds_below(graph: MutableGraph, radius: int) -> None:
    for is_reverse in (False, True):
        distances = Distances(graph, A, is_reverse=is_reverse)
        distances.grow(radius)
        directed = oracle(graph)
        true = nx.single_source_dijkstra_path_length(directed.reverse() if is_reverse else directed, A)
        for node in graph:
            if node in true and true[node] <= radius:
                assert distances.least(node) == true[node]
            else:
                assert radius < distances.least(node) <= true.get(node, 2**62)


def simple_paths(graph: Graph) -> list[NodePath]:
    return [tuple(map(NodeId, path)) for path in nx.all_simple_paths(oracle(graph), A, B)]


def links_of(path: NodePath) -> set[frozenset[NodeId]]:
    return {frozenset(edge) for edge in pairwise(path)}


@given(graphs(nodes_max=6))
def test_pairs_are_disjoint_and_the_cheapest_of_all(graph: MutableGraph) -> None:
    """Against every pair of paths that there is."""
    every = list(combinations(simple_paths(graph), 2))
    by_link = [pair for pair in every if not links_of(pair[0]) & links_of(pair[1])]
    by_node = [pair for pair in by_link if not set(pair[0][1:-1]) & set(pair[1][1:-1])]
    for found, possible in ((link_disjoint_pair(graph, A, B), by_link), (node_disjoint_pair(graph, A, B), by_node)):
        costs = [path_cost(graph, one) + path_cost(graph, other) for one, other in possible]
        if found is None:
            assert not costs
            continue
        first, second = found
        assert (first, second) in possible or (second, first) in possible
        assert path_cost(graph, first) <= path_cost(graph, second)
        assert path_cost(graph, first) + path_cost(graph, second) == min(costs)


def test_trap_of_the_shortest_path_is_avoided() -> None:
    """The shortest path uses a link of both others: taking it first would leave no second one."""
    graph: MutableGraph = {NodeId(node): {} for node in range(1, 5)}
    for left, right, cost in ((1, 3, 1), (3, 4, 1), (4, 2, 1), (1, 4, 5), (3, 2, 5)):
        graph[NodeId(left)][NodeId(right)] = graph[NodeId(right)][NodeId(left)] = cost
    assert k_shortest_paths(graph, A, B, 1) == [(1, 3, 4, 2)]
    assert link_disjoint_pair(graph, A, B) == ((1, 3, 2), (1, 4, 2))
    assert node_disjoint_pair(graph, A, B) == ((1, 3, 2), (1, 4, 2))
