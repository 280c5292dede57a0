"""What the leader of the Mesh Control Group does besides committing: its Raft configuration follows the membership.

It makes the single steps that `core.voters` asks for, commits who is reachable and who votes, and moves votes and the
leadership away from a node *before* its departure is committed, so that no quorum ever waits for a node that is gone.
Source: architecture §2 "Who decides", §7, §10.
"""

from __future__ import annotations

import asyncio
from typing import Final

from mesh_control.core import rules
from mesh_control.core.mcg_state import Result
from mesh_control.core.member_changes import check_forgettable
from mesh_control.core.model import Node, NodeState
from mesh_control.core.reachability import Reachability
from mesh_control.core.status import has_expired
from mesh_control.core.timing import Timing
from mesh_control.core.versions import supported_by_all
from mesh_control.core.voters import next_step, wanted_voters
from mesh_control.shell.mcg import Mcg
from meshapi.common.v1 import view_pb2
from meshapi.control.v1 import mcg_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId
from meshcommon.logging import get_logger
from meshraft.configuration import ConfChange, Transfer

LOOK_EVERY_S: Final = 0.1
COMMIT_WITHIN_S: Final = 1.0

_log = get_logger(__name__)


class Leadership:
    """Duties of the leader; does nothing while another node leads."""

    def __init__(self, mcg: Mcg, timing: Timing) -> None:
        self._mcg = mcg
        self._reachability = Reachability(timing.unreachable_after_ticks)
        self._departing: set[NodeId] = set()

    async def run(self) -> None:
        """Looks at the replica at each change and at least every 100 ms, until cancelled."""
        while True:
            await self._mcg.changed.wait(LOOK_EVERY_S)
            if not self._mcg.leader_view().is_leader:
                continue
            if self._mcg.beyond is not None:
                self._step_down()
            elif self._mcg.state.mesh_id:
                try:
                    async with asyncio.timeout(COMMIT_WITHIN_S):
                        await self._duties()
                except (MeshError, TimeoutError) as error:
                    _log.info("mcg_duty_postponed", error=str(error) or "no quorum in time")

    async def propose(self, command: mcg_pb2.Command) -> Result:
        """Commits a command through this node, which must lead; a node that departs gives up its vote first.

        Raises:
            MeshError: NOT_LEADER, BACKPRESSURE; STREAMS_AT_RISK, LAST_NODE, UNKNOWN_NODE before any vote is moved.
        """
        node_id = self._departure(command)
        if node_id is None:
            return await self._mcg.propose(command)
        self._departing.add(node_id)
        try:
            while not self._has_stepped_back(node_id):
                await self._mcg.changed.wait(LOOK_EVERY_S)
                if not self._mcg.leader_view().is_leader:
                    raise MeshError(ErrorCode.NOT_LEADER, "The leadership was handed over: ask the new leader.")
            # The wait may have been long: a node that is heard by now is not forgotten.
            self._departure(command)
            return await self._mcg.propose(command)
        finally:
            self._departing.discard(node_id)

    def _step_down(self) -> None:
        """A leader that cannot apply what it commits gives way, to newer software if it knows of any."""
        configuration, nodes = self._mcg.configuration(), self._mcg.state.nodes.values()
        versions: dict[int, int] = {node.mcg_member: node.mesh_version for node in nodes}
        heirs = configuration.voters & configuration.caught_up - {configuration.own}
        if not heirs:
            return
        heir = min(heirs, key=lambda member: (-versions.get(member, 0), member))
        if self._mcg.take(Transfer(heir)):
            _log.info("mcg_leadership_transfer", member=heir, reason="an entry needs newer software")

    def _departure(self, command: mcg_pb2.Command) -> NodeId | None:
        """The node that stops or goes for good by this command."""
        if not self._mcg.leader_view().is_leader:
            return None
        state = self._mcg.state
        if command.HasField("remove_node"):
            return rules.check_removable(state.nodes, state.streams, NodeId(command.remove_node.node_id)).node_id
        if command.HasField("forget_node"):
            return self._check_forgettable(command.forget_node)
        if command.HasField("set_node_state") and command.set_node_state.state == view_pb2.NODE_STATE_STOPPED:
            return rules.check_node(state.nodes, NodeId(command.set_node_state.node_id)).node_id
        return None

    def _check_forgettable(self, forget: mcg_pb2.ForgetNode) -> NodeId:
        """What is committed may be seconds old: the leader's own ear counts too."""
        state = self._mcg.state
        node = check_forgettable(
            state.nodes, state.streams, NodeId(forget.node_id), is_risk_accepted=forget.accept_risk
        )
        if node.node_id == self._mcg.place.node_id or node.node_id in self._heard():
            raise rules.node_is_heard(node)
        return node.node_id

    def _heard(self) -> set[NodeId]:
        """Nodes whose control planes this leader hears."""
        progress = self._mcg.raft_status().progress
        return {
            NodeId(item.peer) for item in progress if item.matched and self._reachability.is_heard(item.quiet_ticks)
        }

    def _has_stepped_back(self, node_id: NodeId) -> bool:
        node = self._mcg.state.nodes.get(node_id)
        if node is None:
            return True
        raft = self._mcg.configuration()
        return node.mcg_member not in raft.voters or node.mcg_member in wanted_voters(
            list(self._mcg.state.nodes.values()), self._departing, raft.voters, raft.own
        )

    async def _duties(self) -> None:
        nodes = list(self._mcg.state.nodes.values())
        configuration = self._mcg.configuration()
        step = next_step(nodes, self._departing, configuration)
        if step is not None and self._mcg.take(step):
            _log.info("mcg_step", step=str(step), node=step.node if isinstance(step, ConfChange) else None)
            if isinstance(step, Transfer):
                return
        voting = sorted(node.node_id for node in nodes if node.mcg_member in configuration.voters)
        if voting != sorted(node.node_id for node in nodes if node.is_voter):
            await self._mcg.propose(mcg_pb2.Command(set_voters=mcg_pb2.SetVoters(node_ids=voting)))
        changes = self._reachability.changes(
            nodes, self._mcg.quiet_ticks(), self._mcg.place.node_id, self._mcg.leader_view().term, self._mcg.ticks
        )
        for node_id, is_reachable in changes:
            _log.info("mcg_reachability", node=node_id, is_reachable=is_reachable)
            change = mcg_pb2.SetReachability(node_id=node_id, is_reachable=is_reachable)
            await self._mcg.propose(mcg_pb2.Command(set_reachability=change))
        await self._receive_newcomers(nodes)
        supported = min(supported_by_all(self._mcg.state.nodes.values()), self._mcg.supported)
        if supported > self._mcg.state.mesh_version:
            _log.info("mesh_version_raised", mesh_version=supported)
            raised = mcg_pb2.RaiseMeshVersion(mesh_version=supported)
            await self._mcg.propose(mcg_pb2.Command(raise_mesh_version=raised))

    async def _receive_newcomers(self, nodes: list[Node]) -> None:
        """Who joins is in when it was heard, and out when it was not for too long."""
        joining = [node for node in nodes if node.state is NodeState.JOINING]
        heard = self._heard() if joining else set()
        for node in joining:
            if node.node_id in heard and node.mesh_version >= self._mcg.state.mesh_version:
                _log.info("node_heard", node=node.node_id, name=node.name)
                await self._mcg.propose(mcg_pb2.Command(activate_node=mcg_pb2.ActivateNode(node_id=node.node_id)))
            elif has_expired(node, max(self._mcg.now_ms(), self._mcg.state.time_ms)):
                _log.info("node_never_heard", node=node.node_id, name=node.name)
                await self._mcg.propose(mcg_pb2.Command(expire_node=mcg_pb2.ExpireNode(node_id=node.node_id)))
