"""What the MCG refuses: one check per command, each with its code and a sentence that says what to do.

A check reads the replicated state and the command only, so that every replica refuses alike. It raises MeshError and
changes nothing. Source: architecture §7, §10; issue "Bad input".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from mesh_control.core.limits import INTEGER_MAX, JOINING_MAX, NODES_MAX, STREAMS_MAX, VIEW_BYTES_MAX
from mesh_control.core.model import (
    PUBLIC_KEY_BYTES,
    RETAINED_BYTES_MIN,
    STREAM_MEMBERS_MAX,
    STREAM_MEMBERS_MIN,
    WRAP_KEY_BYTES,
    MeshStatus,
    Node,
    NodeState,
    Stream,
    StreamPhase,
)
from meshcommon.address import parse_peer_address
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId, StreamId, check_node_name, check_stream_name

WISHES: Final[dict[int, NodeState]] = {state: state for state in (NodeState.ACTIVE, NodeState.STOPPED)}
"""What an operator can wish a node to be."""
Nodes = Mapping[NodeId, Node]
Streams = Mapping[StreamId, Stream]


def check_not_critical(status: MeshStatus) -> None:
    """A CRITICAL mesh accepts nothing but the removal of nodes."""
    if status is MeshStatus.CRITICAL:
        raise MeshError(
            ErrorCode.MESH_CRITICAL,
            "The mesh is CRITICAL (half of its running nodes or more are unreachable) and accepts no changes: "
            "bring nodes back, or forget those that are lost (`meshctl node forget NAME`).",
        )


def check_public_key(public_key: bytes) -> None:
    """An Ed25519 public key has 32 bytes."""
    if len(public_key) != PUBLIC_KEY_BYTES:
        raise MeshError(
            ErrorCode.INVALID_ARGUMENT,
            f"The public key has {len(public_key)} bytes instead of {PUBLIC_KEY_BYTES}: send an Ed25519 public key.",
        )


def check_wrap_key(wrap_key: bytes) -> bytes:
    """An X25519 public key has 32 bytes; empty for a node that has told none yet. Raises INVALID_ARGUMENT."""
    if len(wrap_key) not in {0, WRAP_KEY_BYTES}:
        raise MeshError(
            ErrorCode.INVALID_ARGUMENT,
            f"The wrap key has {len(wrap_key)} bytes instead of {WRAP_KEY_BYTES}: send an X25519 public key.",
        )
    return wrap_key


def check_peer_address(address: str) -> str:
    """The canonical text of an address, empty for a node that only dials. Raises INVALID_ARGUMENT."""
    return str(parse_peer_address(address)) if address else ""


def check_room(nodes: Nodes, view_bytes: int) -> None:
    """Another node fits.

    Raises:
        MeshError: MESH_FULL, retryable while only those that have not been heard yet are too many.
    """
    if len(nodes) >= NODES_MAX:
        raise MeshError(
            ErrorCode.MESH_FULL,
            f"The mesh has {len(nodes)} nodes, and {NODES_MAX} is the most: let one leave, or forget one that is lost.",
            {"nodes": str(len(nodes))},
        )
    joining = sum(node.state is NodeState.JOINING for node in nodes.values())
    if joining >= JOINING_MAX:
        raise MeshError(
            ErrorCode.MESH_FULL,
            f"{joining} nodes are joining and have not been heard yet, and {JOINING_MAX} is the most: try again later.",
            {"joining": str(joining)},
            retryable=True,
        )
    check_view_bytes(view_bytes, VIEW_BYTES_MAX)


def check_view_bytes(view_bytes: int, bytes_max: int) -> None:
    """The encoded view has room. Raises MESH_FULL."""
    if view_bytes > bytes_max:
        raise MeshError(
            ErrorCode.MESH_FULL,
            f"The list of nodes and streams would take {view_bytes} bytes, and {bytes_max} is the most: "
            "delete streams that nobody uses, or use fewer members.",
            {"view_bytes": str(view_bytes)},
        )


def find_place(nodes: Nodes, name: str, public_key: bytes) -> Node | None:
    """The place of a node that joins again with the same name and key, None for a newcomer.

    Raises:
        MeshError: ILLEGAL_NAME, NAME_TAKEN, KEY_TAKEN, INVALID_ARGUMENT.
    """
    check_node_name(name)
    check_public_key(public_key)
    for node in nodes.values():
        if node.name == name and node.public_key == public_key:
            return node
    for node in nodes.values():
        if node.name == name:
            raise MeshError(
                ErrorCode.NAME_TAKEN,
                f"Another node of this mesh is named {name!r}: choose another name (MESH_NODE_NAME){_or_forget(node)}.",
                {"name": name, "node_id": str(node.node_id)},
            )
        if node.public_key == public_key:
            raise MeshError(
                ErrorCode.KEY_TAKEN,
                f"The key of {name!r} belongs to node {node.name!r} of this mesh: "
                "a data directory must not be copied; start with an empty one.",
                {"name": name, "node_id": str(node.node_id)},
            )
    return None


def _or_forget(node: Node) -> str:
    if node.state is NodeState.ACTIVE and node.is_reachable:
        return f"; if this is that node with an empty disk, wait until the mesh misses it and `meshctl node forget {node.name}`"
    return f", or, if that one is lost or this is it with an empty disk, `meshctl node forget {node.name}` at a member first"


def check_node(nodes: Nodes, node_id: NodeId) -> Node:
    """The node, or UNKNOWN_NODE."""
    node = nodes.get(node_id)
    if node is None:
        raise MeshError(
            ErrorCode.UNKNOWN_NODE,
            f"No node of this mesh has the id {node_id}: see the list of nodes.",
            {"node_id": str(node_id)},
        )
    return node


def check_placeable(node: Node) -> None:
    """A node that was not heard yet gets no replica."""
    if node.state is NodeState.JOINING:
        raise MeshError(
            ErrorCode.UNKNOWN_NODE,
            f"{node.name!r} is still joining, its control plane has not been heard yet: try again when it is ACTIVE.",
            {"node_id": str(node.node_id), "state": node.state.name},
            retryable=True,
        )


def check_not_last(nodes: Nodes, node: Node) -> None:
    """Raises LAST_NODE."""
    if len(nodes) == 1:
        raise MeshError(
            ErrorCode.LAST_NODE,
            f"{node.name!r} is the last node of this mesh, and the mesh would end with it: "
            "stop the node instead, or empty its data directory.",
        )


def node_is_heard(node: Node) -> MeshError:
    """Why a node is not forgotten."""
    return MeshError(
        ErrorCode.NODE_IS_HEARD,
        f"The mesh hears {node.name!r}: let it leave (`meshctl leave` there), or shut it down for good and try again when the "
        "mesh misses it.",
        {"node_id": str(node.node_id)},
    )


def check_removable(nodes: Nodes, streams: Streams, node_id: NodeId) -> Node:
    """A node may go when it is not the last and no stream would lose a replica."""
    node = check_node(nodes, node_id)
    check_not_last(nodes, node)
    at_risk = sorted(
        stream.name
        for stream in streams.values()
        if stream.state is not StreamPhase.DELETING and _is_needed(stream, node_id)
    )
    if at_risk:
        raise MeshError(
            ErrorCode.STREAMS_AT_RISK,
            f"{node.name!r} holds replicas of {len(at_risk)} streams, which would lose one ({', '.join(at_risk[:5])}"
            f"{', …' if len(at_risk) > 5 else ''}): remove it from these streams first, or delete them.",
            {"streams": ",".join(at_risk)},
        )
    return node


def _is_needed(stream: Stream, node_id: NodeId) -> bool:
    """Whether the stream's group counts, or should count, on the node."""
    return stream.has_member(node_id) or any(item.node_id == node_id and not item.is_out for item in stream.retiring)


