"""Join tokens and the join policy, as an operator of any member handles them.

The secret is made here and goes into the answer alone: the group is told its verifier. Source: docs/design/identity.md "Joining".
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final

from mesh_control.core.join_rules import policy_value
from mesh_control.core.join_tokens import (
    ADDRESSES_MAX,
    SECRET_BYTES,
    JoinKey,
    check_token_id,
    encode_token,
    token_id_of,
    verifier_of,
)
from mesh_control.core.model import JoinPolicy, NodeState
from mesh_control.shell.local_node import LocalNode
from mesh_control.shell.proposer import Proposer
from meshapi.control.v1 import mcg_pb2
from meshcommon.address import is_peer_address
from meshcommon.ids import check_node_name

DEFAULT_USES: Final = 1
DEFAULT_TTL_S: Final = 15 * 60
KNOWN_WITHIN_S: Final = 2.0
"""How long an answer waits for this node to know what was committed, so that it is seen by the next question."""


class TokenDesk:
    """Issues and revokes tokens, and changes the policy, through the control group."""

    def __init__(self, node: LocalNode, proposer: Proposer, new_secret: Callable[[int], bytes]) -> None:
        """`new_secret` gives so many random bytes that nobody can guess."""
        self._node = node
        self._proposer = proposer
        self._new_secret = new_secret

    async def issue(self, uses: int = 0, ttl_s: int = 0, name: str = "") -> tuple[str, str]:
        """Issues a token; returns its text and its id. 0 stands for one use and 15 minutes.

        Raises:
            MeshError: NOT_A_MEMBER, INVALID_ARGUMENT, ILLEGAL_NAME, MESH_FULL, MESH_CRITICAL, MESH_VERSION_TOO_LOW, NO_QUORUM.
        """
        if name:
            check_node_name(name)
        mesh_id = self._node.require_mcg().place.mesh_id
        secret = self._new_secret(SECRET_BYTES)
        verifier = verifier_of(secret)
        issue = mcg_pb2.IssueToken(
            verifier=verifier,
            uses=uses or DEFAULT_USES,
            # Beyond any limit that the state may have, and still a number of the message.
            ttl_ms=min(ttl_s or DEFAULT_TTL_S, 2**50) * 1_000,
            name=name,
        )
        await self._commit(mcg_pb2.Command(issue_token=issue))
        ca = self._node.require_mcg().state.ca
        fingerprint = hashlib.sha256(ca.roots[0]).digest() if ca else b""
        return encode_token(JoinKey(mesh_id, self._addresses(), secret, name, fingerprint)), token_id_of(verifier)

    async def revoke(self, token_id: str) -> None:
        """Makes a token worthless. Raises TOKEN_UNKNOWN, and what `issue` raises."""
        await self._commit(mcg_pb2.Command(revoke_token=mcg_pb2.RevokeToken(token_id=check_token_id(token_id))))

    async def set_policy(self, policy: JoinPolicy) -> None:
        """Changes who may become a member. Raises what `issue` raises."""
        change = mcg_pb2.SetJoinPolicy(join_policy=policy_value(policy))
        await self._commit(mcg_pb2.Command(set_join_policy=change))

    async def _commit(self, command: mcg_pb2.Command) -> None:
        result = await self._proposer.propose(command)
        await self._proposer.wait_for_revision(result.revision, KNOWN_WITHIN_S)

    def _addresses(self) -> tuple[str, ...]:
        """Members that listen: this one first, since its operator can reach it, then those that are heard."""
        nodes = sorted(
            self._node.require_mcg().state.nodes.values(),
            key=lambda node: (node.node_id != self._node.node_id, not node.is_reachable, node.node_id),
        )
        listening = (
            node.peer_address
            for node in nodes
            if node.state is NodeState.ACTIVE and node.peer_address and is_peer_address(node.peer_address)
        )
        return tuple(dict.fromkeys(listening))[:ADDRESSES_MAX]
