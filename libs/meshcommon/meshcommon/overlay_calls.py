"""The one driver of overlay requests: calls that wait, handlers that answer, repeats on a timer.

`Requests` decides what is sent again, remembered and refused; this is the shell around it: futures for answers, tasks for
handlers, and a timer. Whatever a peer sends fails by itself: a barrier goes around each packet and each request, and what a
peer says is quoted printable and short. The data plane's stream requests and the control plane's joins and proposals are
two instances with other limits. Leaves out: what methods mean. Source: architecture §5 "Overlay request", §11 "Everything
from outside".
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeAlias

from prometheus_client import Counter

from meshcommon.barrier import LOG_EVERY_S, barrier
from meshcommon.deadline_timer import DeadlineTimer
from meshcommon.errors import ErrorCode, MeshError, parse_code
from meshcommon.ids import NO_NODE, NodeId
from meshcommon.logging import get_logger
from meshcommon.peer_text import printable, printable_details
from meshcommon.requests import RETRY_FIRST_S, Incoming, Outgoing, RequestLimits, Requests
from meshwire.errors import WireError
from meshwire.packet import TrafficClass
from meshwire.request import ErrorResponse, OkResponse, Request, Response

TURN_GAP_S: Final = 0.05
"""Least time between two looks at what has to be repeated: each looks at every call that waits."""
RESPONSE_CONTROL_BYTES_MAX: Final = 64 * 1024
"""A response up to this goes in the control class; a larger one would hold up votes and heartbeats."""
TIMEOUT_MAX_S: Final = 60.0
"""Longest time that a request of a peer may execute, whatever deadline it names."""
ANSWER_SHARE: Final = 0.9
"""Fraction of the deadline passed to the callee, and of that to its handler, so that its error arrives in time."""

REQUESTS_MALFORMED: Final = Counter(
    "mesh_overlay_requests_malformed_total", "Payloads of overlay requests that do not parse, by driver.", ["driver"]
)

_log = get_logger(__name__)
_UNEXPECTED: Final = ErrorResponse(ErrorCode.INTERNAL, "Internal error; the log of that node has the details.")


@dataclass(frozen=True, slots=True)
class Caller:
    """The node that asks.

    Attributes:
        node: its id, 0 for one that is not yet a member.
        lane_public_key: key that such a one proved in the handshake of its lane; empty for a member.
        lane_host: host that its lane comes from; empty for a member.
    """

    node: NodeId
    lane_public_key: bytes = b""
    lane_host: str = ""


Handler: TypeAlias = Callable[[Caller, bytes, float], Awaitable[bytes]]
"""(caller; body; seconds in which to answer) → body of the answer, or MeshError."""
Send: TypeAlias = Callable[[TrafficClass, Outgoing], object]
"""Sends one packet, best effort."""


class OverlayCalls:
    """Makes and answers requests. `run` must be running. Not thread safe: event loop only."""

    def __init__(
        self,
        name: str,
        send: Send,
        clock: Callable[[], float],
        first_id: int,
        *,
        request_class: TrafficClass,
        limits: RequestLimits,
    ) -> None:
        """Does nothing until `run`.

        Args:
            name: Label of metrics and barriers.
            send: The overlay's way out.
            clock: Seconds, rising.
            first_id: Random per process start.
            request_class: Class of all requests made here: those of one caller keep their order.
            limits: What may execute here at once for others.
        """
        self._name = name
        self._packet_name = f"{name}_packet"
        self._send = send
        self._clock = clock
        self._request_class = request_class
        self._requests = Requests(first_id=first_id, limits=limits)
        self._handlers: dict[int, Handler] = {}
        self._waiting: dict[int, asyncio.Future[Response]] = {}
        self._join_lanes: set[int] = set()
        self._group: asyncio.TaskGroup | None = None
        self._next_warning_at = float("-inf")
        self._timer = DeadlineTimer(f"{name}_timer", self._turn, clock, TURN_GAP_S)

    @property
    def executing(self) -> int:
        """Requests of others that execute now."""
        return self._requests.executing

    def serve(self, method: int, handler: Handler) -> None:
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
        self, method: int, body: bytes, timeout_s: float, *, peer: NodeId = NO_NODE, lane_id: int = 0
    ) -> bytes:
        """Asks `peer`, or the node at the other end of the join lane `lane_id`, again and again until it answers.

        Raises:
            MeshError: What the other side refused with; DEADLINE_EXCEEDED after `timeout_s`.
        """
        now = self._clock()
        request = Request(int(method), max(int(timeout_s * ANSWER_SHARE * 1000), 1), body)
        request_id, outgoing = self._requests.start(peer, request, now + timeout_s, now, lane_id)
        answer: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = answer
        self._timer.no_later_than(now + min(RETRY_FIRST_S, timeout_s))
        try:
            self._send(self._request_class, outgoing)
            async with asyncio.timeout(timeout_s):
                response = await answer
        except TimeoutError:
            raise _late(peer) from None
        finally:
            del self._waiting[request_id]
            self._requests.cancel(request_id)
        if isinstance(response, OkResponse):
            return bytes(response.body)
        raise MeshError(
            parse_code(response.code),
            printable(response.message),
            printable_details(response.details),
            retryable=response.retryable,
        )

    async def call_local(self, local: NodeId, method: int, body: bytes, timeout_s: float) -> bytes:
        """The same, to this node itself: without a packet."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._handler(method)(Caller(local), body, timeout_s)
        except TimeoutError:
            raise _late(local) from None

    def receive(
        self,
        source: NodeId,
        payload: bytes | memoryview,
        lane_id: int = 0,
        lane_public_key: bytes = b"",
        lane_host: str = "",
    ) -> None:
        """Takes a payload of the protocol; whatever it is, it ends nothing but itself.

        Args:
            source: Node that sent it, 0 for one that is not yet a member.
            payload: As it came; a malformed one is dropped and counted.
            lane_id: Lane of a node that is not yet a member.
            lane_public_key: Key that such a node proved.
            lane_host: Host that its lane comes from.
        """
        with barrier(self._packet_name, peer=source):
            peer = NO_NODE if lane_id in self._join_lanes else source
            try:
                taken = self._requests.receive(peer, lane_id, payload)
            except WireError as error:
                REQUESTS_MALFORMED.labels(self._name).inc()
                self._warn(source, error)
                return
            if isinstance(taken, Incoming):
                self._start(Caller(peer, lane_public_key, lane_host), taken)
            elif isinstance(taken, Outgoing):
                self._respond(taken)
            elif taken is not None and (waiting := self._waiting.get(taken[0])) and not waiting.done():
                waiting.set_result(taken[1])

    async def run(self) -> None:
        """Sends again what is unanswered and owns the handlers' tasks, until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            self._timer.start()
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                self._timer.stop()
                self._group = None

    def _turn(self, now: float, _late_s: float) -> float | None:
        """Repeats what is due; expired calls end by their own timeout. Returns when something is due next."""
        again, _ = self._requests.tick(now)
        for outgoing in again:
            with barrier(self._name, peer=outgoing.peer):
                self._send(self._request_class, outgoing)
        return self._requests.next_deadline()

    def _start(self, caller: Caller, incoming: Incoming) -> None:
        if self._group is None:
            # One that stayed noted would make every repeat of it pass for a duplicate.
            self._requests.forget(incoming.key)
            return
        name = f"request {incoming.request.method} of node {caller.node}"
        self._group.create_task(self._execute(caller, incoming), name=name)

    async def _execute(self, caller: Caller, incoming: Incoming) -> None:
        method = incoming.request.method
        try:
            with barrier(self._name, peer=caller.node, method=method) as handling:
                response = await self._handled(caller, incoming.request)
                self._respond(self._requests.answer(incoming.key, response))
            if handling.failed:
                # The caller is told, and does not ask again until its deadline.
                with barrier(self._name, peer=caller.node, method=method):
                    self._respond(self._requests.answer(incoming.key, _UNEXPECTED))
        finally:
            # Also when it was cancelled: what does not execute takes no room.
            self._requests.forget(incoming.key)

    async def _handled(self, caller: Caller, request: Request) -> Response:
        timeout_s = min(request.deadline_ms / 1000, TIMEOUT_MAX_S)
        try:
            handler = self._handler(request.method)
            async with asyncio.timeout(timeout_s):
                return OkResponse(await handler(caller, bytes(request.body), timeout_s * ANSWER_SHARE))
        except MeshError as error:
            return ErrorResponse(str(error.code), error.message, error.retryable, error.details)
        except TimeoutError:
            return ErrorResponse(ErrorCode.DEADLINE_EXCEEDED, "The node could not answer in time; try again.", True)

    def _handler(self, method: int) -> Handler:
        handler = self._handlers.get(method)
        if handler is None:
            raise MeshError(ErrorCode.INVALID_ARGUMENT, f"Overlay request {method} is unknown here: update the node.")
        return handler

    def _respond(self, outgoing: Outgoing) -> None:
        is_small = len(outgoing.payload) <= RESPONSE_CONTROL_BYTES_MAX
        self._send(TrafficClass.CONTROL if is_small else TrafficClass.BULK, outgoing)

    def _warn(self, source: NodeId, error: WireError) -> None:
        """One line in a while: a flood of malformed packets must not fill the log. The counter has the rest."""
        now = self._clock()
        if now >= self._next_warning_at:
            self._next_warning_at = now + LOG_EVERY_S
            _log.warning("overlay_request_malformed", driver=self._name, peer=source, error=printable(str(error)))


def _late(peer: NodeId) -> MeshError:
    asked = f"Node {peer}" if peer else "The other node"
    return MeshError(ErrorCode.DEADLINE_EXCEEDED, f"{asked} did not answer in time; try again.")
