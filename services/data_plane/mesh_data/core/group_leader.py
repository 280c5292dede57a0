"""What a member does for its stream's group beyond committing records, most of it as leader, and what it remembers for that.

While the group forms the first member comes to lead. Later its leader makes the steps of `group_steps`, one at a time, each tagged with
the catalogue revision that it follows, witnesses changes, hands the leadership over when its own membership ends, and seals the
group of a deleted stream. The owner carries the duties out; one that cannot be carried out is asked for again at a later
look. A leader that dies is followed by one that goes on from the group's own configuration. Source: architecture §2, §7;
docs/design/groups.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from mesh_data.core.group_steps import Waiting, members_out, next_step
from mesh_data.core.stream_state import StreamState
from mesh_data.core.view import Stream, StreamPhase
from meshcommon.ids import MemberId
from meshraft import GroupStatus
from meshraft.configuration import ConfChange, Transfer
from meshraft.group import RaftGroup
from meshwire.entry import SealEntry, encode_entry


@dataclass(frozen=True, slots=True)
class Campaign:
    """Stand for election at once."""


@dataclass(frozen=True, slots=True)
class Seal:
    """Propose this entry, after which the group takes nothing more; tell `sealing` when it was appended."""

    entry: bytes


@dataclass(frozen=True, slots=True)
class Attest:
    """Propose the witness of the last change (`RaftGroup.propose_witness`)."""


Duty: TypeAlias = Campaign | Seal | Attest | ConfChange | Transfer


class GroupLeader:
    """The duties at one open replica."""

    def __init__(self) -> None:
        self.change = ""
        """What the leader does about the group's members; empty elsewhere and when there is nothing to do."""
        self.members_out: tuple[MemberId, ...] = ()
        """Retiring members whose removal is committed, as the leader tells."""
        self.is_settled = False
        """There was nothing to do since the last change of leader, catalogue or configuration."""
        self._is_sealing = False

    def look_again(self) -> None:
        """The catalogue or the configuration changed."""
        self.is_settled = False

    def role_changed(self) -> None:
        """Another leader or term."""
        self.change, self.members_out, self.is_settled, self._is_sealing = "", (), False, False

    def sealing(self) -> None:
        """The seal was appended: it is not asked for again in this leadership."""
        self._is_sealing = True

    def look(
        self, stream: Stream, member_id: MemberId, state: StreamState, group: RaftGroup[Any, Any], status: GroupStatus
    ) -> list[Duty]:
        """What to do now, in this order.

        Args:
            stream: the catalogue's entry.
            member_id: this member.
            state: what it has applied.
            group: the Raft group; only asked.
            status: of the group, now.
        """
        if stream.state is StreamPhase.FORMING:
            return self._at_birth(stream, member_id, status)
        # Before its first own entry is applied a leader does not know the whole configuration.
        if status.role != "leader" or group.applied_term != status.term:
            return []
        if stream.state is StreamPhase.DELETING:
            is_due = not (stream.is_sealed or state.is_sealed or self._is_sealing)
            return [Seal(encode_entry(SealEntry(stream.revision)))] if is_due else []
        raft, revision = group.configuration(status), state.members_revision
        step = next_step(stream, raft, revision)
        self.change, self.members_out = str(step or ""), members_out(stream, raft, revision)
        self.is_settled = step is None and raft.is_witnessed
        duties: list[Duty] = [] if raft.is_witnessed else [Attest()]
        if step is not None and not isinstance(step, Waiting):
            duties.append(step)
        return duties

    def _at_birth(self, stream: Stream, member_id: MemberId, status: GroupStatus) -> list[Duty]:
        """Gives the leadership of a new group to the first member, as soon as that one holds the log.

        Only while the catalogue says FORMING: later a leader stays until it fails, because a change costs an election.
        """
        first = stream.members[0].member_id
        if first == member_id:
            return [] if status.leader else [Campaign()]
        progress = next((item for item in status.progress if item.member == first and not item.on_probation), None)
        is_ready = status.role == "leader" and progress is not None and progress.matched == status.last_index
        return [Transfer(int(first))] if is_ready else []
