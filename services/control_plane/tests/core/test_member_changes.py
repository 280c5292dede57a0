"""Members of a stream in the catalogue: what a change makes of them, what is refused, and how a membership ends."""

from __future__ import annotations

import pytest

from control_plane_testing.mcg_commands import (
    accept,
    change,
    create,
    delete,
    destroyed,
    formed,
    found,
    grow,
    out,
    reach,
    refusal,
    remove,
    sealed,
    set_state,
)
from mesh_control.core.confirmations import Confirmation, Report, due_confirmations
from mesh_control.core.mcg_state import McgState
from mesh_control.core.model import StreamPhase
from meshcommon.errors import ErrorCode
from meshcommon.ids import MemberId, NodeId, StreamId

STREAM = StreamId(1)


@pytest.fixture
def state() -> McgState:
    """A mesh of a to g (nodes 1 to 7) with an active stream on a, b, c (members 1 to 3)."""
    state = McgState()
    accept(state, found())
    grow(state, "bcdefg")
    accept(state, create("x/y", [1, 2, 3]))
    accept(state, formed(STREAM))
    return state


def members(state: McgState) -> list[tuple[int, int, bool]]:
    return [(item.node_id, item.member_id, item.is_voter) for item in state.streams[STREAM].members]


def retiring(state: McgState) -> list[tuple[int, int, bool]]:
    return [(item.node_id, item.member_id, item.is_out) for item in state.streams[STREAM].retiring]


def test_a_node_is_added_at_the_end(state: McgState) -> None:
    accept(state, change(STREAM, [4]))
    assert members(state) == [(1, 1, True), (2, 2, True), (3, 3, True), (4, 4, True)]
    assert retiring(state) == []
    assert state.streams[STREAM].revision == state.revision


def test_a_newcomer_takes_the_place_of_who_goes(state: McgState) -> None:
    accept(state, change(STREAM, [4], [1]))
    assert members(state) == [(4, 4, True), (2, 2, True), (3, 3, True)]
    assert retiring(state) == [(1, 1, False)]
    assert state.streams[STREAM].retiring[0].revision == state.revision


def test_the_first_five_vote_and_the_sixth_moves_up(state: McgState) -> None:
    accept(state, change(STREAM, [4, 5, 6]))
    assert [voter for _, _, voter in members(state)] == [True] * 5 + [False]
    accept(state, change(STREAM, [], [2]))
    assert (6, 6, True) in members(state)


def test_a_membership_is_renewed_on_its_node_and_repeats_change_nothing(state: McgState) -> None:
    accept(state, change(STREAM, renew=[3]))
    assert members(state) == [(1, 1, True), (2, 2, True), (3, 4, True)]
    assert retiring(state) == [(3, 3, False)]
    revision = state.revision
    accept(state, change(STREAM, renew=[3]))
    assert state.revision == revision


def test_a_membership_ends_step_by_step_and_its_id_is_never_used_again(state: McgState) -> None:
    accept(state, change(STREAM, [4], [3]))
    accept(state, destroyed(STREAM, 3, 3))
    assert retiring(state) == [(3, 3, False)], "nothing is gone before the group runs without it"
    accept(state, out(STREAM, 3))
    assert retiring(state) == [(3, 3, True)]
    accept(state, destroyed(STREAM, 3, 3))
    accept(state, destroyed(STREAM, 3, 3))
    assert retiring(state) == []
    accept(state, change(STREAM, [3]))
    assert members(state)[-1] == (3, 5, True)


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (change(9, [4]), ErrorCode.STREAM_NOT_FOUND),
        (change(STREAM, [99]), ErrorCode.UNKNOWN_NODE),
        (change(STREAM, [4], [5]), ErrorCode.UNKNOWN_NODE),
        (change(STREAM, [1]), ErrorCode.INVALID_ARGUMENT),
        (change(STREAM, [4, 4]), ErrorCode.INVALID_ARGUMENT),
        (change(STREAM, [], [1, 2]), ErrorCode.MEMBER_COUNT),
    ],
)
def test_bad_changes_are_refused(state: McgState, command: object, code: ErrorCode) -> None:
    assert refusal(state, command).code is code  # type: ignore[arg-type]


def test_a_stream_that_forms_or_ends_keeps_its_members(state: McgState) -> None:
    accept(state, create("x/z", [1, 2]))
    assert refusal(state, change(2, [4])).code is ErrorCode.STREAM_NOT_FORMED
    accept(state, delete(STREAM))
    assert refusal(state, change(STREAM, [4])).code is ErrorCode.STREAM_NOT_FOUND


def test_a_node_comes_back_only_when_its_former_membership_has_ended(state: McgState) -> None:
    accept(state, change(STREAM, [4], [3]))
    refused = refusal(state, change(STREAM, [3]))
    assert (refused.code, refused.retryable) == (ErrorCode.MEMBERS_CHANGING, True)
    # A member whose disk is lost may keep the group from ever ending it.
    assert "`meshctl raft ls`" in refused.message
    assert "`meshctl raft recover`" in refused.message


