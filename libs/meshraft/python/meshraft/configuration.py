"""The members of one group as its leader sees them: who votes, who is heard, who has caught up, what is witnessed.

Leaves out: who the members should be, which the catalogue says, and so the next step. Source: architecture §7; Ongaro's
thesis §4.1 (single-server changes), §4.2.1 (catching up); docs/design/groups.md (G7, witness).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from meshraft import GroupStatus

CAUGHT_UP_ENTRIES: Final = 64
"""A learner this close to the commit index gets its vote, and a voter further behind is not counted on."""

Change: TypeAlias = Literal["add_voter", "add_learner", "remove"]
"""A single-step change: "add_voter" also promotes, "add_learner" also demotes."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """A group's configuration as its leader has applied it; only a leader knows who is heard.

    Attributes:
        own: this member.
        voters: members that vote.
        learners: members that only learn.
        heard: this member, and those that it heard within an election timeout.
        caught_up: this member, and of those heard all that hold nearly all of the log, know an entry of this leader's term to
            be committed, and are not on probation. Only such a one is promoted, given the leadership, or counted on.
        is_witnessed: an entry from after the last change is committed (see `Witness`).
    """

    own: int
    voters: frozenset[int]
    learners: frozenset[int]
    heard: frozenset[int]
    caught_up: frozenset[int]
    is_witnessed: bool

    @property
    def members(self) -> frozenset[int]:
        """Everybody who takes part."""
        return self.voters | self.learners


@dataclass(frozen=True, slots=True)
class Witness:
    """An entry that a leader proposed after it had applied the group's last change, at index `change`.

    The commit index comes to each member with the entries and becomes durable in the same write: a member that holds this
    one knows after a restart too that the change is committed, and only such a member can be elected. Without it members that have
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
class ConfChange:
    """A change to commit; `node` is where the member lives, 0 when that does not matter."""

    change: Change
    member: int
    node: int

    def __str__(self) -> str:
        verb = {"add_voter": "giving a vote to", "add_learner": "taking in", "remove": "removing"}[self.change]
        return f"{verb} member {self.member}"


@dataclass(frozen=True, slots=True)
class Transfer:
    """The leadership should go to `member`, a voter."""

    member: int

    def __str__(self) -> str:
        return f"transferring the leadership to member {self.member}"


def configuration_of(
    status: GroupStatus,
    term_begins_at: int | None,
    witness: Witness,
    election_ticks: int,
    caught_up_entries: int = CAUGHT_UP_ENTRIES,
) -> Configuration:
    """The configuration, with what a leader knows of its members.

    Args:
        status: the group now.
        term_begins_at: index of the first entry of this term that was applied here; None when none was.
        witness: of the last change.
        election_ticks: least silence before an election.
        caught_up_entries: how far behind the commit index a member may be.
    """
    # A member that began blank may vote only once it has applied an entry of this leader's term (meshraft, `create_group`).
    # That it holds one is not enough: a lone voter that promoted it and stopped would wait for its vote, and it for the
    # commit index that only a leader tells.
    begins_at = math.inf if term_begins_at is None else term_begins_at
    matched_min = max(begins_at, status.commit - caught_up_entries)
    heard = [item for item in status.progress if item.member != status.member and item.quiet_ticks <= election_ticks]
    caught_up = (
        item.member
        for item in heard
        if item.matched >= matched_min and item.commit >= begins_at and not item.on_probation
    )
    return Configuration(
        own=status.member,
        voters=frozenset(status.voters),
        learners=frozenset(status.learners),
        heard=frozenset(item.member for item in heard) | {status.member},
        caught_up=frozenset(caught_up) | {status.member},
        is_witnessed=is_witnessed(status, witness),
    )


def is_witnessed(status: GroupStatus, witness: Witness) -> bool:
    """Whether the group's last change is certain to be known by every later leader."""
    # A change that lies in the snapshot was committed before everything that the log holds.
    return status.conf_index < status.first_index or witness.is_committed(
        status.term, status.conf_index, status.applied
    )
