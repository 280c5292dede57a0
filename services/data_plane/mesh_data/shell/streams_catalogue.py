"""Which stream is meant, and which node to ask about it.

Streams come from the MeshView, leaders from the local replica where there is one, else from the hints of members that were
asked. Leaves out: asking. Source: architecture §5 "Overlay request".
"""

from __future__ import annotations

import asyncio
from typing import Final

from mesh_data.core.publish_window import Credit
from mesh_data.core.view import Stream, StreamState, View
from mesh_data.shell.groups import Groups
from mesh_data.shell.overlay_port import OverlayPort
from mesh_data.shell.replica import Replica
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NO_NODE, NodeId, StreamId, check_stream_name

_QUEUED_BYTES_MAX: Final = 8 * 1024 * 1024
"""Half of what the first hop queues before it drops."""
_PUBLISH_BYTES_MAX: Final = 192 * 1024 * 1024
"""Unanswered bytes of all publishers of this node; one that waits for nothing gets a batch through all the same."""


class StreamsCatalogue:
    """Streams as this node knows them, and leaders as it has heard."""

    def __init__(self, overlay: OverlayPort, groups: Groups) -> None:
        self.overlay = overlay
        self.groups = groups
        self.closing = asyncio.Event()
        """Set when the service stops."""
        self.publish_credit = Credit(_PUBLISH_BYTES_MAX)
        self._hints: dict[StreamId, NodeId] = {}
        self._turn = 0

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

    def named(self, name: str) -> Stream:
        """The live stream of that name. Raises ILLEGAL_NAME, STREAM_NOT_FOUND, NOT_A_MEMBER, NODE_STOPPED."""
        stream = self.view().stream_named(check_stream_name(name))
        if stream is None or stream.state is StreamState.DELETING:
            raise _not_found(name)
        return stream

    def stream(self, stream_id: StreamId) -> Stream:
        """The live stream of that id. Raises STREAM_NOT_FOUND, NOT_A_MEMBER, NODE_STOPPED."""
        stream = self.view().streams.get(stream_id)
        if stream is None or stream.state is StreamState.DELETING:
            raise _not_found(str(stream_id) if stream is None else stream.name)
        return stream

    def local_leader(self, stream_id: StreamId) -> Replica | None:
        """The local replica if it leads a live stream: what `stream` and `leader` come to, at a fraction of their cost."""
        replica = self.groups.replica(stream_id)
        if replica is None or not replica.is_leading or self.closing.is_set():
            return None
        return None if replica.stream.state is StreamState.DELETING else replica

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
        """The node to ask as the leader; 0 when nobody can be asked now."""
        replica = self.groups.replica(stream.stream_id)
        if replica is not None and replica.failure is None:
            if replica.is_leading:
                return self.overlay.node_id
            if replica.leader_node != NO_NODE:
                # Unreachable: the group elects another; sending into the void would only make the outcome uncertain.
                return replica.leader_node if self.overlay.is_reachable(replica.leader_node) else NO_NODE
        hint = self._hints.get(stream.stream_id, NO_NODE)
        if hint not in (NO_NODE, self.overlay.node_id) and self.overlay.is_reachable(hint):
            return hint
        return self.other_member(stream)

    def other_member(self, stream: Stream) -> NodeId:
        """A reachable member other than this node, the first one first, each in its turn; 0 when there is none."""
        others = [
            member.node_id
            for member in stream.members
            if member.node_id != self.overlay.node_id and self.overlay.is_reachable(member.node_id)
        ]
        return others[self._turn % len(others)] if others else NO_NODE

    def pass_over(self, stream: Stream) -> None:
        """The member that was asked last lags behind: the next question goes to another one."""
        self._hints.pop(stream.stream_id, None)
        self._turn += 1

    def is_congested(self, node: NodeId) -> bool:
        """Whether so much waits on the way to `node` that a source of bulk data holds back; relays would drop it."""
        return node != NO_NODE and self.overlay.queued_bytes(node) > _QUEUED_BYTES_MAX

    def learn(self, stream: Stream, asked: NodeId, error: MeshError | None) -> bool:
        """Takes a hint from an answer. Returns whether it names another node to ask at once."""
        if error is None:
            self._hints[stream.stream_id] = asked
            return False
        named = error.details.get("leader", "") if error.code == ErrorCode.NOT_LEADER else ""
        if named.isdigit() and int(named) not in (asked, NO_NODE):
            self._hints[stream.stream_id] = NodeId(int(named))
            return True
        self._hints.pop(stream.stream_id, None)
        self._turn += 1
        return False


def shutting_down() -> MeshError:
    """The data plane is going away."""
    return MeshError(ErrorCode.UNAVAILABLE, "This node's data plane is shutting down: try again, or at another node.")


def _not_found(name: str) -> MeshError:
    return MeshError(
        ErrorCode.STREAM_NOT_FOUND, f"There is no stream {name}: create it, or check the name.", {"stream": name}
    )
