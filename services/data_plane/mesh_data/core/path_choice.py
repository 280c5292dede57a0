"""Path choice: which way a packet takes, from the route table, the links that are up and the links that others named broken.

Purpose: one place that picks a path, for packets of this node, for a relay's repair and as the backup that is shown. Leaves
out: computing routes (routing's), packets (the forwarder's), and several paths at once. Source: architecture §5 "Source
routes".

Order of preference: the table's first path whose first link is up and that crosses no link named broken; the direct link
(routing may not have computed anything yet); the table's first path whose first link is up, as a last try.
"""

from __future__ import annotations

from itertools import pairwise

from mesh_data.core.route_table import Nodes, RouteTable
from meshcommon.ids import NodeId


class PathChoice:
    """Paths from one node to the others. `now` is monotonic seconds."""

    __slots__ = ("_broken_hold_s", "_broken_until", "_up", "local", "routes")

    def __init__(self, local: NodeId, broken_hold_s: float) -> None:
        """With an empty table and no link.

        Args:
            local: This node.
            broken_hold_s: How long a link is avoided after it was named broken.
        """
        self.local = local
        self.routes = RouteTable(local)
        self._broken_hold_s = broken_hold_s
        self._up: set[NodeId] = set()
        self._broken_until: dict[tuple[NodeId, NodeId], float] = {}

    def set_link(self, peer: NodeId, is_up: bool) -> None:
        """The link to a neighbour came up or went down."""
        if is_up:
            self._up.add(peer)
        else:
            self._up.discard(peer)

    def is_up(self, peer: NodeId) -> bool:
        """Whether the link to a neighbour is up."""
        return peer in self._up

    def name_broken(self, near: NodeId, far: NodeId, now: float) -> None:
        """A node on the way said that its link is down: it is avoided for a while."""
        self._broken_until[_link(near, far)] = now + self._broken_hold_s

    def path_to(self, destination: NodeId, now: float) -> Nodes | None:
        """The path that a packet would take now, None when there is none."""
        path = self.routes.choose(destination, lambda nodes: nodes[1] in self._up and not self._is_broken(nodes, now))
        if path is not None:
            return path
        if destination in self._up:
            return (self.local, destination)
        return self.routes.choose(destination, lambda nodes: nodes[1] in self._up)

    def backup_to(self, destination: NodeId, now: float) -> Nodes | None:
        """The path that would be taken if the one in use broke."""
        current = self.path_to(destination, now)
        return self.routes.choose(destination, lambda nodes: nodes != current and nodes[1] in self._up)

    def detour(self, destination: NodeId, travelled: frozenset[int], now: float) -> Nodes | None:
        """A path for a packet that is under way and must not meet the nodes that it has travelled."""
        path = self.routes.choose(
            destination,
            lambda nodes: nodes[1] in self._up and travelled.isdisjoint(nodes) and not self._is_broken(nodes, now),
        )
        if path is None and destination in self._up:
            return (self.local, destination)
        return path

    def _is_broken(self, nodes: Nodes, now: float) -> bool:
        if not self._broken_until:
            return False
        for link in [link for link, until in self._broken_until.items() if until <= now]:
            del self._broken_until[link]
        return any(_link(near, far) in self._broken_until for near, far in pairwise(nodes))


def _link(one: NodeId, other: NodeId) -> tuple[NodeId, NodeId]:
    """A link has no direction: a lane that is down is down both ways."""
    return (one, other) if one < other else (other, one)
