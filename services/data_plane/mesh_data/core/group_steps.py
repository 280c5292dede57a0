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
from typing import Literal, TypeAlias

from mesh_data.core.view import Stream
from meshcommon.ids import MemberId, NodeId

Change: TypeAlias = Literal["add_voter", "add_learner", "remove"]


@dataclass(frozen=True, slots=True)
class Configuration:
    """The group's configuration as its leader has applied it.

    Attributes:
        own: the leader.
        voters: members that vote.
        learners: members that only learn.
        heard: members that were heard within an election timeout.
        caught_up: members that hold nearly all of the log, and an entry of this leader's term.
        revision: catalogue revision of the last change that was committed.
        is_witnessed: an entry from after that change is committed (see `Witness`).
    """

    own: MemberId
    voters: frozenset[MemberId]
    learners: frozenset[MemberId]
    heard: frozenset[MemberId]
    caught_up: frozenset[MemberId]
    revision: int
    is_witnessed: bool

    @property
    def members(self) -> frozenset[MemberId]:
        """Everybody who takes part."""
        return self.voters | self.learners


@dataclass(frozen=True, slots=True)
class Witness:
    """An entry that a leader proposed after it had applied the group's last change, at index `change`.

    The commit index comes to each member with the entries and becomes durable in the same write: whoever holds this one
    knows after a restart too that the change is committed, and who could be elected holds it. Without it members that have
    all crashed may believe in the configuration before: they wait for one whose data went when it was out, or for one of
    two when the third had its vote already.
    """

    term: int = 0
    change: int = 0
    index: int = 0

    def is_for(self, term: int, change: int) -> bool:
        """Whether it was proposed in this leadership after this change, whatever became of it."""
        return (self.term, self.change) == (term, change)

    def is_committed(self, term: int, change: int, applied: int) -> bool:
        """Whether the leader of `term`, at `applied`, has it committed."""
        return self.is_for(term, change) and self.index <= applied


@dataclass(frozen=True, slots=True)
class ConfStep:
    """A change to commit; `node_id` is where the member lives."""

    change: Change
    member: MemberId
    node_id: NodeId

    def __str__(self) -> str:
        verb = {"add_voter": "giving a vote to", "add_learner": "taking in", "remove": "removing"}[self.change]
        return f"{verb} member {self.member}"


@dataclass(frozen=True, slots=True)
class HandOver:
    """The leadership has to go to `member`, because its holder retires or loses its vote."""

    member: MemberId

    def __str__(self) -> str:
        return f"handing the leadership over to member {self.member}"


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nothing can be done now; `reason` says what would help."""

    reason: str

    def __str__(self) -> str:
        return f"waiting: {self.reason}"


Step: TypeAlias = ConfStep | HandOver | Waiting


def next_step(stream: Stream, raft: Configuration) -> Step | None:
    """What the leader should do next; None when the group is as the catalogue wishes."""
    if stream.revision < raft.revision:
        return Waiting(
            f"the catalogue here is older (revision {stream.revision}) than the group's change {raft.revision}"
        )
    return _drop_silent(stream, raft) or _take_in(stream, raft) or _promote(stream, raft) or _drop(stream, raft)


def members_out(stream: Stream, raft: Configuration) -> tuple[MemberId, ...]:
    """Retiring members that are out of the group for good: no older wish can bring them back, and no crash of the others."""
    if not raft.is_witnessed:
        return ()
    return tuple(
        item.member_id
        for item in stream.retiring
        if not item.is_out and item.member_id not in raft.members and raft.revision >= item.revision
    )


def _drop_silent(stream: Stream, raft: Configuration) -> Step | None:
    """Those whose going costs nothing: learners, silent voters, and members whose absence is not on record yet."""
    for item in stream.retiring:
        member = item.member_id
        is_recorded = raft.revision >= item.revision
        is_silent_voter = member in raft.voters and member not in raft.heard and member != raft.own
        if member in raft.learners or (member not in raft.voters and not is_recorded and not item.is_out):
            return ConfStep("remove", member, item.node_id)
        if is_silent_voter and not _shortage(raft.voters - {member}, raft):
            return ConfStep("remove", member, item.node_id)
    return None


def _occupied(stream: Stream, raft: Configuration) -> frozenset[NodeId]:
    """Nodes whose former membership is still part of the group: a node holds one replica at a time."""
    return frozenset(item.node_id for item in stream.retiring if item.member_id in raft.members)


def _take_in(stream: Stream, raft: Configuration) -> Step | None:
    occupied = _occupied(stream, raft)
    for member in stream.members:
        if member.member_id not in raft.members and member.node_id not in occupied:
            return ConfStep("add_learner", member.member_id, member.node_id)
    return None


def _promote(stream: Stream, raft: Configuration) -> Step | None:
    waiting: Step | None = None
    for member in stream.members:
        if not member.is_voter or member.member_id not in raft.learners:
            continue
        if member.member_id not in raft.caught_up & raft.heard:
            waiting = waiting or Waiting(f"member {member.member_id} on node {member.node_id} has not caught up")
        elif shortage := _shortage(raft.voters | {member.member_id}, raft):
            waiting = waiting or Waiting(shortage)
        else:
            return ConfStep("add_voter", member.member_id, member.node_id)
    return waiting


def _drop(stream: Stream, raft: Configuration) -> Step | None:
    retiring = {item.member_id: item.node_id for item in stream.retiring}
    learning = {item.member_id: item.node_id for item in stream.members if not item.is_voter}
    going = sorted(raft.voters & (retiring.keys() | learning.keys()), key=lambda member: (member == raft.own, member))
    for member in going:
        if shortage := _shortage(raft.voters - {member}, raft):
            return Waiting(shortage)
        if member == raft.own:
            return _hand_over(stream, raft)
        if member in retiring:
            return ConfStep("remove", member, retiring[member])
        return ConfStep("add_learner", member, learning[member])
    return None


def _hand_over(stream: Stream, raft: Configuration) -> Step:
    """To the first voter that could lead. There is one: without a shortage most of the others could, and all of them stay."""
    present = raft.voters & raft.caught_up & raft.heard
    return HandOver(next(item.member_id for item in stream.members if item.member_id in present))


def _shortage(voters: AbstractSet[MemberId], raft: Configuration) -> str:
    """Why `voters` could not commit now, empty when they could. One that lags may have begun blank and be without a say."""
    present = voters & ((raft.heard & raft.caught_up) | {raft.own})
    needed = len(voters) // 2 + 1
    if len(present) >= needed:
        return ""
    silent = ", ".join(str(member) for member in sorted(voters - present))
    return f"{len(voters)} voters would need {needed} in touch, and of them {silent} are silent or behind"
