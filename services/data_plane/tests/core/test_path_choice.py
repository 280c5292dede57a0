"""Path choice: the order of preference, the memory of broken links, and detours that meet no node twice (I12)."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from mesh_data.core.path_choice import PathChoice
from meshapi.data.v1 import data_pb2
from meshcommon.ids import NodeId

ME, A, B, GOAL = NodeId(1), NodeId(2), NodeId(3), NodeId(9)
HOLD_S = 1.0


def choice(*paths: tuple[int, ...], up: tuple[int, ...] = ()) -> PathChoice:
    made = PathChoice(ME, HOLD_S)
    routes: dict[int, list[data_pb2.Path]] = {}
    for cost, nodes in enumerate(paths):
        routes.setdefault(nodes[-1], []).append(data_pb2.Path(nodes=nodes, cost=cost))
    changed = [data_pb2.Route(destination=goal, paths=listed) for goal, listed in routes.items()]
    assert made.routes.apply(data_pb2.PushRoutesRequest(version=1, changed=changed))
    for peer in up:
        made.set_link(NodeId(peer), True)
    return made


def test_first_path_whose_first_link_is_up() -> None:
    item = choice((1, 2, 9), (1, 3, 9), up=(2, 3))
    assert item.path_to(GOAL, 0.0) == (1, 2, 9)
    assert item.backup_to(GOAL, 0.0) == (1, 3, 9)
    item.set_link(A, False)
    assert item.path_to(GOAL, 0.0) == (1, 3, 9)
    assert item.backup_to(GOAL, 0.0) is None
    item.set_link(B, False)
    assert item.path_to(GOAL, 0.0) is None


def test_direct_link_serves_until_routing_has_computed_anything() -> None:
    assert choice(up=(9,)).path_to(GOAL, 0.0) == (1, 9)
    assert choice().path_to(GOAL, 0.0) is None


def test_broken_link_is_avoided_in_both_directions_for_a_while() -> None:
    for near, far in ((A, GOAL), (GOAL, A)):
        item = choice((1, 2, 9), (1, 3, 9), up=(2, 3))
        item.name_broken(near, far, 5.0)
        assert item.path_to(GOAL, 5.0 + HOLD_S / 2) == (1, 3, 9)
        assert item.path_to(GOAL, 5.0 + HOLD_S) == (1, 2, 9)


def test_broken_path_is_the_last_resort_behind_the_direct_link() -> None:
    item = choice((1, 2, 9), up=(2,))
    item.name_broken(A, GOAL, 0.0)
    assert item.path_to(GOAL, 0.1) == (1, 2, 9)
    item.set_link(GOAL, True)
    assert item.path_to(GOAL, 0.1) == (1, 9)


def test_detour_meets_no_travelled_node_and_no_broken_link() -> None:
    item = choice((1, 2, 9), (1, 3, 9), up=(2, 3))
    assert item.detour(GOAL, frozenset({2}), 0.0) == (1, 3, 9)
    assert item.detour(GOAL, frozenset({2, 3}), 0.0) is None
    item.name_broken(B, GOAL, 0.0)
    assert item.detour(GOAL, frozenset({2}), 0.1) is None
    item.set_link(GOAL, True)
    assert item.detour(GOAL, frozenset({2, 3}), 0.1) == (1, 9)


_MIDDLES = st.lists(st.integers(2, 8), max_size=3, unique=True)


@given(
    st.lists(_MIDDLES, max_size=5),
    st.sets(st.integers(2, 9)),
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)).filter(lambda link: link[0] != link[1]), max_size=4),
    st.sets(st.integers(2, 8)),
)
def test_choice_agrees_with_a_plain_reading_of_the_rules(
    middles: list[list[int]], up: set[int], broken: list[tuple[int, int]], travelled: set[int]
) -> None:
    paths = [(1, *middle, 9) for middle in middles]
    item = choice(*paths, up=tuple(up))
    for near, far in broken:
        item.name_broken(NodeId(near), NodeId(far), 0.0)
    named = {frozenset(link) for link in broken}
    usable = [path for path in paths if path[1] in up]
    whole = [path for path in usable if not any(frozenset(link) in named for link in pairwise(path))]
    direct = [(1, 9)] if 9 in up else []
    assert item.path_to(GOAL, 0.5) == next(iter([*whole, *direct, *usable]), None)
    free = [path for path in whole if not travelled & set(path)]
    assert item.detour(GOAL, frozenset(travelled), 0.5) == next(iter([*free, *direct]), None)
    backup = item.backup_to(GOAL, 0.5)
    assert backup == next((path for path in usable if path != item.path_to(GOAL, 0.5)), None)
