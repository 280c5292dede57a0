"""Attested recovery of the control group: an operator names who survives, and this node's replica goes on with them alone.

Each survivor is told by itself; meshraft lets the group lead again when all of them were. A log whose membership was given up counts
again, since the operator says so. Leaves out: nodes that are lost and still listed, which the operator has the mesh forget.
Source: docs/design/recovery.md, "Attested recovery".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mesh_control.shell.local_node import LocalNode
from mesh_control.shell.mcg import GROUP
from meshapi.supervisor.v1 import mesh_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.logging import get_logger

SURVIVORS_MAX: Final = 10

_log = get_logger(__name__)


def recover(node: LocalNode, names: Sequence[str]) -> mesh_pb2.RecoverControlGroupResponse:
    """Takes the named nodes, all of them known, for all that are left of the control group.

    Raises:
        MeshError: NOT_A_MEMBER; INVALID_ARGUMENT: too many, one twice, not this node, the replica holds no log, or the group has a
            leader.
    """
    if not 1 <= len(names) <= SURVIVORS_MAX or len(set(names)) != len(names):
        raise MeshError(ErrorCode.INVALID_ARGUMENT, f"Name 1 to {SURVIVORS_MAX} survivors, each once.")
    mcg = node.require_mcg()
    named = [item for item in mcg.state.nodes.values() if item.name in names]
    survivors = {int(item.mcg_member): int(item.node_id) for item in named}
    before = mcg.recover(survivors)
    node.store.keeper.own_again([GROUP])
    voters = set(before.voters)
    found = mesh_pb2.RecoverControlGroupResponse(
        revision=mcg.state.revision,
        is_below_quorum=2 * len(voters & survivors.keys()) <= len(voters),
        last_index=before.last_index,
        last_term=before.last_term,
    )
    _log.error(
        "control_group_recovery_attested",
        survivors=sorted(names),
        revision=found.revision,
        is_below_quorum=found.is_below_quorum,
    )
    return found
