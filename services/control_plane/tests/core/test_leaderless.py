"""The status tells of streams that have been without a leader for longer than an election, and of no other."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from control_plane_testing.mcg_commands import accept, change, create, delete, formed, found, grow, out
from mesh_control.core.confirmations import Report
from mesh_control.core.leaderless import NAMED_MAX, LeaderlessStreams
from mesh_control.core.mcg_state import McgState
from meshcommon.ids import MemberId, NodeId, StreamId

STREAM = StreamId(1)
AFTER_S = 10.0
NOON = datetime(2026, 1, 2, 12, 0, 0, tzinfo=UTC)
TOLD = (
    "Stream 'x/y' has had no leader since 2026-01-02 12:00:05 UTC, as far as this node knows: nothing can be published or "
    "read exactly. `meshctl raft ls` says whom it waits for; `meshctl raft recover x/y --survivor NODE` is the way out "
    "when a member is lost for good."
)


@pytest.fixture
def state() -> McgState:
    """A mesh of a to d (nodes 1 to 4) with an active stream on a and b (members 1 and 2)."""
    state = McgState()
    accept(state, found())
    grow(state, "bcd")
    accept(state, create("x/y", [1, 2]))
    accept(state, formed(STREAM))
    return state


class Seen:
    """What node a hears of its replicas, and tells."""

    def __init__(self, state: McgState) -> None:
        self.state = state
        self.leaderless = LeaderlessStreams(AFTER_S)

    def report(self, at_s: float, *, leader: int = 0, state: str = "open", member: int = 1) -> None:
        report = Report(state, NodeId(leader), member_id=MemberId(member))
        self.receive(at_s, {STREAM: report})

    def receive(self, at_s: float, reports: dict[StreamId, Report]) -> None:
        self.leaderless.receive(reports, at_s, NOON + timedelta(seconds=at_s))

    def warnings(self, at_s: float) -> list[str]:
        return self.leaderless.warnings(self.state.streams.values(), at_s)


@pytest.fixture
def seen(state: McgState) -> Seen:
    return Seen(state)


def test_a_stream_that_stays_without_a_leader_is_told_with_the_way_out(seen: Seen) -> None:
    seen.report(0, leader=2)
    seen.report(5)
    seen.report(9)
    assert seen.warnings(14.9) == []
    assert seen.warnings(15) == [TOLD]


def test_it_goes_away_with_a_leader_and_begins_anew(seen: Seen) -> None:
    seen.report(0)
    seen.report(20, leader=1)
    assert seen.warnings(20) == []
    seen.report(21)
    assert seen.warnings(30) == []
    assert len(seen.warnings(31)) == 1


def test_a_group_that_has_a_leader_is_not_told_however_long_it_sleeps(seen: Seen) -> None:
    seen.report(0, leader=2)
    assert seen.warnings(100_000) == []


@pytest.mark.parametrize("replica", ["other", "destroyed", "sealed"])
def test_a_replica_that_cannot_know_or_takes_nothing_more_says_nothing(seen: Seen, replica: str) -> None:
    seen.report(0, state=replica)
    assert seen.warnings(100) == []


def test_nothing_is_told_while_the_data_plane_is_away(seen: Seen) -> None:
    seen.report(0)
    seen.receive(20, {})
    assert seen.warnings(100) == []


def test_a_third_member_that_is_wished_changes_nothing(seen: Seen) -> None:
    seen.report(5)
    accept(seen.state, change(STREAM, [3]))
    assert seen.warnings(15) == [TOLD]


def test_a_membership_that_ends_counts_until_the_group_has_taken_it_out(seen: Seen) -> None:
    seen.report(5)
    accept(seen.state, change(STREAM, [3], [1]))
    assert seen.warnings(15) == [TOLD]
    accept(seen.state, out(STREAM, 1))
    assert seen.warnings(15) == []


def test_another_membership_of_the_node_waits_anew(seen: Seen) -> None:
    seen.report(0)
    seen.report(20, member=2)
    assert seen.warnings(29) == []
    assert len(seen.warnings(30)) == 1


def test_a_stream_that_is_being_deleted_is_not_told(seen: Seen) -> None:
    seen.report(0)
    accept(seen.state, delete(STREAM))
    assert seen.warnings(100) == []


def test_many_streams_are_counted(state: McgState) -> None:
    seen = Seen(state)
    for number in range(NAMED_MAX + 4):
        accept(state, create(f"many/{number:02}", [1, 2]))
    lost = {
        item.stream_id: Report("open", NodeId(0), member_id=item.members[0].member_id)
        for item in state.streams.values()
    }
    seen.receive(0, lost)
    warnings = seen.warnings(AFTER_S)
    assert [warning.split("'")[1] for warning in warnings[:-1]] == [f"many/{number:02}" for number in range(NAMED_MAX)]
    assert warnings[-1] == "5 more streams have no leader either: `meshctl raft ls` names them."
