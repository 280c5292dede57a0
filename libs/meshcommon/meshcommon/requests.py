"""Overlay requests: correlation, retransmission, deadlines, duplicate suppression and limits over best-effort packets.

A request is idempotent and carries a message id that its sender chose; the same id is sent again until an answer comes
or the deadline passes. The receiving side remembers answers for a while, so that a request that arrives twice is
executed once as long as its answer is remembered. It also bounds what executes at once: a member that asks for more is
told BACKPRESSURE, a node that is no member yet is not answered and sends its request again. Pure: `OverlayCalls` sends,
keeps time and runs the handlers. Source: architecture §5 "Overlay request", §11 "Everything from outside".
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Final, TypeAlias

from meshcommon.errors import ErrorCode, MeshError
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
REMEMBERED_ANSWERS_PER_PEER_MAX: Final = 2048
"""Of those, answers to one node, so that one that asks much does not make the node forget what others were answered."""
REMEMBERED_ANSWER_BYTES_PER_PEER_MAX: Final = 8 * 1024 * 1024
_KIND_REQUEST: Final = 0
_KIND_RESPONSE: Final = 1
_HEADER_BYTES: Final = 9
_Key: TypeAlias = tuple[int, int, int]
"""Peer, lane (0 for a member), message id."""
_Share: TypeAlias = tuple[int, int]
"""A member and 0, or 0 and the join lane."""
_FULL: Final = MeshError(ErrorCode.BACKPRESSURE, "The node executes too many requests: try again.")


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What may execute at once for others; bytes are those of bodies.

    Attributes:
        requests_max: Requests of all nodes.
        bytes_max: Bytes of all nodes.
        peer_requests_max: Requests of one member, so that one does not take all.
        peer_bytes_max: Bytes of one member.
        joiners_max: Requests of all nodes that are not yet members.
        lane_max: Requests of one such node; an honest one sends a single request.
        joiner_body_bytes_max: Longest body of such a node; a name, a key, an address and a token need a tenth of it.
    """

    requests_max: int = 4096
    bytes_max: int = 128 * 1024 * 1024
    peer_requests_max: int = 1024
    peer_bytes_max: int = 32 * 1024 * 1024
    joiners_max: int = 16
    lane_max: int = 2
    joiner_body_bytes_max: int = 16 * 1024


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


class _Answers:
    """Answers that are remembered: the newest of each peer and of all, bounded by number and bytes."""

    def __init__(self) -> None:
        self._payloads: OrderedDict[_Key, bytes] = OrderedDict()
        self._bytes = 0
        self._of_peer: dict[tuple[int, int], OrderedDict[_Key, None]] = {}
        self._bytes_of_peer: dict[tuple[int, int], int] = {}

    def get(self, key: _Key) -> bytes | None:
        return self._payloads.get(key)

    def put(self, key: _Key, payload: bytes) -> None:
        if key in self._payloads:
            self._forget(key)
        peer = key[:2]
        mine = self._of_peer.setdefault(peer, OrderedDict())
        self._payloads[key] = payload
        self._bytes += len(payload)
        mine[key] = None
        self._bytes_of_peer[peer] = self._bytes_of_peer.get(peer, 0) + len(payload)
        while mine and (
            len(mine) > REMEMBERED_ANSWERS_PER_PEER_MAX
            or self._bytes_of_peer[peer] > REMEMBERED_ANSWER_BYTES_PER_PEER_MAX
        ):
            self._forget(next(iter(mine)))
        while len(self._payloads) > REMEMBERED_ANSWERS_MAX or self._bytes > REMEMBERED_ANSWER_BYTES_MAX:
            self._forget(next(iter(self._payloads)))

    def _forget(self, key: _Key) -> None:
        size_bytes = len(self._payloads.pop(key))
        peer = key[:2]
        self._bytes -= size_bytes
        self._bytes_of_peer[peer] -= size_bytes
        del self._of_peer[peer][key]
        if not self._of_peer[peer]:
            del self._of_peer[peer], self._bytes_of_peer[peer]


