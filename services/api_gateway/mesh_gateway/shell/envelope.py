"""What surrounds every HTTP request and WebSocket: correlation id, admission, budgets, counting, last-resort errors.

One ASGI layer, outermost in the application, because its parts need each other: a refusal by admission is counted and
carries the correlation id like any other answer. Bodies are read whole before the application sees the request: they
are small by the limit, and a body that is too large is then refused the same way at every path. Each chunk is counted as
it comes, against the request's own limit and against that of all requests together, until the request is answered.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

import orjson
from opentelemetry import trace
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mesh_gateway.core.byte_budget import ByteBudget, Share
from mesh_gateway.shell.metrics import GatewayMetrics
from meshcommon.admission import check_caller
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.logging import CORRELATION_METADATA, correlation_id, get_logger, usable_correlation_id
from meshcommon.operator_token import CHALLENGE, OperatorToken
from meshcommon.problem import MEDIA_TYPE, problem_of
from meshcommon.request_head import check_head

BODY_BYTES_MAX: Final = 2 * 1024 * 1024
"""One body: the largest legal publish (a batch of 1 MiB) as base64, with room for its JSON."""
BODIES_BYTES_MAX: Final = 32 * 1024 * 1024
"""All bodies in hand, until their requests are answered."""
BODY_S_MAX: Final = 30.0
"""Time for one body to come in."""
FOLLOWERS_MAX: Final = 128
"""WebSockets at a time."""
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_UNKNOWN_ROUTE: Final = "(none)"
_UNAUTHENTICATED: Final = 401
_TRY_LATER: Final = frozenset({429, 503})

_log = get_logger(__name__)


class Envelope:
    """The ASGI layer. `hosts` are names of this gateway besides loopback names and its own address.

    `guard` is the operator's token that every request has to show, None for none.
    """

    def __init__(
        self, app: ASGIApp, metrics: GatewayMetrics, *, hosts: frozenset[str], guard: OperatorToken | None = None
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._hosts = hosts
        self._guard = guard
        self.bodies = ByteBudget(BODIES_BYTES_MAX, "request bodies")
        self._sockets = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request or WebSocket; lifespan events pass by."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        current = usable_correlation_id(headers.get(CORRELATION_METADATA))
        correlation_id.set(current)
        exchange = _Exchange(send, current)
        started = time.perf_counter()
        try:
            self._admit(scope, exchange)
            if scope["type"] == "http":
                await self._serve_request(scope, headers, receive, exchange)
            else:
                await self._serve_socket(scope, receive, exchange)
        except MeshError as error:
            await exchange.refuse(scope, error)
        except ClientDisconnect:
            # In the middle of its body: nobody is left to answer, and it is nothing to look into.
            _log.debug("caller_left")
        except Exception as error:  # noqa: BLE001 - the outermost layer: whatever it is, the caller gets an answer
            _log.error("request_failed", path=scope["path"], exc_info=error)
            await exchange.refuse(scope, MeshError(ErrorCode.INTERNAL, "Internal error; the log has the details."))
        finally:
            self._count(scope, exchange, time.perf_counter() - started)

    def _admit(self, scope: Scope, exchange: _Exchange) -> None:
        own_address = (scope.get("server") or ("", None))[0]
        # Who is not let in gets no second request on the connection: where this one ends may be in doubt.
        exchange.closes = True
        check_head(scope["headers"], len(scope.get("raw_path", b"")) + len(scope["query_string"]))
        check_caller(scope["headers"], scope.get("method", "GET"), own_address=own_address, names=self._hosts)
        if self._guard is not None:
            remote = (scope.get("client") or ("", None))[0]
            self._guard.admit(Headers(scope=scope).getlist("authorization"), remote)
        exchange.closes = False

    async def _serve_request(self, scope: Scope, headers: Headers, receive: Receive, exchange: _Exchange) -> None:
        with self.bodies.share() as share:
            await self._app(scope, await _whole_body(headers, receive, share), exchange.send)

    async def _serve_socket(self, scope: Scope, receive: Receive, exchange: _Exchange) -> None:
        if self._sockets >= FOLLOWERS_MAX:
            text = f"{FOLLOWERS_MAX} WebSockets are open here, which is the limit: close one, or try again later."
            raise MeshError(ErrorCode.BACKPRESSURE, text, {"limit": str(FOLLOWERS_MAX)})
        self._sockets += 1
        try:
            await self._app(scope, receive, exchange.send)
        finally:
            self._sockets -= 1

    def _count(self, scope: Scope, exchange: _Exchange, seconds: float) -> None:
        status = exchange.status
        # The route's template, never the path itself, and no method of the caller's own: those are without number.
        route = getattr(scope.get("route"), "path", _UNKNOWN_ROUTE)
        given = scope.get("method", "WEBSOCKET")
        method = given if given in _METHODS or scope["type"] == "websocket" else "OTHER"
        self._metrics.requests.labels(route, method, str(status)).inc()
        if scope["type"] == "http":
            self._metrics.request_seconds.labels(route, method).observe(seconds)
        # A caller that was not let in may have put its token there.
        path = route if exchange.closes else scope["path"]
        _log.debug("request", method=method, path=path, status=status, seconds=round(seconds, 6))


class _Exchange:
    """The answer to one request: adds the correlation id to it and remembers its status."""

    def __init__(self, send: Send, current: str) -> None:
        self._send = send
        self._correlation_id = current
        self.status = 0
        self.closes = False
        """Whether a refusal ends the connection."""

    async def send(self, message: Message) -> None:
        if message["type"] in {"http.response.start", "websocket.accept", "websocket.http.response.start"}:
            MutableHeaders(scope=message)[CORRELATION_METADATA] = self._correlation_id
            self.status = message.get("status", 101)
            if self.status in _TRY_LATER:
                MutableHeaders(scope=message).setdefault("retry-after", "1")
        await self._send(message)

    async def refuse(self, scope: Scope, error: MeshError) -> None:
        """Answers with a problem document, if nothing was answered yet."""
        if self.status:
            return
        trace.get_current_span().set_attribute("mesh.error.code", str(error.code))
        body = orjson.dumps(problem_of(error, self._correlation_id))
        prefix = "websocket." if scope["type"] == "websocket" else ""
        headers = [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", str(len(body)).encode())]
        if error.mapping.http == _UNAUTHENTICATED:
            headers.append((b"www-authenticate", CHALLENGE.encode()))
        if self.closes:
            headers.append((b"connection", b"close"))
        start = {"type": f"{prefix}http.response.start", "status": error.mapping.http, "headers": headers}
        await self.send(start)
        await self.send({"type": f"{prefix}http.response.body", "body": body})


async def _whole_body(headers: Headers, receive: Receive, share: Share) -> Receive:
    """Reads the body; returns a `receive` that gives it in one piece.

    Raises:
        MeshError: MESSAGE_TOO_LARGE, REQUEST_TOO_SLOW, BACKPRESSURE.
    """
    announced = headers.get("content-length", "")
    if announced.isascii() and announced.isdigit() and int(announced[:20]) > BODY_BYTES_MAX:
        raise _too_large()
    try:
        async with asyncio.timeout(BODY_S_MAX):
            first = await _collect(receive, share)
    except TimeoutError:
        raise MeshError(
            ErrorCode.REQUEST_TOO_SLOW, f"The body did not arrive within {BODY_S_MAX:g} s: send less at a time."
        ) from None
    return _Replay(first, receive)


async def _collect(receive: Receive, share: Share) -> Message:
    """The body as one message, or the message that came instead of its end."""
    parts: list[bytes] = []
    more = True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return message
        part = message.get("body", b"")
        if share.bytes + len(part) > BODY_BYTES_MAX:
            raise _too_large()
        share.take(len(part))
        parts.append(part)
        more = message.get("more_body", False)
    return {"type": "http.request", "body": b"".join(parts), "more_body": False}


class _Replay:
    """A `receive` that gives one message first."""

    def __init__(self, first: Message, receive: Receive) -> None:
        self._first: Message | None = first
        self._receive = receive

    async def __call__(self) -> Message:
        first, self._first = self._first, None
        return await self._receive() if first is None else first


def _too_large() -> MeshError:
    return MeshError(
        ErrorCode.MESSAGE_TOO_LARGE,
        f"The body is larger than {BODY_BYTES_MAX} bytes: send fewer records at a time. "
        "One record may have 1048576 bytes.",
        {"limit": str(BODY_BYTES_MAX)},
    )
