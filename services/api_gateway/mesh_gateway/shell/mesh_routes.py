"""REST: life of node and mesh, forwarding."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, status

from mesh_gateway.shell import models
from mesh_gateway.shell.calls import Calls
from mesh_gateway.shell.conversions import forwarding_model, node_model, policy_value, status_model
from meshapi.supervisor.v1 import mesh_pb2

NodeName = Annotated[str, Path(description="Name of the node.")]


def mesh_router(calls: Calls) -> APIRouter:
    """Routes of the mesh's life, answered by the control plane."""
    router = APIRouter(prefix="/v1", tags=["mesh"])

    @router.get("/mesh", summary="Status of node and mesh")
    async def get_status() -> models.MeshStatus:
        """What this node knows of the mesh and of itself. Works without quorum."""
        return status_model(await calls.status())

    @router.post("/mesh/seed", summary="Found a mesh", status_code=status.HTTP_201_CREATED)
    async def seed(body: models.SeedBody | None = None) -> models.Founded:
        """Founds a new mesh with this node as its first; repeated, it answers the same with a new token.

        Errors: ALREADY_MEMBER, ILLEGAL_NAME.
        """
        wish = body or models.SeedBody()
        answer = await calls.seed(mesh_pb2.SeedRequest(name=wish.name, policy=policy_value(wish.policy)))
        return models.Founded(
            mesh_id=answer.mesh_id,
            node_id=answer.node_id,
            token=answer.token or None,
            ca_fingerprint=answer.ca_fingerprint,
            ca_root_key_file=answer.ca_root_key_file,
        )

    @router.post("/mesh/join", summary="Join a mesh")
    async def join(body: models.JoinBody) -> models.Membership:
        """Joins the mesh that issued `token`, or the OPEN mesh of the node at `address`.

        Errors: ALREADY_MEMBER, MESH_ID_MISMATCH, ADDRESS_UNREACHABLE, WRONG_PROTOCOL, NAME_TAKEN, KEY_MISMATCH, MESH_FULL,
        UPDATE_REQUIRED, NO_QUORUM, TOKEN_REQUIRED, TOKEN_UNKNOWN, TOKEN_EXPIRED, TOKEN_USED_UP, TOKEN_FOR_ANOTHER_NAME,
        JOIN_CLOSED, BACKPRESSURE.
        """
        answer = await calls.join(mesh_pb2.JoinRequest(**body.model_dump()))
        return models.Membership(mesh_id=answer.mesh_id, node_id=answer.node_id)

    @router.post("/mesh/leave", summary="Leave the mesh", status_code=status.HTTP_204_NO_CONTENT)
    async def leave() -> None:
        """Leaves the mesh for good and forgets it. Errors: NOT_A_MEMBER, STREAMS_AT_RISK, LAST_NODE, NO_QUORUM."""
        await calls.leave()

    @router.post("/mesh/nodes/{name}/forget", summary="Forget a lost node")
    async def forget_node(name: NodeName, body: models.ForgetBody | None = None) -> models.Forgotten:
        """Removes a node that is lost, so that its name is free and it no longer counts; also in a CRITICAL mesh.

        Errors: UNKNOWN_NODE, NODE_IS_HEARD, STREAMS_AT_RISK (unless accepted), LAST_NODE, NO_QUORUM.
        """
        answer = await calls.forget_node(name, accept_risk=body is not None and body.accept_risk)
        return models.Forgotten(streams=list(answer.streams))

    @router.post("/mesh/stop", summary="Stop this node", status_code=status.HTTP_204_NO_CONTENT)
    async def stop() -> None:
        """Stops this node on purpose: lanes and groups close, data stay. Errors: NOT_A_MEMBER."""
        await calls.stop()

    @router.post("/mesh/start", summary="Start this node", status_code=status.HTTP_204_NO_CONTENT)
    async def start() -> None:
        """Starts a stopped node again. Errors: NOT_A_MEMBER."""
        await calls.start()

    @router.get("/nodes", summary="Members of the mesh")
    async def list_nodes() -> models.Nodes:
        """Members of the mesh as this node knows them."""
        answer = await calls.status()
        return models.Nodes(nodes=[node_model(node) for node in answer.view.nodes])

    return router


def node_router(calls: Calls) -> APIRouter:
    """Routes about what this node's data plane does with packets."""
    router = APIRouter(prefix="/v1", tags=["topology"])

    @router.get("/forwarding", summary="Lanes and routes of this node")
    async def get_forwarding() -> models.Forwarding:
        """Lanes that are up, and the route to every other node."""
        return forwarding_model(await calls.forwarding())

    @router.post("/nodes/{name}/ping", summary="Ping a node through the overlay")
    async def ping(
        name: NodeName,
        timeout_ms: Annotated[int, Query(description="Time limit, milliseconds.", ge=1, le=60_000)] = 2_000,
    ) -> models.Ping:
        """Sends an echo through the overlay. Errors: UNKNOWN_NODE, NO_PATH, DEADLINE_EXCEEDED."""
        answer = await calls.ping(name, timeout_ms)
        return models.Ping(rtt_us=answer.rtt_us, path=list(answer.path))

    return router
