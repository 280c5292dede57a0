"""How many lanes of members may be open at once, from one of them and in all.

A member needs one lane, and for a moment a second: when both sides dialled, or when it restarted and the old one is not yet
known to be dead. Pure. Leaves out: lanes of nodes that are no members (`join_limits`). Source: architecture §5 "VirtualLink".
"""

from __future__ import annotations

from typing import Final

from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId

LANES_PER_PEER_MAX: Final = 4
LANES_MAX: Final = 2048
"""Two for each of the 1,000 members that a mesh may have."""


class LaneLimits:
    """Counts the lanes of members. Each `enter` without a refusal needs one `leave`."""

    def __init__(self) -> None:
        self._of_peer: dict[NodeId, int] = {}
        self._lanes = 0

    def enter(self, peer: NodeId) -> MeshError | None:
        """Counts one more lane to `peer`, or says why it is refused."""
        held = self._of_peer.get(peer, 0)
        if held >= LANES_PER_PEER_MAX or self._lanes >= LANES_MAX:
            return MeshError(
                ErrorCode.HANDSHAKE_FAILED,
                f"Node {peer} has {held} lanes to this node, which has {self._lanes} in all: it is tried again.",
                retryable=True,
            )
        self._of_peer[peer] = held + 1
        self._lanes += 1
        return None

    def leave(self, peer: NodeId) -> None:
        """A lane to `peer` is gone."""
        held = self._of_peer.pop(peer) - 1
        self._lanes -= 1
        if held:
            self._of_peer[peer] = held
