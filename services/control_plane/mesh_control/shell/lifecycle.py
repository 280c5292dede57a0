"""Seed, join, leave, stop and start: the order of the steps, each of which can be repeated after a crash.

One operation at a time. Every step that others will act on is on this node's disk before the next one begins.
Source: architecture §10; contract of MeshService in mesh.proto.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from typing import Final, Protocol

from mesh_control.core.ca_checks import certified, check_pinned
from mesh_control.core.join_plan import TRIES_MIN, JoinAttempts, JoinPlan, plan_join
from mesh_control.core.join_rules import read_policy
from mesh_control.core.join_tokens import prove, verifier_of
from mesh_control.core.model import JoinPolicy, NodeState
from mesh_control.core.peer_answers import read_join_response
from mesh_control.shell.join_service import check_same_mesh
from mesh_control.shell.local_node import LocalNode
from mesh_control.shell.peer_calls import Method, PeerCalls
from mesh_control.shell.proposer import Proposer
from meshapi.common.v1 import view_pb2
from meshapi.control.v1 import join_pb2, mcg_pb2
from meshapi.control.v1.membership_pb2 import Membership
from meshapi.overlay.v1 import overlay_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId, check_mesh_name
from meshcommon.logging import get_logger

SETTLE_S: Final = 2.0
"""How long an operation waits for this site's own services to take the change; they are told again later anyway."""
RECONCILE_S: Final = 2.0
JOIN_RETRY_S: Final = 0.1
JOIN_DEADLINES: Final = 2
"""No further attempt begins after so many times the deadline of a proposal."""
MESH_NAME: Final = "mesh"
"""Of a mesh that is founded without one."""
FOUNDER: Final = NodeId(1)

_log = get_logger(__name__)


class DataPlane(Protocol):
    """What lifecycle needs of the data plane."""

    async def open_join_lane(self, address: str) -> overlay_pb2.OpenJoinLaneResponse:
        """Dials a member of the mesh to join."""

    async def close_join_lane(self, lane_id: int) -> None:
        """Closes that lane."""


class Settling(Protocol):
    """A service of this site that is told what is in force."""

    async def settle(self, timeout_s: float) -> bool:
        """Waits until it has taken what is in force."""


