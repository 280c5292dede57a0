"""What control planes ask of and answer to each other, read strictly: fields and bounds first, then use.

Leaves out transport (`meshcommon.requests`) and what the state refuses (`rules`). Source: architecture §11 "Everything from
outside"; join.proto.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from google.protobuf.message import DecodeError

from mesh_control.core import rules
from mesh_control.core.encoding import read_view
from mesh_control.core.join_rules import check_admission, unknown_token
from mesh_control.core.join_tokens import check_token_id, confirmed, is_proof
from mesh_control.core.limits import INTEGER_MAX, NODES_MAX
from mesh_control.core.mcg_state import McgState, Result
from mesh_control.core.model import Stream
from mesh_control.core.versions import Beyond, stated_version
from meshapi.common.v1 import view_pb2
from meshapi.control.v1 import join_pb2, mcg_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId, StreamId, check_mesh_id, check_node_name

ANSWER_BYTES_MAX: Final = 2 * 1024**2
"""A packet of the overlay."""
JOIN_REQUEST_BYTES_MAX: Final = 4096
"""More than the longest name and address need."""
_LEADERS_OWN: Final = frozenset(
    {None, "found_mesh", "set_voters", "set_reachability", "activate_node", "expire_node", "raise_mesh_version"}
)
_OF_THE_NODE_ITSELF: Final = frozenset(
    {"renew_member", "announce_version", "set_node_state", "remove_node", "replica_destroyed", "set_wrap_key"}
)
"""Who stops or leaves says so itself, and only a node knows what its disks hold."""

_OF_HOLDERS: Final = frozenset({"stream_formed", "stream_sealed", "member_out"})
"""Reports of what a stream's group has committed, which only its members can know."""


def check_proposer(command: mcg_pb2.Command, peer: NodeId, streams: Mapping[StreamId, Stream]) -> None:
    """Whether a member may have this committed, as far as the leader knows the streams. Raises INVALID_ARGUMENT."""
    kind = command.WhichOneof("kind")
    if kind in _LEADERS_OWN:
        raise MeshError(ErrorCode.INVALID_ARGUMENT, "Only the leader itself proposes this.")
    if kind in _OF_THE_NODE_ITSELF and getattr(command, kind).node_id != peer:
        raise MeshError(ErrorCode.INVALID_ARGUMENT, "Only the node itself proposes this.")
    if kind in _OF_HOLDERS:
        stream = streams.get(StreamId(getattr(command, kind).stream_id))
        if stream is not None and peer not in stream.holders:
            raise MeshError(ErrorCode.INVALID_ARGUMENT, "Only a member of the stream proposes this.")


def read_propose_response(body: bytes) -> Result:
    """What a leader says that a proposal did.

    Raises:
        MeshError: UNAVAILABLE: the response is malformed. The outcome is open, so the caller asks again.
    """
    try:
        answer = join_pb2.ProposeResponse.FromString(body)
    except DecodeError:
        answer = join_pb2.ProposeResponse(revision=INTEGER_MAX + 1)
    if max(answer.revision, answer.allocated_id) > INTEGER_MAX:
        raise MeshError(
            ErrorCode.UNAVAILABLE, "The leader sent a malformed response: look at its version.", retryable=True
        )
    return Result(answer.revision, answer.allocated_id)


def is_removed(body: bytes, mesh_id: str, revision: int) -> bool:
    """Whether an answer says that this node, which knows `revision` of mesh `mesh_id`, is no member of it any more.

    Raises:
        MeshError: WRONG_PROTOCOL.
    """
    try:
        answer = join_pb2.StandingResponse.FromString(body)
    except DecodeError:
        raise _unreadable("it is cut short") from None
    # One that knows less than this node may not know it yet.
    return answer.mesh_id == mesh_id and answer.revision >= revision and not answer.node_id


