"""The k shortest loopless paths between two nodes.

Yen's algorithm (1971) in Lawler's form (1972): each path found is left at each of its nodes from where it left its
parent, and the cheapest continuation that no known path takes is a candidate. Two things make it fast. The distances to
the target, from one tree that grows backwards only as far as it is asked for, are an exact A* heuristic, so a
continuation expands little more than its own nodes. And a candidate waits under the least that it can cost; it is worked
out only when nothing cheaper is left, so most never are.

Every link has both directions (`topology_graph`), with a cost of its own each way. Deterministic: by cost, then hops,
then node ids. Leaves out caching (`path_cache`) and disjoint paths (`disjoint`, `bhandari`).
"""

from __future__ import annotations

import heapq
from collections.abc import Container

from mesh_routing.core.spf import Graph, NodePath, path_cost
from meshcommon.ids import NodeId


class Distances:
    """Distances from one node, or to it, that are worked out as far as they are asked for."""

    __slots__ = ("_graph", "_is_reverse", "_queue", "radius", "settled")

    def __init__(self, graph: Graph, origin: NodeId, *, is_reverse: bool) -> None:
        """`is_reverse`: distances to `origin`, else from it."""
        self._graph = graph
        self._is_reverse = is_reverse
        self._queue: list[tuple[int, NodeId]] = [(0, origin)]
        self.settled: dict[NodeId, int] = {}
        self.radius = 0
        """No node that is not settled is nearer than this."""

    def grow(self, radius: int | None, goal: NodeId | None = None) -> None:
        """Settles all that is at most `radius` away (None: all there is), or only until `goal` is settled."""
        if goal is not None and goal in self.settled:
            return
        graph, queue, settled, is_reverse = self._graph, self._queue, self.settled, self._is_reverse
        while queue and (radius is None or queue[0][0] <= radius):
            distance, node = heapq.heappop(queue)
            if node in settled:
                continue
            settled[node] = distance
            for neighbour, cost in graph.get(node, {}).items():
                if neighbour not in settled:
                    step = graph[neighbour][node] if is_reverse else cost
                    heapq.heappush(queue, (distance + step, neighbour))
            if node == goal:
                break
        self.radius = max(self.radius, queue[0][0]) if queue else 2**62

    def least(self, node: NodeId) -> int:
        """The distance, or a bound below it; consistent along every edge, as A* needs it."""
        return min(self.settled.get(node, self.radius), self.radius)


def k_shortest_paths(
    graph: Graph, source: NodeId, target: NodeId, count: int, to_target: Distances | None = None
) -> list[NodePath]:
    """At most `count` cheapest loopless paths from `source` to another node, cheapest first.

    Args:
        graph: Costs; each link in both directions.
        source: First node.
        target: Last node, another one.
        count: How many, at least 1.
        to_target: Distances to the target, when the caller wants to keep them.
    """
    to_target = to_target or Distances(graph, target, is_reverse=True)
    to_target.grow(None, source)
    if source not in to_target.settled:
        return []
    search = _Search(graph, target, to_target)
    search.add((source,), 0, frozenset())
    found: list[NodePath] = []
    taken: dict[NodePath, set[NodeId]] = {}
    while len(found) < count:
        leaving = search.next()
        if leaving is None:
            break
        path, left_at = leaving
        found.append(path)
        cost = 0
        for index in range(len(path) - 1):
            root = path[: index + 1]
            taken.setdefault(root, set()).add(path[index + 1])
            if index >= left_at:
                search.add(root, cost, frozenset(taken[root]))
            cost += graph[path[index]][path[index + 1]]
    return found


class _Search:
    """Candidates by the least that they can cost."""

    def __init__(self, graph: Graph, target: NodeId, to_target: Distances) -> None:
        self._graph = graph
        self._target = target
        self._to_target = to_target
        # Least cost, whether it is a whole path, hops, nodes; then what is needed to work it out.
        self._waiting: list[tuple[int, bool, int, NodePath, int, int, frozenset[NodeId]]] = []

    def add(self, root: NodePath, cost: int, taken: frozenset[NodeId]) -> None:
        """Paths that begin with `root`, which costs `cost`, and go on to none of `taken`."""
        least = self._to_target.least
        steps = self._graph.get(root[-1], {}).items()
        bounds = [step + least(node) for node, step in steps if node not in taken and node not in root]
        if bounds:
            self._push(cost + min(bounds), root, len(root) - 1, cost, taken, is_path=False)

    def next(self) -> tuple[NodePath, int] | None:
        """The cheapest path that is left, and the index at which it leaves its parent."""
        while self._waiting:
            _, is_path, _, nodes, left_at, cost, taken = heapq.heappop(self._waiting)
            if is_path:
                return nodes, left_at
            rest = cheapest_continuation(self._graph, nodes, self._target, taken, self._to_target)
            if rest is not None:
                whole = nodes + rest
                total = cost + path_cost(self._graph, (nodes[-1], *rest))
                self._push(total, whole, left_at, cost, taken, is_path=True)
        return None

    def _push(
        self, bound: int, nodes: NodePath, left_at: int, cost: int, taken: frozenset[NodeId], *, is_path: bool
    ) -> None:
        heapq.heappush(self._waiting, (bound, is_path, len(nodes), nodes, left_at, cost, taken))


def cheapest_continuation(
    graph: Graph, root: NodePath, target: NodeId, taken: Container[NodeId], to_target: Distances
) -> NodePath | None:
    """The nodes that lead on from the last one of `root` to `target` at least cost, through no node of it.

    The first of them is none of `taken`. None: there is no such way. Source: A* (Hart, Nilsson and Raphael 1968).
    """
    here, closed = root[-1], set(root)
    labels: dict[NodeId, tuple[int, int, NodeId]] = {}
    queue: list[tuple[int, int, NodeId]] = []
    least = to_target.least

    def reach(node: NodeId, neighbour: NodeId, cost: int, hops: int) -> None:
        known = labels.get(neighbour)
        label = (cost, hops, node)
        if known is None or label < known:
            labels[neighbour] = label
            heapq.heappush(queue, (cost + least(neighbour), hops, neighbour))

    for neighbour, step in graph.get(here, {}).items():
        if neighbour not in closed and neighbour not in taken:
            reach(here, neighbour, step, 1)
    while queue:
        _, _, node = heapq.heappop(queue)
        if node in closed:
            continue
        closed.add(node)
        if node == target:
            nodes = [node]
            while (before := labels[nodes[-1]][2]) != here:
                nodes.append(before)
            return tuple(reversed(nodes))
        cost, hops, _ = labels[node]
        for neighbour, step in graph[node].items():
            if neighbour not in closed:
                reach(node, neighbour, cost + step, hops + 1)
    return None
