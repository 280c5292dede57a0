"""Answers a node that asks this member, over a join lane, to be admitted, or whether it still is a member.

Repeatable: the same name and key get the same place and change nothing, so that a newcomer whose answer was lost may ask
again. The key is the one that the lane's handshake proved, and no other. A newcomer's proof is checked here, at the neighbour;
whether its token admits it is decided where the command is applied.
Source: architecture §5 "Lane", §10 "Join policy"; docs/design/identity.md "Joining".
"""

from __future__ import annotations

import asyncio
from typing import Final

from mesh_control.core import rules
from mesh_control.core.join_tokens import confirm
from mesh_control.core.peer_answers import check_newcomer, read_join_request
from mesh_control.core.versions import CA_VERSION
from mesh_control.shell.local_node import LocalNode
from mesh_control.shell.mcg import Mcg
from mesh_control.shell.node_certificates import NodeCertificates
from mesh_control.shell.peer_calls import Method, PeerCalls
from mesh_control.shell.proposer import Proposer
from meshapi.control.v1 import join_pb2, mcg_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId, check_mesh_id
from meshcommon.logging import get_logger
from meshcommon.mesh_certificates import der
from meshcommon.overlay_calls import Caller
from meshcommon.peer_text import printable
from meshcommon.wrong_proofs import WrongProofs

CATCH_UP_S: Final = 2.0
"""For a token that was issued a moment ago at another member."""

_log = get_logger(__name__)


class JoinService:
    """The member's side of joining."""

    def __init__(self, node: LocalNode, calls: PeerCalls, proposer: Proposer, own: NodeCertificates) -> None:
        self._own = own
        self._node = node
        self._proposer = proposer
        self._wrong_proofs = WrongProofs()
        calls.serve(Method.JOIN, self._serve)
        calls.serve(Method.STANDING, self._serve_standing)

    async def _serve(self, caller: Caller, body: bytes, timeout_s: float) -> bytes:
        if caller.node:
            raise MeshError(ErrorCode.ALREADY_MEMBER, "The node is a member of this mesh: nothing to do.")
        request = read_join_request(body, caller.lane_public_key)
        mcg = self._node.require_mcg()
        state = mcg.state
        check_same_mesh(request.mesh_id, state.mesh_id)
        verifier = await self._check_newcomer(mcg, caller, request)
        if request.wants_certified:
            # Before the place is committed: a newcomer that cannot be answered shall not become a member.
            self._own.require_chain()
        command = mcg_pb2.Command()
        command.add_node.name = request.name
        command.add_node.public_key = request.public_key
        command.add_node.peer_address = rules.check_peer_address(request.peer_address)
        command.add_node.mesh_version = request.mesh_version
        command.add_node.token_id = request.token_id
        if state.mesh_version >= CA_VERSION:
            command.add_node.wrap_key = request.wrap_key
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        result = await self._proposer.propose(command, timeout_s)
        node_id = NodeId(result.allocated_id)
        # The newcomer's view must contain it, and this node must know its key before it dials again as a member.
        if (
            not await self._proposer.wait_for_revision(result.revision, deadline - loop.time())
            or node_id not in state.nodes
        ):
            raise MeshError(ErrorCode.NO_QUORUM, "The admission is not known here yet: try again.")
        _log.info("node_admitted", node_id=node_id, name=request.name)
        answer = join_pb2.JoinResponse(
            node_id=node_id,
            mcg_member=state.nodes[node_id].mcg_member,
            view=state.view(),
            roots=state.ca.roots if state.ca else (),
            chain=map(der, self._own.chain) if request.wants_certified else (),
        ).SerializeToString()
        if request.wants_certified:
            return self._own.certify_answer(answer, request.public_key)
        return confirm(verifier, request.public_key, answer) if verifier else answer

    async def _check_newcomer(self, mcg: Mcg, caller: Caller, request: join_pb2.JoinRequest) -> bytes:
        """`check_newcomer`, after catching up where the token is newer than what has been applied here.

        Raises:
            MeshError: BACKPRESSURE after too many wrong proofs; NO_QUORUM; those of `check_newcomer`.
        """
        now = asyncio.get_running_loop().time()
        self._wrong_proofs.check(caller.lane_host, now)
        if request.token_id and request.token_id not in mcg.state.tokens and not await mcg.catch_up(CATCH_UP_S):
            raise MeshError(ErrorCode.NO_QUORUM, "The token is not known here, and no leader answers: try again.")
        try:
            return check_newcomer(mcg.state, request)
        except MeshError as error:
            if error.code is ErrorCode.TOKEN_UNKNOWN:
                self._wrong_proofs.note(caller.lane_host, now)
            raise

    async def _serve_standing(self, caller: Caller, _body: bytes, _timeout_s: float) -> bytes:
        """Whether the key that the lane proved is a member's: one that was forgotten hears it nowhere else."""
        state = self._node.require_mcg().state
        member = next((node for node in state.nodes.values() if node.public_key == caller.lane_public_key), None)
        return join_pb2.StandingResponse(
            mesh_id=state.mesh_id, revision=state.revision, node_id=member.node_id if member else 0
        ).SerializeToString()


def check_same_mesh(wanted: str, actual: str) -> None:
    """Raises MESH_ID_MISMATCH when another mesh is wanted than the one that answers, INVALID_ARGUMENT for no id at all."""
    if wanted:
        check_mesh_id(wanted)
    if wanted and wanted != actual:
        raise MeshError(
            ErrorCode.MESH_ID_MISMATCH,
            f"The node at that address is in mesh {printable(actual, 64)}, and mesh {wanted} is asked for: give an address of "
            "that mesh, or a token or id of the one that answers.",
            {"expected": wanted, "actual": printable(actual, 64)},
        )
