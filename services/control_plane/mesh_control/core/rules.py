"""What the MCG refuses: one check per command, each with its code and a sentence that says what to do.

A check reads the replicated state and the command only, so that every replica refuses alike. It raises MeshError and
changes nothing. Source: architecture §7, §10; issue "Bad input".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mesh_control.core.model import (
    PUBLIC_KEY_BYTES,
    RETAINED_BYTES_MIN,
    STREAM_MEMBERS_MAX,
    STREAM_MEMBERS_MIN,
    MeshStatus,
    Node,
    Stream,
    StreamState,
)
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId, StreamId, check_node_name, check_stream_name

Nodes = Mapping[NodeId, Node]
Streams = Mapping[StreamId, Stream]


def check_not_critical(status: MeshStatus) -> None:
    """A CRITICAL mesh accepts nothing but the removal of nodes."""
    if status is MeshStatus.CRITICAL:
        raise MeshError(
            ErrorCode.MESH_CRITICAL,
            "The mesh is CRITICAL (half of its running nodes or more are unreachable) and accepts no changes: "
            "bring nodes back, or remove those that are lost.",
        )


def check_public_key(public_key: bytes) -> None:
    """An Ed25519 public key has 32 bytes."""
    if len(public_key) != PUBLIC_KEY_BYTES:
        raise MeshError(
            ErrorCode.INVALID_ARGUMENT,
            f"The public key has {len(public_key)} bytes instead of {PUBLIC_KEY_BYTES}: send an Ed25519 public key.",
        )


def check_peer_address(address: str) -> None:
    """An address is empty or a WebSocket address."""
    if address and not address.startswith(("ws://", "wss://")):
        raise MeshError(
            ErrorCode.INVALID_ARGUMENT,
            f"{address!r} is no peer address: use ws://host:port or wss://host:port, or none for a node that only dials.",
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
                f"Another node of this mesh is named {name!r}: choose another name (MESH_NODE_NAME).",
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


def check_removable(nodes: Nodes, streams: Streams, node_id: NodeId) -> Node:
    """A node may go when it is not the last and no stream would lose a replica."""
    node = check_node(nodes, node_id)
    if len(nodes) == 1:
        raise MeshError(
            ErrorCode.LAST_NODE,
            f"{node.name!r} is the last node of this mesh, and the mesh would end with it: "
            "stop the node instead, or empty its data directory.",
        )
    at_risk = sorted(
        stream.name
        for stream in streams.values()
        if stream.state is not StreamState.DELETING and _is_needed(stream, node_id)
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
            if taken.state is StreamState.DELETING
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
        check_node(nodes, node_id)
    if len(set(node_ids)) != len(node_ids):
        raise MeshError(ErrorCode.INVALID_ARGUMENT, "A node is named twice among the members: name each once.")
    if retained_bytes_max and retained_bytes_max < RETAINED_BYTES_MIN:
        raise MeshError(
            ErrorCode.INVALID_ARGUMENT,
            f"retained_bytes_max is {retained_bytes_max}, at least {RETAINED_BYTES_MIN} is needed: "
            "raise it, or give 0 for the default.",
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
