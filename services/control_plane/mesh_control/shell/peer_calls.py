"""Requests between control planes, over the overlay or over the lane of a node that is not yet a member.

The retransmission and the suppression of duplicates are `meshcommon.requests`; this is the shell around it: timers,
handler tasks, and futures for answers. Source: architecture §5 "Overlay request".
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Final, Protocol

from mesh_control.shell import metrics
from meshapi.overlay.v1 import overlay_pb2
from meshcommon.errors import ErrorCode, MeshError, parse_code
from meshcommon.ids import NO_NODE, NodeId
from meshcommon.logging import get_logger
from meshcommon.requests import Incoming, Outgoing, Requests
from meshwire import packet
from meshwire.errors import WireError
from meshwire.packet import TrafficClass
from meshwire.request import ErrorResponse, OkResponse, Request, Response

TICK_S: Final = 0.05
EXECUTING_MAX: Final = 256
"""Requests executed at once; more are dropped, and the caller sends them again."""
EXECUTING_FOR_JOINERS_MAX: Final = 16
TIMEOUT_MAX_S: Final = 60.0
ANSWER_SHARE: Final = 0.9
"""Of the time that a caller waits, the part that is left to whom it asks, and of that the handler's: so why it failed is told."""

_log = get_logger(__name__)


class Method(IntEnum):
    """Calls that control planes make to each other."""

    JOIN = 1
    PROPOSE = 2


class PacketSender(Protocol):
    """The overlay as far as requests need it."""

    def send(
        self,
        protocol: packet.Protocol,
        traffic_class: TrafficClass,
        destination: NodeId,
        payload: bytes,
        lane_id: int = 0,
    ) -> None:
        """Sends one packet, best effort."""


Handler = Callable[[NodeId, bytes, float], Awaitable[bytes]]
"""(caller's node, 0 for a joiner; body; seconds in which to answer) → body of the answer, or MeshError."""


class PeerCalls:
    """Makes and answers requests. `run` must be running for either to happen."""

    def __init__(self, overlay: PacketSender, first_id: int) -> None:
        self._overlay = overlay
        self._requests = Requests(first_id=first_id)
        self._handlers: dict[int, Handler] = {}
        self._waiting: dict[int, asyncio.Future[Response | None]] = {}
        self._join_lanes: set[int] = set()
        self._group: asyncio.TaskGroup | None = None
        self._executing = 0
        self._executing_for_joiners = 0

    def serve(self, method: Method, handler: Handler) -> None:
        """Requests of `method` go to `handler`."""
        self._handlers[int(method)] = handler

    @contextmanager
    def join_lane(self, lane_id: int) -> Iterator[None]:
        """While inside, what comes over this lane answers our own requests over it: we have no node id yet."""
        self._join_lanes.add(lane_id)
        try:
            yield
        finally:
            self._join_lanes.discard(lane_id)

    async def call(
        self, method: Method, body: bytes, timeout_s: float, *, peer: NodeId = NO_NODE, lane_id: int = 0
    ) -> bytes:
        """Asks `peer`, or whoever is at the other end of the join lane `lane_id`.

        Raises:
            MeshError: What the other side refused with; DEADLINE_EXCEEDED.
        """
        loop = asyncio.get_running_loop()
        request = Request(int(method), round(timeout_s * ANSWER_SHARE * 1000), body)
        request_id, outgoing = self._requests.start(peer, request, loop.time() + timeout_s, loop.time(), lane_id)
        future: asyncio.Future[Response | None] = loop.create_future()
        self._waiting[request_id] = future
        try:
            self._send(outgoing)
            response = await future
        finally:
            self._requests.cancel(request_id)
            del self._waiting[request_id]
        if response is None:
            raise MeshError(ErrorCode.DEADLINE_EXCEEDED, "The other node did not answer in time: try again.")
        if isinstance(response, ErrorResponse):
            raise MeshError(
                parse_code(response.code), response.message, dict(response.details), retryable=response.retryable
            )
        return bytes(response.body)

    def receive(self, arrived: overlay_pb2.InPacket) -> None:
        """Takes a packet of Protocol.JOIN; a malformed one is dropped and counted."""
        peer = NO_NODE if arrived.lane_id in self._join_lanes else NodeId(arrived.source)
        # Noted is only what is going to be executed: a request that is noted and dropped would pass for one under way.
        if self._group is None or self._is_full(peer):
            return
        try:
            taken = self._requests.receive(peer, arrived.lane_id, arrived.payload)
        except WireError as error:
            metrics.INVALID_REQUESTS.inc()
            _log.warning("peer_request_invalid", peer=peer, error=str(error))
            return
        if isinstance(taken, Incoming):
            self._group.create_task(self._execute(peer, taken), name=f"peer request {taken.key}")
        elif isinstance(taken, Outgoing):
            self._send(taken)
        elif isinstance(taken, tuple) and (future := self._waiting.get(taken[0])) and not future.done():
            future.set_result(taken[1])

    async def run(self) -> None:
        """Sends again what is unanswered, ends what is too late, owns the handlers' tasks; until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                while True:
                    await asyncio.sleep(TICK_S)
                    again, expired = self._requests.tick(asyncio.get_running_loop().time())
                    for outgoing in again:
                        self._send(outgoing)
                    for request_id in expired:
                        future = self._waiting.get(request_id)
                        if future is not None and not future.done():
                            future.set_result(None)
            finally:
                self._group = None

    def _is_full(self, peer: NodeId) -> bool:
        if peer == NO_NODE and self._executing_for_joiners >= EXECUTING_FOR_JOINERS_MAX:
            return True
        return self._executing >= EXECUTING_MAX

    async def _execute(self, peer: NodeId, incoming: Incoming) -> None:
        is_joiner = peer == NO_NODE
        self._executing += 1
        self._executing_for_joiners += is_joiner
        try:
            response = await self._respond(peer, incoming.request)
        finally:
            self._executing -= 1
            self._executing_for_joiners -= is_joiner
        self._send(self._requests.answer(incoming.key, response))

    async def _respond(self, peer: NodeId, request: Request) -> Response:
        handler = self._handlers.get(request.method)
        if handler is None:
            return ErrorResponse(
                ErrorCode.INVALID_ARGUMENT, f"Method {request.method} is unknown to this version: update the node."
            )
        timeout_s = min(request.deadline_ms / 1000, TIMEOUT_MAX_S)
        try:
            async with asyncio.timeout(timeout_s):
                return OkResponse(await handler(peer, bytes(request.body), timeout_s * ANSWER_SHARE))
        except MeshError as error:
            return ErrorResponse(error.code, error.message, error.retryable, error.details)
        except TimeoutError:
            return ErrorResponse(ErrorCode.DEADLINE_EXCEEDED, "The request took too long: try again.", True)

    def _send(self, outgoing: Outgoing) -> None:
        self._overlay.send(
            packet.Protocol.JOIN, TrafficClass.CONTROL, NodeId(outgoing.peer), outgoing.payload, outgoing.lane_id
        )
