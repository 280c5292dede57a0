"""Which stream is meant, and which node to ask about it.

Streams come from the MeshView, leaders from the local replica where there is one, else from the hints of members that were
asked. Leaves out: asking. Source: architecture §5 "Overlay request".
"""

from __future__ import annotations

import asyncio

from mesh_data.core.leader_hints import LeaderHints
from mesh_data.core.stream_lookup import ANY_STREAM, stream_named, stream_of_id
from mesh_data.core.view import Stream, StreamPhase, View
from mesh_data.shell.groups.groups import Groups
from mesh_data.shell.groups.replica import Replica
from mesh_data.shell.overlay.overlay_port import OverlayPort
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NO_NODE, NodeId, StreamId


class StreamsCatalogue:
    """Streams as this node knows them, and leaders as it has heard."""

    def __init__(self, overlay: OverlayPort, groups: Groups) -> None:
        self.overlay = overlay
        self.groups = groups
        self.closing = asyncio.Event()
        """Set when the service stops."""
        self.hints = LeaderHints()

    def close(self) -> None:
        """The service stops: calls that would stay for ever end."""
        self.closing.set()
        self.groups.notify_all()

    def view(self) -> View:
        """The view. Raises NOT_A_MEMBER, NODE_STOPPED or, while the service stops, UNAVAILABLE."""
        if self.closing.is_set():
            raise shutting_down()
        view = self.overlay.view()
        if view is None:
            raise MeshError(ErrorCode.NOT_A_MEMBER, "This node is in no mesh: seed one, or join one, first.")
        if not self.groups.is_running:
            raise MeshError(ErrorCode.NODE_STOPPED, "This node was stopped on purpose: start it again.")
        return view

    def named(self, name: str, expected: int = ANY_STREAM) -> Stream:
        """`stream_named` in the view. Raises as that and as `view`."""
        return stream_named(self.view(), name, expected)

    def stream(self, stream_id: StreamId, name: str = "") -> Stream:
        """`stream_of_id` in the view. Raises as that and as `view`."""
        return stream_of_id(self.view(), stream_id, name)

    def local_leader(self, stream_id: StreamId) -> Replica | None:
        """The local replica if it leads a live stream: what `stream` and `leader` come to, at a fraction of their cost."""
        replica = self.groups.replica(stream_id)
        if replica is None or not replica.is_leading or self.closing.is_set():
            return None
        return None if replica.stream.state is StreamPhase.DELETING else replica

    def served(self, stream_id: StreamId) -> Replica:
        """The local replica for a request from another node. Raises UNKNOWN_GROUP, NOT_A_MEMBER, NODE_STOPPED."""
        view = self.view()
        replica = self.groups.replica(stream_id)
        if replica is None:
            raise MeshError(
                ErrorCode.UNKNOWN_GROUP,
                f"Node {self.overlay.node_id} holds no replica of stream {stream_id}: ask another member, or again later.",
                {"revision": str(view.revision)},
            )
        return replica

    def readable(self, stream_id: StreamId) -> Replica | None:
        """The local replica, if records can be read from it."""
        replica = self.groups.replica(stream_id)
        if replica is None or replica.is_blank or not replica.is_open:
            return None
        return replica

    def leader(self, stream: Stream) -> NodeId:
        """The node to ask as the leader; NO_NODE when nobody can be asked now."""
        overlay = self.overlay
        replica = self.groups.replica(stream.stream_id)
        known_here = None
        if replica is not None and replica.failure is None:
            known_here = overlay.node_id if replica.is_leading else replica.leader_node
        return self.hints.leader(stream, overlay.node_id, known_here, overlay.is_reachable)

    def other_member(self, stream: Stream) -> NodeId:
        """A reachable member other than this node; NO_NODE when there is none."""
        return self.hints.other_member(stream, self.overlay.node_id, self.overlay.is_reachable)

    def queued_bytes(self, node: NodeId) -> int:
        """What waits on the way to `node`: past `QUEUED_BYTES_MAX` a source of bulk data holds back; relays would drop it."""
        return self.overlay.queued_bytes(node) if node not in (NO_NODE, self.overlay.node_id) else 0


def shutting_down() -> MeshError:
    """The data plane is going away."""
    return MeshError(ErrorCode.UNAVAILABLE, "This node's data plane is shutting down: try again, or at another node.")