class _Executing:
    """Requests that execute now, and what they take of the limits."""

    def __init__(self, limits: RequestLimits) -> None:
        self._limits = limits
        self._sizes: dict[_Key, int] = {}
        self._requests_of: Counter[_Share] = Counter()
        self._bytes_of: Counter[_Share] = Counter()
        self._bytes = 0
        self._joiners = 0

    def __contains__(self, key: _Key) -> bool:
        return key in self._sizes

    def __len__(self) -> int:
        return len(self._sizes)

    def has_room(self, share: _Share, size_bytes: int) -> bool:
        """Whether one more request of that size may execute: by all limits at once."""
        limits = self._limits
        if len(self._sizes) >= limits.requests_max or self._bytes + size_bytes > limits.bytes_max:
            return False
        if not share[0]:
            return self._joiners < limits.joiners_max and self._requests_of[share] < limits.lane_max
        return (
            self._requests_of[share] < limits.peer_requests_max
            and self._bytes_of[share] + size_bytes <= limits.peer_bytes_max
        )

    def add(self, key: _Key, size_bytes: int) -> None:
        self._sizes[key] = size_bytes
        self._count(key[:2], 1, size_bytes)

    def discard(self, key: _Key) -> None:
        size_bytes = self._sizes.pop(key, None)
        if size_bytes is not None:
            self._count(key[:2], -1, -size_bytes)

    def _count(self, share: _Share, requests: int, size_bytes: int) -> None:
        self._bytes += size_bytes
        self._joiners += 0 if share[0] else requests
        self._requests_of[share] += requests
        self._bytes_of[share] += size_bytes
        if not self._requests_of[share]:
            del self._requests_of[share], self._bytes_of[share]


class Requests:
    """Both sides of overlay requests at one node for one protocol. `now` is monotonic seconds.

    The frame is: kind u8 (0 request, 1 response), message id u64, then the body of `meshwire.request`.
    """

    def __init__(self, *, first_id: int, limits: RequestLimits = RequestLimits()) -> None:
        """`first_id` is random per process start, so that ids of an earlier life are never met again."""
        self._limits = limits
        self.refused = 0
        """Requests of others that were not executed because of the limits."""
        self._next_id = first_id & 0x7FFFFFFFFFFFFFFF
        self._pending: dict[int, _Pending] = {}
        self._executing = _Executing(limits)
        self._answers = _Answers()

    @property
    def executing(self) -> int:
        """Requests of others that execute now."""
        return len(self._executing)

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
            is answered from memory or a new one is refused by the limits; None when there is nothing to do.

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
        size_bytes = len(request.body)
        if not peer and size_bytes > self._limits.joiner_body_bytes_max:
            return self._refused(key, self._too_long(size_bytes))
        if not self._executing.has_room(key[:2], size_bytes):
            if peer:
                return self._refused(key, _FULL)
            self.refused += 1
            return None
        self._executing.add(key, size_bytes)
        return Incoming(key, request)

    def answer(self, key: tuple[int, int, int], response: Response) -> Outgoing:
        """The answer to `Incoming.key`, remembered for repeats."""
        self._executing.discard(key)
        outgoing = _respond(key, response)
        self._answers.put(key, outgoing.payload)
        return outgoing

    def forget(self, key: tuple[int, int, int]) -> None:
        """`Incoming.key` gets no answer: a repeat is a new request."""
        self._executing.discard(key)

    def _refused(self, key: _Key, error: MeshError) -> Outgoing:
        """Nothing was executed, so the refusal is not remembered: a repeat may find room."""
        self.refused += 1
        return _respond(key, ErrorResponse(error.code, error.message, error.retryable, error.details))

    def _too_long(self, size_bytes: int) -> MeshError:
        return MeshError(
            ErrorCode.INVALID_ARGUMENT,
            f"A request of {size_bytes} bytes is too long for a node that is no member: "
            f"send at most {self._limits.joiner_body_bytes_max}.",
        )

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


def _respond(key: _Key, response: Response) -> Outgoing:
    if isinstance(response, ErrorResponse):
        body = encode_error(response.code, response.message, response.retryable, response.details)
    else:
        body = encode_response(response.body)
    return Outgoing(key[0], key[1], bytes((_KIND_RESPONSE,)) + key[2].to_bytes(8, "big") + body)
