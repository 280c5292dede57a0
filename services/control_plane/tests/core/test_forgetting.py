"""Forgetting a lost node: what is refused, what becomes of its streams, and that its name is free."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane_testing.mcg_commands import (
    accept,
    add,
    change,
    create,
    delete,
    destroyed,
    forget,
    formed,
    found,
    grow,
    out,
    reach,
    refusal,
    set_state,
)
from mesh_control.core.mcg_state import McgState
from mesh_control.core.model import MeshStatus, NodeState, StreamPhase
from meshcommon.errors import ErrorCode
from meshcommon.ids import NodeId, StreamId

STREAM = StreamId(1)


def health(state: McgState) -> MeshStatus:
    return state.status


@pytest.fixture
def state() -> McgState:
    """A mesh of a to e with an active stream on a, b, c (members 1 to 3); c is lost."""
    state = McgState()
    accept(state, found())
    grow(state, "bcde")
    accept(state, create("x/y", [1, 2, 3]))
    accept(state, formed(STREAM))
    accept(state, reach(3, False))
    return state


def members(state: McgState, stream: StreamId = STREAM) -> list[tuple[int, bool]]:
    return [(item.node_id, item.is_voter) for item in state.streams[stream].members]


def test_lost_node_goes_with_its_places_and_its_name_is_free(state: McgState) -> None:
    error = refusal(state, add("c", 9))
    assert error.code is ErrorCode.NAME_TAKEN
    assert "`meshctl node forget c`" in error.message
    accept(state, forget(3))
    assert health(state) is MeshStatus.HEALTHY
    assert members(state) == [(1, True), (2, True)]
    assert [(item.node_id, item.is_out) for item in state.streams[STREAM].retiring] == [(3, False)]
    # The group's leader takes it out; nobody will confirm that its data are gone.
    accept(state, out(STREAM, 3))
    assert state.streams[STREAM].retiring == ()
    assert accept(state, add("c", 9)) == 6
    assert refusal(state, forget(3)).code is ErrorCode.UNKNOWN_NODE


def test_node_that_is_heard_is_not_forgotten(state: McgState) -> None:
    error = refusal(state, forget(2))
    assert error.code is ErrorCode.NODE_IS_HEARD
    accept(state, set_state(4, NodeState.STOPPED))
    accept(state, forget(4))
    accept(state, add("x", 9))
    accept(state, forget(6))


def test_last_node_is_not_forgotten() -> None:
    state = McgState()
    accept(state, found())
    assert refusal(state, forget(1, risk=True)).code is ErrorCode.LAST_NODE


def test_stream_that_would_lose_its_quorum_is_at_risk(state: McgState) -> None:
    pair = StreamId(accept(state, create("x/pair", [1, 3])))
    accept(state, formed(pair))
    forming = StreamId(accept(state, create("x/forming", [1, 2, 3])))
    error = refusal(state, forget(3))
    assert (error.code, error.details["streams"]) == (ErrorCode.STREAMS_AT_RISK, "x/forming,x/pair")
    accept(state, forget(3, risk=True))
    assert members(state, pair) == [(1, True)]
    assert state.streams[forming].state is StreamPhase.DELETING
    assert state.streams[forming].is_sealed
    # The pair takes nothing any more; its end needs no quorum.
    accept(state, delete(pair))
    assert state.streams[pair].is_sealed
    accept(state, destroyed(pair, 1))
    assert pair not in state.streams


def test_who_retires_may_still_vote(state: McgState) -> None:
    """Node d is to take the place of c, but the group of a, b, c has not got so far: without b and c it never will."""
    accept(state, change(STREAM, add=[4], remove=[3]))
    accept(state, reach(2, False))
    assert refusal(state, forget(2)).code is ErrorCode.STREAMS_AT_RISK
    # Without c alone a and b are a quorum, which takes it out.
    accept(state, reach(2, True))
    accept(state, forget(3))
    accept(state, out(STREAM, 3))
    accept(state, reach(2, False))
    accept(state, forget(2))


def test_two_of_three_lost_is_a_risk(state: McgState) -> None:
    accept(state, reach(2, False))
    assert refusal(state, forget(3)).code is ErrorCode.STREAMS_AT_RISK


def test_streams_of_which_it_holds_the_only_copy_end(state: McgState) -> None:
    pair = StreamId(accept(state, create("x/pair", [3, 4])))
    accept(state, formed(pair))
    accept(state, reach(4, False))
    for node_id in (3, 4):
        accept(state, forget(node_id, risk=True))
    assert pair not in state.streams


def test_learner_moves_up_and_a_lost_learner_is_no_risk() -> None:
    state = McgState()
    accept(state, found())
    grow(state, "bcdefg")
    accept(state, create("x/y", list(range(1, 8))))
    accept(state, formed(STREAM))
    for node_id in (2, 7):
        accept(state, reach(node_id, False))
        accept(state, forget(node_id))
    assert members(state) == [(number, True) for number in (1, 3, 4, 5, 6)]


def test_critical_mesh_forgets(state: McgState) -> None:
    for node_id in (4, 5):
        accept(state, reach(node_id, False))
    assert health(state) is MeshStatus.CRITICAL
    error = refusal(state, create("x/z", [1, 2]))
    assert "`meshctl node forget NAME`" in error.message
    for node_id in (3, 4, 5):
        accept(state, forget(node_id))
    assert health(state) is MeshStatus.HEALTHY
    accept(state, create("x/z", [1, 2]))


@given(st.lists(st.tuples(st.sampled_from(["reach", "forget", "risk", "delete", "change"]), st.integers(1, 5))))
def test_a_stream_without_consent_keeps_its_quorum(steps: list[tuple[str, int]]) -> None:
    """Whatever is forgotten without accepting the risk, each stream keeps a majority of its voters in the mesh."""
    state = McgState()
    accept(state, found())
    grow(state, "bcde")
    for number, node_ids in enumerate(([1, 2, 3], [2, 3, 4, 5], [1, 5]), 1):
        accept(state, create(f"x/s{number}", node_ids))
        accept(state, formed(number))
    for step, number in steps:
        stream = state.streams.get(StreamId(number))
        command = {
            "reach": reach(number, number in state.nodes and not state.nodes[NodeId(number)].is_reachable),
            "forget": forget(number),
            "risk": forget(number, risk=True),
            "delete": delete(number),
            "change": change(number, remove=[stream.members[0].node_id] if stream and stream.members else [1]),
        }[step]
        before = dict(state.streams)
        result = state.apply(state.applied_index + 1, command)
        if step != "forget" or result.refusal is not None:
            continue
        for stream_id, earlier in before.items():
            voters = [item.node_id for item in earlier.members if item.is_voter]
            left = sum(node_id in state.nodes for node_id in voters)
            was_affected = number in voters and earlier.state is not StreamPhase.DELETING
            assert not was_affected or 2 * left > len(voters), "quorum lost without consent"
            assert stream_id in state.streams or not was_affected
        restored = McgState()
        restored.restore(state.snapshot())
        assert restored.digest() == state.digest()
