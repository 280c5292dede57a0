"""Getting a change committed from any node: find the leader, ask it, and ask again until it is certain.

Every attempt carries the same proposal id, so that a change whose answer was lost takes effect once. What the state
refuses is final and goes to the caller; what only failed on the way is tried again until the deadline, which ends in
NO_QUORUM. Source: architecture §7 "MCG".
"""

from __future__ import annotations

import asyncio
import random
from typing import Final

from google.protobuf.message import DecodeError

from mesh_control.core.mcg_state import Result
from mesh_control.shell import metrics
from mesh_control.shell.local_node import LocalNode
from mesh_control.shell.peer_calls import Method, PeerCalls
from meshapi.control.v1 import join_pb2, mcg_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId

ATTEMPT_S: Final = 2.0
RETRY_S: Final = 0.1

_ON_THE_WAY: Final = frozenset(
    {
        ErrorCode.NOT_LEADER,
        ErrorCode.DEADLINE_EXCEEDED,
        ErrorCode.NO_PATH,
        ErrorCode.UNAVAILABLE,
        ErrorCode.BACKPRESSURE,
        ErrorCode.NO_QUORUM,
        ErrorCode.NODE_STOPPED,
    }
)


class Proposals:
    """Commits commands, wherever the leader is."""

    def __init__(self, node: LocalNode, calls: PeerCalls, rng: random.Random) -> None:
        self._node = node
        self._calls = calls
        self._rng = rng
        calls.serve(Method.PROPOSE, self._serve)

    async def propose(self, command: mcg_pb2.Command, timeout_s: float | None = None) -> Result:
        """Commits `command`; its proposal id is set here.

        Args:
            command: What to do.
            timeout_s: Seconds until NO_QUORUM, the preset's deadline by default.

        Raises:
            MeshError: What the state refused with; NOT_A_MEMBER; NODE_STOPPED; NO_QUORUM (the change may still take
                effect).
        """
        self._node.require_mcg()
        if not self._node.is_running:
            raise MeshError(
                ErrorCode.NODE_STOPPED, "This node was stopped on purpose and reaches nobody: start it, then try again."
            )
        numbered = mcg_pb2.Command()
        numbered.CopyFrom(command)
        numbered.proposal_id = self._rng.getrandbits(63) or 1
        if timeout_s is None:
            timeout_s = self._node.timing.proposal_deadline_s
        try:
            async with asyncio.timeout(timeout_s):
                result = await self._until_certain(numbered)
        except TimeoutError:
            metrics.PROPOSALS.labels("no_quorum").inc()
            raise MeshError(
                ErrorCode.NO_QUORUM,
                "The control group did not commit the change in time: too few of its voters are reachable from here. "
                "Bring nodes or links back and try again; look first whether the change took effect after all.",
            ) from None
        except MeshError:
            metrics.PROPOSALS.labels("refused").inc()
            raise
        metrics.PROPOSALS.labels("committed").inc()
        return result

    async def wait_for_revision(self, revision: int, timeout_s: float) -> bool:
        """Waits until this node has applied `revision`."""
        return await self._node.changed.wait_until(lambda: self._node.revision >= revision, timeout_s)

    async def _until_certain(self, command: mcg_pb2.Command) -> Result:
        while True:
            if self._node.is_removed:
                # Nobody answers a stranger: waiting for them would only hide the reason.
                raise MeshError(
                    ErrorCode.UNKNOWN_NODE, "This node is no longer a member of the mesh: leave it here too."
                )
            try:
                standing = self._node.require_mcg().standing()
                if standing.is_leader:
                    return _unless_refused(await self._node.require_leadership().propose(command))
                if standing.leader:
                    return await self._ask(standing.leader, command)
            except MeshError as error:
                if error.code not in _ON_THE_WAY:
                    raise
            await self._node.changed.wait(RETRY_S)

    async def _ask(self, leader: NodeId, command: mcg_pb2.Command) -> Result:
        request = join_pb2.ProposeRequest(command=command, proposal_id=command.proposal_id)
        # An attempt is short: when the leader is gone, its successor must be asked soon.
        body = await self._calls.call(Method.PROPOSE, request.SerializeToString(), ATTEMPT_S, peer=leader)
        answer = join_pb2.ProposeResponse.FromString(body)
        return Result(answer.revision, answer.allocated_id)

    async def _serve(self, peer: NodeId, body: bytes, _timeout_s: float) -> bytes:
        """A member asks this node, which it takes for the leader."""
        if not peer:
            raise MeshError(ErrorCode.NOT_A_MEMBER, "Only members may change the mesh: join first.")
        try:
            request = join_pb2.ProposeRequest.FromString(body)
        except DecodeError:
            raise MeshError(ErrorCode.INVALID_ARGUMENT, "The proposal cannot be read: update the node.") from None
        command = mcg_pb2.Command()
        command.CopyFrom(request.command)
        command.proposal_id = request.proposal_id
        if command.WhichOneof("kind") in (None, "found_mesh", "set_voters", "set_reachability"):
            raise MeshError(ErrorCode.INVALID_ARGUMENT, "Only the leader itself proposes this.")
        if command.HasField("renew_member") and command.renew_member.node_id != peer:
            raise MeshError(ErrorCode.INVALID_ARGUMENT, "Only the node itself proposes this.")
        result = _unless_refused(await self._node.require_leadership().propose(command))
        return join_pb2.ProposeResponse(revision=result.revision, allocated_id=result.allocated_id).SerializeToString()


def _unless_refused(result: Result) -> Result:
    if result.refusal is not None:
        raise result.refusal
    return result
