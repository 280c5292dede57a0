"""REST: the groups under streams: their members and leaders, the replicas of this node, audits."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from mesh_gateway.shell import models, raft_models
from mesh_gateway.shell.calls import Calls
from mesh_gateway.shell.conversions import audit_model, node_names, replicas_model, stream_model
from mesh_gateway.shell.stream_routes import Name, Namespace
from meshapi.supervisor.v1 import data_pb2, mesh_pb2


def raft_router(calls: Calls) -> APIRouter:
    """Routes about groups, answered by control plane and data plane."""
    router = APIRouter(prefix="/v1", tags=["raft"])

    @router.get("/raft", summary="Replicas of this node")
    async def list_replicas() -> raft_models.Replicas:
        """Replicas of streams at this node, as Raft sees them; members' progress where this node leads."""
        return replicas_model(await calls.replicas())

    @router.patch("/streams/{namespace}/{name}/members", summary="Change the members")
    async def change_members(
        namespace: Namespace, name: Name, body: raft_models.ChangeMembersBody
    ) -> models.CreatedStream:
        """Adds, removes, replaces or renews members, and answers when the wish is committed.

        The group then makes the steps by itself; `live.change` of the stream tells how far it is.
        Errors: STREAM_NOT_FOUND, STREAM_NOT_FORMED, UNKNOWN_NODE, MEMBER_COUNT, MEMBERS_CHANGING, STREAMS_AT_RISK (unless
        accepted), MESH_CRITICAL, NO_QUORUM.
        """
        request = mesh_pb2.ChangeStreamMembersRequest(
            name=f"{namespace}/{name}",
            add=body.add,
            remove=body.remove,
            renew=body.renew,
            accept_risk=body.accept_risk,
        )
        answer = await calls.change_members(request)
        stream = stream_model(answer.stream, node_names(await calls.status()))
        return models.CreatedStream(**stream.model_dump(), warnings=list(answer.warnings))

    @router.put("/streams/{namespace}/{name}/leader", summary="Hand the leadership over")
    async def transfer_leader(namespace: Namespace, name: Name, body: raft_models.LeaderBody) -> raft_models.Leader:
        """Hands the leadership of the stream's group to a voter, and answers when that one leads.

        Errors: STREAM_NOT_FOUND, UNKNOWN_NODE, INVALID_ARGUMENT (it has no vote), NO_QUORUM.
        """
        answer = await calls.transfer_leader(f"{namespace}/{name}", body.node)
        return raft_models.Leader(leader=body.node, term=answer.term)

    @router.get("/streams/{namespace}/{name}/audit", summary="Audit")
    async def audit(
        namespace: Namespace,
        name: Name,
        skip_logs: Annotated[bool, Query(description="Only compare hash chains, do not read the logs back.")] = False,
    ) -> raft_models.Audit:
        """Compares the hash chains of all members at one log index, and reads their logs back.

        What it finds is an answer, not an error. Errors: STREAM_NOT_FOUND.
        """
        request = data_pb2.AuditStreamRequest(stream=f"{namespace}/{name}", skip_logs=skip_logs)
        return audit_model(await calls.audit(request))

    return router
