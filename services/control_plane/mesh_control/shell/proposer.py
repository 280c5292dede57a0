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

from mesh_control.core.ca_checks import check_change
from mesh_control.core.limits import INTEGER_MAX
from mesh_control.core.mcg_state import Result
from mesh_control.core.peer_answers import check_proposer, read_propose_response
from mesh_control.core.versions import has_unknown_fields
from mesh_control.shell import metrics
from mesh_control.shell.local_node import LocalNode
from mesh_control.shell.peer_calls import Method, PeerCalls
from meshapi.control.v1 import join_pb2, mcg_pb2
from meshcommon.errors import ErrorCode, MeshError, Retry
from meshcommon.ids import NO_NODE, NodeId
from meshcommon.overlay_calls import Caller

ATTEMPT_S: Final = 2.0
RETRY_S: Final = 0.1
"""Least time between two attempts: nodes that each name the other as the leader are not asked as fast as they answer."""
PROPOSAL_BYTES_MAX: Final = 64 * 1024
"""Ids and revisions go into signed 64-bit columns too."""


class Proposer:
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
            MeshError: What the state refused with; NOT_A_MEMBER; NODE_STOPPED; UPDATE_REQUIRED; MESH_VERSION_TOO_LOW;
                NO_QUORUM (the change may still take effect).
        """
        self._node.require_mcg().check_proposable(command)
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
        loop = asyncio.get_running_loop()
        next_attempt_at = loop.time()
        while True:
            if self._node.is_removed:
                # Nobody answers a stranger: waiting for them would only hide the reason.
                raise MeshError(
                    ErrorCode.UNKNOWN_NODE, "This node is no longer a member of the mesh: leave it here too."
                )
            try:
                known = self._node.require_mcg().leader_view()
                is_led = known.is_leader or bool(known.leader)
                # Changes wake this task, and each refusal of a busy group is one.
                if is_led and loop.time() >= next_attempt_at:
                    next_attempt_at = loop.time() + RETRY_S
                    if known.is_leader:
                        return _unless_refused(await self._node.require_leadership().propose(command))
                    return await self._ask(known.leader, command)
            except MeshError as error:
                # The proposal id makes a repetition harmless. What the state refused it refuses at every node.
                if Retry.FINAL in (error.retry, error.elsewhere):
                    raise
            await self._node.changed.wait(RETRY_S)

    async def _ask(self, leader: NodeId, command: mcg_pb2.Command) -> Result:
        request = join_pb2.ProposeRequest(command=command, proposal_id=command.proposal_id)
        # An attempt is short: when the leader is gone, its successor must be asked soon.
        body = await self._calls.call(Method.PROPOSE, request.SerializeToString(), ATTEMPT_S, peer=leader)
        return read_propose_response(body)

    async def _serve(self, caller: Caller, body: bytes, _timeout_s: float) -> bytes:
        """A member asks this node, which it takes for the leader."""
        if not caller.node:
            raise MeshError(ErrorCode.NOT_A_MEMBER, "Only members may change the mesh: join first.")
        command = read_proposal(body)
        state = self._node.require_mcg().state
        check_proposer(command, caller.node, state.streams)
        if command.HasField("set_ca"):
            check_change(command.set_ca, state.mesh_id, int(self._node.now_s * 1000))
        result = _unless_refused(await self._node.require_leadership().propose(command))
        return join_pb2.ProposeResponse(revision=result.revision, allocated_id=result.allocated_id).SerializeToString()


def read_proposal(body: bytes) -> mcg_pb2.Command:
    """The command that a member proposes, with its proposal id.

    Raises:
        MeshError: INVALID_ARGUMENT. What this version does not know is refused, not dropped: a part of a command is
            another command, and unknown bytes would be replicated.
    """
    if len(body) > PROPOSAL_BYTES_MAX:
        raise MeshError(
            ErrorCode.INVALID_ARGUMENT, f"A proposal has at most {PROPOSAL_BYTES_MAX} bytes, not {len(body)}."
        )
    try:
        request = join_pb2.ProposeRequest.FromString(body)
    except DecodeError:
        raise MeshError(ErrorCode.INVALID_ARGUMENT, "The proposal cannot be read: update the node.") from None
    if has_unknown_fields(request.command):
        raise MeshError(
            ErrorCode.INVALID_ARGUMENT, "The proposal says more than this version understands: update this node."
        )
    command = mcg_pb2.Command()
    command.CopyFrom(request.command)
    command.proposal_id = request.proposal_id
    return command


def leader_hint(error: MeshError) -> NodeId:
    """The node that a peer's NOT_LEADER names as the leader, NO_NODE when it names none or no node id."""
    text = error.details.get("leader", "")
    if error.code is not ErrorCode.NOT_LEADER or not (
        text.isascii() and text.isdigit() and len(text) <= len(str(INTEGER_MAX))
    ):
        return NO_NODE
    number = int(text)
    return NodeId(number) if number <= INTEGER_MAX else NO_NODE


def _unless_refused(result: Result) -> Result:
    if result.refusal is not None:
        raise result.refusal
    return result
