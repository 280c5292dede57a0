"""The single next step from the MCG's Raft configuration to the one that the membership asks for.

How many vote: 1 of fewer than three running nodes, 3 of three or four, 5 of five or six, 7 of more. Between two steps
the number may be even. Nodes that were stopped, or are about to stop or leave (`departing`), do not vote as long as
another can. Silence alone takes no vote away. Leaves out: choosing voters for spread and path quality.
Source: architecture §7 "MCG"; Ongaro's thesis §4.1 (single-server changes).
"""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Set as AbstractSet

from mesh_control.core.model import Node, NodeState
from meshcommon.ids import MemberId, NodeId
from meshraft.configuration import ConfChange, Configuration, Transfer


def voter_count(running: int) -> int:
    """How many of `running` nodes vote."""
    if running < 3:
        return min(running, 1)
    return min((running + 1) // 2 * 2 - 1, 7)


def wanted_voters(
    nodes: Collection[Node], departing: AbstractSet[NodeId], current: AbstractSet[int], leader: int
) -> frozenset[MemberId]:
    """Members that should vote.

    The leader first, then present voters: a change is as small as possible, and the leadership moves only when it must.
    """
    running = [node for node in nodes if node.state is NodeState.ACTIVE]
    staying = [node for node in running if node.node_id not in departing]
    # Who has not been heard yet is no candidate, even when all others are stopped.
    candidates = staying or running or [node for node in nodes if node.state is not NodeState.JOINING]
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
    have caught up, so that the quorum rests on as many nodes as it can. No vote is taken that leaves too few who are heard.
    """
    members: dict[int, Node] = {node.mcg_member: node for node in nodes}
    present = raft.voters | raft.learners
    for member in sorted(raft.learners - members.keys()):
        return ConfChange("remove", member, NodeId(0))
    for member in sorted(members.keys() - present):
        return ConfChange("add_learner", member, members[member].node_id)
    wanted = wanted_voters(nodes, departing, raft.voters & members.keys(), raft.own)
    for member in sorted(wanted - raft.voters):
        if member in raft.caught_up:
            return ConfChange("add_voter", member, members[member].node_id)
    return _take_a_vote(raft, wanted, members)


def _take_a_vote(
    raft: Configuration, wanted: frozenset[MemberId], members: dict[int, Node]
) -> ConfChange | Transfer | None:
    keepers = raft.voters & wanted
    if not keepers:
        return None
    # Silent voters first: to take a live one's vote while a lost one keeps its own can end the group for good.
    surplus = sorted(raft.voters - wanted - {raft.own}, key=lambda member: (member in raft.caught_up, member))
    for member in surplus:
        left = raft.voters - {member}
        if 2 * len(left & raft.caught_up) <= len(left):
            continue
        node = members.get(member)
        return ConfChange("add_learner", member, node.node_id) if node else ConfChange("remove", member, NodeId(0))
    if raft.own not in wanted:
        ready = sorted(keepers & raft.caught_up)
        return Transfer(ready[0]) if ready else None
    return None
