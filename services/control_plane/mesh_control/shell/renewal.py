"""Makes this node another member of the control group when its log forgot something: asks for a new id, begins blank.

The node is silent in the group then and does not know who leads: it asks any node of the mesh, and whom that one names. Nothing is
removed before the others have committed, by a quorum without this one, that the former membership is over. Every step can be
repeated after a crash; an id that was allocated in vain is never used. Source: architecture §7 "Member ids".
"""

from __future__ import annotations

import asyncio
import random
from typing import Final

from mesh_control.core.peer_answers import read_propose_response
from mesh_control.shell.local_node import LocalNode
from mesh_control.shell.peer_calls import Method, PeerCalls
from mesh_control.shell.proposer import RETRY_S, leader_hint
from meshapi.control.v1 import join_pb2, mcg_pb2
from meshcommon.admin import Readiness
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import MemberId
from meshcommon.logging import get_logger

ATTEMPT_S: Final = 2.0
LOOK_EVERY_S: Final = 0.5
_WARNING: Final = "store"

_log = get_logger(__name__)


class Renewal:
    """Looks at each change of the node; does nothing while its log is trusted."""

    def __init__(self, node: LocalNode, calls: PeerCalls, readiness: Readiness, rng: random.Random) -> None:
        self._node = node
        self._calls = calls
        self._readiness = readiness
        self._rng = rng

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._node.changed.wait(LOOK_EVERY_S)
            if not self._node.is_distrusted:
                self._readiness.clear(_WARNING)
                continue
            self._readiness.warn(_WARNING, f"{self._node.store.reason} The node becomes another member of the group.")
            if self._node.is_running:
                await self._renew()

    async def _renew(self) -> None:
        command = mcg_pb2.Command(renew_member=mcg_pb2.RenewMember(node_id=self._node.node_id))
        request = join_pb2.ProposeRequest(command=command, proposal_id=self._rng.getrandbits(63) or 1)
        peers = self._node.known_peers()
        self._rng.shuffle(peers)
        while peers:
            try:
                body = await self._calls.call(Method.PROPOSE, request.SerializeToString(), ATTEMPT_S, peer=peers.pop())
                member_id = self._read(body)
            except MeshError as error:
                _log.info("renewal_postponed", code=error.code, reason=error.message)
                leader = leader_hint(error)
                if leader in peers:
                    peers.remove(leader)
                    peers.append(leader)
                    await asyncio.sleep(RETRY_S)
                continue
            await self._node.renew(member_id)
            _log.warning("mcg_membership_renewed", member=member_id)
            return

    def _read(self, body: bytes) -> MemberId:
        """The id in an answer; ids only grow, so one that is not greater than ours was never allocated for us."""
        member_id = MemberId(read_propose_response(body).allocated_id)
        membership = self._node.membership
        if membership is not None and member_id <= membership.mcg_member:
            raise MeshError(
                ErrorCode.UNAVAILABLE, f"A node gave out member id {member_id}, which was in use before: ask another."
            )
        return member_id
