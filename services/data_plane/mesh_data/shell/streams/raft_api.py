"""MeshDataService: handing a leadership over, the replicas of this node, and the audit of a stream.

Leaves out: what members answer each other (`raft_serving`). Source: meshapi/supervisor/v1/data.proto.
"""

from __future__ import annotations

from typing import Any

from mesh_data.core.replica_report import ReplicaState, Report
from mesh_data.core.stream_requests import Method, decode_number, encode_number
from mesh_data.core.view import View
from mesh_data.shell.groups.group_recovery import recover, survivors_of
from mesh_data.shell.groups.replica import Replica
from mesh_data.shell.streams.audit import audit
from mesh_data.shell.streams.raft_serving import transfer_to
from mesh_data.shell.streams.streams_asking import ask_leader
from mesh_data.shell.streams.streams_catalogue import StreamsCatalogue
from mesh_data.shell.streams.streams_serving import describe
from meshapi.supervisor.v1 import data_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NO_NODE, MemberId
from meshcommon.peer_text import printable
from meshraft import GroupStatus, RaftError


class RaftApi:
    """The calls about Raft; `main` mixes them into one servicer with the others."""

    def __init__(self, catalogue: StreamsCatalogue) -> None:
        self._raft_catalogue = catalogue

    async def TransferLeader(  # noqa: N802 - named by the proto
        self, request: data_pb2.TransferLeaderRequest, context: Any
    ) -> data_pb2.TransferLeaderResponse:
        """Hands the leadership of a stream's group to a voter."""
        catalogue = self._raft_catalogue
        stream = catalogue.named(request.stream)
        node = catalogue.view().node_named(request.node)
        if node is None:
            raise MeshError(
                ErrorCode.UNKNOWN_NODE, f"No node is named {printable(request.node)!r}: see the list of nodes."
            )
        heir = node.node_id

        async def at_leader(replica: Replica) -> int:
            return await transfer_to(replica, heir, catalogue.groups.timing.attempt_s)

        term = await ask_leader(
            catalogue,
            stream,
            Method.TRANSFER,
            encode_number(heir),
            at_leader=at_leader,
            decode=decode_number,
            deadline_s=catalogue.groups.timing.publish_deadline_s,
        )
        return data_pb2.TransferLeaderResponse(term=term)

    async def ListReplicas(  # noqa: N802 - named by the proto
        self, request: data_pb2.ListReplicasRequest, context: Any
    ) -> data_pb2.ListReplicasResponse:
        """Replicas of this node, as Raft sees them."""
        catalogue = self._raft_catalogue
        view = catalogue.view()
        response = data_pb2.ListReplicasResponse(
            node=view.name_of(catalogue.overlay.node_id), log_bytes=catalogue.groups.log_bytes()
        )
        for report in catalogue.groups.reports():
            replica = catalogue.groups.replica(report.stream_id)
            if report.state is ReplicaState.FAILED:
                response.replicas.append(_failed(view, report))
            elif replica is not None:
                response.replicas.append(await _info(catalogue, view, replica))
        response.replicas.sort(key=lambda item: item.stream)
        return response

    async def RecoverStream(  # noqa: N802 - named by the proto
        self, request: data_pb2.RecoverStreamRequest, context: Any
    ) -> data_pb2.RecoverStreamResponse:
        """Goes on with the named survivors alone, as far as this node's replica is concerned."""
        catalogue = self._raft_catalogue
        stream = catalogue.named(request.stream)
        members = survivors_of(catalogue.view(), stream, request.survivors, catalogue.overlay.node_id)
        replica = catalogue.groups.replica(stream.stream_id)
        if replica is None or replica.failure is not None:
            raise MeshError(
                ErrorCode.INVALID_ARGUMENT, f"No replica of {stream.name} is open at this node: name others."
            )
        return recover(catalogue.groups.host(), replica, members)

    async def AuditStream(  # noqa: N802 - named by the proto
        self, request: data_pb2.AuditStreamRequest, context: Any
    ) -> data_pb2.AuditStreamResponse:
        """Compares the members of a stream, and reads their logs back."""
        stream = self._raft_catalogue.named(request.stream)
        return await audit(self._raft_catalogue, stream, skip_logs=request.skip_logs)


def _failed(view: View, report: Report) -> data_pb2.ReplicaInfo:
    stream = view.streams.get(report.stream_id)
    return data_pb2.ReplicaInfo(
        stream=stream.name if stream is not None else str(report.stream_id),
        stream_id=report.stream_id,
        member_id=report.member_id,
        role="failed",
        reason=report.reason,
    )


async def _info(catalogue: StreamsCatalogue, view: View, replica: Replica) -> data_pb2.ReplicaInfo:
    shown = await describe(catalogue, replica)
    stream = replica.stream
    info = data_pb2.ReplicaInfo(
        stream=stream.name,
        stream_id=stream.stream_id,
        member_id=replica.member_id,
        role=replica.role,
        leader=shown.leader,
        term=shown.term,
        applied_index=shown.applied_index,
        retained_bytes=shown.retained_bytes,
        members=shown.members,
        change=shown.change,
    )
    try:
        status = replica.status()
    except RaftError as error:
        info.reason = str(error)
        return info
    info.commit_index, info.first_index, info.last_index = status.commit, status.first_index, status.last_index
    info.reason = shown.reason or _waiting(view, replica, status)
    info.voters.extend(_name(view, replica, member) for member in status.voters)
    info.learners.extend(_name(view, replica, member) for member in status.learners)
    return info


def _waiting(view: View, replica: Replica, status: GroupStatus) -> str:
    """What a member on probation, or a group without a leader, waits for; empty when nothing is amiss."""
    needed = ", ".join(_name(view, replica, member) for member in status.waits_for)
    if status.member_state != "probation":
        return f"no leader, and nothing is heard of {needed}" if needed else ""
    if needed:
        return (
            f"on probation: the last write to the log here was damaged; without a leader the group waits for {needed}"
        )
    if status.leader:
        return "on probation: the last write to the log here was damaged and is being repaired from the leader"
    return (
        "on probation: the last write to the log here was damaged; every voter must grant with the same configuration"
    )


def _name(view: View, replica: Replica, member: int) -> str:
    node = replica.stream.node_of(MemberId(member))
    return view.name_of(node) if node != NO_NODE else f"member {member}"
