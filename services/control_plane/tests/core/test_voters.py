"""Who votes in the control group, and the single steps towards it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh_control.core.model import Node, NodeState
from mesh_control.core.voters import next_step, voter_count, wanted_voters
from meshcommon.ids import MemberId, NodeId
from meshraft.configuration import ConfChange, Configuration, Transfer


def node(number: int, state: NodeState = NodeState.ACTIVE, is_reachable: bool = True) -> Node:
    return Node(NodeId(number), f"n{number}", bytes([number]) * 32, "", MemberId(number), state, is_reachable)


def members(*numbers: int) -> frozenset[int]:
    return frozenset(numbers)


def raft(
    voters: frozenset[int], learners: frozenset[int] = frozenset(), leader: int = 1, lagging: int = 0
) -> Configuration:
    present = voters | learners
    return Configuration(leader, voters, learners, present, present - {lagging}, is_witnessed=True)


def in_touch(voters: frozenset[int], learners: frozenset[int], present: frozenset[int]) -> Configuration:
    return Configuration(1, voters, learners, present, present, is_witnessed=True)


@pytest.mark.parametrize(
    ("running", "expected"), [(0, 0), (1, 1), (2, 1), (3, 3), (4, 3), (5, 5), (6, 5), (7, 7), (8, 7), (30, 7)]
)
def test_number_of_voters(running: int, expected: int) -> None:
    assert voter_count(running) == expected


def test_newcomer_learns_first_and_votes_when_it_has_caught_up() -> None:
    nodes = [node(1), node(2), node(3)]
    assert next_step(nodes, set(), raft(members(1), members(2))) == ConfChange("add_learner", 3, 3)
    assert next_step(nodes, set(), raft(members(1), members(2, 3), lagging=2)) == ConfChange(
        "add_voter", MemberId(3), NodeId(3)
    )
    assert next_step(nodes, set(), raft(members(1, 3), members(2), lagging=2)) is None


def test_member_that_is_no_node_is_removed() -> None:
    assert next_step([node(1)], set(), raft(members(1), members(2))) == ConfChange("remove", 2, 0)
    assert next_step([node(1)], set(), raft(members(1, 2))) == ConfChange("remove", 2, 0)


def test_departing_leader_gives_a_vote_and_then_the_leadership_away() -> None:
    nodes, leaves = [node(1), node(2)], {NodeId(1)}
    assert next_step(nodes, leaves, raft(members(1), members(2))) == ConfChange("add_voter", 2, 2)
    assert next_step(nodes, leaves, raft(members(1, 2))) == Transfer(2)
    assert next_step(nodes, leaves, raft(members(1, 2), leader=2)) == ConfChange("add_learner", 1, 1)
    assert next_step(nodes, leaves, raft(members(2), members(1), leader=2)) is None


def test_leadership_waits_for_an_heir_that_has_caught_up() -> None:
    assert next_step([node(1), node(2)], {NodeId(1)}, raft(members(1, 2), lagging=2)) is None


def test_stopped_nodes_do_not_vote_unless_all_are_stopped() -> None:
    stopped = NodeState.STOPPED
    assert wanted_voters([node(1, stopped), node(2), node(3)], set(), members(1, 2, 3), MemberId(2)) == members(2)
    assert wanted_voters([node(1, stopped), node(2, stopped)], set(), members(1), MemberId(1)) == members(1)


def test_silence_takes_no_vote_away() -> None:
    nodes = [node(1), node(2, is_reachable=False), node(3), node(4)]
    assert wanted_voters(nodes, set(), members(1, 2, 3), MemberId(1)) == members(1, 2, 3)


def test_leader_keeps_its_vote_when_fewer_vote() -> None:
    """Else the leadership would go back to a node that has just handed it over in order to leave."""
    nodes = [node(1), node(2)]
    assert next_step(nodes, set(), raft(members(1, 2), leader=2)) == ConfChange("add_learner", 1, 1)


def test_reachable_nodes_are_preferred_for_a_new_vote() -> None:
    nodes = [node(1), node(2, is_reachable=False), node(3), node(4)]
    assert wanted_voters(nodes, set(), members(1), MemberId(1)) == members(1, 3, 4)


def test_only_node_keeps_its_vote_when_it_departs() -> None:
    assert next_step([node(1)], {NodeId(1)}, raft(members(1))) is None


@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=9),
    st.sets(st.integers(1, 9)),
    st.sets(st.integers(1, 12), min_size=1, max_size=7),
    st.sets(st.integers(1, 12), max_size=7),
)
def test_steps_end_at_the_wanted_configuration(
    shapes: list[tuple[bool, bool]], leaving: set[int], voting: set[int], learning: set[int]
) -> None:
    """Whatever the start: one member at a time, never without a voter, the leader never removes itself, and it ends."""
    nodes = [
        node(number, NodeState.ACTIVE if is_active else NodeState.STOPPED, is_reachable)
        for number, (is_active, is_reachable) in enumerate(shapes, 1)
    ]
    departing = {NodeId(number) for number in leaving}
    voters, learners, leader = set(members(*voting)), set(members(*learning - voting)), min(voting)
    for _ in range(60):
        step = next_step(nodes, departing, raft(frozenset(voters), frozenset(learners), leader))
        if step is None:
            break
        if isinstance(step, Transfer):
            assert step.member in voters
            leader = step.member
            continue
        before = len(voters)
        voters.discard(step.member)
        learners.discard(step.member)
        if step.change == "add_voter":
            voters.add(step.member)
        elif step.change == "add_learner":
            learners.add(step.member)
        assert abs(len(voters) - before) <= 1
        assert leader in voters
    else:
        raise AssertionError("the steps do not end")
    known = {item.mcg_member for item in nodes}
    assert learners <= known
    assert voters | learners >= known
    assert len(voters) % 2 == 1


def test_silent_voter_gives_up_its_vote_before_a_live_one() -> None:
    """With votes left to the leader and the lost node, the group could never commit again."""
    nodes = [node(1), node(2), node(3, is_reachable=False)]
    lost = raft(members(1, 2, 3), lagging=3)
    assert next_step(nodes, {NodeId(3)}, lost) == ConfChange("add_learner", 3, 3)
    after = raft(members(1, 2), members(3), lagging=3)
    assert next_step(nodes, {NodeId(3)}, after) == ConfChange("add_learner", 2, 2)


def test_no_vote_is_taken_that_leaves_too_few_who_are_heard() -> None:
    nodes = [node(1), node(2), node(3)]
    two_lost = in_touch(members(1, 2, 3), frozenset(), members(1, 2))
    assert next_step(nodes[:2], set(), two_lost) == ConfChange("remove", 3, 0)
    only_leader = in_touch(members(1, 2), members(3), members(1))
    assert next_step(nodes[:2], set(), only_leader) == ConfChange("remove", 3, 0)
    blocked = in_touch(members(1, 2, 3, 4, 5), frozenset(), members(1, 5))
    assert next_step([node(1), node(5)], set(), blocked) is None
