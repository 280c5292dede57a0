"""Fuzz targets of joining: the text of a token, the confirmation of an answer, and commands of the control group's log."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Final, TypeVar

from control_plane_testing.mcg_commands import MESH_ID, found
from mesh_control.core.join_tokens import (
    JoinKey,
    confirm,
    confirmed,
    encode_token,
    is_proof,
    parse_token,
    prove,
    token_id_of,
    verifier_of,
)
from mesh_control.core.mcg_state import McgState
from mesh_control.core.peer_answers import check_newcomer, read_join_request
from mesh_control.core.replica import Replica
from mesh_control.core.versions import MESH_VERSION
from meshapi.common.v1 import view_pb2, weights_pb2
from meshapi.control.v1 import join_pb2, mcg_pb2
from meshcommon.errors import ErrorCode, MeshError

T = TypeVar("T")
_SECRET: Final = bytes(range(32))
_VERIFIER: Final = verifier_of(_SECRET)
_TOKEN_ID: Final = token_id_of(_VERIFIER)
_KEY: Final = bytes([2]) * 32
_SEALED: Final = mcg_pb2.SealedKey(node_id=1, wrap_key=_KEY, sealed=bytes(80))


def fuzz_join_token(data: bytes) -> None:
    """A token as an operator pastes it; one key has one text."""
    text = data.decode("latin-1")
    key = _unless_refused({ErrorCode.INVALID_ARGUMENT}, parse_token, text)
    assert key is None or encode_token(key) == text


def fuzz_join_answer(data: bytes) -> None:
    """What a newcomer with a token is answered: nobody can make a confirmation by chance."""
    answer = _unless_refused({ErrorCode.KEY_MISMATCH}, confirmed, _VERIFIER, _KEY, data)
    assert answer is None or data in _answers()


def fuzz_join_request(data: bytes) -> None:
    """A request to join, as a stranger whose lane has proved its key sends it."""
    request = _unless_refused(_JOIN_REFUSALS, read_join_request, data, _KEY)
    verifier = request and _unless_refused(_JOIN_REFUSALS, check_newcomer, _STATE, request)
    if request is None or verifier is None:
        return
    assert (request.token_id, verifier) == (_TOKEN_ID, _VERIFIER), "who has no token is not admitted"
    assert is_proof(verifier, request)


def fuzz_mcg_command(data: bytes) -> None:
    """An entry of the log: whatever it is, it ends in a result, and a snapshot holds what it did."""
    replica = Replica()
    replica.restore(2, _BEFORE)
    revision = replica.state.revision
    result = replica.apply(3, data)
    assert (result is None) == (replica.beyond is not None)
    if replica.state.revision == revision:
        return
    restored = McgState()
    restored.restore(replica.state.snapshot())
    assert restored.digest() == replica.state.digest()
    assert all(token.uses_left >= 0 for token in restored.tokens.values())


def _unless_refused(codes: Container[ErrorCode], parse: Callable[..., T], *arguments: object) -> T | None:
    """What was read; None when it was refused with one of `codes`."""
    try:
        return parse(*arguments)
    except MeshError as error:
        if error.code in codes:
            return None
        raise


def _replica() -> Replica:
    replica = Replica()
    command = found()
    command.found_mesh.mesh_name, command.found_mesh.node.mesh_version = "plant", MESH_VERSION
    command.found_mesh.join_policy = view_pb2.JOIN_POLICY_KEY_REQUIRED
    command.found_mesh.node.wrap_key = _KEY
    for index, entry in enumerate((command, _issue(_VERIFIER)), 1):
        replica.apply(index, entry.SerializeToString())
    return replica


def _issue(verifier: bytes) -> mcg_pb2.Command:
    token = mcg_pb2.IssueToken(verifier=verifier, uses=2, ttl_ms=60_000, name="b")
    return mcg_pb2.Command(stamp_ms=2_000, proposal_id=3, issue_token=token)


def _commands() -> tuple[bytes, ...]:
    add = mcg_pb2.AddNode(name="b", public_key=_KEY, mesh_version=MESH_VERSION, token_id=_TOKEN_ID)
    policy = mcg_pb2.SetJoinPolicy(join_policy=view_pb2.JOIN_POLICY_CLOSED)
    weights = weights_pb2.ClassWeights(
        traffic_class=weights_pb2.TRAFFIC_CLASS_BULK, weights=weights_pb2.CostWeights(latency_permille=1, hop_us=7)
    )
    commands = (
        _issue(bytes(32)),
        mcg_pb2.Command(stamp_ms=2_500, add_node=add),
        mcg_pb2.Command(revoke_token=mcg_pb2.RevokeToken(token_id=_TOKEN_ID)),
        mcg_pb2.Command(set_join_policy=policy),
        mcg_pb2.Command(set_cost_weights=mcg_pb2.SetCostWeights(change=weights)),
        mcg_pb2.Command(set_wrap_key=mcg_pb2.SetWrapKey(node_id=1, wrap_key=_KEY)),
        mcg_pb2.Command(set_ca=mcg_pb2.SetCa(roots=[b"root"], intermediate=b"i", sealed=[_SEALED])),
        mcg_pb2.Command(wrap_ca=mcg_pb2.WrapCa(intermediate_digest=bytes(32), sealed=_SEALED)),
    )
    return tuple(command.SerializeToString() for command in commands)


def _requests() -> tuple[bytes, ...]:
    request = join_pb2.JoinRequest(
        mesh_id=MESH_ID, name="b", public_key=_KEY, peer_address="ws://b:1", mesh_version=MESH_VERSION
    )
    without = request.SerializeToString()
    prove(request, _VERIFIER)
    return without, request.SerializeToString()


def _answers() -> tuple[bytes, ...]:
    answers = (join_pb2.JoinResponse(node_id=2, mcg_member=2), join_pb2.JoinResponse())
    return tuple(confirm(_VERIFIER, _KEY, answer.SerializeToString()) for answer in answers)


def _tokens() -> tuple[bytes, ...]:
    keys = (
        JoinKey(MESH_ID, (), _SECRET),
        JoinKey(MESH_ID, ("ws://a:1", "wss://[::1]:65535"), _SECRET, "b", bytes(32)),
    )
    return tuple(encode_token(key).encode() for key in keys)


_STATE: Final = _replica().state
_BEFORE: Final = _STATE.snapshot()
_JOIN_REFUSALS: Final = frozenset(
    {
        ErrorCode.INVALID_ARGUMENT,
        ErrorCode.ILLEGAL_NAME,
        ErrorCode.KEY_MISMATCH,
        ErrorCode.TOKEN_REQUIRED,
        ErrorCode.TOKEN_UNKNOWN,
        ErrorCode.TOKEN_FOR_ANOTHER_NAME,
    }
)
JOIN_TARGETS: Final = (
    ("join_token", fuzz_join_token, _tokens()),
    ("join_request", fuzz_join_request, _requests()),
    ("join_answer", fuzz_join_answer, _answers()),
    ("mcg_command", fuzz_mcg_command, _commands()),
)
"""Name, what to call, and the inputs to start from."""
