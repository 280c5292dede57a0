"""The four shortest loopless paths of a pair, ours and networkx in turn: cold, kept, and after one unrelated change.

Graphs are random and connected, with six links a node. Cold: what is kept of the pair is thrown away before each
question. After one change: one end of a link that none of the four paths touches advertises another cost; taking the
advertisement in is part of the time. networkx computes anew each time, because it keeps nothing. A round's figure is the
median over its pairs. Both sides give the same costs, which is checked. One thread; the disk plays no part.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import Final

import networkx as nx

from mesh_routing.core.lsa import Lsa, LsaLink
from mesh_routing.core.path_cache import PathCache
from mesh_routing.core.spf import NodePath, path_cost
from mesh_routing.core.topology_graph import TopologyGraph
from meshcommon.cost_weights import CostWeights
from meshcommon.ids import NodeId
from tests.bench import report
from tests.bench.report import Bar, Row

PATHS: Final = 4
DEGREE: Final = 6
PAIRS: Final = 20
KEPT_MS_MAX: Final = 1.0
_WEIGHTS: Final = CostWeights(hop_us=1)
Pair = tuple[NodeId, NodeId]


class Mesh:
    """One random mesh, as advertisements, as our graph and as networkx's."""

    def __init__(self, count: int, rng: random.Random) -> None:
        links = {(rng.randrange(1, node), node) for node in range(2, count + 1)}
        while len(links) < count * DEGREE // 2:
            left, right = sorted(rng.sample(range(1, count + 1), 2))
            links.add((left, right))
        self.count = count
        self.costs: dict[NodeId, dict[NodeId, int]] = {NodeId(node): {} for node in range(1, count + 1)}
        for left, right in sorted(links):
            for one, other in ((left, right), (right, left)):
                self.costs[NodeId(one)][NodeId(other)] = rng.randrange(3_000, 100_000)
        self.topology = TopologyGraph(_WEIGHTS)
        for node in self.costs:
            self.advertise(node)
        self.peer: nx.DiGraph[int] = nx.DiGraph()
        self.peer.add_weighted_edges_from((a, b, cost) for a, row in self.costs.items() for b, cost in row.items())

    def advertise(self, node: NodeId) -> None:
        """Takes in what a node says now."""
        links = tuple(LsaLink(peer, cost - 1) for peer, cost in sorted(self.costs[node].items()))
        self.topology.put(Lsa(node, 1, links))

    def networkx_paths(self, pair: Pair) -> list[NodePath]:
        """What networkx finds."""
        found = islice(nx.shortest_simple_paths(self.peer, *pair, weight="weight"), PATHS)
        return [tuple(map(NodeId, path)) for path in found]

    def unrelated(self, paths: Sequence[NodePath], rng: random.Random) -> Pair:
        """A link that no path touches."""
        used = {node for path in paths for node in path}
        while True:
            left = NodeId(rng.randrange(1, self.count + 1))
            far = sorted(self.costs[left].keys() - used)
            if left not in used and far:
                return left, rng.choice(far)


def timed_ms(call: Callable[[], object]) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1e3


def one_round(mesh: Mesh, rng: random.Random) -> dict[str, tuple[float, float]]:
    """Median times of one round, ours and networkx's, by kind."""
    times: dict[str, list[float]] = {"cold": [], "cached": [], "after one change": [], "networkx": []}
    for _ in range(PAIRS):
        source, target = rng.sample(sorted(mesh.costs), 2)
        cache = PathCache(mesh.topology)
        ask = partial(cache.paths, source, target, PATHS)
        times["cold"].append(timed_ms(ask))
        times["networkx"].append(timed_ms(partial(mesh.networkx_paths, (source, target))))
        times["cached"].append(timed_ms(ask))
        found = ask()
        expected = mesh.networkx_paths((source, target))
        if [path_cost(mesh.costs, path) for path in found] != [path_cost(mesh.costs, path) for path in expected]:
            raise AssertionError(f"networkx finds other costs from {source} to {target}: {found} and {expected}")
        left, right = mesh.unrelated(found, rng)
        mesh.costs[left][right] = round(mesh.costs[left][right] * rng.choice([0.99, 1.01]))
        mesh.peer[left][right]["weight"] = mesh.costs[left][right]

        # Between the two nothing is done, so their times add up.
        taking_in = timed_ms(partial(mesh.advertise, left))
        times["after one change"].append(taking_in + timed_ms(ask))
    medians = {kind: statistics.median(found) for kind, found in times.items()}
    return {kind: (medians[kind], medians["networkx"]) for kind in ("cold", "cached", "after one change")}


def main() -> None:
    """Measures and writes build/bench/paths.json."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=7, help="rounds for each size")
    rounds = arguments.parse_args().rounds
    taken_on = report.machine()
    rows = []
    for count, kinds in ((100, ("cold",)), (1_000, ("cold", "cached", "after one change"))):
        rng = random.Random(count)
        mesh = Mesh(count, rng)
        found = [one_round(mesh, rng) for _ in range(rounds)]
        for kind in kinds:
            ours, peer = zip(*(figures[kind] for figures in found), strict=True)
            bar = Bar(ratio=1 / 5) if kind == "cold" else Bar(ours=KEPT_MS_MAX)
            rows.append(Row(f"n={count} {kind}", "ms", ours, peer, bar, "lower", is_ratio_of_peer=True))
    path = report.write("paths", rows, versions={"networkx": nx.__version__}, raw_disk_mb_per_s=None, taken_on=taken_on)
    print(report.table([row.as_json() for row in rows]))
    print(f"written: {path}")


if __name__ == "__main__":
    main()
