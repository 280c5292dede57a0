"""Routing's use of the overlay: messages of neighbours both ways, and the state of the links.

`OverlayAttachment` keeps the stream; while the data plane is away messages are dropped: flooding repeats them, and a new
connection begins with a database exchange with every neighbour.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import grpc.aio

from mesh_routing.core.origination import LocalLink
from mesh_routing.core.router import OutMessage
from mesh_routing.shell.driver import RoutingDriver
from mesh_routing.shell.metrics import RoutingMetrics
from meshapi.overlay.v1 import overlay_pb2
from meshcommon.admin import Readiness
from meshcommon.ids import NodeId
from meshcommon.overlay_attachment import OverlayAttachment, QueueLimits
from meshwire.packet import Protocol, TrafficClass

QUEUE_LIMITS: Final = QueueLimits(bytes_max=8 * 1024 * 1024, destination_bytes_max=1024 * 1024)
"""For one neighbour: several times the whole database of a mesh of 1,000 nodes."""


class OverlayClient:
    """Binds the driver to the attachment."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        driver: RoutingDriver,
        readiness: Readiness,
        metrics: RoutingMetrics,
        on_attached: Callable[[], None],
    ) -> None:
        """`on_attached` is called whenever a new connection stands: the data plane may have restarted."""
        self._attachment = OverlayAttachment(
            "routing_overlay",
            channel,
            QUEUE_LIMITS,
            metrics.messages_dropped,
            on_delivered=self._receive,
            on_links=self._take_links,
            on_lost=self._lost,
        )
        self._attachment.handle(Protocol.LSA, self._take)
        self._taken: list[tuple[NodeId, bytes]] = []
        self._driver = driver
        self._readiness = readiness
        self._metrics = metrics
        self._on_attached = on_attached

    async def run(self) -> None:
        """Keeps the stream up until cancelled."""
        await self._attachment.run()

    def send(self, messages: Sequence[OutMessage]) -> None:
        """Queues messages for neighbours; what exceeds a share of the queue is dropped and counted."""
        for peer, payload in messages:
            if self._attachment.send(Protocol.LSA, TrafficClass.CONTROL, peer, payload, is_link_local=True):
                self._metrics.messages_out.inc()

    def _take_links(self, links: overlay_pb2.AttachLinks, is_fresh: bool) -> None:
        if is_fresh:
            self._readiness.clear("overlay")
            self._driver.send_through(self.send)
            self._on_attached()
        up = [LocalLink(NodeId(link.peer), link.rtt_us, link.rtt_var_us) for link in links.links if link.is_up]
        self._driver.set_links(NodeId(links.node_id), up, is_fresh=is_fresh)

    def _take(self, packet: overlay_pb2.InPacket) -> None:
        if packet.source:
            self._taken.append((NodeId(packet.source), packet.payload))

    def _receive(self) -> None:
        """One turn of the core for all messages that came together."""
        taken, self._taken = self._taken, []
        self._driver.receive(taken)

    def _lost(self, reason: str) -> None:
        self._driver.send_through(None)
        self._readiness.block("overlay", f"{reason} Routes stand.")
