"""Health, reachability, confirmations and timing: the small decisions."""

from __future__ import annotations

import pytest

from mesh_control.core.confirmations import Confirmation, Report, due_confirmations
from mesh_control.core.model import Member, MeshStatus, Node, NodeState, Stream, StreamPhase
from mesh_control.core.reachability import Reachability
from mesh_control.core.rows import NO_ROWS, difference
from mesh_control.core.status import mesh_status
from mesh_control.core.timing import TIMINGS
from meshcommon.ids import MemberId, NodeId, StreamId


def node(number: int, *, up: bool = True, state: NodeState = NodeState.ACTIVE) -> Node:
    return Node(NodeId(number), f"n{number}", bytes([number]) * 32, "", MemberId(number), state, up)


def stream(state: StreamPhase, destroyed: frozenset[NodeId] = frozenset()) -> Stream:
    members = (Member(NodeId(1), MemberId(1), True), Member(NodeId(2), MemberId(2), True))
    return Stream(StreamId(5), "x/y", members, state, 1, 1, 1, destroyed)


@pytest.mark.parametrize(
    ("up", "down", "expected"),
    [
        (1, 0, MeshStatus.HEALTHY),
        (2, 1, MeshStatus.DEGRADED),
        (1, 1, MeshStatus.CRITICAL),
        (2, 2, MeshStatus.CRITICAL),
        (3, 2, MeshStatus.DEGRADED),
        (0, 1, MeshStatus.CRITICAL),
        (0, 0, MeshStatus.HEALTHY),
    ],
)
def test_half_or_more_unreachable_is_critical(up: int, down: int, expected: MeshStatus) -> None:
    """Architecture §10."""
    nodes = [node(number, up=number <= up) for number in range(1, up + down + 1)]
    stopped = [node(100 + number, up=False, state=NodeState.STOPPED) for number in range(5)]
    assert mesh_status(nodes + stopped) is expected


def test_silence_counts_from_the_start_of_the_leadership() -> None:
    reachability = Reachability(limit_ticks=60)
    nodes, quiet = [node(1), node(2), node(3)], {NodeId(1): 0, NodeId(2): 500}
    assert reachability.changes(nodes, quiet, NodeId(1), term=3, now_ticks=500) == []
    assert reachability.changes(nodes, quiet, NodeId(1), term=3, now_ticks=560) == []
    assert reachability.changes(nodes, quiet, NodeId(1), term=3, now_ticks=561) == [(NodeId(2), False)]
    assert reachability.changes(nodes, quiet, NodeId(1), term=4, now_ticks=600) == []


def test_node_at_the_edge_does_not_flap() -> None:
    reachability = Reachability(limit_ticks=60)
    nodes = [node(1, up=False), node(2, up=False)]
    assert reachability.changes(nodes, {NodeId(2): 21}, NodeId(1), 1, 0) == [(NodeId(1), True)]
    assert reachability.changes(nodes, {NodeId(2): 20}, NodeId(1), 1, 0) == [(NodeId(1), True), (NodeId(2), True)]


@pytest.mark.parametrize(
    ("item", "state", "expected"),
    [
        (stream(StreamPhase.FORMING), "open", [Confirmation("formed", StreamId(5))]),
        (stream(StreamPhase.FORMING), "other", []),
        (stream(StreamPhase.ACTIVE), "open", []),
        (stream(StreamPhase.ACTIVE), "destroyed", []),
        (stream(StreamPhase.DELETING), "open", []),
        (stream(StreamPhase.DELETING), "destroyed", [Confirmation("destroyed", StreamId(5))]),
        (stream(StreamPhase.DELETING, frozenset({NodeId(1)})), "destroyed", []),
    ],
)
def test_births_and_deaths_are_confirmed_once(item: Stream, state: str, expected: list[Confirmation]) -> None:
    reports = {StreamId(5): Report(state, NodeId(1))}
    assert due_confirmations([item], reports, NodeId(1)) == expected
    assert due_confirmations([item], reports, NodeId(3)) == []
    assert due_confirmations([item], {}, NodeId(1)) == []


def test_difference_names_what_changed() -> None:
    before = {1: {"x": 1}, 2: {"x": 2}, 3: {"x": 3}}
    after = {1: {"x": 1}, 2: {"x": 9}, 4: {"x": 4}}
    change = difference(before, after)
    assert (change.put, change.remove) == ([{"x": 9}, {"x": 4}], [3])
    assert difference(NO_ROWS, before).put == [{"x": 1}, {"x": 2}, {"x": 3}]


@pytest.mark.parametrize("preset", ["lan", "wan", "test"])
def test_presets_keep_raft_sane(preset: str) -> None:
    timing = TIMINGS[preset]
    assert timing.election_ticks >= 10 * timing.heartbeat_ticks
    assert timing.unreachable_after_ticks > timing.election_ticks
    assert timing.proposal_deadline_s > 2 * timing.leader_lost_ticks * timing.tick_s / 2
