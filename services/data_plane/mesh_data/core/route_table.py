"""The route table: for each destination the paths that routing computed, best first, as versioned differences.

Purpose: hold what routing pushed and answer which path to take now. Leaves out: computing paths, and judging links beyond
what the caller passes in. Source: architecture §6 "Routes stream to the data plane as versioned differences".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

from meshapi.data.v1 import data_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId
from meshwire.packet import MAX_ROUTE_NODES

Nodes: TypeAlias = tuple[NodeId, ...]
"""Node ids along a path, both ends included."""


@dataclass(frozen=True, slots=True)
class RoutePath:
    """One path and its cost in microseconds-equivalent."""

    nodes: Nodes
    cost: float


class RouteTable:
    """Paths from one node to all others. An empty table has version 0."""

    def __init__(self, local: NodeId) -> None:
        self.local = local
        self.version = 0
        self._routes: dict[NodeId, tuple[RoutePath, ...]] = {}

    def apply(self, push: data_pb2.PushRoutesRequest) -> bool:
        """Applies a difference (or the whole table when its base is 0).

        Returns:
            False when it does not start from the version in force; then nothing has changed.

        Raises:
            MeshError: INVALID_ARGUMENT when a path is no loopless path from this node to its destination; nothing has
                changed.
        """
        if push.base_version not in {0, self.version}:
            return False
        changed = {NodeId(route.destination): self._paths(route) for route in push.changed}
        routes = {} if not push.base_version else dict(self._routes)
        routes.update(changed)
        for destination in push.removed:
            routes.pop(NodeId(destination), None)
        self._routes = routes
        self.version = push.version
        return True

    def paths(self, destination: NodeId) -> tuple[RoutePath, ...]:
        """The paths there, best first."""
        return self._routes.get(destination, ())

    def destinations(self) -> Iterable[NodeId]:
        """Every destination that has a path."""
        return self._routes.keys()

    def choose(self, destination: NodeId, is_usable: Callable[[Nodes], bool]) -> Nodes | None:
        """The first path that `is_usable` accepts."""
        for path in self._routes.get(destination, ()):
            if is_usable(path.nodes):
                return path.nodes
        return None

    def whole(self) -> data_pb2.PushRoutesRequest:
        """The whole table as one push, for keeping it on disk."""
        routes = [
            data_pb2.Route(
                destination=destination,
                paths=[data_pb2.Path(nodes=path.nodes, cost=path.cost) for path in paths],
            )
            for destination, paths in self._routes.items()
        ]
        return data_pb2.PushRoutesRequest(base_version=0, version=self.version, changed=routes)

    def _paths(self, route: data_pb2.Route) -> tuple[RoutePath, ...]:
        paths = []
        for path in route.paths:
            nodes = tuple(NodeId(node) for node in path.nodes)
            if len(nodes) > MAX_ROUTE_NODES:
                # A packet cannot carry it; the other paths are still good.
                continue
            is_path = len(nodes) >= 2 and len(set(nodes)) == len(nodes) and 0 not in nodes
            if not is_path or nodes[0] != self.local or nodes[-1] != route.destination:
                raise MeshError(
                    ErrorCode.INVALID_ARGUMENT,
                    f"{list(nodes)} is no path from node {self.local} to node {route.destination}: "
                    "send the whole table again.",
                )
            paths.append(RoutePath(nodes, path.cost))
        return tuple(paths)
