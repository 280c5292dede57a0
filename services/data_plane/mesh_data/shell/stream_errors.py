"""Errors about a stream that several parts of the data plane give."""

from __future__ import annotations

from mesh_data.core.view import Stream, StreamPhase
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NO_NODE, NodeId
from meshcommon.peer_text import printable
from meshwire.errors import WireCode, WireError


def bad_batch(error: WireError) -> MeshError:
    """A batch was refused by its header or its checksum; nothing was proposed."""
    if error.code is WireCode.TOO_LARGE:
        return MeshError(ErrorCode.MESSAGE_TOO_LARGE, f"The batch is too large: {error.reason}. Split it.")
    advice = ": publish with software of this version" if error.code is WireCode.BAD_VERSION else ""
    return MeshError(ErrorCode.INVALID_ARGUMENT, f"The batch cannot be read: {error.reason}{advice}.")


def below_floor(stream: str, offset: int, floor_offset: int) -> MeshError:
    """The offset is no longer retained."""
    return MeshError(
        ErrorCode.OFFSET_BELOW_FLOOR,
        f"Offset {offset} of {stream} is no longer kept: the first one is {floor_offset}, read from there.",
        {"offset": str(offset), "floor_offset": str(floor_offset)},
    )


def update_required(stream: str, reason: str) -> MeshError:
    """The replica applies nothing more, because this version does not know what comes next."""
    return MeshError(
        ErrorCode.UPDATE_REQUIRED,
        f"This node's replica of {stream} has stopped ({reason}): update the node's software, or ask another member.",
        {"stream": stream},
    )


def malformed(node: NodeId, reason: str) -> MeshError:
    """Another node sent a response that cannot be read: an error of that one request, which may be repeated elsewhere."""
    return MeshError(ErrorCode.UNAVAILABLE, f"Node {node} sent a malformed response: {printable(reason)}.")


def version_too_low(stream: str, needed: int, mesh_version: int) -> MeshError:
    """A command that not every member would know; nothing was proposed."""
    return MeshError(
        ErrorCode.MESH_VERSION_TOO_LOW,
        f"{stream} needs version {needed} of the mesh for that, it has {mesh_version}: update every node first.",
        {"needed": str(needed), "mesh_version": str(mesh_version)},
    )


def not_leader(stream: str, leader: NodeId) -> MeshError:
    """The refusal of a member that does not lead; nothing was appended. `leader` is NO_NODE when none is known."""
    known = leader != NO_NODE
    return MeshError(
        ErrorCode.NOT_LEADER,
        f"This node does not lead {stream}: "
        + (f"ask node {leader}." if known else "no leader is known here, try again."),
        {"leader": str(leader)} if known else {},
    )


def storage_failed(stream: str, reason: str) -> MeshError:
    """The replica's disk failed."""
    return MeshError(
        ErrorCode.STORAGE_FAILED,
        f"This node's replica of {stream} is closed ({reason}): ask another member, repair the disk, restart.",
        {"reason": reason},
    )


def stream_gone(stream: Stream) -> MeshError:
    """This node's replica of the stream was taken away."""
    if stream.state is StreamPhase.DELETING:
        return MeshError(ErrorCode.STREAM_NOT_FOUND, f"{stream.name} was deleted.")
    return MeshError(
        ErrorCode.UNAVAILABLE,
        f"This node holds {stream.name} no longer: ask another one; whether the batch was committed is not known.",
    )
