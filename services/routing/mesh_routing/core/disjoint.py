"""The backup of a path: as disjoint from it as the graph allows, and the cheapest such.

The primary stays the shortest path: a jointly optimal pair (Suurballe 1974, Bhandari 1999) may slow every packet on the
primary for the sake of the rare failure, so it is not used. Given the primary, the order of preference is
fewest shared links, then fewest shared relays, then cost: a node-disjoint path shares neither and comes first, an
edge-disjoint one next. One Dijkstra finds it, with penalties larger than any sum of costs, exact because costs are
integers.
"""

from __future__ import annotations

from itertools import pairwise

from mesh_routing.core.spf import Graph, NodePath, bounded_path, shortest_tree
from meshcommon.ids import NodeId


def maximally_disjoint(graph: Graph, primary: NodePath, nodes_max: int) -> NodePath | None:
    """The backup for `primary`, None when there is no other path of at most `nodes_max` nodes between its ends."""
    shared_links = {frozenset(pair) for pair in pairwise(primary)}
    relays = frozenset(primary[1:-1])
    # A loopless path costs at most the sum of all edges and crosses fewer relays than there are nodes.
    relay_penalty = sum(cost for edges in graph.values() for cost in edges.values()) + 1
    link_penalty = relay_penalty * (len(graph) + 1)

    def weigh(left: NodeId, right: NodeId, cost: int) -> int:
        if right in relays:
            cost += relay_penalty
        if frozenset((left, right)) in shared_links:
            cost += link_penalty
        return cost

    source, destination = primary[0], primary[-1]
    backup = shortest_tree(graph, source, weigh, destination).path(destination)
    if backup is not None and len(backup) > nodes_max:
        backup = bounded_path(graph, source, destination, nodes_max, weigh)
    # The primary shares all of itself, so it comes out only when it is alone.
    return None if backup == primary else backup
