"""Limits for nodes that are not yet members: how many lanes at once, how often a new one, how many packets on it.

A node with id 0 has proved nothing but a key of its own making, so what it can cost is bounded before it is heard.
Source: architecture §5 "Lane" (capped and rate-limited).
"""

from __future__ import annotations

from typing import Final

from meshcommon.errors import ErrorCode, MeshError
from meshcommon.token_bucket import TokenBucket

JOIN_LANES_MAX: Final = 16
JOIN_LANES_PER_ADDRESS_MAX: Final = 8
"""Of those, lanes from one address: a stranger must not keep all others from joining."""
JOIN_LANES_PER_S: Final = 10.0
JOIN_PACKETS_PER_S: Final = 100.0


class JoinLimits:
    """Admission of lanes of nodes that are not yet members."""

    def __init__(self, now: float) -> None:
        self._bucket = TokenBucket(JOIN_LANES_PER_S, JOIN_LANES_MAX, now)

    def refusal(self, lanes_open: int) -> MeshError | None:
        """Why such a node is refused, before it has used up anything."""
        if lanes_open < JOIN_LANES_MAX:
            return None
        return MeshError(
            ErrorCode.HANDSHAKE_FAILED,
            f"{JOIN_LANES_MAX} nodes are already joining through this one: try again in a minute, or another member.",
            retryable=True,
        )

    def admit(self, lanes_open: int, lanes_of_address: int, now: float) -> MeshError | None:
        """Admits one more such lane, or says why not; `lanes_of_address` are open to where it comes from."""
        refusal = self.refusal(lanes_open)
        if refusal is None and lanes_of_address >= JOIN_LANES_PER_ADDRESS_MAX:
            return MeshError(
                ErrorCode.HANDSHAKE_FAILED,
                f"{JOIN_LANES_PER_ADDRESS_MAX} nodes are already joining through this one from the same address: try again "
                "in a minute, or another member.",
                retryable=True,
            )
        if refusal is None and not self._bucket.take(now):
            return MeshError(
                ErrorCode.HANDSHAKE_FAILED,
                "Too many nodes try to join through this one: try again in a few seconds.",
                retryable=True,
            )
        return refusal
