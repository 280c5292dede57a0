"""Messages of the services as bodies of the REST API."""

from __future__ import annotations

from collections.abc import Iterable

from mesh_gateway.shell import models, raft_models
from meshapi.common.v1 import view_pb2
from meshapi.supervisor.v1 import data_pb2, mesh_pb2

_DELETED = view_pb2.STREAM_STATE_DELETING


def node_model(node: view_pb2.NodeView) -> models.Node:
    """A member."""
    return models.Node.model_validate(
        {
            "node_id": node.node_id,
            "name": node.name,
            "public_key": node.public_key.hex(),
            "peer_address": node.peer_address,
            "state": view_pb2.NodeState.Name(node.state).removeprefix("NODE_STATE_"),
            "is_reachable": node.is_reachable,
            "is_voter": node.is_voter,
        }
    )


def status_model(answer: mesh_pb2.GetStatusResponse) -> models.MeshStatus:
    """The status of node and mesh."""
    view = answer.view if answer.HasField("view") else None
    names = node_names(answer)
    status = view_pb2.MeshStatus.Name(view.status).removeprefix("MESH_STATUS_") if view else None
    return models.MeshStatus.model_validate(
        {
            "node_id": answer.node_id,
            "name": answer.name,
            "is_running": answer.is_running,
            "has_quorum": answer.has_quorum,
            "mesh_id": view.mesh_id if view else None,
            "mesh_name": answer.mesh_name if view else None,
            "join_policy": _policy_name(answer.join_policy),
            "mesh_epoch": view.mesh_epoch if view else None,
            "status": status,
            "revision": view.revision if view else None,
            "nodes": [node_model(node) for node in view.nodes] if view else [],
            "stream_count": sum(stream.state != _DELETED for stream in view.streams) if view else 0,
            "mcg_leader": names.get(answer.mcg_leader),
            "mcg_term": answer.mcg_term,
            "mcg_applied": answer.mcg_applied,
            "warnings": list(answer.warnings),
        }
    )


def _policy_name(policy: view_pb2.JoinPolicy.ValueType) -> str | None:
    return view_pb2.JoinPolicy.Name(policy).removeprefix("JOIN_POLICY_") if policy else None


def policy_value(name: models.JoinPolicy) -> view_pb2.JoinPolicy.ValueType:
    """The policy of a request."""
    return view_pb2.JoinPolicy.Value(f"JOIN_POLICY_{name}")


def token_model(token: mesh_pb2.TokenInfo) -> models.Token:
    """A join token."""
    return models.Token(
        token_id=token.token_id,
        uses_left=token.uses_left,
        expires_at_ms=token.expires_at_ms,
        name=token.name,
        is_expired=token.is_expired,
    )


def node_names(answer: mesh_pb2.GetStatusResponse) -> dict[int, str]:
    """Names of the members by id."""
    return {node.node_id: node.name for node in answer.view.nodes}


def stream_model(stream: view_pb2.StreamView, names: dict[int, str]) -> models.Stream:
    """A stream of the catalogue."""
    return models.Stream.model_validate(
        {
            "stream_id": stream.stream_id,
            "name": stream.name,
            "state": view_pb2.StreamState.Name(stream.state).removeprefix("STREAM_STATE_"),
            "members": [
                {"node": names.get(member.node_id, ""), "node_id": member.node_id, "is_voter": member.is_voter}
                for member in stream.members
            ],
            "retiring": [
                {"node": names.get(item.node_id, ""), "node_id": item.node_id, "is_out": item.is_out}
                for item in stream.retiring
            ],
            "revision": stream.revision,
            "retained_bytes_max": stream.retained_bytes_max,
            "created_at_ms": stream.created_at_ms,
        }
    )


def live_model(answer: data_pb2.DescribeStreamResponse) -> models.StreamLive:
    """Live state of a stream."""
    return models.StreamLive(
        floor_offset=answer.floor_offset,
        next_offset=answer.next_offset,
        leader=answer.leader,
        term=answer.term,
        applied_index=answer.applied_index,
        state_hash=answer.state_hash.hex(),
        members=_progress(answer.members),
        retained_bytes=answer.retained_bytes,
        change=answer.change,
        reason=answer.reason,
    )


def _progress(members: Iterable[data_pb2.MemberProgress]) -> list[models.MemberProgress]:
    return [
        models.MemberProgress(
            node=member.node,
            is_voter=member.is_voter,
            matched_index=member.matched_index,
            quiet_ms=member.quiet_ms,
        )
        for member in members
    ]


def replicas_model(answer: data_pb2.ListReplicasResponse) -> raft_models.Replicas:
    """Replicas of a node."""
    return raft_models.Replicas(
        node=answer.node,
        log_bytes=answer.log_bytes,
        replicas=[
            raft_models.Replica(
                stream=item.stream,
                stream_id=item.stream_id,
                member_id=item.member_id,
                role=item.role,
                leader=item.leader,
                term=item.term,
                commit_index=item.commit_index,
                applied_index=item.applied_index,
                first_index=item.first_index,
                last_index=item.last_index,
                voters=list(item.voters),
                learners=list(item.learners),
                retained_bytes=item.retained_bytes,
                members=_progress(item.members),
                change=item.change,
                reason=item.reason,
            )
            for item in answer.replicas
        ],
    )


def audit_model(answer: data_pb2.AuditStreamResponse) -> raft_models.Audit:
    """What an audit found."""
    return raft_models.Audit(
        stream=answer.stream,
        compared_index=answer.compared_index,
        is_divergent=answer.is_divergent,
        members=[
            raft_models.MemberAudit(
                node=member.node,
                problem=member.problem,
                is_damaged=member.is_damaged,
                applied_index=member.applied_index,
                chain=member.chain.hex(),
                verified_entries=member.verified_entries,
                verified_bytes=member.verified_bytes,
            )
            for member in answer.members
        ],
    )


def forwarding_model(answer: data_pb2.GetForwardingResponse) -> models.Forwarding:
    """Lanes and routes."""
    lanes: Iterable[data_pb2.Lane] = answer.lanes
    return models.Forwarding(
        lanes=[
            models.Lane(peer=lane.peer, is_dialled=lane.is_dialled, rtt_us=lane.rtt_us, up_s=lane.up_s)
            for lane in lanes
        ],
        routes=[
            models.Route(destination=route.destination, path=list(route.path), backup=list(route.backup))
            for route in answer.routes
        ],
        route_version=answer.route_version,
        failed_dials=[
            models.FailedDial(peer=dial.peer, code=dial.code, reason=dial.reason) for dial in answer.failed_dials
        ],
    )
