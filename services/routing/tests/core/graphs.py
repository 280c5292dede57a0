"""Graphs for tests of paths: small ones with many ties, and random ones of the size of a large mesh."""

from __future__ import annotations

import random

import networkx as nx
from hypothesis import strategies as st

from mesh_routing.core.spf import Graph
from meshcommon.ids import NodeId

MutableGraph = dict[NodeId, dict[NodeId, int]]


@st.composite
def graphs(draw: st.DrawFn, nodes_max: int = 9, cost_max: int = 4) -> MutableGraph:
    """Links go both ways, with a cost of their own each way; few distinct costs, so that there are ties."""
    count = draw(st.integers(2, nodes_max))
    pairs = [(left, right) for left in range(1, count + 1) for right in range(left + 1, count + 1)]
    costs = st.integers(1, cost_max)
    graph: MutableGraph = {NodeId(node): {} for node in range(1, count + 1)}
    for left, right in draw(st.sets(st.sampled_from(pairs))):
        graph[NodeId(left)][NodeId(right)] = draw(costs)
        graph[NodeId(right)][NodeId(left)] = draw(costs)
    return graph


def oracle(graph: Graph) -> nx.DiGraph[int]:
    """The same for networkx."""
    directed: nx.DiGraph[int] = nx.DiGraph()
    directed.add_nodes_from(graph)
    directed.add_weighted_edges_from((a, b, cost) for a, edges in graph.items() for b, cost in edges.items())
    return directed


def random_graph(count: int, degree: int, rng: random.Random) -> MutableGraph:
    """Connected, of `count` nodes with `degree` links on the average; costs of 3 to 100 ms."""
    graph: MutableGraph = {NodeId(node): {} for node in range(1, count + 1)}
    links = {(rng.randrange(1, node), node) for node in range(2, count + 1)}
    while len(links) < min(count * degree, count * (count - 1)) // 2:
        left, right = sorted(rng.sample(range(1, count + 1), 2))
        links.add((left, right))
    for left, right in sorted(links):
        graph[NodeId(left)][NodeId(right)] = rng.randrange(3_000, 100_000)
        graph[NodeId(right)][NodeId(left)] = rng.randrange(3_000, 100_000)
    return graph
