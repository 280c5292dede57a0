"""Health of the mesh from its nodes. Source: architecture §10.

Nodes that were stopped on purpose do not count: planned-down is not failure. Nor do those that were admitted and not
heard yet: strangers that never speak make no mesh CRITICAL.
"""

from __future__ import annotations

from collections.abc import Iterable

from mesh_control.core.limits import JOINING_TIME_MS_MAX
from mesh_control.core.model import MeshStatus, Node, NodeState


def mesh_status(nodes: Iterable[Node]) -> MeshStatus:
    """HEALTHY when every running node is reachable, CRITICAL when half of them or more are not, else DEGRADED."""
    running = [node for node in nodes if node.state is NodeState.ACTIVE]
    unreachable = sum(not node.is_reachable for node in running)
    if not unreachable:
        return MeshStatus.HEALTHY
    return MeshStatus.CRITICAL if 2 * unreachable >= len(running) else MeshStatus.DEGRADED


def has_expired(node: Node, now_ms: int) -> bool:
    """Whether a node has been JOINING for too long at state time `now_ms`."""
    return now_ms - node.admitted_at_ms >= JOINING_TIME_MS_MAX
