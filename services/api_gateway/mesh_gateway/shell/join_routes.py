"""REST: who may join the mesh, by policy and by token."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, status

from mesh_gateway.shell import models
from mesh_gateway.shell.calls import Calls
from mesh_gateway.shell.conversions import policy_value, token_model
from meshapi.supervisor.v1 import mesh_pb2


def join_router(calls: Calls) -> APIRouter:
    """Routes of join tokens and the join policy, answered by the control plane."""
    router = APIRouter(prefix="/v1", tags=["mesh"])

    @router.post("/mesh/tokens", summary="Issue a join token", status_code=status.HTTP_201_CREATED)
    async def issue_token(body: models.IssueTokenBody | None = None) -> models.IssuedToken:
        """Makes a join token; its text is told here only.

        Errors: NOT_A_MEMBER, ILLEGAL_NAME, MESH_FULL, MESH_CRITICAL, MESH_VERSION_TOO_LOW, NO_QUORUM.
        """
        wish = body or models.IssueTokenBody()
        answer = await calls.issue_token(mesh_pb2.IssueTokenRequest(**wish.model_dump()))
        return models.IssuedToken(token=answer.token, token_id=answer.token_id)

    @router.get("/mesh/tokens", summary="Join tokens")
    async def list_tokens() -> models.Tokens:
        """Join tokens that the mesh knows, without their secrets. Errors: NOT_A_MEMBER."""
        return models.Tokens(tokens=[token_model(token) for token in (await calls.list_tokens()).tokens])

    @router.delete("/mesh/tokens/{token_id}", summary="Revoke a token", status_code=status.HTTP_204_NO_CONTENT)
    async def revoke_token(token_id: Annotated[str, Path(description="Id of the token.")]) -> None:
        """Makes a join token worthless. Errors: NOT_A_MEMBER, TOKEN_UNKNOWN, MESH_VERSION_TOO_LOW, NO_QUORUM."""
        await calls.revoke_token(token_id)

    @router.put("/mesh/policy", summary="Change the join policy", status_code=status.HTTP_204_NO_CONTENT)
    async def set_policy(body: models.PolicyBody) -> None:
        """Changes who may become a member. Errors: NOT_A_MEMBER, MESH_CRITICAL, MESH_VERSION_TOO_LOW, NO_QUORUM."""
        await calls.set_join_policy(mesh_pb2.SetJoinPolicyRequest(policy=policy_value(body.policy)))

    return router
