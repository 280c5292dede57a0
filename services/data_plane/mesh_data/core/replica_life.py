"""Which replicas a node holds: from the catalogue and from what is on its disk to steps, and to what it reports.

One `ReplicaLife` decides for all streams of one node; its owner carries the steps out in their order and tells it what
failed. States, steps and invariants (L1–L5) are in docs/design/groups.md, "A replica's life". Leaves out: what a replica
computes (`replica`), what its leader does (`group_leader`), and disks and groups themselves, which are the owner's.
Source: architecture §7 "Birth and death of a group", "Member ids".
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import TypeAlias

from mesh_data.core.replica_report import Failure, OpenReplica, Report, reports_of
from mesh_data.core.view import Member, Retiring, Stream, StreamPhase
from meshcommon.ids import NO_NODE, MemberId, NodeId, StreamId


@dataclass(frozen=True, slots=True)
class Distrust:
    """Groups whose data on this disk must not be counted on, and why."""

    groups: Collection[int] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Create:
    """Start a replica that has no data here: with the group's first state, or blank, to be filled by its leader."""

    stream: Stream
    member_id: MemberId
    is_blank: bool


@dataclass(frozen=True, slots=True)
class OpenStored:
    """Open what is stored, as the replica of `member_id`. When it turns out to be of another, report it by `fail`."""

    stream: Stream
    member_id: MemberId


@dataclass(frozen=True, slots=True)
class Identify:
    """Find out to which membership of `former` the stored data belong, and answer by `identified`."""

    stream: Stream
    former: AbstractSet[MemberId]


@dataclass(frozen=True, slots=True)
class Follow:
    """The open replica takes the catalogue's entry as it is now."""

    stream: Stream


@dataclass(frozen=True, slots=True)
class Close:
    """Close an open replica; its data stay."""

    stream: Stream
    reason: str


@dataclass(frozen=True, slots=True)
class Destroy:
    """Close the replica if it is open, and remove what is stored of it, if something is (`is_stored`)."""

    stream: Stream
    is_stored: bool


@dataclass(frozen=True, slots=True)
class LeaveAlone:
    """Do nothing about a stream, for that reason."""

    stream_id: StreamId
    reason: str


Step: TypeAlias = Create | OpenStored | Identify | Follow | Close | Destroy | LeaveAlone


@dataclass(frozen=True, slots=True)
class _Inputs:
    """What the last call of `follow` was told."""

    node: NodeId = NO_NODE
    distrust: Distrust = field(default_factory=Distrust)


