"""Who may become a member: the join policy, and the tokens that a mesh knows.

Every check reads the replicated state and the command only, so that every replica decides alike; expiry is by state time. A use
is taken by the command that adds the node (J2). Leaves out proofs (`join_tokens`), which the member that proposes an
admission has checked. Source: docs/design/identity.md "Joining"; architecture §10 "Join policy".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from mesh_control.core.join_tokens import VERIFIER_BYTES, token_id_of
from mesh_control.core.limits import TIME_MS_MAX, TOKEN_TTL_MS_MAX, TOKEN_USES_MAX, TOKENS_MAX
from mesh_control.core.model import JoinPolicy, JoinToken
from meshapi.common.v1 import view_pb2
from meshapi.control.v1 import mcg_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import check_node_name

Tokens = Mapping[str, JoinToken]

_POLICIES: Final = {policy.value: policy for policy in JoinPolicy if policy is not JoinPolicy.UNSPECIFIED}


def check_admission(policy: JoinPolicy, tokens: Tokens, token_id: str, name: str, now_ms: int) -> None:
    """A newcomer named `name` may become a member at state time `now_ms`. A token that is shown counts in an OPEN mesh too.

    Raises:
        MeshError: JOIN_CLOSED, TOKEN_REQUIRED, TOKEN_UNKNOWN, TOKEN_EXPIRED, TOKEN_USED_UP, TOKEN_FOR_ANOTHER_NAME.
    """
    if policy is JoinPolicy.CLOSED:
        raise MeshError(
            ErrorCode.JOIN_CLOSED,
            "This mesh is CLOSED and admits no node: open it at a member first (`meshctl policy set key-required`).",
        )
    if not token_id:
        if policy is JoinPolicy.KEY_REQUIRED:
            raise MeshError(
                ErrorCode.TOKEN_REQUIRED,
                "This mesh admits nodes that hold a join token: make one at a member (`meshctl token issue`).",
            )
        return
    token = tokens.get(token_id)
    if token is None:
        raise unknown_token()
    if now_ms >= token.expires_at_ms:
        raise _refusal(ErrorCode.TOKEN_EXPIRED, token, "has expired: make another one at a member")
    if not token.uses_left:
        raise _refusal(ErrorCode.TOKEN_USED_UP, token, "has admitted as many nodes as it was for: make another one")
    if token.name and token.name != name:
        raise _refusal(
            ErrorCode.TOKEN_FOR_ANOTHER_NAME,
            token,
            f"is for a node named {token.name!r}: join as that one, or make another",
        )


def take_use(tokens: Tokens, token_id: str) -> dict[str, JoinToken]:
    """The tokens after `token_id` has admitted a node; empty stands for none."""
    taken = dict(tokens)
    if token_id:
        taken[token_id] = replace(taken[token_id], uses_left=taken[token_id].uses_left - 1)
    return taken


def issue(tokens: Tokens, command: mcg_pb2.IssueToken, now_ms: int) -> dict[str, JoinToken]:
    """The tokens with another one, and without those that have expired.

    Raises:
        MeshError: INVALID_ARGUMENT, ILLEGAL_NAME, MESH_FULL.
    """
    if len(command.verifier) != VERIFIER_BYTES:
        raise MeshError(ErrorCode.INVALID_ARGUMENT, f"A token's verifier has {VERIFIER_BYTES} bytes.")
    if not 1 <= command.uses <= TOKEN_USES_MAX:
        raise MeshError(
            ErrorCode.INVALID_ARGUMENT, f"A join token admits 1 to {TOKEN_USES_MAX} nodes, not {command.uses}."
        )
    if not 1 <= command.ttl_ms <= TOKEN_TTL_MS_MAX:
        raise MeshError(ErrorCode.INVALID_ARGUMENT, "A join token is valid for at least a second and at most 30 days.")
    if command.name:
        check_node_name(command.name)
    token_id = token_id_of(command.verifier)
    if token_id in tokens:
        raise MeshError(ErrorCode.INVALID_ARGUMENT, "This join token was issued before: make another secret.")
    kept = {known: token for known, token in tokens.items() if now_ms < token.expires_at_ms}
    if len(kept) >= TOKENS_MAX:
        raise MeshError(
            ErrorCode.MESH_FULL,
            f"The mesh knows {len(kept)} join tokens, and {TOKENS_MAX} is the most: revoke some, or wait until some expire.",
            {"tokens": str(len(kept))},
        )
    expires_at_ms = min(now_ms + command.ttl_ms, TIME_MS_MAX)
    kept[token_id] = JoinToken(token_id, command.verifier, command.uses, expires_at_ms, command.name)
    return kept


def revoke(tokens: Tokens, token_id: str) -> dict[str, JoinToken]:
    """The tokens without that one. Raises TOKEN_UNKNOWN."""
    if token_id not in tokens:
        raise unknown_token()
    return {known: token for known, token in tokens.items() if known != token_id}


def read_policy(number: int) -> JoinPolicy:
    """The policy that a command names. Raises INVALID_ARGUMENT."""
    policy = _POLICIES.get(number)
    if policy is None:
        raise MeshError(ErrorCode.INVALID_ARGUMENT, "A mesh is OPEN, KEY_REQUIRED or CLOSED: name one of the three.")
    return policy


def write_tokens(tokens: Tokens) -> list[mcg_pb2.JoinToken]:
    """For a snapshot; the id follows from the verifier."""
    return [
        mcg_pb2.JoinToken(
            verifier=token.verifier, uses_left=token.uses_left, expires_at_ms=token.expires_at_ms, name=token.name
        )
        for token in tokens.values()
    ]


def read_tokens(messages: Iterable[mcg_pb2.JoinToken]) -> dict[str, JoinToken]:
    """Back from a snapshot, in the same order."""
    tokens = (
        JoinToken(token_id_of(item.verifier), item.verifier, item.uses_left, item.expires_at_ms, item.name)
        for item in messages
    )
    return {token.token_id: token for token in tokens}


def policy_value(policy: JoinPolicy) -> view_pb2.JoinPolicy.ValueType:
    """For a message."""
    return view_pb2.JoinPolicy.ValueType(policy)


def unknown_token() -> MeshError:
    """Why a token is refused that the mesh does not know, that was revoked, or whose proof is wrong: not told apart."""
    return MeshError(
        ErrorCode.TOKEN_UNKNOWN,
        "The mesh does not know this join token: it was revoked, or a character of the line is wrong. Copy it again, or make "
        "another one at a member (`meshctl token issue`).",
    )


def _refusal(code: ErrorCode, token: JoinToken, what: str) -> MeshError:
    return MeshError(
        code, f"The join token {token.token_id} {what} (`meshctl token issue`).", {"token_id": token.token_id}
    )
