"""Says in `/readyz` and in the status that the mesh has gone beyond this node's software.

Leaves out the gate itself (`core.versions`, `core.replica`). Source: architecture §12.
"""

from __future__ import annotations

from typing import Final

from mesh_control.shell.local_node import LocalNode
from meshcommon.admin import Readiness
from meshcommon.errors import ErrorCode

EVERY_S: Final = 1.0
_REASON: Final = "version"


class VersionWatch:
    """Looks at each change of the node, and at least every second."""

    def __init__(self, node: LocalNode, readiness: Readiness) -> None:
        self._node = node
        self._readiness = readiness

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self.look()
            await self._node.changed.wait(EVERY_S)

    def look(self) -> None:
        """Brings the readiness up to date."""
        mcg = self._node.mcg
        if mcg is None or mcg.beyond is None:
            self._readiness.clear(_REASON)
            return
        message = mcg.beyond.refusal(mcg.supported).message
        self._readiness.block(
            _REASON, f"{ErrorCode.UPDATE_REQUIRED}: {message} Applied is index {mcg.state.applied_index}."
        )