class ReplicaLife:
    """The replicas of one node. A step counts as done as soon as it is returned, until `fail` says otherwise."""

    def __init__(self) -> None:
        self._inputs = _Inputs()
        self._open: dict[StreamId, MemberId] = {}
        self._failed: dict[StreamId, Failure] = {}
        self._destroyed: set[StreamId] = set()

    # Inputs

    def follow(
        self, streams: Mapping[StreamId, Stream], node: NodeId, stored: AbstractSet[int], distrust: Distrust
    ) -> list[Step]:
        """The catalogue as this node knows it now, the groups that are stored here, and those that are distrusted."""
        self._inputs = _Inputs(node, distrust)
        # A tombstone that the catalogue no longer has was confirmed.
        self._destroyed &= streams.keys()
        steps: list[Step] = [
            # The view may be older than the disk.
            LeaveAlone(StreamId(group), "the catalogue names no membership of it here")
            for group in sorted(stored)
            if (stream := streams.get(StreamId(group))) is None or not stream.is_held_by(node)
        ]
        for stream in streams.values():
            if stream.is_held_by(node):
                steps += self._follow(stream, is_stored=int(stream.stream_id) in stored)
        return steps

    def identified(self, step: Identify, former: MemberId | None) -> list[Step]:
        """What `step` asked for: the former membership that the data belong to; None: to none of those, or unreadable."""
        return self._follow(step.stream, is_stored=True, stored_as=former, is_identified=True)

    def fail(self, stream_id: StreamId, reason: str, *, is_distrusted: bool = False) -> None:
        """An open replica does not work, or one could not be opened. It stays closed until it is destroyed or closed."""
        member_id = self._open.pop(stream_id, None)
        if member_id is not None:
            self._failed[stream_id] = Failure(reason, member_id, is_distrusted)

    def fail_all(self, reason: str) -> None:
        """The log under all replicas does not work: a repaired disk may hold everything, so none is distrusted for that."""
        held = self._open | {stream_id: failure.member_id for stream_id, failure in self._failed.items()}
        self._failed = {stream_id: Failure(reason, member_id) for stream_id, member_id in held.items()}
        self._open.clear()

    def close_all(self) -> None:
        """Every replica was closed, failed ones too; the next `follow` opens them again."""
        self._open.clear()
        self._failed.clear()

    # Outputs

    @property
    def destroyed(self) -> AbstractSet[StreamId]:
        """Streams of which nothing is left here, until the catalogue no longer asks or another membership begins."""
        return self._destroyed

    def reports(self, replicas: Mapping[StreamId, OpenReplica]) -> tuple[Report, ...]:
        """What the control plane is told, by stream id, from what the open replicas say."""
        return reports_of({it: replicas[it] for it in self._open if it in replicas}, self._failed, self._destroyed)

    # Inside

    def _follow(
        self, stream: Stream, *, is_stored: bool, stored_as: MemberId | None = None, is_identified: bool = False
    ) -> list[Step]:
        node, stream_id = self._inputs.node, stream.stream_id
        # Until the group has removed it a former membership goes on: its vote may be needed for just that.
        goes_on, ended = stream.retiring_at(node), stream.ended_at(node)
        current = goes_on or stream.member_at(node)
        if stream.state is StreamPhase.DELETING and stream.is_sealed:
            return self._destroy(stream, is_stored=is_stored)
        steps: list[Step] = []
        if ended:
            held_as = self._held_as(stream_id) or stored_as
            if is_stored and current is not None and held_as is None and not is_identified:
                return [Identify(stream, ended)]
            if not is_stored or current is None or held_as in ended:
                steps += self._destroy(stream, is_stored=is_stored)
                is_stored = False
        if current is not None:
            is_distrusted = not steps and int(stream_id) in self._inputs.distrust.groups
            steps += self._run(stream, current, is_stored=is_stored, is_distrusted=is_distrusted)
        return steps

    def _run(self, stream: Stream, current: Member | Retiring, *, is_stored: bool, is_distrusted: bool) -> list[Step]:
        """Towards a running replica of the membership `current`."""
        stream_id, member_id = stream.stream_id, current.member_id
        steps: list[Step] = []
        if is_distrusted:
            reason = self._inputs.distrust.reason
            if self._open.pop(stream_id, None) is not None:
                steps.append(Close(stream, reason))
            self._failed[stream_id] = Failure(reason, member_id, is_distrusted=True)
        if (failure := self._failed.get(stream_id)) is not None:
            return [*steps, LeaveAlone(stream_id, failure.reason)]
        if (open_as := self._open.get(stream_id)) is not None:
            return [Follow(stream) if open_as == member_id else LeaveAlone(stream_id, f"member {open_as} runs here")]
        if not is_stored and (isinstance(current, Retiring) or stream.state is StreamPhase.DELETING):
            return [LeaveAlone(stream_id, "its membership ends, and nothing of it is here")]
        self._destroyed.discard(stream_id)
        self._open[stream_id] = member_id
        if is_stored:
            return [OpenStored(stream, member_id)]
        return [Create(stream, member_id, is_blank=stream.state is not StreamPhase.FORMING)]

    def _destroy(self, stream: Stream, *, is_stored: bool) -> list[Step]:
        stream_id = stream.stream_id
        is_here = is_stored or self._held_as(stream_id) is not None
        if not is_here and stream_id in self._destroyed:
            return []
        self._open.pop(stream_id, None)
        self._failed.pop(stream_id, None)
        self._destroyed.add(stream_id)
        return [Destroy(stream, is_stored)]

    def _held_as(self, stream_id: StreamId) -> MemberId | None:
        failed = self._failed.get(stream_id)
        return self._open.get(stream_id) or (failed.member_id if failed is not None else None)
