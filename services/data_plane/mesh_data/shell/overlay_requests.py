"""Drives overlay requests of the data plane: calls that wait, handlers that answer, repeats on a timer.

Purpose: `Overlay.call` and `Overlay.serve` over `meshcommon.requests`. Leaves out: what methods mean. Source: architecture
§5 "Overlay request".
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from mesh_data.shell.overlay_port import RequestHandler
from meshcommon.errors import ErrorCode, MeshError, parse_code
from meshcommon.ids import NodeId
from meshcommon.logging import get_logger
from meshcommon.requests import Incoming, Outgoing, Requests
from meshwire.errors import WireError
from meshwire.packet import TrafficClass
from meshwire.request import ErrorResponse, OkResponse, Request, Response

_log = get_logger(__name__)
RESPONSE_CONTROL_BYTES_MAX: Final = 64 * 1024
"""A response up to this goes in the control class; a larger one would hold up votes and heartbeats."""
EXECUTING_MAX: Final = 4096
"""Requests that may execute at once; more are dropped, their senders repeat them."""

SendPayload = Callable[[TrafficClass, NodeId, bytes], bool]


class OverlayRequests:
    """Both sides of overlay requests of one node. Not thread safe: event loop only."""

    def __init__(self, send: SendPayload, clock: Callable[[], float], first_id: int) -> None:
        self._send = send
        self._clock = clock
        self._requests = Requests(first_id=first_id)
        self._waiting: dict[int, asyncio.Future[Response]] = {}
        self._handlers: dict[int, RequestHandler] = {}
        self._executing: set[asyncio.Task[None]] = set()
        self.malformed = 0
        self.refused = 0

    def serve(self, method: int, handler: RequestHandler) -> None:
        """Binds the handler of a method."""
        self._handlers[method] = handler

    async def call(self, destination: NodeId, method: int, body: bytes, timeout_s: float) -> bytes:
        """One request to another node.

        Raises:
            MeshError: what the other side raised, or DEADLINE_EXCEEDED.
        """
        now = self._clock()
        request = Request(method, max(int(timeout_s * 1000), 1), body)
        request_id, outgoing = self._requests.start(destination, request, now + timeout_s, now)
        answer: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = answer
        # Requests of one caller keep their order: all in one class.
        self._send(TrafficClass.BULK, destination, outgoing.payload)
        try:
            async with asyncio.timeout(timeout_s):
                response = await answer
        except TimeoutError:
            raise _deadline(destination) from None
        finally:
            self._waiting.pop(request_id, None)
            self._requests.cancel(request_id)
        return _body(response)

    async def call_local(self, local: NodeId, method: int, body: bytes, timeout_s: float) -> bytes:
        """The same, to this node itself."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._handler(method)(local, body)
        except TimeoutError:
            raise _deadline(local) from None

    def receive(self, source: NodeId, payload: bytes | memoryview) -> None:
        """Takes a payload of protocol REQUEST."""
        try:
            result = self._requests.receive(source, 0, payload)
        except WireError:
            self.malformed += 1
            return
        if isinstance(result, Incoming):
            self._start(source, result)
        elif isinstance(result, Outgoing):
            self._send_response(source, result.payload)
        elif result is not None:
            waiting = self._waiting.get(result[0])
            if waiting is not None and not waiting.done():
                waiting.set_result(result[1])

    def tick(self, now: float) -> None:
        """Repeats what is due; expired calls end by their own timeout."""
        again, _ = self._requests.tick(now)
        for outgoing in again:
            self._send(TrafficClass.BULK, NodeId(outgoing.peer), outgoing.payload)

    async def close(self) -> None:
        """Cancels what still executes."""
        for task in self._executing:
            task.cancel()
        await asyncio.gather(*self._executing, return_exceptions=True)

    def _start(self, source: NodeId, incoming: Incoming) -> None:
        if len(self._executing) >= EXECUTING_MAX:
            self.refused += 1
            error = MeshError(ErrorCode.BACKPRESSURE, "The node executes too many requests: try again.")
            self._send_response(source, self._requests.answer(incoming.key, _error(error)).payload)
            return
        name = f"overlay request {incoming.request.method} of node {source}"
        task = asyncio.create_task(self._execute(source, incoming), name=name)
        self._executing.add(task)
        task.add_done_callback(self._executing.discard)

    async def _execute(self, source: NodeId, incoming: Incoming) -> None:
        request = incoming.request
        response: Response
        try:
            async with asyncio.timeout(request.deadline_ms / 1000):
                response = OkResponse(await self._handler(request.method)(source, bytes(request.body)))
        except MeshError as error:
            response = _error(error)
        except TimeoutError:
            response = _error(MeshError(ErrorCode.DEADLINE_EXCEEDED, "The node could not answer in time; try again."))
        except Exception as error:  # noqa: BLE001 - a fault of one handler is answered, it must not end the data plane
            _log.error("overlay_request_failed", source=source, method=request.method, exc_info=error)
            response = _error(MeshError(ErrorCode.INTERNAL, "Internal error; the log of the node has the details."))
        self._send_response(source, self._requests.answer(incoming.key, response).payload)

    def _handler(self, method: int) -> RequestHandler:
        handler = self._handlers.get(method)
        if handler is None:
            raise MeshError(ErrorCode.INVALID_ARGUMENT, f"Overlay request {method} is unknown here: update the node.")
        return handler

    def _send_response(self, destination: NodeId, payload: bytes) -> None:
        is_small = len(payload) <= RESPONSE_CONTROL_BYTES_MAX
        self._send(TrafficClass.CONTROL if is_small else TrafficClass.BULK, destination, payload)


def _body(response: Response) -> bytes:
    if isinstance(response, OkResponse):
        return bytes(response.body)
    raise MeshError(parse_code(response.code), response.message, dict(response.details), retryable=response.retryable)


def _error(error: MeshError) -> ErrorResponse:
    return ErrorResponse(str(error.code), error.message, error.retryable, error.details)


def _deadline(destination: NodeId) -> MeshError:
    return MeshError(ErrorCode.DEADLINE_EXCEEDED, f"Node {destination} did not answer in time; try again.")
