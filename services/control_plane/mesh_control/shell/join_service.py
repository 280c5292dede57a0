"""Answers a node that asks this member, over a join lane, to be admitted.

Repeatable: the same name and key get the same place, so that a newcomer whose answer was lost may ask again.
Leaves out join policies and tokens. Source: architecture §5 "Lane", §10 "Join policy".
"""

from __future__ import annotations

import asyncio

from google.protobuf.message import DecodeError

from mesh_control.shell.local_node import LocalNode
from mesh_control.shell.peer_calls import Method, PeerCalls
from mesh_control.shell.proposals import Proposals
from meshapi.control.v1 import join_pb2, mcg_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId
from meshcommon.logging import get_logger

_log = get_logger(__name__)


class JoinService:
    """The member's side of joining."""

    def __init__(self, node: LocalNode, calls: PeerCalls, proposals: Proposals) -> None:
        self._node = node
        self._proposals = proposals
        calls.serve(Method.JOIN, self._serve)

    async def _serve(self, peer: NodeId, body: bytes, timeout_s: float) -> bytes:
        if peer:
            raise MeshError(ErrorCode.ALREADY_MEMBER, "The node is a member of this mesh: nothing to do.")
        try:
            request = join_pb2.JoinRequest.FromString(body)
        except DecodeError:
            raise MeshError(
                ErrorCode.INVALID_ARGUMENT, "The request to join cannot be read: update the node."
            ) from None
        state = self._node.require_mcg().state
        check_mesh_id(request.mesh_id, state.mesh_id)
        command = mcg_pb2.Command()
        command.add_node.name = request.name
        command.add_node.public_key = request.public_key
        command.add_node.peer_address = request.peer_address
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        result = await self._proposals.propose(command, timeout_s)
        node_id = NodeId(result.allocated_id)
        # The newcomer's view must contain it, and this node must know its key before it dials again as a member.
        if (
            not await self._proposals.wait_for_revision(result.revision, deadline - loop.time())
            or node_id not in state.nodes
        ):
            raise MeshError(ErrorCode.NO_QUORUM, "The admission is not known here yet: try again.")
        _log.info("node_admitted", node_id=node_id, name=request.name)
        return join_pb2.JoinResponse(
            node_id=node_id, mcg_member=state.nodes[node_id].mcg_member, view=state.view()
        ).SerializeToString()


def check_mesh_id(wanted: str, actual: str) -> None:
    """Raises MESH_ID_MISMATCH when another mesh is wanted than the one that answers."""
    if wanted and wanted != actual:
        raise MeshError(
            ErrorCode.MESH_ID_MISMATCH,
            f"The node at that address is in mesh {actual}, not in {wanted}: check the address or the mesh id.",
            {"expected": wanted, "actual": actual},
        )
