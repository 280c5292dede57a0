"""Asks voters for their word about the membership, on behalf of a node that is behind, and gives this node's own.

A node that is behind believes only voters that it knows. When none of them is this node, it asks one of them: an overlay
request, so any path serves. Leaves out: what a vouch is worth (`core/membership_desk`).
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from mesh_data.core.membership_desk import MembershipDesk
from mesh_data.core.settlement import VouchWanted
from mesh_data.core.stream_requests import Method
from mesh_data.shell.overlay.overlay_port import RequestHandler
from meshcommon.barrier import barrier
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId
from meshcommon.logging import get_logger
from meshcommon.membership import Vouch
from meshcommon.peer_text import printable

VOUCH_TIMEOUT_S: Final = 0.5
"""For one voter: a lane waits for two seconds."""
ASKS_MAX: Final = 16
"""Lanes for which voters are asked at once; the others are closed after two seconds and dialled again."""

_log = get_logger(__name__)


class Requests(Protocol):
    """What the overlay does for this."""

    @property
    def node_id(self) -> NodeId:
        """This node."""

    def is_reachable(self, node: NodeId) -> bool:
        """Whether a path leads there now."""

    async def call(self, destination: NodeId, method: int, body: bytes, timeout_s: float) -> bytes:
        """An overlay request."""

    def serve(self, method: int, handler: RequestHandler) -> None:
        """Binds the handler of a method."""

    def add_vouch(self, vouch: Vouch) -> bool:
        """Takes a member's word; False when it is for another membership, or not signed by that member."""


class Vouches:
    """Vouches as they are asked for and given."""

    def __init__(self, overlay: Requests, desk: MembershipDesk) -> None:
        """Serves other members from now on."""
        self._overlay = overlay
        self._desk = desk
        self._asks = 0
        overlay.serve(Method.VOUCH, self._give)

    def want(self, wanted: VouchWanted, tasks: asyncio.TaskGroup | None) -> None:
        """Asks the voters that a node which is behind knows, one after the other, until one has vouched."""
        if tasks is not None and self._asks < ASKS_MAX:
            self._asks += 1
            tasks.create_task(self._ask(wanted), name="ask for a vouch")

    async def _ask(self, wanted: VouchWanted) -> None:
        try:
            with barrier("vouch"):
                for voter in wanted.voters:
                    if await self._has_vouched(voter):
                        return
        finally:
            self._asks -= 1

    async def _has_vouched(self, voter: NodeId) -> bool:
        overlay, view = self._overlay, self._desk.view
        if view is None or voter == overlay.node_id or voter not in view.nodes or not overlay.is_reachable(voter):
            return False
        try:
            answer = await overlay.call(voter, Method.VOUCH, b"", VOUCH_TIMEOUT_S)
        except MeshError as error:
            _log.info("vouch_not_given", peer=voter, code=error.code, reason=printable(error.message))
            return False
        vouch = Vouch.decode(answer)
        return vouch is not None and vouch.node_id == voter and overlay.add_vouch(vouch)

    async def _give(self, _caller: NodeId, _body: bytes) -> bytes:
        """What this node's control plane vouches for, for a member that shows it to others."""
        vouch = self._desk.own_vouch
        if vouch is None:
            raise MeshError(ErrorCode.UNAVAILABLE, "This node's control plane has vouched for nothing yet: ask again.")
        return vouch.to_proto().SerializeToString()
