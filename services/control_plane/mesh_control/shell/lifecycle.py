"""Seed, join, leave, stop and start: the order of the steps, each of which can be repeated after a crash.

One operation at a time. Every step that others will act on is on this node's disk before the next one begins.
Source: architecture §10; contract of MeshService in mesh.proto.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from typing import Final, Protocol

from google.protobuf.message import DecodeError

from mesh_control.core.model import NodeState
from mesh_control.shell.join_service import check_mesh_id
from mesh_control.shell.local_node import LocalNode
from mesh_control.shell.peer_calls import Method, PeerCalls
from mesh_control.shell.proposals import Proposals
from meshapi.common.v1 import view_pb2
from meshapi.control.v1 import join_pb2, mcg_pb2
from meshapi.control.v1.membership_pb2 import Membership
from meshapi.overlay.v1 import overlay_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId
from meshcommon.logging import get_logger

SETTLE_S: Final = 2.0
"""How long an operation waits for this site's own services to take the change; they are told again later anyway."""
RECONCILE_S: Final = 2.0
JOIN_TRIES: Final = 3
"""A lane that dies is told to nobody here: after this part of the time a newcomer asks again over another one."""
JOIN_RETRY_S: Final = 0.1
_MAY_STILL_COME: Final = frozenset({ErrorCode.DEADLINE_EXCEEDED, ErrorCode.NO_QUORUM})
_AWAY: Final = frozenset({ErrorCode.ADDRESS_UNREACHABLE, ErrorCode.UNAVAILABLE})

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
        proposals: Proposals,
        services: tuple[Settling, ...],
        new_mesh_id: Callable[[], str] = lambda: str(uuid.uuid4()),
    ) -> None:
        self._node = node
        self._data = data
        self._calls = calls
        self._proposals = proposals
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
            if mine is not None and mine.state is NodeState.STOPPED:
                try:
                    await self._commit_state(NodeState.ACTIVE)
                except MeshError as error:
                    _log.info("start_not_committed", code=error.code)

    async def seed(self) -> Membership:
        """Founds a mesh with this node.

        Raises:
            MeshError: ALREADY_MEMBER.
        """
        async with self._one_at_a_time:
            self._check_no_member()
            self._node.found(self._new_mesh_id())
            membership = self._require_membership()
            _log.info("mesh_founded", mesh_id=membership.mesh_id)
            await self._settle()
            mcg = self._node.require_mcg()
            await self._node.changed.wait_until(lambda: mcg.standing().is_leader, self._node.timing.proposal_deadline_s)
            return membership

    async def join(self, address: str, mesh_id: str) -> Membership:
        """Joins the mesh of the node at `address`; `mesh_id` may be empty.

        Raises:
            MeshError: ALREADY_MEMBER, INVALID_ARGUMENT, MESH_ID_MISMATCH, ADDRESS_UNREACHABLE, WRONG_PROTOCOL,
                NAME_TAKEN, KEY_TAKEN, MESH_CRITICAL, NO_QUORUM, DEADLINE_EXCEEDED.
        """
        if not address.startswith(("ws://", "wss://")):
            raise MeshError(
                ErrorCode.INVALID_ARGUMENT,
                f"{address!r} is no address of a node: use ws://host:port or wss://host:port.",
                {"address": address},
            )
        async with self._one_at_a_time:
            self._check_no_member()
            membership = await self._ask_for_a_place(address, mesh_id)
            self._node.enter(membership)
            _log.info("mesh_joined", mesh_id=membership.mesh_id, node_id=membership.node_id)
            await self._settle()
            if not await self._node.changed.wait_until(
                lambda: self._node.is_listed, self._node.timing.proposal_deadline_s
            ):
                raise MeshError(
                    ErrorCode.NO_QUORUM,
                    "The node is admitted but hears nothing of the control group yet: it goes on trying by itself; "
                    "look at its status and at the links.",
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
                    await self._proposals.propose(command)
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

    async def _ask_for_a_place(self, address: str, mesh_id: str) -> Membership:
        passing = _MAY_STILL_COME
        for _ in range(JOIN_TRIES - 1):
            try:
                return await self._ask_over_a_lane(address, mesh_id)
            except MeshError as error:
                if error.code not in passing:
                    raise
                passing = _MAY_STILL_COME | _AWAY
                _log.info("join_attempt_failed", code=error.code, reason=error.message)
                await asyncio.sleep(JOIN_RETRY_S)
        return await self._ask_over_a_lane(address, mesh_id)

    async def _ask_over_a_lane(self, address: str, mesh_id: str) -> Membership:
        lane = await self._data.open_join_lane(address)
        try:
            check_mesh_id(mesh_id, lane.mesh_id)
            request = join_pb2.JoinRequest(
                mesh_id=lane.mesh_id,
                name=self._node.name,
                public_key=self._node.identity.public_key,
                peer_address=self._node.peer_address,
            )
            with self._calls.join_lane(lane.lane_id):
                body = await self._calls.call(
                    Method.JOIN,
                    request.SerializeToString(),
                    self._node.timing.proposal_deadline_s / JOIN_TRIES,
                    lane_id=lane.lane_id,
                )
        finally:
            await self._data.close_join_lane(lane.lane_id)
        try:
            response = join_pb2.JoinResponse.FromString(body)
        except DecodeError:
            raise MeshError(
                ErrorCode.WRONG_PROTOCOL, "The answer of that node cannot be read: update one of them."
            ) from None
        check_mesh_id(lane.mesh_id, response.view.mesh_id)
        return Membership(
            mesh_id=response.view.mesh_id,
            node_id=response.node_id,
            mcg_member=response.mcg_member,
            is_running=True,
            first_view=response.view,
        )

    async def _commit_state(self, state: NodeState) -> None:
        change = mcg_pb2.SetNodeState(node_id=self._node.node_id, state=view_pb2.NodeState.ValueType(state))
        await self._proposals.propose(mcg_pb2.Command(set_node_state=change))

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
