"""Which nodes the MCG's leader should declare reachable or not, from how long each member has been silent.

Leaves out: suspicion by several observers (SWIM). Silence alone never removes a node. Source: architecture §10.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mesh_control.core.model import Node, NodeState
from meshcommon.ids import NodeId


class Reachability:
    """One leader's judgement.

    A node's silence counts from when this leader began to listen to it: what came before was said to somebody else.

    Args:
        limit_ticks: Silence that makes a node unreachable. It is reachable again below a third of it, so that a node at
            the edge does not flap.
    """

    def __init__(self, limit_ticks: int) -> None:
        self._limit_ticks = limit_ticks
        self._term = 0
        self._since: dict[NodeId, int] = {}

    def changes(
        self, nodes: Iterable[Node], quiet_ticks: Mapping[NodeId, int], leader: NodeId, term: int, now_ticks: int
    ) -> list[tuple[NodeId, bool]]:
        """Changes to commit, by node id.

        Args:
            nodes: Nodes as committed.
            quiet_ticks: Ticks since the replica heard each node; a node that the Raft configuration does not hold yet is
                absent and left as it is.
            leader: The leader's own node, always reachable to itself.
            term: Term of this leadership.
            now_ticks: Ticks counted at this replica.
        """
        if term != self._term:
            self._term = term
            self._since.clear()
        for node_id in quiet_ticks:
            self._since.setdefault(node_id, now_ticks)
        changes: list[tuple[NodeId, bool]] = []
        for node in sorted(nodes, key=lambda item: item.node_id):
            quiet = 0 if node.node_id == leader else quiet_ticks.get(node.node_id)
            if quiet is None or node.state is NodeState.JOINING:
                continue
            if (
                node.is_reachable
                and min(quiet, now_ticks - self._since.get(node.node_id, now_ticks)) > self._limit_ticks
            ):
                changes.append((node.node_id, False))
            elif not node.is_reachable and quiet <= self._limit_ticks // 3:
                changes.append((node.node_id, True))
        return changes

    def is_heard(self, quiet_ticks: int) -> bool:
        """Whether a member that was silent for so long counts as heard: the edge below which it is reachable again."""
        return quiet_ticks <= self._limit_ticks // 3
