"""Whether the log of the control group on this node, and those of the peers, are what they were.

The control plane's side of the store keeper. A node whose log was wiped or set back falls silent in the control group, whoever
leads there, until `renewal` has made it another member. There is no anchor: key, membership and log share one directory.
Leaves out: the judgement and the exchange (`meshcommon.store_keeper`). Source: architecture §7; docs/design/stores.md.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

from mesh_control.core.mcg_state import McgState
from mesh_control.core.timing import Timing
from mesh_control.shell import metrics
from meshapi.common.v1 import view_pb2
from meshcommon.ids import NodeId
from meshcommon.logging import get_logger
from meshcommon.store_files import IDENTITY_FILE, PEERS_FILE, StoreFiles
from meshcommon.store_guard import GuardTiming, Objection
from meshcommon.store_keeper import StoreKeeper, begin_incarnation
from meshcommon.store_record import without
from meshwire.errors import WireError
from meshwire.store_message import StoreMessage, decode_store_message, encode_store_message

GROUP: Final = 1
"""The one group of the log."""
BOOT_RAISE_S: Final = 5.0
_STORE_MESSAGE: Final = b"\x02"
"""First byte of a message about stores; a Raft frame begins with its version, 1."""

_log = get_logger(__name__)


class McgStore:
    """The store under this node's replica; `keeper` drives it. Called on the event loop."""

    def __init__(self, directory: Path, timing: Timing, send: Callable[[NodeId, bytes], None]) -> None:
        """`directory` is the log's; `send` takes a packet's payload."""
        self._directory = directory
        self._send = send
        election_s = timing.tick_s * timing.election_ticks
        guard_timing = GuardTiming(repeat_s=election_s / 2, patience_s=3 * election_s)
        self.keeper = StoreKeeper(guard_timing, BOOT_RAISE_S, self)
        self.reason = ""

    def open(self, lost: str = "") -> None:
        """The log is going to be used. Blocks for a moment. Raises OSError.

        `lost`: why the membership in the log is retired; empty when it is not.
        """
        files = self._files()
        reason = (
            f"The log of the control group on this node was damaged before its last write ({lost})." if lost else ""
        )
        record, memory = begin_incarnation(files, [GROUP], reason)
        self.keeper.start(files, record, memory)

    @property
    def is_distrusted(self) -> bool:
        """Whether this node's membership of the control group must not be counted on."""
        return GROUP in self.keeper.disowned

    def follow(self, first: view_pb2.MeshView, state: McgState, own: NodeId) -> None:
        """Nodes came, went, or vote now. A blank replica knows nobody: then the view of its bootstrap has to do."""
        known = {NodeId(node.node_id): node.is_voter for node in first.nodes}
        if state.mesh_id:
            known = {node.node_id: node.is_voter for node in state.nodes.values()}
        self.keeper.follow({node for node, is_voter in known.items() if is_voter and node != own}, known.keys())

    def may_send(self, peer: NodeId) -> bool:
        """Whether Raft frames may go to `peer`."""
        return not self.is_distrusted and self.keeper.may_send(peer)

    def takes(self, peer: NodeId, payload: bytes) -> bool:
        """Whether a packet of `peer` is a Raft frame to be taken; messages about stores are taken here."""
        if payload[:1] == _STORE_MESSAGE:
            try:
                self.keeper.receive(peer, decode_store_message(payload[1:]))
            except WireError as error:
                metrics.INVALID_FRAMES.inc()
                _log.warning("store_message_invalid", peer=peer, error=error.reason)
            return False
        if self.is_distrusted or not self.keeper.may_take(peer):
            metrics.DISTRUSTED_FRAMES.inc()
            return False
        return True

    def forget_log(self) -> None:
        """Removes all but the store's own files, and trusts what comes: another membership. Blocks. Raises OSError."""
        for item in self._directory.iterdir():
            if item.name not in (IDENTITY_FILE, PEERS_FILE):
                item.unlink()
        files = self._files()
        record = files.read().record
        if record is not None:
            files.write(without(record, [GROUP]))

    def _files(self) -> StoreFiles:
        return StoreFiles(self._directory, None)

    # For the keeper

    def send_store_message(self, peer: NodeId, message: StoreMessage) -> None:
        """As a packet of the group's protocol."""
        self._send(peer, _STORE_MESSAGE + encode_store_message(message))

    def store_objected(self, objection: Objection) -> tuple[str, Collection[int]]:
        """From now on the replica is neither heard nor hears."""
        reason = (
            f"The log of the control group on this node {objection.verdict.value} (node {objection.peer} has seen its boot "
            f"number {objection.seen.boot})."
        )
        return reason, [GROUP]

    def store_changed(self) -> None:
        """Keeps the reason for those who ask."""
        self.reason = self.keeper.reason

    def store_files_failed(self, error: OSError | None) -> None:
        """Is in the log already: what cannot be written there, the replica cannot write either."""
