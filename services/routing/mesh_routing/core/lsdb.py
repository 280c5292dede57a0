"""The link-state database: one newest advertisement per member, its age, and the graph that both ends agree on.

Leaves out who tells whom (`flooding`), the own advertisement's rules (`origination`) and signatures (`lsa_signature`).
Bounded: advertisements of nodes that are not members are refused.

The age is the one part that nobody signs, so a sender's word about it is worth little. It decides whether a version is
taken and told on, never when it is dropped: that is `max_age_s` after it was taken, by this node's own clock. Among the
ages that copies of one version claim, the youngest counts, but never less than the time it has been held here.
Sources: RFC 2328 §12.1.1 (age), §13.1 (newer), §16.1 (two-way check).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, IntEnum
from itertools import pairwise
from typing import Final

from mesh_routing.core.cost import CostTerms, cost_terms, link_cost
from mesh_routing.core.lsa import Lsa, LsaKey, LsaLink
from mesh_routing.core.spf import Graph
from mesh_routing.core.topology_graph import TopologyGraph
from meshcommon.cost_weights import DEFAULTS, CostWeights, WeightsByClass
from meshcommon.ids import NodeId
from meshwire.packet import TrafficClass

AGE_DIFFERENCE_S: Final = 60.0
"""Two copies of one version whose ages differ by more have not both travelled honestly (RFC 2328: MaxAgeDiff)."""


class Outcome(Enum):
    """What an advertisement that is offered is to what is held.

    Attributes:
        NEWER: It replaces what is held, or nothing is held.
        DUPLICATE: The same version.
        YOUNGER: The same version, said to be much younger: somebody had aged it on its way here.
        OVERAGED: The same version, said to be much older: somebody has aged it on its way there.
        OLDER: A newer version is held.
        UNKNOWN_ORIGIN: Its origin is no member.
        EXPIRED: It would be newer, but is said to be of the maximum age.
    """

    NEWER = "newer"
    DUPLICATE = "duplicate"
    YOUNGER = "younger"
    OVERAGED = "overaged"
    OLDER = "older"
    UNKNOWN_ORIGIN = "unknown_origin"
    EXPIRED = "expired"


class Change(IntEnum):
    """How much has changed; the greater includes the lesser."""

    NONE = 0
    METRICS = 1
    STRUCTURE = 2


@dataclass(frozen=True, slots=True)
class LinkRow:
    """One advertised link, for readers."""

    origin: NodeId
    link: LsaLink
    cost: int
    is_two_way: bool


@dataclass(slots=True)
class _Entry:
    lsa: Lsa
    installed_at: float

    def age_s(self, now: float) -> float:
        return self.lsa.age_s + max(0.0, now - self.installed_at)


class Lsdb:
    """The database of one node. `now` is monotonic seconds."""

    def __init__(self, max_age_s: float, weights: WeightsByClass = DEFAULTS) -> None:
        self._max_age_s = max_age_s
        self._weights = weights
        self._members: frozenset[NodeId] = frozenset()
        self._entries: dict[NodeId, _Entry] = {}
        self._change = Change.NONE
        self._version = 0
        self._graphs: dict[TrafficClass, TopologyGraph] = {}

    @property
    def count(self) -> int:
        """Advertisements held."""
        return len(self._entries)

    @property
    def version(self) -> int:
        """Topology version: raised by every change of content. A refresh changes none."""
        return self._version

    @property
    def members(self) -> frozenset[NodeId]:
        """Nodes whose advertisements are accepted."""
        return self._members

    def set_members(self, members: frozenset[NodeId]) -> None:
        """Takes the members of the MeshView; advertisements of all others are dropped."""
        gone = [origin for origin in self._entries if origin not in members]
        self._members = members
        for origin in gone:
            self._remove(origin)

    def set_weights(self, weights: WeightsByClass) -> None:
        """Takes the weights of the mesh, of every class. Other ones are another topology."""
        if weights != self._weights:
            self._weights = weights
            self._graphs.clear()
            self._changed(Change.METRICS)

    def weights(self, traffic_class: TrafficClass) -> CostWeights:
        """The weights of a class."""
        return self._weights[traffic_class]

    def assess(self, lsa: Lsa, now: float) -> Outcome:
        """What `lsa` is to what is held; changes nothing."""
        if lsa.origin not in self._members:
            return Outcome.UNKNOWN_ORIGIN
        entry = self._entries.get(lsa.origin)
        if entry is None or lsa.is_newer_than(entry.lsa):
            return Outcome.EXPIRED if lsa.age_s >= self._max_age_s else Outcome.NEWER
        if entry.lsa.is_newer_than(lsa):
            return Outcome.OLDER
        difference = lsa.age_s - entry.age_s(now)
        if abs(difference) <= AGE_DIFFERENCE_S:
            return Outcome.DUPLICATE
        return Outcome.OVERAGED if difference > 0 else Outcome.YOUNGER

    def offer(self, lsa: Lsa, now: float) -> Outcome:
        """Takes `lsa` if it is newer than what is held, or its age if that is much younger. Its signature was checked."""
        outcome = self.assess(lsa, now)
        entry = self._entries.get(lsa.origin)
        if outcome is Outcome.YOUNGER and entry is not None:
            # The held signature stays: the one on a duplicate has not been checked.
            entry.lsa = replace(entry.lsa, age_s=max(0.0, lsa.age_s - (now - entry.installed_at)))
        if outcome is not Outcome.NEWER:
            return outcome
        self._entries[lsa.origin] = _Entry(lsa, now)
        for graph in self._graphs.values():
            graph.put(lsa)
        if entry is None or entry.lsa.peers != lsa.peers:
            self._changed(Change.STRUCTURE)
        elif entry.lsa.links != lsa.links:
            self._changed(Change.METRICS)
        return outcome

    def drop(self, origins: Iterable[NodeId]) -> None:
        """Forgets the advertisements of `origins`: their signatures count no more."""
        for origin in origins:
            if origin in self._entries:
                self._remove(origin)

    def purge(self, now: float) -> list[NodeId]:
        """Drops what has been held for the maximum age; returns the origins."""
        expired = [origin for origin, entry in self._entries.items() if now >= entry.installed_at + self._max_age_s]
        for origin in expired:
            self._remove(origin)
        return expired

    def next_deadline(self) -> float | None:
        """When `purge` has something to do next."""
        return min((entry.installed_at + self._max_age_s for entry in self._entries.values()), default=None)

    def get(self, origin: NodeId) -> Lsa | None:
        """The advertisement of `origin` as it was installed."""
        entry = self._entries.get(origin)
        return None if entry is None else entry.lsa

    def told(self, origin: NodeId, now: float) -> Lsa | None:
        """The advertisement of `origin` with its present age, to be sent; None when others would not take it."""
        entry = self._entries.get(origin)
        return replace(entry.lsa, age_s=entry.age_s(now)) if entry is not None and self._is_told(entry, now) else None

    def digest(self, now: float) -> tuple[LsaKey, ...]:
        """Every version that can be told on, by origin."""
        held = ((origin, self._entries[origin]) for origin in sorted(self._entries))
        return tuple(entry.lsa.key for _, entry in held if self._is_told(entry, now))

    def lsas(self) -> list[Lsa]:
        """Every advertisement, by origin."""
        return [self._entries[origin].lsa for origin in sorted(self._entries)]

    def take_change(self) -> Change:
        """The greatest change since the last call."""
        change, self._change = self._change, Change.NONE
        return change

    def graph(self, traffic_class: TrafficClass = TrafficClass.CONTROL) -> Graph:
        """The links that both ends advertise, with the cost in each direction; every member heard of is a key.

        It changes with the database: do not keep it.
        """
        return self.topology(traffic_class).edges

    def topology(self, traffic_class: TrafficClass) -> TopologyGraph:
        """The same with its journal; another object after the weights have changed."""
        graph = self._graphs.get(traffic_class)
        if graph is None:
            graph = self._graphs[traffic_class] = TopologyGraph(self._weights[traffic_class])
            for entry in self._entries.values():
                graph.put(entry.lsa)
        return graph

    def terms(self, nodes: Sequence[NodeId], traffic_class: TrafficClass) -> CostTerms:
        """What a path of this database costs, by reason."""
        weights, sum_of = self._weights[traffic_class], CostTerms()
        for origin, peer in pairwise(nodes):
            links = {link.peer: link for link in self._entries[origin].lsa.links}
            sum_of = sum_of.plus(cost_terms(links[peer], weights))
        return sum_of

    def link_rows(self) -> list[LinkRow]:
        """Every advertised link, one-way ones too, by (origin, peer), with its cost for the class CONTROL."""
        weights = self._weights[TrafficClass.CONTROL]
        peers = {origin: entry.lsa.peers for origin, entry in self._entries.items()}
        return [
            LinkRow(lsa.origin, link, link_cost(link, weights), _is_two_way(peers, lsa.origin, link.peer))
            for lsa in self.lsas()
            for link in lsa.links
        ]

    def _is_told(self, entry: _Entry, now: float) -> bool:
        # As the wire rounds it.
        return math.ceil(entry.age_s(now)) < self._max_age_s

    def _remove(self, origin: NodeId) -> None:
        del self._entries[origin]
        for graph in self._graphs.values():
            graph.remove(origin)
        self._changed(Change.STRUCTURE)

    def _changed(self, change: Change) -> None:
        self._change = max(self._change, change)
        self._version += 1


def _is_two_way(peers: Mapping[NodeId, Iterable[NodeId]], origin: NodeId, peer: NodeId) -> bool:
    return origin in peers.get(peer, ())
