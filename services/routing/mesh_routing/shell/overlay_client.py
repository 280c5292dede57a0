"""The connection to the site's data plane: routing messages both ways, and the state of the links.

Reconnects for as long as the service runs. While the data plane is away outgoing messages are dropped: flooding
repeats them, and a new connection begins with a database exchange with every neighbour.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import grpc
import grpc.aio

from mesh_routing.core.origination import LocalLink
from mesh_routing.core.router import OutMessage
from mesh_routing.shell.driver import RoutingDriver
from mesh_routing.shell.metrics import RoutingMetrics
from meshapi.overlay.v1 import overlay_pb2, overlay_pb2_grpc
from meshcommon.admin import Readiness
from meshcommon.ids import NodeId
from meshcommon.logging import get_logger
from meshwire.packet import Protocol, TrafficClass

RETRY_S: Final = 0.2
PENDING_BYTES_MAX: Final = 8 * 1024 * 1024
BATCH_BYTES_MAX: Final = 1024 * 1024
_log = get_logger(__name__)


class OverlayClient:
    """Keeps one Attach stream open."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        driver: RoutingDriver,
        readiness: Readiness,
        metrics: RoutingMetrics,
        on_attached: Callable[[], None],
    ) -> None:
        """`on_attached` is called whenever a new connection stands: the data plane may have restarted."""
        self._stub: overlay_pb2_grpc.OverlayServiceAsyncStub = overlay_pb2_grpc.OverlayServiceStub(channel)
        self._driver = driver
        self._readiness = readiness
        self._metrics = metrics
        self._on_attached = on_attached
        self._pending: deque[overlay_pb2.OutPacket] = deque()
        self._pending_bytes = 0
        self._has_pending = asyncio.Event()
        self._is_attached = False

    async def run(self) -> None:
        """Attaches again and again until cancelled."""
        while True:
            reason = await self._attach()
            self._readiness.block("overlay", f"The data plane of this site does not answer ({reason}): routes stand.")
            await asyncio.sleep(RETRY_S)

    async def _attach(self) -> str:
        """One connection; returns why it ended."""
        call = self._stub.Attach()
        self._is_attached = False
        self._pending.clear()
        self._pending_bytes = 0
        try:
            async with asyncio.TaskGroup() as tasks:
                writer = tasks.create_task(self._write(call), name="overlay writer")
                try:
                    async for response in call:
                        self._take(response)
                finally:
                    writer.cancel()
        except* grpc.RpcError:
            _log.debug("overlay_call_failed")
        finally:
            self._driver.send_through(None)
            call.cancel()
        status: grpc.StatusCode = await call.code()
        if self._is_attached:
            _log.warning("overlay_lost", status=status.name)
        return status.name

    def _take(self, response: overlay_pb2.AttachResponse) -> None:
        kind = response.WhichOneof("kind")
        if kind == "links":
            is_fresh = not self._is_attached
            if is_fresh:
                self._attached()
            self._driver.set_links(
                NodeId(response.links.node_id),
                [
                    LocalLink(NodeId(link.peer), link.rtt_us, link.rtt_var_us)
                    for link in response.links.links
                    if link.is_up
                ],
                is_fresh=is_fresh,
            )
        elif kind == "deliver":
            self._driver.receive(
                [
                    (NodeId(packet.source), packet.payload)
                    for packet in response.deliver.packets
                    if packet.protocol == Protocol.LSA and packet.source
                ]
            )

    def _attached(self) -> None:
        self._is_attached = True
        self._readiness.clear("overlay")
        self._driver.send_through(self._send)
        self._on_attached()
        _log.info("overlay_attached")

    def _send(self, messages: Sequence[OutMessage]) -> None:
        for peer, payload in messages:
            if self._pending_bytes + len(payload) > PENDING_BYTES_MAX:
                self._metrics.messages_dropped.inc()
                continue
            self._metrics.messages_out.inc()
            self._pending_bytes += len(payload)
            self._pending.append(
                overlay_pb2.OutPacket(
                    protocol=Protocol.LSA,
                    traffic_class=TrafficClass.CONTROL,
                    destination=peer,
                    is_link_local=True,
                    payload=payload,
                )
            )
        self._has_pending.set()

    async def _write(self, call: Any) -> None:
        """Binds, then sends what is pending; ends with the call."""
        try:
            bind = overlay_pb2.AttachBind(protocols=[Protocol.LSA])
            await call.write(overlay_pb2.AttachRequest(bind=bind))
            while True:
                await self._has_pending.wait()
                self._has_pending.clear()
                while self._pending:
                    batch = overlay_pb2.AttachSend(packets=self._next_batch())
                    await call.write(overlay_pb2.AttachRequest(send=batch))
        except asyncio.InvalidStateError:
            # The call is over; the reader learns why.
            return

    def _next_batch(self) -> list[overlay_pb2.OutPacket]:
        batch: list[overlay_pb2.OutPacket] = []
        size = 0
        while self._pending and (not batch or size + len(self._pending[0].payload) <= BATCH_BYTES_MAX):
            packet = self._pending.popleft()
            size += len(packet.payload)
            batch.append(packet)
        self._pending_bytes -= size
        return batch
