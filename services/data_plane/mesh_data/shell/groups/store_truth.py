"""Whether the log of this node's streams, and those of the peers, are what they were.

The data plane's side of the store keeper: which nodes share groups, how messages travel, who is told. When the directory, or a
peer, says that something is missing, the store is given up: Groups closes its replicas, their memberships are reported as
distrusted, and the node goes on with a new store. Source: architecture §7; docs/design/stores.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

from mesh_data.core.stream_frames import store_payload
from mesh_data.core.stream_timing import StreamTiming
from mesh_data.core.view import View
from mesh_data.shell.overlay.overlay_port import OverlayPort
from mesh_data.shell.streams_metrics import STORE_DISTRUSTED, STORES_REFUSED
from meshcommon.admin import Readiness
from meshcommon.ids import NodeId, StreamId
from meshcommon.logging import get_logger
from meshcommon.store_files import StoreFiles, forget_anchor
from meshcommon.store_guard import GuardTiming, Objection
from meshcommon.store_keeper import StoreKeeper
from meshwire.packet import Protocol, TrafficClass
from meshwire.store_message import Refusal, StoreMessage, decode_store_message, encode_store_message

_log = get_logger(__name__)

_GIVEN_UP: Final = "store"
_NOT_KEPT: Final = "store files"


class StoreTruth:
    """The store under this node's stream groups; `keeper` drives it. Called on the event loop."""

    def __init__(
        self,
        overlay: OverlayPort,
        anchor: Path,
        timing: StreamTiming,
        readiness: Readiness,
        close_groups: Callable[[str], Collection[int]],
    ) -> None:
        """Nothing is read yet.

        Args:
            overlay: how peers are reached.
            anchor: a file outside of the log directories.
            timing: of the stream groups.
            readiness: gets the warnings.
            close_groups: closes all replicas because of a reason; returns every group that is stored here or should be.
        """
        self._overlay = overlay
        self._anchor = anchor
        self._readiness = readiness
        self._close_groups = close_groups
        election_s = timing.election_s
        guard_timing = GuardTiming(repeat_s=election_s / 2, patience_s=3 * election_s)
        self.keeper = StoreKeeper(guard_timing, timing.boot_raise_s, self)

    # For Groups

    async def open(self, directory: Path, groups: Collection[int], view: View, lost: str) -> None:
        """The log in `directory`, which is locked, is going to be used; `groups` are stored there or should be.

        `lost`: why the log's memberships are retired; empty when they are not.

        Raises:
            OSError: the next boot number cannot be made durable.
        """
        reason = f"The log of this node's streams was damaged before its last write ({lost})." if lost else ""
        await self.keeper.open(StoreFiles(directory, self._anchor), groups, reason)
        self.follow(view, groups)

    async def forget(self) -> None:
        """The node left its mesh: no log directory is missed any more."""
        async with self.keeper.one_at_a_time:
            try:
                await asyncio.to_thread(forget_anchor, self._anchor)
            except OSError as error:
                # No harm: it names a directory of a node id that is not used again.
                _log.warning("anchor_not_removed", path=str(self._anchor), reason=str(error))

    def follow(self, view: View, stored: Collection[int]) -> None:
        """The catalogue changed; `stored` are the groups in the log."""
        own = self._overlay.node_id
        peers: set[NodeId] = set()
        for stream in view.streams.values():
            homes = {item.node_id for item in stream.members} | {item.node_id for item in stream.retiring}
            peers |= homes if own in homes else set()
        self.keeper.follow(peers - {own}, view.nodes.keys())
        gone = [group for group in self.keeper.disowned if group not in stored and StreamId(group) not in view.streams]
        self.keeper.own_again(gone)

    def destroyed(self, stream_id: StreamId) -> None:
        """Nothing is left of a replica: the next membership in its place is a good one."""
        self.keeper.own_again([int(stream_id)])

    def receive(self, source: NodeId, payload: bytes | memoryview) -> None:
        """A store message from a node.

        Raises:
            WireError: it is malformed.
        """
        self.keeper.receive(source, decode_store_message(payload))

    # For the keeper

    def send_store_message(self, peer: NodeId, message: StoreMessage) -> None:
        """As a packet of the groups' protocol."""
        if isinstance(message, Refusal):
            STORES_REFUSED.inc()
        payload = store_payload(encode_store_message(message))
        self._overlay.send(Protocol.RAFT_DSG, TrafficClass.CONTROL, peer, payload)

    def store_objected(self, objection: Objection) -> tuple[str, Collection[int]]:
        """Closes every replica."""
        view = self._overlay.view()
        name = view.name_of(objection.peer) if view is not None else str(objection.peer)
        reason = (
            f"The log directory of this node's streams {objection.verdict.value} (node {name} has seen its boot number "
            f"{objection.seen.boot})."
        )
        return reason, self._close_groups(reason)

    def store_changed(self) -> None:
        """Says in `/readyz` and the metrics what is not counted on."""
        STORE_DISTRUSTED.set(len(self.keeper.disowned))
        if self.keeper.disowned:
            streams = len(self.keeper.disowned)
            hint = f"{self.keeper.reason} Its memberships in {streams} streams are replaced; packets are forwarded meanwhile."
            self._readiness.warn(_GIVEN_UP, hint)
        else:
            self._readiness.clear(_GIVEN_UP)

    def store_files_failed(self, error: OSError | None) -> None:
        """Says so in `/readyz`."""
        if error is None:
            self._readiness.clear(_NOT_KEPT)
            return
        reason = f"The identity of the log of this node's streams cannot be kept on disk ({error.strerror})."
        self._readiness.warn(_NOT_KEPT, reason)
