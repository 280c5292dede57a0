"""Routes to every destination, and versioned differences between two tables.

A table is a value; the pusher keeps the one that the data plane has confirmed and sends what leads from it to the
present one, however many versions lie between. Source: architecture §6, proto/meshapi/data/v1 PushRoutes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from mesh_routing.core.disjoint import maximally_disjoint
from mesh_routing.core.spf import Graph, NodePath, bounded_path, path_cost, shortest_tree
from meshapi.data.v1 import data_pb2
from meshcommon.ids import NodeId


@dataclass(frozen=True, slots=True)
class Path:
    """A path, both ends included, and its cost in microsecond-equivalents."""

    nodes: NodePath
    cost: int


@dataclass(frozen=True, slots=True)
class Route:
    """All that is known to reach one destination: best path first, then the one maximally disjoint from it."""

    destination: NodeId
    paths: tuple[Path, ...]


Routes = Mapping[NodeId, Route]


@dataclass(frozen=True, slots=True)
class RouteTable:
    """Routes by destination at one version; version 0 is the empty table before the first computation."""

    version: int = 0
    routes: Routes = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RouteDifference:
    """What leads from version `base_version` to `version`; base 0: the whole table."""

    base_version: int
    version: int
    changed: tuple[Route, ...]
    removed: tuple[NodeId, ...]

    def request(self) -> data_pb2.PushRoutesRequest:
        """The message that brings it to the data plane."""
        return data_pb2.PushRoutesRequest(
            base_version=self.base_version,
            version=self.version,
            changed=[
                data_pb2.Route(
                    destination=route.destination,
                    paths=[data_pb2.Path(nodes=path.nodes, cost=path.cost) for path in route.paths],
                )
                for route in self.changed
            ],
            removed=self.removed,
        )


def difference(base: RouteTable | None, target: RouteTable) -> RouteDifference:
    """From `base`, or from nothing when it is None, to `target`."""
    known: Routes = {} if base is None else base.routes
    changed = [route for destination, route in target.routes.items() if known.get(destination) != route]
    return RouteDifference(
        base_version=0 if base is None else base.version,
        version=target.version,
        changed=tuple(sorted(changed, key=lambda route: route.destination)),
        removed=tuple(sorted(known.keys() - target.routes.keys())),
    )


@dataclass(frozen=True, slots=True)
class Hysteresis:
    """Keeps the best path that is in use until another one is clearly better, so that noise moves no traffic.

    Attributes:
        routes: What is in use.
        ratio: Another path must be cheaper by more than this share of the present one's cost …
        least_us: … and by more than this many microsecond-equivalents.
    """

    routes: Routes = field(default_factory=dict)
    ratio: float = 0.0
    least_us: int = 0

    def choose(self, graph: Graph, best: NodePath) -> NodePath:
        """`best`, or the path in use to the same destination.

        A path that has more hops than the best is never kept: two slow links do not stay in the place of one.
        """
        route = self.routes.get(best[-1])
        if route is None or len(route.paths[0].nodes) > len(best) or route.paths[0].nodes[0] != best[0]:
            return best
        present = route.paths[0].nodes
        if not all(right in graph.get(left, ()) for left, right in pairwise(present)):
            return best
        cost = path_cost(graph, present)
        return best if cost - path_cost(graph, best) > max(self.ratio * cost, self.least_us) else present


NO_HYSTERESIS: Final = Hysteresis()


def find_paths(graph: Graph, source: NodeId, destination: NodeId, nodes_max: int) -> tuple[Path, ...]:
    """The best path and its backup between two nodes; empty when there is none."""
    primary = shortest_tree(graph, source, goal=destination).path(destination)
    if primary is not None and len(primary) > nodes_max:
        primary = bounded_path(graph, source, destination, nodes_max)
    if primary is None:
        return ()
    backup = maximally_disjoint(graph, primary, nodes_max)
    return priced(graph, (primary,) if backup is None else (primary, backup))


def priced(graph: Graph, paths: Iterable[NodePath]) -> tuple[Path, ...]:
    """The paths with what they cost."""
    return tuple(Path(nodes, path_cost(graph, nodes)) for nodes in paths)
