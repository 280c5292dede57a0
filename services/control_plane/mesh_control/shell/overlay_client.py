"""The control plane's end of the overlay: one stream of packets to and from this site's data plane.

Best effort, like the overlay itself: while the data plane is away packets are dropped and counted, and the protocols
above (Raft, overlay requests) recover. Reconnects for ever. Source: architecture §2, §5; overlay.proto.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Final

import grpc
import grpc.aio

from mesh_control.shell import metrics
from meshapi.overlay.v1 import overlay_pb2, overlay_pb2_grpc
from meshcommon.grpc_client import mesh_error
from meshcommon.ids import NodeId
from meshcommon.logging import get_logger
from meshwire.packet import Protocol, TrafficClass

RECONNECT_S: Final = 0.2
QUEUE_BYTES_MAX: Final = 16 * 1024 * 1024
BATCH_BYTES_MAX: Final = 1024 * 1024

_log = get_logger(__name__)
PacketHandler = Callable[[overlay_pb2.InPacket], None]


class OverlayClient:
    """Sends and receives packets. Register handlers before `run`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = overlay_pb2_grpc.OverlayServiceStub(channel)
        self._handlers: dict[int, PacketHandler] = {}
        self._queue: deque[overlay_pb2.OutPacket] = deque()
        self._queue_bytes = 0
        self._queued = asyncio.Event()
        self._is_attached = False

    def handle(self, protocol: Protocol, handler: PacketHandler) -> None:
        """Packets of `protocol` go to `handler`, on the loop; it must not raise."""
        self._handlers[int(protocol)] = handler

    def send(
        self, protocol: Protocol, traffic_class: TrafficClass, destination: NodeId, payload: bytes, lane_id: int = 0
    ) -> None:
        """Queues a packet; dropped and counted when the data plane is away or far behind."""
        if not self._is_attached or self._queue_bytes + len(payload) > QUEUE_BYTES_MAX:
            metrics.PACKETS_DROPPED.inc()
            return
        self._queue.append(
            overlay_pb2.OutPacket(
                protocol=protocol,
                traffic_class=traffic_class,
                destination=destination,
                lane_id=lane_id,
                payload=payload,
            )
        )
        self._queue_bytes += len(payload)
        self._queued.set()

    async def run(self) -> None:
        """Keeps the stream up until cancelled."""
        while True:
            try:
                await self._attach()
            except grpc.aio.AioRpcError as error:
                _log.info("overlay_detached", reason=mesh_error(error, "data plane").message)
            finally:
                self._detach()
            await asyncio.sleep(RECONNECT_S)

    def _detach(self) -> None:
        self._is_attached = False
        self._queue.clear()
        self._queue_bytes = 0
        # gRPC leaves the requests of a call that ended waiting; they must end, or they would take packets of the next one.
        self._queued.set()

    async def _attach(self) -> None:
        call = self._stub.Attach(self._requests(), wait_for_ready=True)
        async for response in call:
            for packet in response.deliver.packets:
                handler = self._handlers.get(packet.protocol)
                if handler is not None:
                    handler(packet)

    async def _requests(self) -> AsyncIterator[overlay_pb2.AttachRequest]:
        # The first request is asked for once the call is up: from here on packets have somewhere to go.
        self._is_attached = True
        queued = self._queued = asyncio.Event()
        yield overlay_pb2.AttachRequest(bind=overlay_pb2.AttachBind(protocols=sorted(self._handlers)))
        while True:
            await queued.wait()
            queued.clear()
            if not self._is_attached or queued is not self._queued:
                return
            while self._queue:
                yield overlay_pb2.AttachRequest(send=overlay_pb2.AttachSend(packets=self._take_batch()))

    def _take_batch(self) -> list[overlay_pb2.OutPacket]:
        packets: list[overlay_pb2.OutPacket] = []
        batch_bytes = 0
        while self._queue and (not packets or batch_bytes + len(self._queue[0].payload) <= BATCH_BYTES_MAX):
            packet = self._queue.popleft()
            batch_bytes += len(packet.payload)
            packets.append(packet)
        self._queue_bytes -= batch_bytes
        return packets
