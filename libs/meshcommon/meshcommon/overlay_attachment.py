"""One service's end of the overlay: the Attach stream of packets to and from this site's data plane.

Best effort, like the overlay itself: while the data plane is away packets are dropped and counted, and the protocols above
(Raft, overlay requests, flooding) recover. Reconnects for ever. The queue is bounded, and each destination has a share of its
own, so that one that asks for a lot does not silence the others. A barrier goes around each packet. Leaves out: what packets
and links mean. Source: architecture §2, §5, §11; overlay.proto.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

import grpc
import grpc.aio
import prometheus_client

from meshapi.overlay.v1 import overlay_pb2, overlay_pb2_grpc
from meshcommon.barrier import barrier
from meshcommon.grpc_client import mesh_error
from meshcommon.ids import NodeId
from meshcommon.logging import get_logger
from meshwire.packet import Protocol, TrafficClass

RECONNECT_S: Final = 0.2
PACKET_COST_BYTES: Final = 128
"""What a queued packet takes beside its payload, so that empty ones count too."""
BATCH_BYTES_MAX: Final = 1024 * 1024

_log = get_logger(__name__)
PacketHandler: TypeAlias = Callable[[overlay_pb2.InPacket], None]
LinksHandler: TypeAlias = Callable[[overlay_pb2.AttachLinks, bool], None]
"""(all links of this node; whether they are the first ones of a new connection: the data plane may have restarted)."""
_Destination: TypeAlias = tuple[int, int]
"""A node and 0, or 0 and the lane of a node that is not yet a member."""


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """Bytes that wait for the data plane.

    Attributes:
        bytes_max: For all destinations.
        destination_bytes_max: For one of them; the largest message has to fit.
    """

    bytes_max: int
    destination_bytes_max: int


class OverlayAttachment:
    """Sends and receives packets. Register handlers before `run`. Not thread safe: event loop only."""

    def __init__(
        self,
        name: str,
        channel: grpc.aio.Channel,
        limits: QueueLimits,
        dropped: prometheus_client.Counter,
        *,
        on_delivered: Callable[[], None] | None = None,
        on_links: LinksHandler | None = None,
        on_lost: Callable[[str], None] | None = None,
    ) -> None:
        """Does nothing until `run`.

        Args:
            name: Label of the barriers.
            channel: To the data plane; stays the caller's.
            limits: Bounds of the queue.
            dropped: Counts packets that were not queued.
            on_delivered: Called after the packets of one message were handled, for work that is done once for all of them.
            on_links: Called with the links after each connection and at each change.
            on_lost: Called with the reason, a sentence, when a connection ends.
        """
        self._name = name
        self._stub = overlay_pb2_grpc.OverlayServiceStub(channel)
        self._limits = limits
        self._dropped = dropped
        self._on_delivered = on_delivered
        self._on_links = on_links
        self._on_lost = on_lost
        self._handlers: dict[int, PacketHandler] = {}
        self._queue: deque[overlay_pb2.OutPacket] = deque()
        self._queue_bytes: Counter[_Destination] = Counter()
        self._queued = asyncio.Event()
        self._is_attached = False

    def handle(self, protocol: Protocol, handler: PacketHandler) -> None:
        """Packets of `protocol` go to `handler`, on the loop; what it raises costs only that packet."""
        self._handlers[int(protocol)] = handler

    def send(
        self,
        protocol: Protocol,
        traffic_class: TrafficClass,
        destination: NodeId,
        payload: bytes,
        lane_id: int = 0,
        *,
        is_link_local: bool = False,
    ) -> bool:
        """Queues a packet.

        Args:
            protocol: Which receiver it is for.
            traffic_class: What it may be overtaken by.
            destination: Node, or 0 for the one at the other end of `lane_id`.
            payload: Its bytes.
            lane_id: Lane of a node that is not yet a member.
            is_link_local: Only to a direct neighbour, never passed on.

        Returns:
            False when it was dropped and counted: the data plane is away, or a share of the queue is full.
        """
        to, size = (destination, lane_id), len(payload) + PACKET_COST_BYTES
        if (
            not self._is_attached
            or self._queue_bytes[to] + size > self._limits.destination_bytes_max
            or self._queue_bytes.total() + size > self._limits.bytes_max
        ):
            self._dropped.inc()
            return False
        self._queue.append(
            overlay_pb2.OutPacket(
                protocol=protocol,
                traffic_class=traffic_class,
                destination=destination,
                lane_id=lane_id,
                is_link_local=is_link_local,
                payload=payload,
            )
        )
        self._queue_bytes[to] += size
        self._queued.set()
        return True

    async def run(self) -> None:
        """Keeps the stream up until cancelled."""
        while True:
            reason = "The data plane ended the connection."
            try:
                await self._attach()
            except grpc.aio.AioRpcError as error:
                reason = mesh_error(error, "data plane").message
            finally:
                self._detach()
            _log.info("overlay_detached", reason=reason)
            if self._on_lost is not None:
                self._on_lost(reason)
            await asyncio.sleep(RECONNECT_S)

    def _detach(self) -> None:
        self._is_attached = False
        self._queue.clear()
        self._queue_bytes.clear()
        # gRPC leaves the requests of a call that ended waiting; they must end, or they would take packets of the next one.
        self._queued.set()

    async def _attach(self) -> None:
        call = self._stub.Attach(self._requests(), wait_for_ready=True)
        is_fresh = True
        async for response in call:
            for packet in response.deliver.packets:
                handler = self._handlers.get(packet.protocol)
                if handler is not None:
                    with barrier(f"{self._name}_packet", protocol=packet.protocol, source=packet.source):
                        handler(packet)
            if self._on_delivered is not None and response.HasField("deliver"):
                with barrier(f"{self._name}_delivered"):
                    self._on_delivered()
            if self._on_links is not None and response.HasField("links"):
                with barrier(f"{self._name}_links"):
                    self._on_links(response.links, is_fresh)
                is_fresh = False

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
            to = (packet.destination, packet.lane_id)
            self._queue_bytes[to] -= len(packet.payload) + PACKET_COST_BYTES
            if not self._queue_bytes[to]:
                del self._queue_bytes[to]
        return packets
