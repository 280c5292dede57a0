"""Carries what the local stream replicas say about groups that formed, ends and members to the MCG."""

from __future__ import annotations

import asyncio
from typing import Final

from mesh_control.core.confirmations import Confirmation, due_confirmations
from mesh_control.shell.data_client import DataClient
from mesh_control.shell.local_node import LocalNode
from mesh_control.shell.proposer import Proposer
from meshcommon.barrier import barrier
from meshcommon.errors import MeshError, Retry
from meshcommon.logging import get_logger

RETRY_S: Final = 1.0
_log = get_logger(__name__)


class GroupWatch:
    """Proposes what is due, one at a time; what fails is due again a second later."""

    def __init__(self, node: LocalNode, data: DataClient, proposer: Proposer) -> None:
        self._node = node
        self._data = data
        self._proposer = proposer
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
            is_done = False
            with barrier("control_group_watch"):
                is_done = await self._propose_due()
            if not is_done:
                # A refusal is an entry of the log too, which would wake this task at once.
                await asyncio.sleep(RETRY_S)

    async def _propose_due(self) -> bool:
        mcg = self._node.mcg
        if mcg is None or not self._node.is_running:
            return True
        due = due_confirmations(mcg.state.streams.values(), self._data.reports, self._node.node_id)
        return await self._propose_all(due)

    async def _propose_all(self, due: list[Confirmation]) -> bool:
        """Whether all were committed."""
        is_done = True
        for item in due:
            try:
                await self._proposer.propose(item.command(self._node.node_id))
            except MeshError as error:
                _log.info("confirmation_postponed", stream=item.stream_id, kind=item.kind, code=error.code)
                is_done = False
                if error.elsewhere is not Retry.FINAL:
                    break  # nobody decides now; a refusal by the state concerns its own stream alone
        return is_done
