"""What a stream group's leader does so that its group has the members that the catalogue names, and ends when it says so.

Makes the steps of `core.group_steps`, one at a time, each tagged with the catalogue revision that it follows; hands the
leadership over on request; commits the seal of a deleted stream. Looks only at groups that are not settled. A leader that
dies is followed by one that goes on from the group's own configuration. Source: architecture §2, §7.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from mesh_data.core.group_steps import (
    Configuration,
    ConfStep,
    HandOver,
    Step,
    Witness,
    members_out,
    next_step,
)
from mesh_data.core.stream_timing import StreamTiming
from mesh_data.core.view import Stream, StreamState
from mesh_data.shell.replica import REVISION, Replica
from meshcommon.ids import MemberId
from meshcommon.logging import get_logger
from meshraft import Backpressure, GroupPoisoned, GroupStatus, NotLeader, RaftHost

CAUGHT_UP_ENTRIES: Final = 64
"""A learner this close to the commit index gets its vote, and a voter further behind is not counted on."""
HEARTBEATS_TO_LEARN: Final = 3
"""A member that does not know of its vote yet ignores that it should lead, which would block the group for a while."""

_log = get_logger(__name__)


def follow_catalogue(host: RaftHost, replica: Replica, stream: Stream) -> None:
    """Takes a stream as the catalogue has it now, and tells the group whom it names."""
    if stream.homes() != replica.stream.homes():
        name_members(host, stream)
    replica.follow(stream)


def name_members(host: RaftHost, stream: Stream) -> None:
    """Tells an open group whom the catalogue names, and up to which id it would name them."""
    with suppress(GroupPoisoned):  # the next pump tells
        host.set_peers(int(stream.stream_id), stream.homes(), known_members=stream.next_member_id)


def look_after_members(host: RaftHost, replica: Replica, status: GroupStatus, ticks: int, timing: StreamTiming) -> bool:
    """Takes the next step of a group that is led here; returns whether there is something new to report.

    Raises:
        RaftError: the group cannot be asked.
    """
    # Before its first own entry is applied a leader does not know the whole configuration.
    if status.role != "leader" or replica.applied_term != status.term:
        return False
    if replica.stream.state is StreamState.DELETING:
        if not replica.stream.is_sealed:
            replica.seal()
        return False
    if replica.stream.state is not StreamState.ACTIVE:
        return False
    raft = _configuration(replica, status, timing)
    step = next_step(replica.stream, raft)
    out = members_out(replica.stream, raft)
    is_news = (out, str(step or "")) != (replica.members_out, replica.change)
    replica.members_out, replica.change = out, str(step or "")
    replica.is_settled = step is None and raft.is_witnessed
    _take(host, replica, step, ticks, timing)
    if not raft.is_witnessed and not replica.witness.is_for(status.term, status.conf_index):
        _propose_witness(host, replica, status)
    return is_news


def _configuration(replica: Replica, status: GroupStatus, timing: StreamTiming) -> Configuration:
    others = [item for item in status.progress if item.member != status.member]
    # Only a member that has applied an entry of this leader's term may vote if it began blank (meshraft, `create_group`).
    # That it holds one is not enough: a lone voter that promoted it and stopped would wait for its vote, and it for the
    # commit index that only a leader tells.
    needed_index = max(replica.term_begins_at, status.commit - CAUGHT_UP_ENTRIES)
    begins_at = replica.term_begins_at
    return Configuration(
        own=MemberId(status.member),
        voters=frozenset(map(MemberId, status.voters)),
        learners=frozenset(map(MemberId, status.learners)),
        heard=frozenset(MemberId(item.member) for item in others if item.quiet_ticks <= timing.election_ticks),
        caught_up=frozenset(
            MemberId(item.member)
            for item in others
            if item.matched >= needed_index and item.commit >= begins_at and not item.in_doubt
        ),
        revision=replica.state.members_revision,
        is_witnessed=status.conf_index < status.first_index
        or replica.witness.is_committed(status.term, status.conf_index, status.applied),
    )


def _propose_witness(host: RaftHost, replica: Replica, status: GroupStatus) -> None:
    try:
        term, index = host.propose(replica.group, b"")
    except (Backpressure, NotLeader):
        return  # The next look tries again.
    replica.witness = Witness(term, status.conf_index, index)
    replica.wake()


def _take(host: RaftHost, replica: Replica, step: Step | None, ticks: int, timing: StreamTiming) -> None:
    try:
        match step:
            case ConfStep(change, member, node_id):
                context = REVISION.pack(replica.stream.revision)
                host.propose_conf_change(replica.group, change, int(member), int(node_id), context)
                replica.hand_over_after_ticks = ticks + HEARTBEATS_TO_LEARN * timing.heartbeat_ticks
                _log.info("stream_member_step", stream=replica.stream.name, step=str(step), node=node_id)
            case HandOver(member) if ticks >= replica.hand_over_after_ticks:
                replica.hand_over_after_ticks = ticks + 2 * timing.election_ticks
                _log.info("stream_member_step", stream=replica.stream.name, step=str(step))
                host.transfer_leader(replica.group, int(member))
            case _:
                return
    except (Backpressure, NotLeader) as error:
        # Another change is under way, or the leadership is: the next look finds out what became of it.
        _log.info("stream_member_step_postponed", stream=replica.stream.name, step=str(step), reason=str(error))
        return
    replica.wake()
