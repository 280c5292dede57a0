"""Carries out what a stream group's leader does for its members (`core.group_leader`), and tells a group whom the catalogue names.

What Raft refuses now (another change is under way, or the leadership is) is asked for again at the next look. Leaves out: when
to look (`groups`). Source: architecture §2, §7.
"""

from __future__ import annotations

from contextlib import suppress

from mesh_data.core.group_leader import Attest, Campaign, Duty, Seal
from mesh_data.core.replica import REVISION
from mesh_data.core.view import Stream
from mesh_data.shell.groups.replica import Replica
from meshcommon.logging import get_logger
from meshraft import Backpressure, GroupPoisoned, GroupStatus, NotLeader, RaftHost
from meshraft.configuration import ConfChange, Transfer

_log = get_logger(__name__)


def follow_catalogue(host: RaftHost, replica: Replica, stream: Stream) -> None:
    """Takes a stream as the catalogue has it now, and tells the group whom it names."""
    if stream.homes() != replica.stream.homes():
        with suppress(GroupPoisoned):  # the next pump tells
            host.set_peers(replica.group, stream.homes())
    replica.follow(stream)


def look_after_members(replica: Replica, status: GroupStatus) -> bool:
    """Does what is due for a group; returns whether there is something new to report.

    Raises:
        RaftError: the group cannot be asked.
    """
    leader = replica.leader
    before = leader.members_out, leader.change
    for duty in leader.look(replica.stream, replica.member_id, replica.state, replica.raft, status):
        try:
            _carry_out(replica, status, duty)
        except (Backpressure, NotLeader) as error:
            _log.info("stream_member_step_postponed", stream=replica.stream.name, step=str(duty), reason=str(error))
    return (leader.members_out, leader.change) != before


def _carry_out(replica: Replica, status: GroupStatus, duty: Duty) -> None:
    raft = replica.raft
    match duty:
        case ConfChange() | Transfer():
            if raft.take(duty, REVISION.pack(replica.stream.revision)):
                node = duty.node if isinstance(duty, ConfChange) else None
                _log.info("stream_member_step", stream=replica.stream.name, step=str(duty), node=node)
        case Attest():
            raft.propose_witness(status)
        case Seal(entry):
            if replica.propose(entry):
                replica.leader.sealing()
        case Campaign():
            raft.host.campaign(replica.group)
            raft.driver.wake()
