"""Differences between tables lead from any one to any other."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh_routing.core.route_table import Path, Route, RouteDifference, RouteTable, difference
from meshcommon.ids import NodeId

paths = st.builds(lambda relay, cost: Path((NodeId(1), NodeId(relay)), cost), st.integers(2, 5), st.integers(1, 3))
tables = st.dictionaries(st.integers(2, 8).map(NodeId), st.lists(paths, min_size=1, max_size=2).map(tuple)).map(
    lambda routes: {destination: Route(destination, found) for destination, found in routes.items()}
)


def apply(routes: dict[NodeId, Route], change: RouteDifference) -> dict[NodeId, Route]:
    """What a data plane does."""
    result = {} if not change.base_version else dict(routes)
    result.update({route.destination: route for route in change.changed})
    for destination in change.removed:
        del result[destination]
    return result


@given(st.lists(tables, min_size=1, max_size=6))
def test_differences_applied_in_turn_equal_the_whole_table(history: list[dict[NodeId, Route]]) -> None:
    held: dict[NodeId, Route] = {NodeId(99): Route(NodeId(99), ())}
    base: RouteTable | None = None
    for version, routes in enumerate(history, 1):
        target = RouteTable(version, routes)
        change = difference(base, target)
        assert (change.base_version, change.version) == (version - 1, version)
        held = apply(held, change)
        assert held == routes
        base = target


@given(tables, tables)
def test_difference_names_only_what_differs(before: dict[NodeId, Route], after: dict[NodeId, Route]) -> None:
    change = difference(RouteTable(3, before), RouteTable(7, after))
    assert (change.base_version, change.version) == (3, 7)
    assert all(before.get(route.destination) != route for route in change.changed)
    assert not {route.destination for route in change.changed} & set(change.removed)
    assert set(change.removed) == set(before) - set(after)
