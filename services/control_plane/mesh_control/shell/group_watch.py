"""Carries what the local stream replicas say about births, ends and members to the MCG."""

from __future__ import annotations

import asyncio
from typing import Final

from mesh_control.core.confirmations import Confirmation, due_confirmations
from mesh_control.shell.data_client import DataClient
from mesh_control.shell.local_node import LocalNode
from mesh_control.shell.proposals import Proposals
from meshapi.control.v1 import mcg_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.logging import get_logger

RETRY_S: Final = 1.0
_NOBODY_DECIDES: Final = frozenset({ErrorCode.NO_QUORUM, ErrorCode.NODE_STOPPED, ErrorCode.NOT_A_MEMBER})
"""What the next proposal would be answered as well; a refusal concerns its own stream alone."""
_log = get_logger(__name__)


class GroupWatch:
    """Proposes what is due, one at a time; what fails is due again a second later."""

    def __init__(self, node: LocalNode, data: DataClient, proposals: Proposals) -> None:
        self._node = node
        self._data = data
        self._proposals = proposals
        self._look = asyncio.Event()

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._wake_on_reports(), name="group reports")
            group.create_task(self._wake_on_changes(), name="group catalogue changes")
            group.create_task(self._confirm(), name="group confirmations")

    async def _wake_on_reports(self) -> None:
        while True:
            await self._data.reported.wait()
            self._look.set()

    async def _wake_on_changes(self) -> None:
        while True:
            await self._node.changed.wait(RETRY_S)
            self._look.set()

    async def _confirm(self) -> None:
        while True:
            await self._look.wait()
            self._look.clear()
            mcg = self._node.mcg
            if mcg is None or not self._node.is_running:
                continue
            due = due_confirmations(mcg.state.streams.values(), self._data.reports, self._node.node_id)
            if not await self._propose_all(due):
                # A refusal is an entry of the log too, which would wake this task at once.
                await asyncio.sleep(RETRY_S)

    async def _propose_all(self, due: list[Confirmation]) -> bool:
        """Whether all were committed."""
        is_done = True
        for item in due:
            try:
                await self._proposals.propose(self._command(item))
            except MeshError as error:
                _log.info("confirmation_postponed", stream=item.stream_id, kind=item.kind, code=error.code)
                is_done = False
                if error.code in _NOBODY_DECIDES:
                    break
        return is_done

    def _command(self, item: Confirmation) -> mcg_pb2.Command:
        stream_id, member_id = item.stream_id, item.member_id
        match item.kind:
            case "formed":
                return mcg_pb2.Command(stream_formed=mcg_pb2.StreamFormed(stream_id=stream_id))
            case "sealed":
                return mcg_pb2.Command(stream_sealed=mcg_pb2.StreamSealed(stream_id=stream_id))
            case "out":
                return mcg_pb2.Command(member_out=mcg_pb2.MemberOut(stream_id=stream_id, member_id=member_id))
            case "renew":
                renew = mcg_pb2.ChangeMembers(stream_id=stream_id, renew_members=[member_id])
                return mcg_pb2.Command(change_members=renew)
            case "destroyed":
                destroyed = mcg_pb2.ReplicaDestroyed(
                    stream_id=stream_id, node_id=self._node.node_id, member_id=member_id
                )
                return mcg_pb2.Command(replica_destroyed=destroyed)
