"""Overlay requests: correlation, retransmission, deadlines and duplicate suppression over best-effort packets.

A request is idempotent and carries a message id that its sender chose; the same id is sent again until an answer comes
or the deadline passes. The receiving side remembers answers for a while, so that a request that arrives twice is
executed once as long as its answer is remembered. What it leaves out: sending itself, and any timer (the shell calls
`tick`). Source: architecture §5 "Overlay request".
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from meshwire.errors import WireError
from meshwire.request import (
    ErrorResponse,
    Request,
    Response,
    decode_request,
    decode_response,
    encode_error,
    encode_request,
    encode_response,
)

RETRY_FIRST_S: Final = 0.25
RETRY_MAX_S: Final = 1.0
REMEMBERED_ANSWERS_MAX: Final = 4096
REMEMBERED_ANSWER_BYTES_MAX: Final = 16 * 1024 * 1024
_KIND_REQUEST: Final = 0
_KIND_RESPONSE: Final = 1
_HEADER_BYTES: Final = 9


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A payload to send. `lane_id` is only set when `peer` is 0 (a neighbour that is not yet a member)."""

    peer: int
    lane_id: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Incoming:
    """A request to execute; answer it with `Requests.answer(key, response)`."""

    key: tuple[int, int, int]
    request: Request


@dataclass(slots=True)
class _Pending:
    outgoing: Outgoing
    deadline: float
    next_send: float
    interval: float


class Requests:
    """Both sides of overlay requests at one node for one protocol. `now` is monotonic seconds.

    The frame is: kind u8 (0 request, 1 response), message id u64, then the body of `meshwire.request`.
    """

    def __init__(self, *, first_id: int) -> None:
        """`first_id` is random per process start, so that ids of an earlier life are never met again."""
        self._next_id = first_id & 0x7FFFFFFFFFFFFFFF
        self._pending: dict[int, _Pending] = {}
        self._executing: set[tuple[int, int, int]] = set()
        self._answers: OrderedDict[tuple[int, int, int], bytes] = OrderedDict()
        self._answer_bytes = 0

    def start(self, peer: int, request: Request, deadline: float, now: float, lane_id: int = 0) -> tuple[int, Outgoing]:
        """Registers a request; returns its id and what to send now."""
        request_id = self._next_id
        self._next_id += 1
        payload = bytes((_KIND_REQUEST,)) + request_id.to_bytes(8, "big") + encode_request(request)
        outgoing = Outgoing(peer, lane_id, payload)
        self._pending[request_id] = _Pending(outgoing, deadline, now + RETRY_FIRST_S, RETRY_FIRST_S)
        return request_id, outgoing

    def cancel(self, request_id: int) -> None:
        """Forgets a request whose caller no longer waits."""
        self._pending.pop(request_id, None)

    def receive(
        self, peer: int, lane_id: int, payload: bytes | memoryview
    ) -> Incoming | tuple[int, Response] | Outgoing | None:
        """Takes a payload from `peer`.

        Returns:
            Incoming for a new request; (request id, response) for an awaited answer; Outgoing when a repeated request
            is answered from memory; None when there is nothing to do.

        Raises:
            meshwire.errors.WireError: The payload is malformed; drop and count it.
        """
        if len(payload) < _HEADER_BYTES:
            raise WireError("an overlay request is shorter than its header")
        kind, request_id = payload[0], int.from_bytes(payload[1:_HEADER_BYTES], "big")
        body = payload[_HEADER_BYTES:]
        if kind not in (_KIND_REQUEST, _KIND_RESPONSE):
            raise WireError(f"kind {kind} of an overlay request is unknown")
        if kind == _KIND_RESPONSE:
            response = decode_response(body)
            pending = self._pending.get(request_id)
            if pending is None or (pending.outgoing.peer, pending.outgoing.lane_id) != (
                peer,
                lane_id if not peer else 0,
            ):
                return None
            del self._pending[request_id]
            return request_id, response
        request = decode_request(body)
        key = (peer, lane_id if not peer else 0, request_id)
        remembered = self._answers.get(key)
        if remembered is not None:
            return Outgoing(key[0], key[1], remembered)
        if key in self._executing:
            return None
        self._executing.add(key)
        return Incoming(key, request)

    def answer(self, key: tuple[int, int, int], response: Response) -> Outgoing:
        """The answer to `Incoming.key`, remembered for repeats."""
        self._executing.discard(key)
        if isinstance(response, ErrorResponse):
            body = encode_error(response.code, response.message, response.retryable, response.details)
        else:
            body = encode_response(response.body)
        payload = bytes((_KIND_RESPONSE,)) + key[2].to_bytes(8, "big") + body
        self._answers[key] = payload
        self._answer_bytes += len(payload)
        while len(self._answers) > REMEMBERED_ANSWERS_MAX or self._answer_bytes > REMEMBERED_ANSWER_BYTES_MAX:
            _, dropped = self._answers.popitem(last=False)
            self._answer_bytes -= len(dropped)
        return Outgoing(key[0], key[1], payload)

    def tick(self, now: float) -> tuple[list[Outgoing], list[int]]:
        """What to send again, and the ids whose deadline has passed (they are forgotten)."""
        expired = [request_id for request_id, item in self._pending.items() if now >= item.deadline]
        for request_id in expired:
            del self._pending[request_id]
        again: list[Outgoing] = []
        for item in self._pending.values():
            if now >= item.next_send:
                again.append(item.outgoing)
                item.interval = min(item.interval * 2, RETRY_MAX_S)
                item.next_send = now + item.interval
        return again, expired

    def next_deadline(self) -> float | None:
        """When `tick` should be called next, None when nothing is pending."""
        if not self._pending:
            return None
        return min(min(item.deadline, item.next_send) for item in self._pending.values())