def read_join_request(body: bytes, lane_public_key: bytes) -> join_pb2.JoinRequest:
    """The request of a node that is not yet a member; its address is made canonical only where it is committed.

    What the state would refuse anyway is refused before it costs the control group anything.

    Raises:
        MeshError: INVALID_ARGUMENT, ILLEGAL_NAME; KEY_MISMATCH for another key than the lane has proved.
    """
    if len(body) > JOIN_REQUEST_BYTES_MAX:
        raise _bad_request(f"it has {len(body)} bytes, and {JOIN_REQUEST_BYTES_MAX} is the most")
    try:
        request = join_pb2.JoinRequest.FromString(body)
    except DecodeError:
        raise _bad_request("it is malformed") from None
    check_node_name(request.name)
    rules.check_public_key(request.public_key)
    rules.check_peer_address(request.peer_address)
    rules.check_wrap_key(request.wrap_key)
    if request.token_id:
        check_token_id(request.token_id)
    if request.public_key != lane_public_key:
        raise MeshError(
            ErrorCode.KEY_MISMATCH,
            "The request names another key than the lane has proved: join with the key of this node's own data directory.",
        )
    return request


def check_newcomer(state: McgState, request: join_pb2.JoinRequest) -> bytes:
    """Whether a newcomer may ask for a place, as far as `state` goes; where the command is applied has the last word.

    Returns:
        The verifier of the token that it has proved, empty when it shows none and needs none.

    Raises:
        MeshError: TOKEN_UNKNOWN for a token that is not known here and for a wrong proof; those of `check_admission`.
    """
    token = state.tokens.get(request.token_id)
    if request.token_id and (token is None or not is_proof(token.verifier, request)):
        raise unknown_token()
    # A node that has its place already asks for nothing new.
    if not any((node.name, node.public_key) == (request.name, request.public_key) for node in state.nodes.values()):
        check_admission(state.join_policy, state.tokens, request.token_id, request.name, state.time_ms)
    return token.verifier if token else b""


def read_join_response(
    body: bytes, request: join_pb2.JoinRequest, supported: int, verifier: bytes = b""
) -> join_pb2.JoinResponse:
    """The place that a member of the mesh that `request` names gave to a newcomer whose software supports `supported`.

    `verifier` is that of the newcomer's token, empty when it has none: then nothing shows which mesh it is.

    Raises:
        MeshError: WRONG_PROTOCOL, UPDATE_REQUIRED; KEY_MISMATCH for an answer without a right confirmation.
    """
    if len(body) > ANSWER_BYTES_MAX:
        raise _unreadable(f"it has {len(body)} bytes")
    if verifier:
        body = confirmed(verifier, request.public_key, body)
    try:
        answer = join_pb2.JoinResponse.FromString(body)
        check_mesh_id(answer.view.mesh_id)
        if (version := stated_version(answer.view.mesh_version)) > supported:
            raise Beyond(version).refusal(supported)
        nodes, _streams = read_view(answer.view)
        for node in nodes.values():
            check_node_name(node.name)
            rules.check_public_key(node.public_key)
    except (DecodeError, ValueError):
        raise _unreadable("it is malformed") from None
    except MeshError as error:
        if error.code is ErrorCode.UPDATE_REQUIRED:
            raise
        raise _unreadable("a value in it is not allowed") from None
    _check_place(answer, request)
    return answer


def _check_place(answer: join_pb2.JoinResponse, request: join_pb2.JoinRequest) -> None:
    view: view_pb2.MeshView = answer.view
    if view.mesh_id != request.mesh_id:
        raise _unreadable("it speaks of another mesh")
    counters = (view.revision, view.mesh_epoch, view.next_stream_id, view.next_member_id)
    numbers = (answer.node_id, answer.mcg_member, *counters)
    if not answer.node_id or not answer.mcg_member or max(numbers) > INTEGER_MAX or len(view.nodes) > NODES_MAX:
        raise _unreadable("a number in it is out of range")
    own = [node for node in view.nodes if node.node_id == answer.node_id]
    place = (request.name, request.public_key, answer.mcg_member)
    if [(node.name, node.public_key, node.mcg_member) for node in own] != [place]:
        raise _unreadable("the place in it is not this node's")


def _bad_request(why: str) -> MeshError:
    return MeshError(ErrorCode.INVALID_ARGUMENT, f"The request to join cannot be read ({why}): update the node.")


def _unreadable(why: str) -> MeshError:
    return MeshError(
        ErrorCode.WRONG_PROTOCOL,
        f"The answer of the other node is not what the protocol says ({why}): update one of them.",
    )
