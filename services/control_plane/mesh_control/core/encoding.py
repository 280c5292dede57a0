"""The MCG's values as protobuf: the MeshView, and back from a snapshot.

Leaves out every rule. A view is written in id order, so that equal states give equal bytes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from mesh_control.core.model import Member, MeshStatus, Node, NodeState, Retiring, Stream, StreamPhase
from mesh_control.core.versions import stated_version
from meshapi.common.v1 import view_pb2
from meshapi.control.v1 import mcg_pb2
from meshcommon.ids import MemberId, NodeId, StreamId


def view(
    revision: int,
    mesh_id: str,
    mesh_epoch: int,
    status: MeshStatus,
    nodes: Iterable[Node],
    streams: Iterable[Stream],
    *,
    next_ids: tuple[int, int],
    mesh_version: int,
) -> view_pb2.MeshView:
    """The MeshView of these values; `next_ids` are the first free ids of a stream and of a stream's member."""
    return view_pb2.MeshView(
        revision=revision,
        mesh_id=mesh_id,
        mesh_epoch=mesh_epoch,
        status=view_pb2.MeshStatus.ValueType(status),
        nodes=[node_view(node) for node in sorted(nodes, key=lambda node: node.node_id)],
        streams=[stream_view(stream) for stream in sorted(streams, key=lambda stream: stream.stream_id)],
        next_member_id=next_ids[1],
        mesh_version=mesh_version,
        next_stream_id=next_ids[0],
    )


def node_view(node: Node) -> view_pb2.NodeView:
    """One node."""
    return view_pb2.NodeView(
        node_id=node.node_id,
        name=node.name,
        public_key=node.public_key,
        peer_address=node.peer_address,
        state=view_pb2.NodeState.ValueType(node.state),
        is_reachable=node.is_reachable,
        mcg_member=node.mcg_member,
        is_voter=node.is_voter,
        mesh_version=node.mesh_version,
        admitted_at_ms=node.admitted_at_ms,
        wrap_key=node.wrap_key,
    )


def stream_view(stream: Stream) -> view_pb2.StreamView:
    """One stream."""
    return view_pb2.StreamView(
        stream_id=stream.stream_id,
        name=stream.name,
        members=[
            view_pb2.StreamMember(node_id=member.node_id, member_id=member.member_id, is_voter=member.is_voter)
            for member in stream.members
        ],
        state=view_pb2.StreamState.ValueType(stream.state),
        revision=stream.revision,
        retained_bytes_max=stream.retained_bytes_max,
        created_at_ms=stream.created_at_ms,
        retiring=[
            view_pb2.RetiringMember(
                node_id=item.node_id, member_id=item.member_id, revision=item.revision, is_out=item.is_out
            )
            for item in stream.retiring
        ],
        is_sealed=stream.is_sealed,
    )


def node_bytes(node: Node) -> int:
    """What the node takes in a view."""
    return node_view(node).ByteSize()


def stream_bytes(stream: Stream) -> int:
    """What the stream takes in a view."""
    return stream_view(stream).ByteSize()


def read_view(
    message: view_pb2.MeshView, destroyed: Iterable[mcg_pb2.ReplicaDestroyed] = ()
) -> tuple[dict[NodeId, Node], dict[StreamId, Stream]]:
    """Nodes and streams of a view that this module wrote.

    Raises:
        ValueError: A state is unknown to this version.
    """
    confirmed: defaultdict[int, set[NodeId]] = defaultdict(set)
    for item in destroyed:
        confirmed[item.stream_id].add(NodeId(item.node_id))
    nodes = {NodeId(item.node_id): read_node(item) for item in message.nodes}
    streams = {
        StreamId(item.stream_id): _stream(item, frozenset(confirmed[item.stream_id])) for item in message.streams
    }
    return nodes, streams


def read_node(message: view_pb2.NodeView) -> Node:
    """One node."""
    return Node(
        NodeId(message.node_id),
        message.name,
        message.public_key,
        message.peer_address,
        MemberId(message.mcg_member),
        NodeState(message.state),
        message.is_reachable,
        message.is_voter,
        stated_version(message.mesh_version),
        message.admitted_at_ms,
        message.wrap_key,
    )


def _stream(message: view_pb2.StreamView, destroyed: frozenset[NodeId]) -> Stream:
    return Stream(
        StreamId(message.stream_id),
        message.name,
        tuple(Member(NodeId(item.node_id), MemberId(item.member_id), item.is_voter) for item in message.members),
        StreamPhase(message.state),
        message.revision,
        message.retained_bytes_max,
        message.created_at_ms,
        destroyed,
        tuple(
            Retiring(NodeId(item.node_id), MemberId(item.member_id), item.revision, item.is_out)
            for item in message.retiring
        ),
        message.is_sealed,
    )
