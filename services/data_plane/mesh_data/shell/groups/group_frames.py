"""Raft frames of stream groups to and from the overlay, past the store guard.

A frame goes only to a peer that has noted this store, and is taken only from a peer whose store is accepted; what else comes
under the same protocol are the words of the guard itself. Leaves out: what a frame means. Source: architecture §5, §7.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from mesh_data.core.stream_frames import NO_ROOM, FrameJoiner, is_store_payload, split
from mesh_data.shell.groups.disk_watch import DiskWatch
from mesh_data.shell.groups.store_truth import StoreTruth
from mesh_data.shell.overlay.overlay_port import OverlayPort
from mesh_data.shell.streams_metrics import FRAMES_DISTRUSTED, FRAMES_DROPPED, FRAMES_WITHHELD
from meshcommon.ids import NodeId
from meshraft import CLASS_CONTROL, Frame
from meshwire.packet import Protocol, TrafficClass


class GroupFrames:
    """One node's frames."""

    def __init__(self, overlay: OverlayPort, truth: StoreTruth, disk: DiskWatch) -> None:
        self._overlay = overlay
        self._truth = truth
        self._disk = disk
        self._joiners: dict[NodeId, FrameJoiner] = {}
        self._messages = 0

    def send(self, frame: Frame) -> None:
        """Sends a frame, best effort."""
        peer = NodeId(frame.peer)
        if not self._truth.keeper.may_send(peer):
            FRAMES_WITHHELD.inc()
            return
        self._messages += 1
        traffic_class = TrafficClass.CONTROL if frame.cls == CLASS_CONTROL else TrafficClass.BULK
        for payload in split(frame.data, self._messages):
            if not self._overlay.send(Protocol.RAFT_DSG, traffic_class, peer, payload):
                FRAMES_DROPPED.inc()

    def receive(self, source: NodeId, payload: bytes | memoryview) -> bytes | memoryview | None:
        """The frame for Raft that a payload completes, or None.

        Raises:
            WireError: the payload is malformed.
        """
        if payload == NO_ROOM:
            self._disk.receive(source)
            return None
        if is_store_payload(payload):
            self._truth.receive(source, payload[1:])
            return None
        if not self._truth.keeper.may_take(source):
            FRAMES_DISTRUSTED.inc()
            return None
        return self._joiners.setdefault(source, FrameJoiner()).receive(payload)

    def keep_only(self, nodes: AbstractSet[NodeId]) -> None:
        """Forgets what came in parts from nodes that are no longer members of the mesh."""
        for node in self._joiners.keys() - nodes:
            del self._joiners[node]
