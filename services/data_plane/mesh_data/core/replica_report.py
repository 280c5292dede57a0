"""What the data plane tells its control plane about the local replicas of streams.

Leaves out: when a replica is which (`replica_life`), and what the control plane makes of it (its `confirmations`).
Source: data.proto `GroupReport`; architecture §7.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Protocol

from meshcommon.ids import NO_NODE, MemberId, NodeId, StreamId

NO_MEMBER: Final = MemberId(0)


class ReplicaState(IntEnum):
    """What a local replica is doing; the numbers of meshapi.data.v1.GroupState."""

    FORMING = 1
    OPEN = 2
    DESTROYED = 3
    FAILED = 4
    SEALED = 5


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a replica does not work. Distrusted: its disk has lost what the member once confirmed."""

    reason: str
    member_id: MemberId
    is_distrusted: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """One local replica, tombstones included.

    Attributes:
        stream_id: the stream.
        state: what it is doing.
        leader_node: 0 when unknown.
        reason: why it failed, or applies nothing more until the node is updated.
        member_id: which membership it is, 0 when there is none.
        members_out: former members whose removal the group has committed; at the leader only.
        is_distrusted: its membership has to be replaced by a new one.
    """

    stream_id: StreamId
    state: ReplicaState
    leader_node: NodeId = NO_NODE
    reason: str = ""
    member_id: MemberId = NO_MEMBER
    members_out: tuple[MemberId, ...] = ()
    is_distrusted: bool = False


class OpenReplica(Protocol):
    """What an open replica says of itself; as in `Report`."""

    @property
    def member_id(self) -> MemberId:
        """Which membership it is."""

    @property
    def is_formed(self) -> bool:
        """Whether it has applied an entry after the state it began with."""

    @property
    def is_sealed(self) -> bool:
        """Whether its group takes nothing more."""

    @property
    def leader_node(self) -> NodeId:
        """Where its leader is, 0 when unknown."""

    @property
    def members_out(self) -> tuple[MemberId, ...]:
        """Former members that are out, at the leader."""

    @property
    def stopped_because(self) -> str:
        """Why it applies nothing more, empty while it does."""


def reports_of(
    replicas: Mapping[StreamId, OpenReplica], failed: Mapping[StreamId, Failure], destroyed: Collection[StreamId]
) -> tuple[Report, ...]:
    """Reports by stream id; a failure says more than the replica that had it."""
    reports = {stream_id: Report(stream_id, ReplicaState.DESTROYED) for stream_id in destroyed}
    reports |= {stream_id: _of_replica(stream_id, replica) for stream_id, replica in replicas.items()}
    for stream_id, failure in failed.items():
        reports[stream_id] = Report(
            stream_id,
            ReplicaState.FAILED,
            reason=failure.reason,
            member_id=failure.member_id,
            is_distrusted=failure.is_distrusted,
        )
    return tuple(reports[stream_id] for stream_id in sorted(reports))


def _of_replica(stream_id: StreamId, replica: OpenReplica) -> Report:
    state = ReplicaState.OPEN if replica.is_formed else ReplicaState.FORMING
    if replica.is_sealed:
        state = ReplicaState.SEALED
    return Report(
        stream_id,
        state,
        replica.leader_node,
        reason=replica.stopped_because,
        member_id=replica.member_id,
        members_out=replica.members_out,
    )
