"""Which node is asked: never this one, never one that is out of reach or no member, and each in its turn."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_plane_testing.stream_cluster import STREAM, A, B, C, D, make_view
from mesh_data.core.leader_hints import LeaderHints
from mesh_data.core.view import Stream
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NO_NODE, NodeId


def stream_of() -> Stream:
    return make_view(members=(A, B, C)).streams[STREAM]


def not_leader(leader: str) -> MeshError:
    return MeshError(ErrorCode.NOT_LEADER, "Not here.", {"leader": leader} if leader else {})


def everybody(_node: NodeId) -> bool:
    return True


@given(
    own=st.sampled_from([A, B, D]),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["answered", "lags", "", "1", "2", "3", "4", "0", "-1", "x", "9" * 30, "²"]),
            st.sets(st.sampled_from([A, B, C, D])),
            st.sampled_from([None, NO_NODE, A, B, C]),
        ),
        max_size=30,
    ),
)
def test_only_reachable_members_elsewhere_are_asked_whatever_they_say(
    own: NodeId, steps: list[tuple[str, set[NodeId], NodeId | None]]
) -> None:
    hints, stream = LeaderHints(), stream_of()
    for said, reachable, known_here in steps:
        asked = hints.leader(stream, own, known_here, reachable.__contains__)
        if known_here == own:
            assert asked == own
        else:
            assert asked == NO_NODE or asked in reachable - {own}
            assert asked == NO_NODE or asked in stream.homes().values()
        if known_here is None and not reachable.isdisjoint({A, B, C} - {own}):
            assert asked != NO_NODE, "somebody could be asked"
        if asked == NO_NODE:
            continue
        if said == "answered":
            hints.learn(stream, asked, None)
            assert hints.leader(stream, own, None, everybody) == asked or asked == own
        elif said == "lags":
            hints.pass_over(stream)
        elif hints.learn(stream, asked, not_leader(said)):
            named = hints.leader(stream, NodeId(99), None, everybody)
            assert (str(int(named)), named != asked) == (said, True)


def test_each_member_has_its_turn() -> None:
    hints, stream = LeaderHints(), stream_of()
    asked = []
    for _ in range(4):
        asked.append(hints.leader(stream, D, None, everybody))
        assert not hints.learn(stream, asked[-1], MeshError(ErrorCode.UNAVAILABLE, "Away."))
    assert asked == [A, B, C, A]


def test_an_unreachable_leader_that_the_replica_knows_is_not_replaced_by_a_guess() -> None:
    hints, stream = LeaderHints(), stream_of()
    assert hints.leader(stream, A, B, {C}.__contains__) == NO_NODE
    assert hints.leader(stream, A, NO_NODE, {C}.__contains__) == C


@pytest.mark.parametrize("code", [ErrorCode.UNAVAILABLE, ErrorCode.NO_QUORUM])
def test_only_a_refusal_to_lead_names_a_leader(code: ErrorCode) -> None:
    hints, stream = LeaderHints(), stream_of()
    assert not hints.learn(stream, A, MeshError(code, "…", {"leader": "3"}))
    assert hints.learn(stream, A, not_leader("3"))
