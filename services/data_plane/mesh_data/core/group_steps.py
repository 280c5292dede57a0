"""The next single step from a stream group's Raft configuration to the members that the catalogue names.

Only the group's leader asks, and only with a catalogue entry that is not older than the one that the group's last change
came from. One change at a time (Ongaro's thesis §4.1): what retires and is silent goes first, then newcomers learn, get
their votes when they have caught up, and last the others give theirs up. No step leaves fewer voters in touch than the new
configuration needs to commit; until it would not, the group waits and says for whom. Leaves out: who the members should
be (the MCG decides) and how a change is committed. Source: architecture §2 "Who decides", §7; docs/design/groups.md.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TypeAlias

from mesh_data.core.view import Stream
from meshcommon.ids import MemberId, NodeId
from meshraft.configuration import ConfChange, Configuration, Transfer


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nothing can be done now; `reason` says what would help."""

    reason: str

    def __str__(self) -> str:
        return f"waiting: {self.reason}"


Step: TypeAlias = ConfChange | Transfer | Waiting


def next_step(stream: Stream, raft: Configuration, revision: int) -> Step | None:
    """What the leader should do next; None when the group is as the catalogue wishes.

    `revision` is the catalogue's at the last change of the group that was committed.
    """
    if stream.revision < revision:
        return Waiting(f"the catalogue here is older (revision {stream.revision}) than the group's change {revision}")
    return (
        _drop_silent(stream, raft, revision) or _take_in(stream, raft) or _promote(stream, raft) or _drop(stream, raft)
    )


def members_out(stream: Stream, raft: Configuration, revision: int) -> tuple[MemberId, ...]:
    """Retiring members that are out of the group for good: no older wish can bring them back, and no crash of the others."""
    if not raft.is_witnessed:
        return ()
    return tuple(
        item.member_id
        for item in stream.retiring
        if not item.is_out and item.member_id not in raft.members and revision >= item.revision
    )


def _drop_silent(stream: Stream, raft: Configuration, revision: int) -> Step | None:
    """Those whose going costs nothing: learners, silent voters, and members whose absence is not on record yet."""
    for item in stream.retiring:
        member = item.member_id
        is_recorded = revision >= item.revision
        is_silent_voter = member in raft.voters and member not in raft.heard
        if member in raft.learners or (member not in raft.voters and not is_recorded and not item.is_out):
            return ConfChange("remove", member, item.node_id)
        if is_silent_voter and not _shortage(raft.voters - {member}, raft):
            return ConfChange("remove", member, item.node_id)
    return None


def _occupied(stream: Stream, raft: Configuration) -> frozenset[NodeId]:
    """Nodes whose former membership is still part of the group: a node holds one replica at a time."""
    return frozenset(item.node_id for item in stream.retiring if item.member_id in raft.members)


def _take_in(stream: Stream, raft: Configuration) -> Step | None:
    occupied = _occupied(stream, raft)
    for member in stream.members:
        if member.member_id not in raft.members and member.node_id not in occupied:
            return ConfChange("add_learner", member.member_id, member.node_id)
    return None


def _promote(stream: Stream, raft: Configuration) -> Step | None:
    waiting: Step | None = None
    for member in stream.members:
        if not member.is_voter or member.member_id not in raft.learners:
            continue
        if member.member_id not in raft.caught_up:
            waiting = waiting or Waiting(f"member {member.member_id} on node {member.node_id} has not caught up")
        elif shortage := _shortage(raft.voters | {member.member_id}, raft):
            waiting = waiting or Waiting(shortage)
        else:
            return ConfChange("add_voter", member.member_id, member.node_id)
    return waiting


def _drop(stream: Stream, raft: Configuration) -> Step | None:
    retiring: dict[int, NodeId] = {item.member_id: item.node_id for item in stream.retiring}
    learning: dict[int, NodeId] = {item.member_id: item.node_id for item in stream.members if not item.is_voter}
    going = sorted(raft.voters & (retiring.keys() | learning.keys()), key=lambda member: (member == raft.own, member))
    for member in going:
        if shortage := _shortage(raft.voters - {member}, raft):
            return Waiting(shortage)
        if member == raft.own:
            return _transfer(stream, raft)
        if member in retiring:
            return ConfChange("remove", member, retiring[member])
        return ConfChange("add_learner", member, learning[member])
    return None


def _transfer(stream: Stream, raft: Configuration) -> Step:
    """To the first voter that could lead. There is one: without a shortage most of the others could, and all of them stay."""
    present = raft.voters & raft.caught_up - {raft.own}
    return Transfer(next(item.member_id for item in stream.members if item.member_id in present))


def _shortage(voters: AbstractSet[int], raft: Configuration) -> str:
    """Why `voters` could not commit now, empty when they could. One that lags may have begun blank and be without a say."""
    present = voters & raft.caught_up
    needed = len(voters) // 2 + 1
    if len(present) >= needed:
        return ""
    silent = ", ".join(str(member) for member in sorted(voters - present))
    return f"{len(voters)} voters would need {needed} in touch, and of them {silent} are silent or behind"
