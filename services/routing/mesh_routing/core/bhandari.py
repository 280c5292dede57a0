"""The cheapest pair of disjoint paths between two nodes, by link or by node.

Bhandari (1999): find the shortest path, turn each of its edges round with its cost negated, find the shortest path
again, and drop the links that both use in opposite directions. By node: each node is split into one that is entered and
one that is left, so that an edge stands for it. The cost of both together is least, so the first may be dearer than
the shortest path: this is for traffic that travels on both at once. The route table keeps the shortest path and asks
`disjoint` for a backup.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from itertools import pairwise
from typing import TypeVar

from mesh_routing.core.spf import Graph, NodePath, path_cost
from meshcommon.ids import NodeId

NodeT = TypeVar("NodeT")


def link_disjoint_pair(graph: Graph, source: NodeId, target: NodeId) -> tuple[NodePath, NodePath] | None:
    """The two paths that share no link and cost least together, the cheaper one first; None when there are no two."""
    pair = _pair(graph, source, target)
    return None if pair is None else _ordered(graph, tuple(pair[0]), tuple(pair[1]))


def node_disjoint_pair(graph: Graph, source: NodeId, target: NodeId) -> tuple[NodePath, NodePath] | None:
    """The same for two paths that share no node but their ends."""
    split: dict[tuple[NodeId, bool], dict[tuple[NodeId, bool], int]] = {}
    for node, edges in graph.items():
        split[node, False] = {(node, True): 0}
        split[node, True] = {(neighbour, False): cost for neighbour, cost in edges.items()}
    pair = _pair(split, (source, True), (target, False))
    if pair is None:
        return None
    first, second = (tuple(node for node, is_left in path if is_left or node == target) for path in pair)
    return _ordered(graph, first, second)


def _ordered(graph: Graph, first: NodePath, second: NodePath) -> tuple[NodePath, NodePath]:
    by_cost = sorted((first, second), key=lambda path: (path_cost(graph, path), len(path), path))
    return by_cost[0], by_cost[1]


def _pair(
    graph: Mapping[NodeT, Mapping[NodeT, int]], source: NodeT, target: NodeT
) -> tuple[list[NodeT], list[NodeT]] | None:
    first = _shortest(graph, source, target)
    if first is None:
        return None
    turned = {node: dict(edges) for node, edges in graph.items()}
    for left, right in pairwise(first):
        # The edge that leads back is dearer than the one turned round, so it is never missed.
        turned[right][left] = -graph[left][right]
        del turned[left][right]
    second = _shortest(turned, source, target)
    if second is None:
        return None
    edges = set(pairwise(first))
    for left, right in pairwise(second):
        if (right, left) in edges:
            edges.remove((right, left))
        else:
            edges.add((left, right))
    following: dict[NodeT, list[NodeT]] = {}
    for left, right in edges:
        following.setdefault(left, []).append(right)
    return _walk(following, source, target), _walk(following, source, target)


def _walk(following: dict[NodeT, list[NodeT]], source: NodeT, target: NodeT) -> list[NodeT]:
    """One of the two paths, taken out of the edges that are left. A loop costs something, so there is none."""
    nodes = [source]
    while nodes[-1] != target:
        nodes.append(following[nodes[-1]].pop())
    return nodes


def _shortest(graph: Mapping[NodeT, Mapping[NodeT, int]], source: NodeT, target: NodeT) -> list[NodeT] | None:
    """Shortest path where costs may be negative but loops are not (Bellman-Ford with a queue)."""
    distance: dict[NodeT, int] = {source: 0}
    before: dict[NodeT, NodeT] = {}
    queue, waiting = deque([source]), {source}
    while queue:
        node = queue.popleft()
        waiting.discard(node)
        for neighbour, cost in graph.get(node, {}).items():
            reached = distance[node] + cost
            if neighbour not in distance or reached < distance[neighbour]:
                distance[neighbour] = reached
                before[neighbour] = node
                if neighbour not in waiting:
                    waiting.add(neighbour)
                    queue.append(neighbour)
    if target not in distance:
        return None
    nodes = [target]
    while nodes[-1] != source:
        nodes.append(before[nodes[-1]])
    return nodes[::-1]
