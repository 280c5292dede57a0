"""Tells a node that was forgotten while it was away that it is no member any more.

The members refuse its lanes, so it hears nothing of the control group and could wait for ever. A node that is without a
quorum for some seconds asks a member that it can dial, over a join lane, whether the mesh still knows its key. The answer is
not proved by a quorum: it leads to a warning and to refused changes, and is taken back when the group is heard again; only the
operator lets the node leave. Source: architecture §10 "returns only by an explicit join".
"""

from __future__ import annotations

import asyncio
import random
from typing import Final

from mesh_control.core.peer_answers import is_removed
from mesh_control.shell.lifecycle import DataPlane
from mesh_control.shell.local_node import LocalNode
from mesh_control.shell.peer_calls import Method, PeerCalls
from meshapi.control.v1 import join_pb2
from meshcommon.address import is_peer_address
from meshcommon.errors import MeshError
from meshcommon.logging import get_logger

LOOK_EVERY_S: Final = 1.0
ANSWER_WITHIN_S: Final = 2.0

_log = get_logger(__name__)


class StandingCheck:
    """Looks every second; asks after `ask_after_s` without a quorum, and then as often."""

    def __init__(
        self, node: LocalNode, data: DataPlane, calls: PeerCalls, rng: random.Random, ask_after_s: float = 5.0
    ) -> None:
        self._node = node
        self._data = data
        self._calls = calls
        self._rng = rng
        self._ask_after_s = ask_after_s

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        heard_at = loop.time()
        while True:
            await asyncio.sleep(min(LOOK_EVERY_S, self._ask_after_s))
            mcg = self._node.mcg
            if mcg is None or not self._node.is_running or self._node.is_distrusted or mcg.leader_view().has_quorum:
                heard_at = loop.time()
                self._node.set_forgotten(False)
            elif loop.time() - heard_at >= self._ask_after_s:
                heard_at = loop.time()
                await self._ask()

    async def _ask(self) -> None:
        view = self._node.view()
        others = [] if view is None else [node for node in view.nodes if node.node_id != self._node.node_id]
        addresses = [node.peer_address for node in others if is_peer_address(node.peer_address)]
        if view is None or not addresses:
            return
        address = self._rng.choice(addresses)
        try:
            lane = await self._data.open_join_lane(address)
            try:
                with self._calls.join_lane(lane.lane_id):
                    request = join_pb2.StandingRequest().SerializeToString()
                    body = await self._calls.call(Method.STANDING, request, ANSWER_WITHIN_S, lane_id=lane.lane_id)
            finally:
                await self._data.close_join_lane(lane.lane_id)
            was_removed = is_removed(body, view.mesh_id, view.revision)
        except MeshError as error:
            _log.info("standing_unknown", address=address, code=error.code, reason=error.message)
            return
        if was_removed:
            _log.warning("node_was_forgotten", node_id=self._node.node_id, told_by=address)
            self._node.set_forgotten(True)
