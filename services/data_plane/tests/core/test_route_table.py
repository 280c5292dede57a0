"""The route table: versioned differences, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh_data.core.route_table import RouteTable
from meshapi.data.v1 import data_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId
from meshwire.packet import MAX_ROUTE_NODES

ME = NodeId(1)


def route(*paths: list[int]) -> data_pb2.Route:
    return data_pb2.Route(destination=paths[0][-1], paths=[data_pb2.Path(nodes=path, cost=len(path)) for path in paths])


def push(
    base: int, version: int, changed: list[data_pb2.Route] | None = None, removed: list[int] | None = None
) -> data_pb2.PushRoutesRequest:
    return data_pb2.PushRoutesRequest(base_version=base, version=version, changed=changed or [], removed=removed or [])


def test_difference_changes_and_removes() -> None:
    table = RouteTable(ME)
    assert table.apply(push(0, 5, [route([1, 2]), route([1, 2, 3], [1, 3])]))
    assert table.apply(push(5, 6, [route([1, 3])], [2]))
    assert table.version == 6
    assert table.paths(NodeId(2)) == ()
    assert [path.nodes for path in table.paths(NodeId(3))] == [(1, 3)]


def test_difference_from_another_version_is_refused_whole() -> None:
    table = RouteTable(ME)
    table.apply(push(0, 5, [route([1, 2])]))
    assert not table.apply(push(4, 6, [route([1, 3])]))
    assert table.version == 5
    assert table.paths(NodeId(3)) == ()


def test_whole_table_replaces_everything() -> None:
    table = RouteTable(ME)
    table.apply(push(0, 5, [route([1, 2])]))
    table.apply(push(0, 2, [route([1, 3])]))
    assert list(table.destinations()) == [3]
    assert table.version == 2


@pytest.mark.parametrize("nodes", [[2, 3], [1, 2, 1, 3], [1], [1, 0, 3]])
def test_path_that_is_none_is_refused_and_changes_nothing(nodes: list[int]) -> None:
    table = RouteTable(ME)
    table.apply(push(0, 5, [route([1, 2])]))
    bad = data_pb2.Route(destination=3, paths=[data_pb2.Path(nodes=nodes)])
    with pytest.raises(MeshError) as refusal:
        table.apply(push(5, 6, [route([1, 4]), bad]))
    assert refusal.value.code is ErrorCode.INVALID_ARGUMENT
    assert table.version == 5
    assert table.paths(NodeId(4)) == ()


def test_path_too_long_for_a_packet_is_left_out() -> None:
    table = RouteTable(ME)
    long = [1, *range(10, 10 + MAX_ROUTE_NODES), 3]
    table.apply(
        push(0, 1, [data_pb2.Route(destination=3, paths=[data_pb2.Path(nodes=long), data_pb2.Path(nodes=[1, 3])])])
    )
    assert [path.nodes for path in table.paths(NodeId(3))] == [(1, 3)]


@given(st.lists(st.tuples(st.sets(st.integers(2, 9)), st.sets(st.integers(2, 9))), max_size=8))
def test_differences_add_up_to_the_whole_table(steps: list[tuple[set[int], set[int]]]) -> None:
    table = RouteTable(ME)
    oracle: dict[int, int] = {}
    for number, (changed, removed) in enumerate(steps, 1):
        routes = [route([1, 100 + number, destination]) for destination in changed]
        assert table.apply(push(number - 1, number, routes, sorted(removed)))
        if number == 1:
            oracle.clear()
        oracle.update(dict.fromkeys(changed, 100 + number))
        for destination in removed:
            oracle.pop(destination, None)
    again = RouteTable(ME)
    if steps:
        assert again.apply(data_pb2.PushRoutesRequest.FromString(table.whole().SerializeToString()))
    assert {d: again.paths(d)[0].nodes[1] for d in again.destinations()} == oracle
    assert again.version == table.version