class Lifecycle:
    """Operations on this node's membership."""

    def __init__(
        self,
        node: LocalNode,
        data: DataPlane,
        calls: PeerCalls,
        proposer: Proposer,
        services: tuple[Settling, ...],
        new_mesh_id: Callable[[], str] = lambda: str(uuid.uuid4()),
    ) -> None:
        self._node = node
        self._data = data
        self._calls = calls
        self._proposer = proposer
        self._services = services
        self._new_mesh_id = new_mesh_id
        self._one_at_a_time = asyncio.Lock()

    async def run(self) -> None:
        """Makes the committed state of this node what the operator wished, when that failed at first; until cancelled."""
        while True:
            await self._node.changed.wait(RECONCILE_S)
            mcg = self._node.mcg
            if mcg is None or not self._node.is_running or self._one_at_a_time.locked():
                continue
            mine = mcg.state.nodes.get(self._node.node_id)
            if mine is None or mcg.beyond is not None:
                continue
            try:
                if mine.state is NodeState.STOPPED:
                    await self._commit_state(NodeState.ACTIVE)
                wrap_key = self._node.wrap_key_for(min(mcg.state.mesh_version, self._node.supported))
                if wrap_key and mine.wrap_key != wrap_key:
                    told = mcg_pb2.SetWrapKey(node_id=mine.node_id, wrap_key=wrap_key)
                    await self._proposer.propose(mcg_pb2.Command(set_wrap_key=told))
                if mine.mesh_version != self._node.supported:
                    announce = mcg_pb2.AnnounceVersion(node_id=mine.node_id, mesh_version=self._node.supported)
                    await self._proposer.propose(mcg_pb2.Command(announce_version=announce))
            except MeshError as error:
                _log.info("own_state_not_committed", code=error.code)

    async def seed(self, name: str = MESH_NAME, policy: JoinPolicy = JoinPolicy.KEY_REQUIRED) -> Membership:
        """Founds a mesh with this node. Where it has founded that mesh already, nothing changes.

        Raises:
            MeshError: ALREADY_MEMBER, ILLEGAL_NAME, INVALID_ARGUMENT.
        """
        check_mesh_name(name)
        read_policy(policy)
        async with self._one_at_a_time:
            if not self._has_founded(name, policy):
                self._check_no_member()
                self._node.found(self._new_mesh_id(), name, policy)
                _log.info("mesh_founded", mesh_id=self._require_membership().mesh_id, name=name, policy=policy.name)
            await self._settle()
            mcg = self._node.require_mcg()
            await self._node.changed.wait_until(
                lambda: mcg.leader_view().has_quorum, self._node.timing.proposal_deadline_s
            )
            return self._require_membership()

    def _has_founded(self, name: str, policy: JoinPolicy) -> bool:
        mcg = self._node.mcg
        if mcg is None or self._node.node_id != FOUNDER:
            return False
        return (mcg.state.mesh_name, mcg.state.join_policy) == (name, policy)

    async def join(
        self, address: str, mesh_id: str, token: str = "", *, trust_first: bool = False, fingerprint: str = ""
    ) -> Membership:
        """Joins the mesh that issued `token`, asking its addresses in turn, or that of the node at `address`.

        Args:
            address: asked in place of the token's addresses; may be empty with a token.
            mesh_id: expected mesh, empty for the token's, or for whichever answers.
            token: what `meshctl token issue` printed, or empty.
            trust_first: without a token: accepts that nothing shows which mesh answers.
            fingerprint: without a token: SHA-256 of the mesh's root, in hexadecimal, that the answer must chain to.

        Raises:
            MeshError: ALREADY_MEMBER, INVALID_ARGUMENT, MESH_ID_MISMATCH, ADDRESS_UNREACHABLE, WRONG_PROTOCOL,
                NAME_TAKEN, KEY_TAKEN, MESH_FULL, MESH_CRITICAL, UPDATE_REQUIRED, NO_QUORUM, DEADLINE_EXCEEDED,
                TOKEN_REQUIRED and the other refusals of a token, JOIN_CLOSED, KEY_MISMATCH, CA_MISSING, CERTIFICATE_INVALID,
                CLOCK_SKEW.
        """
        plan = plan_join(address, mesh_id, token, trust_first=trust_first, fingerprint=fingerprint)
        async with self._one_at_a_time:
            self._check_no_member()
            membership = await self._ask_for_a_place(plan)
            self._node.enter(membership)
            _log.info("mesh_joined", mesh_id=membership.mesh_id, node_id=membership.node_id)
            await self._settle()
            if not await self._node.changed.wait_until(
                lambda: self._node.is_received, self._node.timing.proposal_deadline_s
            ):
                raise MeshError(
                    ErrorCode.NO_QUORUM,
                    "The node is admitted, but it and the control group do not hear each other yet: it goes on trying by itself, "
                    "and is removed again when it was not heard for ten minutes; look at its status and at the links.",
                )
            return membership

    async def leave(self) -> None:
        """Leaves for good.

        Raises:
            MeshError: NOT_A_MEMBER, STREAMS_AT_RISK, LAST_NODE, NO_QUORUM.
        """
        async with self._one_at_a_time:
            node_id = NodeId(self._require_membership().node_id)
            if not self._node.is_removed:
                command = mcg_pb2.Command(remove_node=mcg_pb2.RemoveNode(node_id=node_id))
                try:
                    await self._proposer.propose(command)
                except MeshError as error:
                    # An earlier attempt whose answer was lost.
                    if error.code is not ErrorCode.UNKNOWN_NODE:
                        raise
            self._node.mark_leaving()
            # Before the membership is forgotten: only a node that says that it left makes its data plane destroy data.
            await self._settle()
            await self._node.forget()
            _log.info("mesh_left", node_id=node_id)
            await self._settle()

    async def stop(self) -> None:
        """Stops this node on purpose; its data stay.

        Raises:
            MeshError: NOT_A_MEMBER, NO_QUORUM.
        """
        async with self._one_at_a_time:
            self._require_membership()
            if self._node.is_running:
                await self._commit_state(NodeState.STOPPED)
                self._node.set_running(False)
            await self._settle()

    async def start(self) -> None:
        """Starts a stopped node.

        Raises:
            MeshError: NOT_A_MEMBER, NO_QUORUM (it runs, and goes on saying so by itself).
        """
        async with self._one_at_a_time:
            self._require_membership()
            self._node.set_running(True)
            await self._settle()
            await self._commit_state(NodeState.ACTIVE)

    async def _ask_for_a_place(self, plan: JoinPlan) -> Membership:
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + JOIN_DEADLINES * self._node.timing.proposal_deadline_s
        attempts = JoinAttempts(plan.addresses, give_up_at)
        while True:
            try:
                return await self._ask_over_a_lane(attempts.address, plan)
            except MeshError as error:
                _log.info("join_attempt_failed", address=attempts.address, code=error.code, reason=error.message)
                if not attempts.may_go_on(error, loop.time()):
                    raise attempts.refusal() from None
                await asyncio.sleep(JOIN_RETRY_S)

    async def _ask_over_a_lane(self, address: str, plan: JoinPlan) -> Membership:
        lane = await self._data.open_join_lane(address)
        try:
            check_same_mesh(plan.mesh_id, lane.mesh_id)
            request = join_pb2.JoinRequest(
                mesh_id=lane.mesh_id,
                name=self._node.name,
                public_key=self._node.identity.public_key,
                peer_address=self._node.peer_address,
                mesh_version=self._node.supported,
                wrap_key=self._node.wrap_key_for(self._node.supported),
                wants_certified=bool(plan.fingerprint),
            )
            verifier = b""
            if plan.key is not None:
                check_same_mesh(plan.key.mesh_id, lane.mesh_id)
                verifier = verifier_of(plan.key.secret)
                prove(request, verifier)
            with self._calls.join_lane(lane.lane_id):
                body = await self._calls.call(
                    Method.JOIN,
                    request.SerializeToString(),
                    self._node.timing.proposal_deadline_s / TRIES_MIN,
                    lane_id=lane.lane_id,
                )
        finally:
            await self._data.close_join_lane(lane.lane_id)
        if plan.fingerprint:
            body = certified(body, request.public_key, plan.fingerprint, int(self._node.now_s * 1000))
        response = read_join_response(body, request, self._node.supported, verifier)
        if plan.key is not None and plan.key.ca_fingerprint:
            check_pinned(response.roots, plan.key.ca_fingerprint)
        return Membership(
            mesh_id=response.view.mesh_id,
            node_id=response.node_id,
            mcg_member=response.mcg_member,
            is_running=True,
            first_view=response.view,
        )

    async def _commit_state(self, state: NodeState) -> None:
        change = mcg_pb2.SetNodeState(node_id=self._node.node_id, state=view_pb2.NodeState.ValueType(state))
        await self._proposer.propose(mcg_pb2.Command(set_node_state=change))

    async def _settle(self) -> None:
        for service in self._services:
            await service.settle(SETTLE_S)

    def _check_no_member(self) -> None:
        membership = self._node.membership
        if membership is not None:
            raise MeshError(
                ErrorCode.ALREADY_MEMBER,
                f"This node is node {membership.node_id} of mesh {membership.mesh_id}: leave that mesh first.",
                {"mesh_id": membership.mesh_id, "node_id": str(membership.node_id)},
            )

    def _require_membership(self) -> Membership:
        membership = self._node.membership
        if membership is None:
            raise MeshError(ErrorCode.NOT_A_MEMBER, "This node is in no mesh: seed one, or join one.")
        return membership
