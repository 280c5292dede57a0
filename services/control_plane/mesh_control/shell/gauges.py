"""Keeps the gauges of the control group up to date."""

from __future__ import annotations

from typing import Final

from mesh_control.shell import metrics
from mesh_control.shell.local_node import LocalNode

EVERY_S: Final = 1.0


class Gauges:
    """Reads the replica at each change and at least every second."""

    def __init__(self, node: LocalNode) -> None:
        self._node = node

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            mcg = self._node.mcg
            if mcg is not None:
                known = mcg.leader_view()
                metrics.APPLIED_INDEX.set(known.applied)
                metrics.TERM.set(known.term)
                metrics.IS_LEADER.set(known.is_leader)
                metrics.NODES.set(len(mcg.state.nodes))
                metrics.STREAMS.set(len(mcg.state.streams))
            await self._node.changed.wait(EVERY_S)