def check_new_stream(
    nodes: Nodes, streams: Streams, name: str, node_ids: Sequence[NodeId], retained_bytes_max: int
) -> None:
    """A stream has a free legal name, 2 to 10 different members of the mesh, and room for what it retains."""
    check_stream_name(name)
    taken = stream_named(streams, name)
    if taken is not None:
        what_next = (
            "it is being deleted, try again later"
            if taken.state is StreamPhase.DELETING
            else "use it, or choose another name"
        )
        raise MeshError(
            ErrorCode.STREAM_EXISTS,
            f"A stream {name!r} exists: {what_next}.",
            {"name": name, "state": taken.state.name, "stream_id": str(taken.stream_id)},
        )
    if not STREAM_MEMBERS_MIN <= len(node_ids) <= STREAM_MEMBERS_MAX:
        raise MeshError(
            ErrorCode.MEMBER_COUNT,
            f"A stream has {STREAM_MEMBERS_MIN} to {STREAM_MEMBERS_MAX} members, not {len(node_ids)}: "
            "name that many nodes.",
            {"members": str(len(node_ids))},
        )
    for node_id in node_ids:
        check_placeable(check_node(nodes, node_id))
    if len(set(node_ids)) != len(node_ids):
        raise MeshError(ErrorCode.INVALID_ARGUMENT, "A node is named twice among the members: name each once.")
    if retained_bytes_max and not RETAINED_BYTES_MIN <= retained_bytes_max <= INTEGER_MAX:
        raise MeshError(
            ErrorCode.INVALID_ARGUMENT,
            f"retained_bytes_max is {retained_bytes_max}, and must be between {RETAINED_BYTES_MIN} and {INTEGER_MAX}: "
            "change it, or give 0 for the default.",
        )
    if len(streams) >= STREAMS_MAX:
        raise MeshError(
            ErrorCode.MESH_FULL,
            f"The mesh has {len(streams)} streams, and {STREAMS_MAX} is the most: delete one that nobody uses.",
            {"streams": str(len(streams))},
        )


def check_stream(streams: Streams, stream_id: StreamId) -> Stream:
    """The stream, or STREAM_NOT_FOUND."""
    stream = streams.get(stream_id)
    if stream is None:
        raise MeshError(
            ErrorCode.STREAM_NOT_FOUND,
            f"No stream has the id {stream_id}: see the list of streams.",
            {"stream_id": str(stream_id)},
        )
    return stream


def stream_named(streams: Streams, name: str) -> Stream | None:
    """The stream of that name, tombstones included (a name is free again when its tombstone is gone)."""
    return next((stream for stream in streams.values() if stream.name == name), None)
