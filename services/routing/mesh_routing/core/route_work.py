"""One computation of all routes, in steps that are short enough for the event loop of a large mesh.

The best path to every destination comes from one tree, at once. A backup takes a search of its own for each destination,
4 ms in a mesh of 1,000 nodes, so backups are worked out in steps. Until its turn comes a destination keeps the
backup that it had, if that still leads there. Destinations that are left without one, or whose best path is another,
are urgent; the others are looked at again because a link got cheaper, or one of theirs dearer, and that can wait.

States of a destination: exact → (change) → urgent or waiting → (step) → exact. What no change can have touched stays
exact: a link that got dearer matters only to the backups that use it. Source: docs/design/routing.md R4 to R6.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from mesh_routing.core.disjoint import maximally_disjoint
from mesh_routing.core.route_table import NO_HYSTERESIS, Hysteresis, Route, priced
from mesh_routing.core.spf import Graph, NodePath, bounded_path, shortest_tree
from mesh_routing.core.topology_graph import EdgeChange
from meshcommon.ids import NO_NODE, NodeId

STEP_EDGES: Final = 60_000
"""Edges that one step may look at: all backups of a mesh of 100 nodes, about 20 ms."""


@dataclass(frozen=True, slots=True)
class Since:
    """What has happened since the routes were computed that `Hysteresis.routes` holds.

    Attributes:
        changes: Links that changed; None: not known, so that nothing is exact.
        pending: Destinations whose backup was not looked at again yet.
        resume_at: Destination after which the last computation stopped: the next one goes on there.
    """

    changes: Iterable[EdgeChange] | None = None
    pending: Container[NodeId] = field(default_factory=frozenset)
    resume_at: NodeId = NO_NODE


class RouteWork:
    """Routes from one node to all others. `routes` always holds usable ones."""

    def __init__(
        self, graph: Graph, source: NodeId, nodes_max: int, keep: Hysteresis = NO_HYSTERESIS, since: Since | None = None
    ) -> None:
        """Finds the best path to every destination, and what of the backups stands."""
        # The graph changes in place while the steps go on.
        self._graph: Graph = {node: dict(edges) for node, edges in graph.items()}
        self._nodes_max = nodes_max
        edges = sum(map(len, self._graph.values()))
        self._batch = max(1, STEP_EDGES // max(1, edges))
        self.routes: dict[NodeId, Route] = {}
        self._urgent: deque[NodeId] = deque()
        self._waiting: deque[NodeId] = deque()
        self.resume_at = NO_NODE if since is None else since.resume_at
        self._start(source, keep, since or Since())

    @property
    def is_urgent(self) -> bool:
        """Whether some destination has no backup yet, or one that may share much with a new best path."""
        return bool(self._urgent)

    @property
    def is_done(self) -> bool:
        """Whether every route is exact."""
        return not (self._urgent or self._waiting)

    @property
    def pending(self) -> frozenset[NodeId]:
        """Destinations that are not exact yet."""
        return frozenset(self._urgent) | frozenset(self._waiting)

    def step(self) -> None:
        """Works out the next backups, urgent ones first."""
        for _ in range(self._batch):
            if self._urgent:
                destination = self._urgent.popleft()
            elif self._waiting:
                destination = self.resume_at = self._waiting.popleft()
            else:
                return
            primary = self.routes[destination].paths[0].nodes
            self._put(destination, primary, maximally_disjoint(self._graph, primary, self._nodes_max))

    def finish(self) -> dict[NodeId, Route]:
        """All routes, exact."""
        while not self.is_done:
            self.step()
        return self.routes

    def _start(self, source: NodeId, keep: Hysteresis, since: Since) -> None:
        changes = None if since.changes is None else list(since.changes)
        is_all_checked = changes is None or any(change.is_better for change in changes)
        dearer = frozenset((change.left, change.right) for change in changes or ())
        tree = shortest_tree(self._graph, source)
        waiting = []
        for destination in sorted(tree.labels.keys() - {source}):
            primary = self._best(tree.path(destination), source, destination, keep)
            if primary is None:
                continue
            former = keep.routes.get(destination)
            known = () if former is None else former.paths
            backup = next((path.nodes for path in known if path.nodes != primary and self._stands(path.nodes)), None)
            self._put(destination, primary, backup)
            is_same = bool(known) and known[0].nodes == primary and (backup is not None) == (len(known) > 1)
            if not is_same:
                self._urgent.append(destination)
            elif is_all_checked or destination in since.pending or not dearer.isdisjoint(pairwise(backup or ())):
                waiting.append(destination)
        self._waiting.extend(node for node in waiting if node > self.resume_at)
        self._waiting.extend(node for node in waiting if node <= self.resume_at)

    def _best(self, path: NodePath | None, source: NodeId, destination: NodeId, keep: Hysteresis) -> NodePath | None:
        if path is not None and len(path) > self._nodes_max:
            path = bounded_path(self._graph, source, destination, self._nodes_max)
        return None if path is None else keep.choose(self._graph, path)

    def _stands(self, nodes: NodePath) -> bool:
        return all(right in self._graph.get(left, ()) for left, right in pairwise(nodes))

    def _put(self, destination: NodeId, primary: NodePath, backup: NodePath | None) -> None:
        found = (primary,) if backup is None else (primary, backup)
        self.routes[destination] = Route(destination, priced(self._graph, found))


def compute_routes(
    graph: Graph, source: NodeId, nodes_max: int, keep: Hysteresis = NO_HYSTERESIS
) -> dict[NodeId, Route]:
    """Routes from `source` to every other node that can be reached, at once."""
    return RouteWork(graph, source, nodes_max, keep).finish()
