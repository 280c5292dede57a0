"""How much a neighbour, or the origin of advertisements, may make this node work.

Checking a signature costs 120 µs, and a genuine new version is told to every node of the mesh. So there are three budgets:

- per neighbour, checks of signatures (two for an advertisement with a delegation that is new here): a neighbour that floods forgeries uses up its own share, and what others send is
  still checked;
- in all, the same: the bound on the processor time, about 6 % of a core for as long as a flood lasts;
- per origin, versions accepted: a member that signs a thousand versions a second is slowed here instead of carried on.
  Only valid signatures count, so nobody uses up the budget of another origin.

What exceeds a budget is dropped without acknowledgement: it comes again. Leaves out everything else about flooding.
Source: RFC 2328 §13 (5) (a) (MinLSArrival, here as a bucket, so that one failure may move several links at once).
"""

from __future__ import annotations

from typing import Final

from meshcommon.ids import NodeId
from meshcommon.token_bucket import TokenBucket

CHECKS_PER_S: Final = 500.0
CHECKS_BURST: Final = 4_000.0
NEIGHBOUR_CHECKS_PER_S: Final = 200.0
NEIGHBOUR_CHECKS_BURST: Final = 2_000.0
"""A whole database of a mesh of 1,000 nodes at once, and all their delegations."""
ORIGIN_VERSIONS_PER_S: Final = 5.0
ORIGIN_VERSIONS_BURST: Final = 20.0
STRANGER_MESSAGES_PER_S: Final = 10.0
STRANGER_MESSAGES_BURST: Final = 20.0


class FloodLimits:
    """The budgets of one node. `now` is monotonic seconds. One entry a member at most, so the memory is bounded."""

    def __init__(self) -> None:
        self._all: TokenBucket | None = None
        self._strangers: TokenBucket | None = None
        self._neighbours: dict[NodeId, TokenBucket] = {}
        self._origins: dict[NodeId, TokenBucket] = {}

    def forget_all_but(self, members: frozenset[NodeId]) -> None:
        """Drops the budgets of nodes that are no members."""
        self._neighbours = {peer: bucket for peer, bucket in self._neighbours.items() if peer in members}
        self._origins = {origin: bucket for origin, bucket in self._origins.items() if origin in members}

    def may_check(self, peer: NodeId, origin: NodeId, now: float, checks: int = 1) -> bool:
        """Whether to check `checks` signatures that `peer` sent now; if so they are charged to `peer`."""
        version_bucket = self._origins.get(origin)
        if version_bucket is not None and not version_bucket.has(now):
            return False
        everybody = self._all = self._all or TokenBucket(CHECKS_PER_S, CHECKS_BURST, now)
        neighbour = self._neighbours.get(peer)
        if neighbour is None:
            neighbour = self._neighbours[peer] = TokenBucket(NEIGHBOUR_CHECKS_PER_S, NEIGHBOUR_CHECKS_BURST, now)
        # Both are asked before either is charged.
        if not (neighbour.has(now, checks) and everybody.has(now, checks)):
            return False
        neighbour.spend(checks)
        everybody.spend(checks)
        return True

    def accepted(self, origin: NodeId, now: float) -> None:
        """A new version of `origin` was valid."""
        bucket = self._origins.get(origin)
        if bucket is None:
            bucket = self._origins[origin] = TokenBucket(ORIGIN_VERSIONS_PER_S, ORIGIN_VERSIONS_BURST, now)
        bucket.spend()

    def may_hear_stranger(self, now: float) -> bool:
        """Whether to take a message of a member whose link has not been reported; if so it is charged."""
        bucket = self._strangers = self._strangers or TokenBucket(STRANGER_MESSAGES_PER_S, STRANGER_MESSAGES_BURST, now)
        if not bucket.has(now):
            return False
        bucket.spend()
        return True
