"""Routes in steps: usable at every moment, exact in the end, and nothing is worked out that a change cannot touch."""

from __future__ import annotations

import random
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from mesh_routing.core import route_work
from mesh_routing.core.route_table import Hysteresis
from mesh_routing.core.route_work import RouteWork, Since, compute_routes
from mesh_routing.core.topology_graph import EdgeChange
from meshcommon.ids import NodeId
from tests.core.graphs import MutableGraph, random_graph

A = NodeId(1)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32))
def test_routes_are_usable_at_every_step_and_exact_in_the_end(seed: int) -> None:
    """R4 and R5: through any history of changes, with computations that are broken off."""
    rng = random.Random(seed)
    graph = random_graph(rng.randrange(3, 14), rng.randrange(2, 5), rng)
    keep, since = Hysteresis(), Since()
    for _ in range(8):
        work = RouteWork(graph, A, 16, keep, since)
        work._batch = 1
        for _ in range(rng.choice([0, 1, 3, 1_000])):
            work.step()
            assert_usable(graph, work)
        exact = compute_routes(graph, A, 16)
        assert {node: route.paths[0] for node, route in work.routes.items()} == {
            node: route.paths[0] for node, route in exact.items()
        }
        for node in exact.keys() - work.pending:
            assert work.routes[node].paths == exact[node].paths
        since = Since(list(change(graph, rng)), work.pending, work.resume_at)
        keep = Hysteresis(work.routes)


def assert_usable(graph: MutableGraph, work: RouteWork) -> None:
    for route in work.routes.values():
        for path in route.paths:
            assert sum(graph[left][right] for left, right in pairwise(path.nodes)) == path.cost
        assert len({path.nodes for path in route.paths}) == len(route.paths)


def change(graph: MutableGraph, rng: random.Random) -> list[EdgeChange]:
    changes = []
    for _ in range(rng.randrange(1, 3)):
        left, right = (NodeId(node) for node in rng.sample(sorted(graph), 2))
        before = graph[left].get(right), graph[right].get(left)
        after: tuple[int | None, int | None] = (rng.randrange(1_000, 200_000), rng.randrange(1_000, 200_000))
        if before[0] is not None and rng.random() < 0.4:
            after = (None, None)
        for (one, other), old, new in zip(((left, right), (right, left)), before, after, strict=True):
            if new is None:
                graph[one].pop(other, None)
            else:
                graph[one][other] = new
            changes.append(EdgeChange(one, other, old, new))
    return changes


def test_lost_link_that_no_route_uses_leaves_nothing_to_do() -> None:
    graph = random_graph(60, 6, random.Random(3))
    routes = compute_routes(graph, A, 16)
    used = {frozenset(edge) for route in routes.values() for path in route.paths for edge in pairwise(path.nodes)}
    left, right = next((left, right) for left in graph for right in graph[left] if frozenset((left, right)) not in used)
    before = graph[left].pop(right), graph[right].pop(left)
    lost = [EdgeChange(left, right, before[0], None), EdgeChange(right, left, before[1], None)]
    work = RouteWork(graph, A, 16, Hysteresis(routes), Since(lost))
    assert work.is_done
    assert work.routes == routes == compute_routes(graph, A, 16)


def test_step_is_bounded_in_a_large_mesh() -> None:
    graph = random_graph(1_000, 6, random.Random(4))
    work = RouteWork(graph, A, 16)
    edges = sum(map(len, graph.values()))
    assert work._batch * edges <= route_work.STEP_EDGES
    assert work.is_urgent
    before = len(work.pending)
    work.step()
    assert before - len(work.pending) == work._batch
