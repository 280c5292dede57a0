"""The single next step from the MCG's Raft configuration to the one that the membership asks for.

How many vote: 1 of fewer than three running nodes, 3 of three or four, 5 of five or six, 7 of more. Between two steps
the number may be even. Nodes that were stopped, or are about to stop or leave (`departing`), do not vote as long as
another can. Silence alone takes no vote away. Leaves out: choosing voters for spread and path quality.
Source: architecture §7 "MCG"; Ongaro's thesis §4.1 (single-server changes).
"""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from mesh_control.core.model import Node, NodeState
from meshcommon.ids import MemberId, NodeId


@dataclass(frozen=True, slots=True)
class Configuration:
    """The Raft configuration as the leader sees it.

    Attributes:
        voters: members that vote.
        learners: members that only learn.
        leader: the leader's member.
        caught_up: members that hold nearly all of the log, know an entry of this leader's term to be committed (before that
            one that began blank may not vote) and were heard within an election timeout; only such a one is promoted or
            given the leadership.
    """

    voters: frozenset[MemberId]
    learners: frozenset[MemberId]
    leader: MemberId
    caught_up: frozenset[MemberId]


@dataclass(frozen=True, slots=True)
class ConfChange:
    """A single-step change: "add_voter", "add_learner" (also demotes) or "remove"."""

    change: str
    member: MemberId
    node_id: NodeId


@dataclass(frozen=True, slots=True)
class Transfer:
    """The leadership should go to `member`."""

    member: MemberId


def voter_count(running: int) -> int:
    """How many of `running` nodes vote."""
    if running < 3:
        return min(running, 1)
    return min((running + 1) // 2 * 2 - 1, 7)


def wanted_voters(
    nodes: Collection[Node], departing: AbstractSet[NodeId], current: AbstractSet[MemberId], leader: MemberId
) -> frozenset[MemberId]:
    """Members that should vote.

    The leader first, then present voters: a change is as small as possible, and the leadership moves only when it must.
    """
    running = [node for node in nodes if node.state is NodeState.ACTIVE]
    staying = [node for node in running if node.node_id not in departing]
    candidates = staying or running or list(nodes)
    candidates.sort(
        key=lambda node: (
            node.mcg_member != leader,
            node.mcg_member not in current,
            not node.is_reachable,
            node.mcg_member,
        )
    )
    return frozenset(node.mcg_member for node in candidates[: voter_count(len(candidates))])


def next_step(
    nodes: Collection[Node], departing: AbstractSet[NodeId], raft: Configuration
) -> ConfChange | Transfer | None:
    """What the leader should do next, None when the configuration is as it should be.

    Order: strangers out and newcomers in as learners; then votes are given before any is taken, as far as the new voters
    have caught up, so that the quorum rests on as many nodes as it can.
    """
    members = {node.mcg_member: node for node in nodes}
    present = raft.voters | raft.learners
    for member in sorted(raft.learners - members.keys()):
        return ConfChange("remove", member, NodeId(0))
    for member in sorted(members.keys() - present):
        return ConfChange("add_learner", member, members[member].node_id)
    wanted = wanted_voters(nodes, departing, raft.voters & members.keys(), raft.leader)
    for member in sorted(wanted - raft.voters):
        if member in raft.caught_up:
            return ConfChange("add_voter", member, members[member].node_id)
    return _take_a_vote(raft, wanted, members)


def _take_a_vote(
    raft: Configuration, wanted: frozenset[MemberId], members: dict[MemberId, Node]
) -> ConfChange | Transfer | None:
    keepers = raft.voters & wanted
    if not keepers:
        return None
    for member in sorted(raft.voters - wanted - {raft.leader}):
        node = members.get(member)
        return ConfChange("add_learner", member, node.node_id) if node else ConfChange("remove", member, NodeId(0))
    if raft.leader not in wanted:
        ready = sorted(keepers & raft.caught_up)
        return Transfer(ready[0]) if ready else None
    return None
