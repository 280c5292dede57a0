"""The k shortest paths of pairs that were asked for, kept as long as no change can matter to them.

A change that makes a link dearer matters only to paths that use it. One that makes a link cheaper, or adds it, matters
only if a path over it may cost no more than the dearest path kept: the distances from the source and to the target as
they were when the paths were found say so. A path over several links that got cheaper begins with the way to the first
of them and ends with the way from the last, neither of which uses one; so the nearest beginning, the nearest end and the
cheapest link together bound them all, in whatever order they are taken.

Invariant P4 (docs/design/routing.md): what is answered from here has the costs that a computation now would have.
Leaves out what is computed (`k_paths`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from mesh_routing.core.k_paths import Distances, k_shortest_paths
from mesh_routing.core.spf import NodePath, path_cost
from mesh_routing.core.topology_graph import EdgeChange, TopologyGraph
from meshcommon.ids import NodeId

PAIRS_MAX: Final = 128
"""Pairs that are kept; each holds two distances a node, 140 KB in a mesh of 1,000."""
_BETTER_MAX: Final = 64
"""Links that got cheaper until a pair is computed anew."""


@dataclass(slots=True)
class _Kept:
    """Paths of one pair, and what decides whether they still hold."""

    paths: tuple[NodePath, ...]
    position: int
    used: frozenset[tuple[NodeId, NodeId]]
    dearest: int | None
    from_source: Distances
    to_target: Distances
    better: dict[tuple[NodeId, NodeId], int] = field(default_factory=dict)


class PathCache:
    """Paths over one graph. Bounded by PAIRS_MAX; the pair that was not asked for longest is forgotten."""

    def __init__(self, graph: TopologyGraph) -> None:
        self._graph = graph
        self._kept: OrderedDict[tuple[NodeId, NodeId, int], _Kept] = OrderedDict()
        self.hits = 0
        self.misses = 0

    def paths(self, source: NodeId, target: NodeId, count: int) -> tuple[NodePath, ...]:
        """The `count` shortest loopless paths, best first."""
        key = source, target, count
        kept = self._kept.get(key)
        if kept is not None and self._still_holds(kept):
            self.hits += 1
            self._kept.move_to_end(key)
            return kept.paths
        self.misses += 1
        kept = self._kept[key] = self._compute(source, target, count)
        self._kept.move_to_end(key)
        if len(self._kept) > PAIRS_MAX:
            self._kept.popitem(last=False)
        return kept.paths

    def _compute(self, source: NodeId, target: NodeId, count: int) -> _Kept:
        edges = self._graph.edges
        to_target = Distances(edges, target, is_reverse=True)
        paths = tuple(k_shortest_paths(edges, source, target, count, to_target))
        # Fewer than asked for: any new way is one more, however dear.
        dearest = path_cost(edges, paths[-1]) if len(paths) == count else None
        from_source = Distances(edges, source, is_reverse=False)
        # A path that leaves both radii behind it costs more than the dearest one, so together they need not be longer.
        if dearest is None:
            to_target.grow(None)
        from_source.grow(None if dearest is None else dearest - to_target.radius)
        used = frozenset(edge for path in paths for edge in pairwise(path))
        return _Kept(paths, self._graph.position, used, dearest, from_source, to_target)

    def _still_holds(self, kept: _Kept) -> bool:
        if kept.position == self._graph.position:
            return True
        changes = self._graph.since(kept.position)
        if changes is None or any((change.left, change.right) in kept.used for change in changes):
            return False
        self._note_better(kept, changes)
        if len(kept.better) > _BETTER_MAX or not self._is_too_dear(kept):
            return False
        kept.position = self._graph.position
        return True

    def _note_better(self, kept: _Kept, changes: Iterable[EdgeChange]) -> None:
        for change in changes:
            edge = change.left, change.right
            if change.is_better and change.after is not None:
                kept.better[edge] = min(change.after, kept.better.get(edge, change.after))

    def _is_too_dear(self, kept: _Kept) -> bool:
        """Whether no path over the links that got cheaper can be among the cheapest ones."""
        if not kept.better:
            return True
        begin = min(kept.from_source.least(left) for left, _ in kept.better)
        end = min(kept.to_target.least(right) for _, right in kept.better)
        least = begin + min(kept.better.values()) + end
        # 2**62 stands for out of reach: a way that cannot be begun or ended.
        return least >= 2**62 if kept.dearest is None else least > kept.dearest
