"""Shortest paths, bounded paths and backups, with networkx and exhaustive search as oracles."""

from __future__ import annotations

from itertools import pairwise

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh_routing.core.disjoint import maximally_disjoint
from mesh_routing.core.route_table import find_paths
from mesh_routing.core.route_work import compute_routes
from mesh_routing.core.spf import NodePath, bounded_path, path_cost, shortest_tree
from meshcommon.ids import NodeId
from tests.core.graphs import MutableGraph, graphs, oracle


def graph_of(*edges: tuple[int, int, int]) -> MutableGraph:
    """An undirected graph of (node, node, cost)."""
    graph: MutableGraph = {}
    for left, right, cost in edges:
        graph.setdefault(NodeId(left), {})[NodeId(right)] = cost
        graph.setdefault(NodeId(right), {})[NodeId(left)] = cost
    return graph


def shared(primary: NodePath, other: NodePath) -> tuple[int, int]:
    """Links and relays that both use."""
    links = {frozenset(edge) for edge in pairwise(primary)} & {frozenset(edge) for edge in pairwise(other)}
    return len(links), len(set(primary[1:-1]) & set(other[1:-1]))


@given(graphs())
def test_tree_has_the_distances_of_networkx(graph: MutableGraph) -> None:
    tree = shortest_tree(graph, NodeId(1))
    expected = nx.single_source_dijkstra_path_length(oracle(graph), 1)
    assert {node: label[0] for node, label in tree.labels.items()} == expected
    for node in tree.labels:
        path = tree.path(node)
        assert path is not None
        assert path_cost(graph, path) == expected[node]
        assert len(path) == tree.node_count(node)


@given(graphs(), st.randoms(use_true_random=False))
def test_tree_does_not_depend_on_the_order_of_the_input(graph: MutableGraph, rng: object) -> None:
    backwards = {node: dict(reversed(edges.items())) for node, edges in reversed(graph.items())}
    assert shortest_tree(graph, NodeId(1)).labels == shortest_tree(backwards, NodeId(1)).labels


def test_fewer_hops_win_although_they_were_found_later() -> None:
    graph = graph_of((1, 2, 1), (2, 3, 1), (3, 9, 3), (1, 4, 3), (4, 9, 2))
    assert shortest_tree(graph, NodeId(1)).path(NodeId(9)) == (1, 4, 9)


def test_equal_costs_prefer_fewer_hops_then_smaller_predecessors() -> None:
    graph = graph_of((1, 4, 2), (1, 2, 1), (2, 4, 1), (1, 3, 1), (3, 5, 1), (2, 5, 1))
    tree = shortest_tree(graph, NodeId(1))
    assert tree.path(NodeId(4)) == (1, 4)
    assert tree.path(NodeId(5)) == (1, 2, 5)


@given(graphs(7), st.integers(2, 7))
def test_bounded_path_is_the_cheapest_within_the_bound(graph: MutableGraph, nodes_max: int) -> None:
    found = bounded_path(graph, NodeId(1), NodeId(2), nodes_max)
    candidates = nx.all_simple_paths(oracle(graph), 1, 2, cutoff=nodes_max - 1)
    costs = [path_cost(graph, tuple(NodeId(node) for node in path)) for path in candidates]
    if not costs:
        assert found is None
    else:
        assert found is not None
        assert path_cost(graph, found) == min(costs)
        assert len(found) <= nodes_max
        assert len(set(found)) == len(found)


@given(graphs(7))
def test_backup_shares_the_least_and_is_the_cheapest_such(graph: MutableGraph) -> None:
    primary = shortest_tree(graph, NodeId(1)).path(NodeId(2))
    if primary is None:
        return
    backup = maximally_disjoint(graph, primary, 16)
    paths = [tuple(NodeId(node) for node in path) for path in nx.all_simple_paths(oracle(graph), 1, 2)]
    others = [(*shared(primary, path), path_cost(graph, path)) for path in paths if path != primary]
    if not others:
        assert backup is None
    else:
        assert backup is not None
        assert (*shared(primary, backup), path_cost(graph, backup)) == min(others)


@given(graphs(8))
def test_backup_is_node_disjoint_whenever_removing_the_primary_leaves_a_path(graph: MutableGraph) -> None:
    primary = shortest_tree(graph, NodeId(1)).path(NodeId(2))
    if primary is None:
        return
    rest = oracle(graph)
    rest.remove_nodes_from(primary[1:-1])
    rest.remove_edges_from([(1, 2)] if len(primary) == 2 else [])
    backup = maximally_disjoint(graph, primary, 16)
    if nx.has_path(rest, 1, 2):
        assert backup is not None
        assert shared(primary, backup) == (0, 0)


@pytest.mark.parametrize(
    ("edges", "expected"),
    [
        # A node-disjoint detour, although the one through node 2 is cheaper.
        ([(1, 2, 1), (2, 9, 1), (1, 3, 50), (3, 9, 50), (2, 3, 1)], (1, 3, 9)),
        # Only edge-disjoint: everything passes node 2.
        ([(1, 2, 1), (1, 3, 1), (3, 2, 1), (2, 9, 1), (2, 4, 1), (4, 9, 1)], (1, 3, 2, 4, 9)),
        # The bridge 1–2 must be shared.
        ([(1, 2, 1), (2, 9, 1), (2, 4, 1), (4, 9, 1)], (1, 2, 4, 9)),
        # A line has no backup.
        ([(1, 2, 1), (2, 9, 1)], None),
    ],
)
def test_backup_prefers_node_then_edge_disjoint_then_least_shared(
    edges: list[tuple[int, int, int]], expected: tuple[int, ...] | None
) -> None:
    assert maximally_disjoint(graph_of(*edges), (NodeId(1), NodeId(2), NodeId(9)), 16) == expected


def test_paths_fit_a_packet_or_are_left_out() -> None:
    """A ring of 40: the far side is out of reach within 16 nodes, a costly chord brings a part of it back."""
    ring = [(node, node % 40 + 1, 1) for node in range(1, 41)]
    routes = compute_routes(graph_of(*ring), NodeId(1), 16)
    assert set(routes) == set(range(2, 17)) | set(range(26, 41))
    assert [len(path.nodes) for path in routes[NodeId(16)].paths] == [16]
    routes = compute_routes(graph_of(*ring, (1, 20, 100)), NodeId(1), 16)
    assert routes[NodeId(20)].paths[0].nodes == (1, 20)
    assert routes[NodeId(17)].paths[0].nodes == (1, 20, 19, 18, 17)


@given(graphs())
def test_routes_hold_best_and_backup_for_every_reachable_node(graph: MutableGraph) -> None:
    routes = compute_routes(graph, NodeId(1), 16)
    assert set(routes) == set(nx.descendants(oracle(graph), 1))
    for destination, route in routes.items():
        assert route.paths == find_paths(graph, NodeId(1), destination, 16)
        for path in route.paths:
            assert (path.nodes[0], path.nodes[-1]) == (1, destination)
            assert len(set(path.nodes)) == len(path.nodes)
            assert path.cost == path_cost(graph, path.nodes)