def test_a_change_that_would_leave_no_quorum_in_touch_needs_consent(state: McgState) -> None:
    accept(state, reach(3, False))
    risky = change(STREAM, [], [2])
    refused = refusal(state, risky)
    assert refused.code is ErrorCode.STREAMS_AT_RISK
    assert refused.details["unreachable"] == "3"
    accept(state, change(STREAM, [4], [3]))  # the silent one goes: that is no risk
    accept(state, set_state(4, 2))
    accept(state, change(STREAM, [], [2], risk=True))
    assert [node for node, _, _ in members(state)] == [1, 4]


def test_a_node_leaves_when_no_group_counts_on_it_any_more(state: McgState) -> None:
    assert refusal(state, remove(3)).code is ErrorCode.STREAMS_AT_RISK
    accept(state, change(STREAM, [4], [3]))
    assert refusal(state, remove(3)).code is ErrorCode.STREAMS_AT_RISK
    accept(state, out(STREAM, 3))
    accept(state, remove(3))
    assert retiring(state) == [], "nobody is left to confirm"
    # And a removal that is told after its node has gone leaves nothing behind either.
    accept(state, out(STREAM, 3))
    assert retiring(state) == []


def test_a_deleted_stream_is_sealed_before_it_is_destroyed(state: McgState) -> None:
    accept(state, delete(STREAM))
    assert not state.streams[STREAM].is_sealed
    accept(state, sealed(STREAM))
    accept(state, sealed(STREAM))
    assert state.streams[STREAM].is_sealed
    accept(state, create("x/z", [1, 2]))
    accept(state, delete(2))
    assert state.streams[StreamId(2)].is_sealed, "a group that never formed has acknowledged nothing"


def test_a_deleted_stream_that_lost_its_quorum_for_good_needs_no_seal(state: McgState) -> None:
    accept(state, delete(STREAM))
    accept(state, remove(3))
    assert not state.streams[STREAM].is_sealed
    accept(state, remove(2))
    assert state.streams[STREAM].is_sealed
    accept(state, destroyed(STREAM, 1))
    assert STREAM not in state.streams


def test_the_tombstone_waits_for_former_members_too(state: McgState) -> None:
    accept(state, change(STREAM, [4], [3]))
    accept(state, delete(STREAM))
    for node in (1, 2, 4):
        accept(state, destroyed(STREAM, node))
    assert STREAM in state.streams
    accept(state, destroyed(STREAM, 3))
    assert STREAM not in state.streams


def test_a_snapshot_keeps_who_retires_and_the_seal(state: McgState) -> None:
    accept(state, change(STREAM, [4], [3]))
    accept(state, out(STREAM, 3))
    accept(state, delete(STREAM))
    accept(state, sealed(STREAM))
    restored = McgState()
    restored.restore(state.snapshot())
    assert restored.streams == state.streams


def due(state: McgState, node: int, report: Report) -> list[Confirmation]:
    return due_confirmations(state.streams.values(), {STREAM: report}, NodeId(node))


def test_what_replicas_say_becomes_confirmations(state: McgState) -> None:
    accept(state, change(STREAM, [4], [3]))
    leader = Report("open", NodeId(1), member_id=MemberId(1), members_out=(MemberId(3),))
    assert due(state, 1, leader) == [Confirmation("out", STREAM, MemberId(3))]
    former = Report("open", NodeId(1), member_id=MemberId(3))
    assert due(state, 3, former) == []
    accept(state, out(STREAM, 3))
    assert due(state, 1, leader) == []
    assert due(state, 3, former) == []
    gone = Confirmation("destroyed", STREAM, MemberId(3))
    assert due(state, 3, Report("destroyed", NodeId(0))) == [gone]
    assert due(state, 3, Report("open", NodeId(1), member_id=MemberId(8))) == [gone]


def test_a_distrusted_membership_is_renewed_once(state: McgState) -> None:
    lost = Report("other", NodeId(0), "lost some", MemberId(3), is_distrusted=True)
    assert due(state, 3, lost) == [Confirmation("renew", STREAM, MemberId(3))]
    accept(state, change(STREAM, renew=[3]))
    assert due(state, 3, lost) == []


def test_the_seal_is_reported_once(state: McgState) -> None:
    report = Report("sealed", NodeId(1), member_id=MemberId(1))
    assert due(state, 1, report) == []
    accept(state, delete(STREAM))
    assert due(state, 1, report) == [Confirmation("sealed", STREAM)]
    accept(state, sealed(STREAM))
    assert due(state, 1, report) == []
    assert state.streams[STREAM].state is StreamPhase.DELETING
