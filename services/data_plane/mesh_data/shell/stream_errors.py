"""Errors about a stream that several parts of the data plane give."""

from __future__ import annotations

from mesh_data.core.view import Stream, StreamState
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NO_NODE, NodeId


def below_floor(stream: str, offset: int, floor_offset: int) -> MeshError:
    """The offset is no longer retained."""
    return MeshError(
        ErrorCode.OFFSET_BELOW_FLOOR,
        f"Offset {offset} of {stream} is no longer kept: the first one is {floor_offset}, read from there.",
        {"offset": str(offset), "floor_offset": str(floor_offset)},
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
    if stream.state is StreamState.DELETING:
        return MeshError(ErrorCode.STREAM_NOT_FOUND, f"{stream.name} was deleted.")
    return MeshError(
        ErrorCode.UNAVAILABLE,
        f"This node holds {stream.name} no longer: ask another one; whether the batch was committed is not known.",
    )
