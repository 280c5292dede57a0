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
from mesh_control.core.reachability import Reachability
from mesh_control.core.timing import Timing
from mesh_control.core.voters import ConfChange, Transfer, next_step, wanted_voters
from mesh_control.shell.mcg import Mcg
from meshapi.common.v1 import view_pb2
from meshapi.control.v1 import mcg_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId
from meshcommon.logging import get_logger

LOOK_EVERY_S: Final = 0.1
COMMIT_WITHIN_S: Final = 1.0
HEARTBEATS_TO_LEARN: Final = 3

_log = get_logger(__name__)


class Leadership:
    """Duties of the leader; does nothing while another node leads."""

    def __init__(self, mcg: Mcg, timing: Timing) -> None:
        self._mcg = mcg
        self._reachability = Reachability(timing.unreachable_after_ticks)
        self._timing = timing
        self._departing: set[NodeId] = set()
        self._transfer_after_ticks = 0

    async def run(self) -> None:
        """Looks at the replica at each change and at least every 100 ms, until cancelled."""
        while True:
            await self._mcg.changed.wait(LOOK_EVERY_S)
            if self._mcg.standing().is_leader and self._mcg.state.mesh_id:
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
                if not self._mcg.standing().is_leader:
                    raise MeshError(ErrorCode.NOT_LEADER, "The leadership was handed over: ask the new leader.")
            return await self._mcg.propose(command)
        finally:
            self._departing.discard(node_id)

    def _departure(self, command: mcg_pb2.Command) -> NodeId | None:
        """The node that stops or goes for good by this command."""
        if not self._mcg.standing().is_leader:
            return None
        state = self._mcg.state
        if command.HasField("remove_node"):
            return rules.check_removable(state.nodes, state.streams, NodeId(command.remove_node.node_id)).node_id
        if command.HasField("set_node_state") and command.set_node_state.state == view_pb2.NODE_STATE_STOPPED:
            return rules.check_node(state.nodes, NodeId(command.set_node_state.node_id)).node_id
        return None

    def _has_stepped_back(self, node_id: NodeId) -> bool:
        node = self._mcg.state.nodes.get(node_id)
        if node is None:
            return True
        raft = self._mcg.configuration()
        return node.mcg_member not in raft.voters or node.mcg_member in wanted_voters(
            list(self._mcg.state.nodes.values()), self._departing, raft.voters, raft.leader
        )

    async def _duties(self) -> None:
        nodes = list(self._mcg.state.nodes.values())
        configuration = self._mcg.configuration()
        step = next_step(nodes, self._departing, configuration)
        if isinstance(step, ConfChange) and self._mcg.change_configuration(step.change, step.member, step.node_id):
            # A new voter that does not know of its vote yet would ignore that it should lead, and the transfer would
            # block the group until it is given up: give the news time to arrive.
            self._transfer_after_ticks = self._mcg.ticks + HEARTBEATS_TO_LEARN * self._timing.heartbeat_ticks
            _log.info("mcg_configuration_step", change=step.change, member=step.member, node=step.node_id)
        elif isinstance(step, Transfer) and self._mcg.ticks >= self._transfer_after_ticks:
            self._transfer_after_ticks = self._mcg.ticks + 2 * self._timing.election_ticks
            _log.info("mcg_leadership_transfer", member=step.member)
            self._mcg.transfer_leadership(step.member)
            return
        voting = sorted(node.node_id for node in nodes if node.mcg_member in configuration.voters)
        if voting != sorted(node.node_id for node in nodes if node.is_voter):
            await self._mcg.propose(mcg_pb2.Command(set_voters=mcg_pb2.SetVoters(node_ids=voting)))
        changes = self._reachability.changes(
            nodes, self._mcg.quiet_ticks(), self._mcg.place.node_id, self._mcg.standing().term, self._mcg.ticks
        )
        for node_id, is_reachable in changes:
            _log.info("mcg_reachability", node=node_id, is_reachable=is_reachable)
            change = mcg_pb2.SetReachability(node_id=node_id, is_reachable=is_reachable)
            await self._mcg.propose(mcg_pb2.Command(set_reachability=change))
