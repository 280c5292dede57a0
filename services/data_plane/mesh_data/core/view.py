"""The MeshView as the data plane uses it: members, keys, addresses and streams at one revision.

Purpose: typed, immutable values that every part of the data plane reads, converted once from protobuf. Leaves out: what
only the control plane needs (mesh status). Source: architecture §2 "MeshView".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from meshapi.common.v1 import view_pb2
from meshcommon.address import is_peer_address
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NO_NODE, MemberId, NodeId, StreamId

PUBLIC_KEY_BYTES = 32


class NodeState(IntEnum):
    """Where a node is in its life."""

    ACTIVE = 1
    STOPPED = 2
    JOINING = 3


class StreamPhase(IntEnum):
    """Where a stream is in its life."""

    FORMING = 1
    ACTIVE = 2
    DELETING = 3


@dataclass(frozen=True, slots=True)
class Node:
    """One member of the mesh.

    Attributes:
        node_id: id that the MCG allocated.
        name: unique name.
        public_key: Ed25519, 32 bytes.
        peer_address: WebSocket address that it advertises, empty when it only dials.
        state: committed life state.
        is_reachable: whether the MCG leader reaches it, as committed.
        is_voter: whether it votes in the MCG.
    """

    node_id: NodeId
    name: str
    public_key: bytes
    peer_address: str
    state: NodeState
    is_reachable: bool = True
    is_voter: bool = False


@dataclass(frozen=True, slots=True)
class Member:
    """One member of a stream's group."""

    node_id: NodeId
    member_id: MemberId
    is_voter: bool


@dataclass(frozen=True, slots=True)
class Retiring:
    """A membership that ends: retired by catalogue `revision`; `is_out` once the group has committed its removal."""

    node_id: NodeId
    member_id: MemberId
    revision: int
    is_out: bool


@dataclass(frozen=True, slots=True)
class Stream:
    """One stream of the catalogue; the first of `members` is the preferred leader.

    Attributes:
        members: who the group should have; its own Raft configuration follows.
        retiring: former members whose removal or whose data are not gone yet.
        is_sealed: while DELETING: the group takes nothing more, its replicas may be destroyed.
        next_member_id: the catalogue has given out the ids before it, of all streams.
    """

    stream_id: StreamId
    name: str
    members: tuple[Member, ...]
    state: StreamPhase
    revision: int
    retained_bytes_max: int
    retiring: tuple[Retiring, ...] = ()
    is_sealed: bool = False
    next_member_id: int = field(default=0, compare=False)

    def member_at(self, node_id: NodeId) -> Member | None:
        """The membership that the node should have now."""
        return next((item for item in self.members if item.node_id == node_id), None)

    def retiring_at(self, node_id: NodeId) -> Retiring | None:
        """The membership of the node that ends, and whose vote may be needed until the group has removed it."""
        return next((item for item in self.retiring if item.node_id == node_id and not item.is_out), None)

    def ended_at(self, node_id: NodeId) -> frozenset[MemberId]:
        """Memberships of the node that the group has removed, and whose data have to go."""
        return frozenset(item.member_id for item in self.retiring if item.node_id == node_id and item.is_out)

    def is_held_by(self, node_id: NodeId) -> bool:
        """Whether the node has a membership, also one that ends."""
        homes = {item.node_id for item in self.members} | {item.node_id for item in self.retiring}
        return node_id in homes

    def homes(self) -> dict[int, int]:
        """Where each member lives that may be in the group: those that it should have, and those not out of it yet."""
        retiring = {int(item.member_id): int(item.node_id) for item in self.retiring if not item.is_out}
        return retiring | {int(item.member_id): int(item.node_id) for item in self.members}

    def node_of(self, member_id: MemberId) -> NodeId:
        """Where a member lives, 0 when the catalogue does not know it."""
        homes = {item.member_id: item.node_id for item in self.retiring}
        homes |= {item.member_id: item.node_id for item in self.members}
        return homes.get(member_id, NO_NODE)


@dataclass(frozen=True, slots=True)
class View:
    """The whole view at one revision. The dictionaries must not be changed.

    `mesh_version` is committed and supported by every member: nothing that a later one introduced may be proposed.
    `next_stream_id`: the catalogue has given out the ids before it; 0 when that is not told.
    """

    revision: int
    mesh_id: str
    mesh_epoch: int
    nodes: dict[NodeId, Node]
    streams: dict[StreamId, Stream]
    mesh_version: int = 1
    next_stream_id: int = 0

    def name_of(self, node_id: NodeId) -> str:
        """The node's name, or its number when it is not a member."""
        node = self.nodes.get(node_id)
        return node.name if node is not None else str(node_id)

    def node_named(self, name: str) -> Node | None:
        """The member of that name."""
        return next((node for node in self.nodes.values() if node.name == name), None)

    def stream_named(self, name: str) -> Stream | None:
        """The stream of that name (`namespace/name`); a tombstone only when no live stream has the name."""
        found = None
        for stream in self.streams.values():
            if stream.name == name:
                if stream.state is not StreamPhase.DELETING:
                    return stream
                found = stream
        return found


def view_from_proto(message: view_pb2.MeshView) -> View:
    """The view in `message`.

    Raises:
        MeshError: INVALID_ARGUMENT when a field is missing or out of range.
    """
    if not message.mesh_id:
        raise MeshError(ErrorCode.INVALID_ARGUMENT, "The MeshView names no mesh: send one with its mesh id.")
    try:
        nodes = {NodeId(node.node_id): _node(node) for node in message.nodes}
        streams = {StreamId(item.stream_id): _stream(item, message.next_member_id) for item in message.streams}
    except ValueError as error:
        raise MeshError(ErrorCode.INVALID_ARGUMENT, f"The MeshView cannot be read: {error}.") from None
    # A control plane of before the field sends none; nothing was introduced after version 1 then.
    mesh_version = getattr(message, "mesh_version", 0) or 1
    return View(
        message.revision, message.mesh_id, message.mesh_epoch, nodes, streams, mesh_version, message.next_stream_id
    )


def _node(message: view_pb2.NodeView) -> Node:
    if not message.node_id:
        raise ValueError("a node without an id")
    if len(message.public_key) != PUBLIC_KEY_BYTES:
        raise ValueError(f"the public key of node {message.node_id} has not {PUBLIC_KEY_BYTES} bytes")
    return Node(
        node_id=NodeId(message.node_id),
        name=message.name,
        public_key=message.public_key,
        # One of an old state that is no address is kept in the view and never dialled.
        peer_address=message.peer_address if is_peer_address(message.peer_address) else "",
        state=NodeState(message.state),
        is_reachable=message.is_reachable,
        is_voter=message.is_voter,
    )


def _stream(message: view_pb2.StreamView, next_member_id: int) -> Stream:
    if not message.stream_id:
        raise ValueError("a stream without an id")
    members = tuple(Member(NodeId(item.node_id), MemberId(item.member_id), item.is_voter) for item in message.members)
    return Stream(
        stream_id=StreamId(message.stream_id),
        name=message.name,
        members=members,
        state=StreamPhase(message.state),
        revision=message.revision,
        retained_bytes_max=message.retained_bytes_max,
        retiring=tuple(
            Retiring(NodeId(item.node_id), MemberId(item.member_id), item.revision, item.is_out)
            for item in message.retiring
        ),
        is_sealed=message.is_sealed,
        next_member_id=next_member_id,
    )
