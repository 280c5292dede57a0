"""Shortest paths: Dijkstra's tree to every destination, and the variant that bounds the number of nodes on a path.

Deterministic: among paths of equal cost the one with fewer hops wins, then the one whose predecessor has the smaller id,
whatever the order of the input. Leaves out what a cost is (`cost`). Sources: RFC 2328 §16.1; Bellman-Ford for the bound.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from meshcommon.ids import NodeId

Graph = Mapping[NodeId, Mapping[NodeId, int]]
"""Directed graph: node, neighbour, cost (positive). Every neighbour is itself a key."""
NodePath = tuple[NodeId, ...]
Weigh = Callable[[NodeId, NodeId, int], int]
"""Another cost for the edge (from, to) that has this cost; positive."""


@dataclass(frozen=True, slots=True)
class Tree:
    """Shortest-path tree.

    Attributes:
        source: Root.
        labels: Per reached node its distance, hops and predecessor (the root is its own).
    """

    source: NodeId
    labels: Mapping[NodeId, tuple[int, int, NodeId]]

    def path(self, destination: NodeId) -> NodePath | None:
        """Nodes from the source to `destination`, both included; None when it is out of reach."""
        if destination not in self.labels:
            return None
        nodes = [destination]
        while nodes[-1] != self.source:
            nodes.append(self.labels[nodes[-1]][2])
        return tuple(reversed(nodes))

    def node_count(self, destination: NodeId) -> int:
        """How many nodes the path to a reached destination has."""
        return self.labels[destination][1] + 1


def same_weight(_from: NodeId, _to: NodeId, cost: int) -> int:
    """The edge's own cost."""
    return cost


def shortest_tree(graph: Graph, source: NodeId, weigh: Weigh = same_weight, goal: NodeId | None = None) -> Tree:
    """The tree of shortest paths from `source`; complete, or only so far that `goal` is settled."""
    labels: dict[NodeId, tuple[int, int, NodeId]] = {source: (0, 0, source)}
    settled: set[NodeId] = set()
    queue: list[tuple[int, int, NodeId]] = [(0, 0, source)]
    while queue:
        distance, hops, node = heapq.heappop(queue)
        if node in settled:
            continue
        settled.add(node)
        if node == goal:
            break
        for neighbour, cost in graph.get(node, {}).items():
            if neighbour in settled:
                continue
            label = (distance + weigh(node, neighbour, cost), hops + 1, node)
            known = labels.get(neighbour)
            if known is None or label < known:
                labels[neighbour] = label
                heapq.heappush(queue, (label[0], label[1], neighbour))
    return Tree(source, {node: label for node, label in labels.items() if node in settled})


def bounded_path(
    graph: Graph, source: NodeId, destination: NodeId, nodes_max: int, weigh: Weigh = same_weight
) -> NodePath | None:
    """The cheapest path of at most `nodes_max` nodes, None when there is none.

    Used only where the tree's path is longer than a packet can carry. O(nodes_max · edges).
    """
    rounds: list[dict[NodeId, tuple[int, NodeId]]] = [{source: (0, source)}]
    for _ in range(nodes_max - 1):
        reached: dict[NodeId, tuple[int, NodeId]] = {}
        for node, (distance, _before) in rounds[-1].items():
            for neighbour, cost in graph.get(node, {}).items():
                label = (distance + weigh(node, neighbour, cost), node)
                if neighbour not in reached or label < reached[neighbour]:
                    reached[neighbour] = label
        rounds.append(reached)
    ends = [(rounds[hops][destination][0], hops) for hops in range(1, nodes_max) if destination in rounds[hops]]
    if not ends:
        return None
    nodes = [destination]
    for hops in range(min(ends)[1], 0, -1):
        nodes.append(rounds[hops][nodes[-1]][1])
    return tuple(reversed(nodes))


def path_cost(graph: Graph, path: NodePath) -> int:
    """Sum of the costs along `path`."""
    return sum(graph[left][right] for left, right in pairwise(path))
