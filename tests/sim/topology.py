"""Which pairs of nodes have a lane: drawn from the seed, so that most paths cross other nodes.

A node behind NAT is one that only dials: two of them never have a lane, which makes a star round those that listen.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from typing import Final, TypeAlias

Pairs: TypeAlias = frozenset[tuple[int, int]]
"""Each pair with the smaller number first."""

KINDS: Final = ("full", "chain", "star", "two hubs", "ring", "random")


def draw(rng: random.Random, nodes: int) -> tuple[str, Pairs]:
    """The name of a kind, and its pairs among nodes 1 to `nodes` in random places; all are connected."""
    kind = rng.choice(KINDS)
    order = rng.sample(range(1, nodes + 1), nodes)
    return kind, frozenset((min(pair), max(pair)) for pair in _pairs(kind, order, rng))


def reachable(pairs: Pairs, start: int, without: int) -> AbstractSet[int]:
    """Nodes that `start` reaches, itself included, while one node is down."""
    found, new = {start}, [start]
    while new:
        node = new.pop()
        beside = {one + other - node for one, other in pairs if node in (one, other)} - {without} - found
        found |= beside
        new += beside
    return found


def _pairs(kind: str, order: list[int], rng: random.Random) -> Iterable[tuple[int, int]]:
    chain = list(itertools.pairwise(order))
    match kind:
        case "chain":
            return chain
        case "star":
            return [(order[0], other) for other in order[1:]]
        case "two hubs":
            hubs = order[:2]
            return [chain[0], *((hub, other) for hub in hubs for other in order[2:])]
        case "ring":
            return [*chain, (order[-1], order[0])]
        case "random":
            tree = [(order[rng.randrange(at)], node) for at, node in enumerate(order) if at]
            return [*tree, *(pair for pair in itertools.combinations(order, 2) if rng.random() < 0.2)]
        case _:
            return itertools.combinations(order, 2)
