"""Which pairs of nodes have a path, which are protected by a second one, and what an event would change.

A pair is protected when two paths that share no link lead from one to the other: exactly when no bridge lies between
them (Menger 1927). So one pass finds all: connected components, bridges (Tarjan 1974), and the components that are left
without them. Leaves out the names of nodes, and the cost of paths.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, islice
from typing import Final

from mesh_routing.core.spf import Graph
from meshcommon.ids import NodeId

Labels = Mapping[NodeId, int]
Pair = tuple[NodeId, NodeId]
PAIRS_NAMED_MAX: Final = 1_000


@dataclass(frozen=True, slots=True)
class Protection:
    """How well the pairs of nodes are connected: all, those with a path, those with two that share no link."""

    pairs: int = 0
    connected: int = 0
    protected: int = 0

    @property
    def ratio(self) -> float:
        """Share of the pairs that are protected; 1 where there is no pair."""
        return self.protected / self.pairs if self.pairs else 1.0


@dataclass(frozen=True, slots=True)
class Reach:
    """Groups of nodes: two nodes with one label in `connected` have a path, with one in `protected` two."""

    connected: Labels
    protected: Labels

    def counts(self) -> Protection:
        """How many pairs there are of each kind."""
        return Protection(
            _pairs_of(len(self.connected)),
            sum(map(_pairs_of, Counter(self.connected.values()).values())),
            sum(map(_pairs_of, Counter(self.protected.values()).values())),
        )


def reach_of(graph: Graph) -> Reach:
    """Who reaches whom, once and twice."""
    bridges = _bridges(graph)
    return Reach(_components(graph, frozenset()), _components(graph, bridges))


def without_link(graph: Graph, one: NodeId, other: NodeId) -> Graph:
    """The graph after the link between two neighbours is cut."""
    cut = {one: other, other: one}
    return {
        node: {peer: cost for peer, cost in edges.items() if cut.get(node) != peer} for node, edges in graph.items()
    }


def without_node(graph: Graph, gone: NodeId) -> Graph:
    """The graph after a node has stopped."""
    return {
        node: {peer: cost for peer, cost in edges.items() if peer != gone}
        for node, edges in graph.items()
        if node != gone
    }


@dataclass(frozen=True, slots=True)
class Effect:
    """What an event does to the pairs of the nodes that are left; of the pairs at most PAIRS_NAMED_MAX are named."""

    before: Protection
    after: Protection
    lost: tuple[Pair, ...]
    lost_count: int
    unprotected: tuple[Pair, ...]
    unprotected_count: int


def effect_of(now: Reach, changed: Graph, remaining: Iterable[NodeId]) -> Effect:
    """What becomes of the pairs of `remaining` when the graph that `now` tells of becomes `changed`."""
    then, left = reach_of(changed), frozenset(remaining)
    before = Reach(_of(now.connected, left), _of(now.protected, left))
    lost = tuple(islice(pairs_parted(before.connected, then.connected), PAIRS_NAMED_MAX))
    lost_count = count_parted(before.connected, then.connected)
    # Protected pairs that are parted have lost their path, too: they are named once.
    unprotected = (
        (one, other)
        for one, other in pairs_parted(before.protected, then.protected)
        if then.connected[one] == then.connected[other]
    )
    parted_both = count_parted(before.protected, {node: then.connected[node] for node in left})
    return Effect(
        before.counts(),
        then.counts(),
        lost,
        lost_count,
        tuple(islice(unprotected, PAIRS_NAMED_MAX)),
        count_parted(before.protected, then.protected) - parted_both,
    )


def pairs_parted(before: Labels, after: Labels) -> Iterator[Pair]:
    """Pairs of the nodes in `after` that had one label before and have two now, by id."""
    groups: dict[int, dict[int, list[NodeId]]] = {}
    for node, label in after.items():
        groups.setdefault(before[node], {}).setdefault(label, []).append(node)
    for parts in groups.values():
        for left, right in combinations(parts.values(), 2):
            yield from ((min(one, other), max(one, other)) for one in left for other in right)


def count_parted(before: Labels, after: Labels) -> int:
    """How many pairs `pairs_parted` would give."""
    together = Counter(before[node] for node in after)
    still = Counter((before[node], label) for node, label in after.items())
    return sum(map(_pairs_of, together.values())) - sum(map(_pairs_of, still.values()))


def _of(labels: Labels, nodes: frozenset[NodeId]) -> Labels:
    return {node: label for node, label in labels.items() if node in nodes}


def _pairs_of(count: int) -> int:
    return count * (count - 1) // 2


def _components(graph: Graph, cut: frozenset[frozenset[NodeId]]) -> dict[NodeId, int]:
    labels: dict[NodeId, int] = {}
    for start in graph:
        if start in labels:
            continue
        labels[start] = start
        edge = [start]
        while edge:
            node = edge.pop()
            for peer in graph[node]:
                if peer not in labels and frozenset((node, peer)) not in cut:
                    labels[peer] = start
                    edge.append(peer)
    return labels


def _bridges(graph: Graph) -> frozenset[frozenset[NodeId]]:
    """Links whose loss parts what they join. Without recursion: a line of 1,000 nodes is as deep."""
    entered: dict[NodeId, int] = {}
    lowest: dict[NodeId, int] = {}
    found = set()
    for start in graph:
        if start in entered:
            continue
        entered[start] = lowest[start] = len(entered)
        stack = [(start, start, iter(graph[start]))]
        while stack:
            node, parent, peers = stack[-1]
            peer = next(peers, None)
            if peer is None:
                stack.pop()
                if node != parent:
                    lowest[parent] = min(lowest[parent], lowest[node])
                    if lowest[node] > entered[parent]:
                        found.add(frozenset((node, parent)))
            elif peer not in entered:
                entered[peer] = lowest[peer] = len(entered)
                stack.append((peer, node, iter(graph[peer])))
            elif peer != parent:
                lowest[node] = min(lowest[node], entered[peer])
    return frozenset(found)
