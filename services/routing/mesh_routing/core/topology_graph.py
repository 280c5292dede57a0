"""The graph of one traffic class, kept up to date link by link, and a journal of what changed.

A new advertisement touches the links of its origin only, so a mesh of 1,000 nodes is not weighed anew for each. The
journal lets caches of paths tell whether a change matters to them. A link is in the graph only while both of its ends
advertise it (RFC 2328 §16.1 (2) (b)). Leaves out ageing and membership (`lsdb`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final, NamedTuple

from mesh_routing.core.cost import link_cost
from mesh_routing.core.lsa import Lsa
from mesh_routing.core.spf import Graph
from meshcommon.cost_weights import CostWeights
from meshcommon.ids import NodeId

JOURNAL_MAX: Final = 512
"""Changes that are remembered; a cache that is further behind starts again."""


class EdgeChange(NamedTuple):
    """One direction of a link has another cost; None: it is not there."""

    left: NodeId
    right: NodeId
    before: int | None
    after: int | None

    @property
    def is_better(self) -> bool:
        """Whether it may make a path cheaper that it is part of; else it can only make one dearer."""
        return self.after is not None and (self.before is None or self.after < self.before)


class TopologyGraph:
    """The graph by the weights of one class. What `edges` returns changes in place: do not keep it."""

    def __init__(self, weights: CostWeights) -> None:
        self._weights = weights
        self._edges: dict[NodeId, dict[NodeId, int]] = {}
        self._advertised: dict[NodeId, dict[NodeId, int]] = {}
        self._journal: deque[EdgeChange] = deque(maxlen=JOURNAL_MAX)
        self._changes = 0

    @property
    def edges(self) -> Graph:
        """Every node heard of, with the cost to each neighbour."""
        return self._edges

    @property
    def position(self) -> int:
        """How many changes there were; to be shown to `since`."""
        return self._changes

    def since(self, position: int) -> list[EdgeChange] | None:
        """What changed after `position`, in order; None when not all of it is remembered."""
        count = self._changes - position
        if count > len(self._journal):
            return None
        return list(self._journal)[len(self._journal) - count :]

    def put(self, lsa: Lsa) -> None:
        """Takes the newest advertisement of an origin."""
        costs = {link.peer: link_cost(link, self._weights) for link in lsa.links}
        self._set(lsa.origin, costs)
        self._edges.setdefault(lsa.origin, {})

    def remove(self, origin: NodeId) -> None:
        """Forgets the advertisement of an origin, and so all of its links."""
        self._set(origin, {})
        self._advertised.pop(origin, None)
        self._edges.pop(origin, None)

    def _set(self, origin: NodeId, costs: Mapping[NodeId, int]) -> None:
        before = self._advertised.get(origin, {})
        self._advertised[origin] = dict(costs)
        for peer in before.keys() | costs.keys():
            theirs = self._advertised.get(peer, {}).get(origin)
            self._put_edge(origin, peer, costs.get(peer) if theirs is not None else None)
            self._put_edge(peer, origin, theirs if peer in costs else None)

    def _put_edge(self, left: NodeId, right: NodeId, cost: int | None) -> None:
        before = self._edges.get(left, {}).get(right)
        if before == cost:
            return
        if cost is None:
            del self._edges[left][right]
        else:
            self._edges.setdefault(left, {})[right] = cost
        self._journal.append(EdgeChange(left, right, before, cost))
        self._changes += 1
