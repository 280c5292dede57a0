"""Which events of stream groups this node should report to the MCG, from what its replicas say.

Groups that have formed, ends of groups, ends of memberships, and memberships whose disk cannot be trusted. A report is idempotent at the
MCG: repeating one is no harm. Source: architecture §7 "Birth and death of a group", "Member ids".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from mesh_control.core.model import Stream, StreamPhase
from meshapi.control.v1 import mcg_pb2
from meshcommon.ids import MemberId, NodeId, StreamId

NO_MEMBER = MemberId(0)


@dataclass(frozen=True, slots=True)
class Report:
    """What one local replica said last.

    Attributes:
        state: "open": it has committed its first entry; "sealed": it has committed its last; "destroyed": nothing of it is
            stored here; else "other".
        leader: leader's node as known here, 0 if unknown.
        reason: why it failed, if it did.
        member_id: which membership the replica is, 0 when there is none.
        members_out: former members whose removal is committed; from the leader's node only.
        is_distrusted: its disk has lost what it once confirmed.
    """

    state: str
    leader: NodeId
    reason: str = ""
    member_id: MemberId = NO_MEMBER
    members_out: tuple[MemberId, ...] = ()
    is_distrusted: bool = False


@dataclass(frozen=True, slots=True)
class Confirmation:
    """What to commit: "formed", "sealed", "destroyed" (of the stream, or of `member_id`), "out", "renew"."""

    kind: Literal["formed", "sealed", "destroyed", "out", "renew"]
    stream_id: StreamId
    member_id: MemberId = NO_MEMBER

    def command(self, node_id: NodeId) -> mcg_pb2.Command:
        """The command that node `node_id` proposes for it."""
        stream_id, member_id = self.stream_id, self.member_id
        match self.kind:
            case "formed":
                return mcg_pb2.Command(stream_formed=mcg_pb2.StreamFormed(stream_id=stream_id))
            case "sealed":
                return mcg_pb2.Command(stream_sealed=mcg_pb2.StreamSealed(stream_id=stream_id))
            case "out":
                return mcg_pb2.Command(member_out=mcg_pb2.MemberOut(stream_id=stream_id, member_id=member_id))
            case "renew":
                renew = mcg_pb2.ChangeMembers(stream_id=stream_id, renew_members=[member_id])
                return mcg_pb2.Command(change_members=renew)
            case "destroyed":
                destroyed = mcg_pb2.ReplicaDestroyed(stream_id=stream_id, node_id=node_id, member_id=member_id)
                return mcg_pb2.Command(replica_destroyed=destroyed)


def due_confirmations(
    streams: Iterable[Stream], reports: Mapping[StreamId, Report], node_id: NodeId
) -> list[Confirmation]:
    """What node `node_id` should commit now, by stream id."""
    due: list[Confirmation] = []
    for stream in sorted(streams, key=lambda item: item.stream_id):
        report = reports.get(stream.stream_id)
        if report is None or node_id not in stream.holders:
            continue
        if stream.state is StreamPhase.DELETING:
            due.extend(_of_the_end(stream, report, node_id))
            continue
        if stream.state is StreamPhase.FORMING and report.state == "open":
            due.append(Confirmation("formed", stream.stream_id))
        due.extend(_of_members(stream, report, node_id))
    return due


def _of_the_end(stream: Stream, report: Report, node_id: NodeId) -> Iterable[Confirmation]:
    if report.state == "sealed" and not stream.is_sealed:
        yield Confirmation("sealed", stream.stream_id)
    if report.state == "destroyed" and node_id not in stream.destroyed:
        yield Confirmation("destroyed", stream.stream_id)


def _of_members(stream: Stream, report: Report, node_id: NodeId) -> Iterable[Confirmation]:
    for item in stream.retiring:
        if item.member_id in report.members_out and not item.is_out:
            yield Confirmation("out", stream.stream_id, item.member_id)
        has_gone = report.state == "destroyed" or report.member_id not in (NO_MEMBER, item.member_id)
        if item.is_out and item.node_id == node_id and has_gone:
            yield Confirmation("destroyed", stream.stream_id, item.member_id)
    is_present = any(member.member_id == report.member_id for member in stream.members)
    if report.is_distrusted and is_present and stream.state is StreamPhase.ACTIVE:
        yield Confirmation("renew", stream.stream_id, report.member_id)
