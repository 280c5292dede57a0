"""How a stream's group comes to be on this node: created as the catalogue says, and told from one of a former membership.

Leaves out: when (`core.replica_life`), and opening one that is stored (`checkpointing`). Source: architecture §7 "Birth and
death".
"""

from __future__ import annotations

from mesh_data.core.replica_life import Create, Identify
from mesh_data.core.stream_snapshot import StreamConfig
from mesh_data.core.stream_state import FIRST_INDEX, StreamState
from mesh_data.core.stream_timing import StreamTiming
from mesh_data.shell.groups.replica import Replica
from meshcommon.ids import MemberId
from meshraft import GroupConfig, HostPoisoned, RaftError, RaftHost


def group_config(timing: StreamTiming) -> GroupConfig:
    """How the groups of streams are driven."""
    return GroupConfig(
        election_ticks=timing.election_ticks,
        heartbeat_ticks=timing.heartbeat_ticks,
        max_uncommitted_bytes=timing.uncommitted_bytes_max,
        quiesces=True,
    )


def create_group(host: RaftHost, replica: Replica, step: Create, config: GroupConfig) -> None:
    """Creates the replica's group.

    Raises:
        RaftError: the group cannot be created.
    """
    stream, member, peers = step.stream, int(step.member_id), step.stream.homes()
    if step.is_blank:
        host.create_group(replica.group, member, peers, voters=[], config=config)
        return
    snapshot = StreamState(StreamConfig.of(stream.stream_id, stream.retained_bytes_max)).snapshot()
    voters = [int(item.member_id) for item in stream.members if item.is_voter]
    learners = [int(item.member_id) for item in stream.members if not item.is_voter]
    host.create_group(replica.group, member, peers, voters=voters, learners=learners, snapshot=snapshot, config=config)
    replica.restore(snapshot, FIRST_INDEX)


def identify(host: RaftHost, step: Identify) -> MemberId | None:
    """The former membership that the stored data belong to; its group is open then. None: to none that is asked about.

    Raises:
        HostPoisoned: the log does not work.
    """
    for former in step.former:
        try:
            host.open_group(int(step.stream.stream_id), int(former), {})
        except HostPoisoned:
            raise
        except RaftError:
            continue  # not this one's; if it is unreadable, opening it as the successor's will tell
        return former
    return None
