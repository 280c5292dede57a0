"""The routing service of a simulated node: the real router, its links from the overlay, its table into it.

Does what routing's driver, pusher and overlay client do, without gRPC: a push always arrives. The boot number and the last
table survive a crash, as the files of both services do. Leaves out: the copies for readers.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Final

from data_plane_testing.identities import MESH, delegations, public_key, signer_of
from mesh_data.core.overlay import OverlayCore
from mesh_routing.core.config import PRESETS
from mesh_routing.core.origination import LocalLink
from mesh_routing.core.route_table import RouteTable, difference
from mesh_routing.core.router import Router
from mesh_routing.core.view import View
from meshapi.data.v1 import data_pb2
from meshcommon.delegation import Use
from meshcommon.ids import NodeId
from meshwire.packet import Protocol, TrafficClass

CONFIG: Final = replace(PRESETS["test"], metric_hold_down_s=5.0)
"""Round trips change all the time here: they are told less often than in life, or a run would be busy with signatures."""
REPORT_S: Final = 1.0
"""The overlay tells how its links are at least this often."""


class SimRouting:
    """Routing of one node between two crashes; `kept` is the table that the life before left."""

    def __init__(
        self,
        overlay: OverlayCore,
        node: int,
        count: int,
        boot: int,
        now: float,
        kept: data_pb2.PushRoutesRequest | None,
    ) -> None:
        members = [NodeId(number) for number in range(1, count + 1)]
        view = View(
            node_id=NodeId(node),
            mesh_id=MESH,
            revision=1,
            names={member: f"n{member}" for member in members},
            keys={member: public_key(member) for member in members},
        )
        self._overlay = overlay
        self._router = Router(CONFIG, boot, random.Random(f"{node} {boot}"), delegations())
        self._pushed: RouteTable | None = None
        self._is_due = False
        self._report_at = now
        if kept is not None:
            overlay.forwarder.paths.routes.apply(kept)
        self._router.configure(view, signer_of(node, Use.LINK_STATES), now)
        self._router.set_links((), now, is_fresh=True)

    def kept(self) -> data_pb2.PushRoutesRequest:
        """What the data plane has on its disk."""
        return self._overlay.forwarder.paths.routes.whole()

    def links_changed(self, now: float) -> None:
        """A link came up or went down, or it is time: the overlay tells how they are."""
        self._report_at = now + REPORT_S
        links = [
            LocalLink(link.peer, int((lane.srtt_s or 0.0) * 1e6), int(lane.rttvar_s * 1e6))
            for link in sorted(self._overlay.links(), key=lambda link: link.peer)
            if link.is_up and (lane := self._overlay.control_lane(link.peer)) is not None
        ]
        self._router.set_links(links, now, is_fresh=False)
        self._settle(now)

    def receive(self, peer: NodeId, payload: bytes, now: float) -> None:
        """A message of a neighbour; answered together with what else comes until the next tick."""
        self._router.receive(peer, payload, now)
        self._is_due = True

    def tick(self, now: float) -> None:
        """Answers, repeats, ages and computes what is due."""
        if now >= self._report_at:
            self.links_changed(now)
        elif self._is_due or ((deadline := self._router.next_deadline()) is not None and now >= deadline):
            self._settle(now)

    def _settle(self, now: float) -> None:
        self._is_due = False
        self._flush(now)
        self._router.tick(now)
        self._flush(now)
        table = self._router.table
        # Version 0: nothing was computed yet, and what the data plane kept is better than nothing.
        if table.version and table is not self._pushed:
            self._overlay.forwarder.paths.routes.apply(difference(self._pushed, table).request())
            self._pushed = table

    def _flush(self, now: float) -> None:
        for peer, payload in self._router.take_outgoing():
            self._overlay.send_link_local(Protocol.LSA, TrafficClass.CONTROL, peer, payload, now)
