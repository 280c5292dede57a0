"""What surrounds every HTTP request and WebSocket: correlation id, admission, body limit, counting, last-resort errors.

One ASGI layer, outermost in the application, because its parts need each other: a refusal by admission is counted and
carries the correlation id like any other answer. Bodies are read whole before the application sees the request: they
are small by the limit, and a body that is too large is then refused the same way at every path.
"""

from __future__ import annotations

import re
import time
from typing import Final

import orjson
from opentelemetry import trace
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mesh_gateway.core.admission import check_caller
from mesh_gateway.core.problem import MEDIA_TYPE, problem_of
from mesh_gateway.shell.metrics import GatewayMetrics
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.logging import CORRELATION_METADATA, correlation_id, get_logger, new_correlation_id

BODY_BYTES_MAX: Final = 2 * 1024 * 1024
_USABLE_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_UNKNOWN_ROUTE: Final = "(none)"

_log = get_logger(__name__)


class Envelope:
    """The ASGI layer. `is_insecure_dev` lets any host name in."""

    def __init__(self, app: ASGIApp, metrics: GatewayMetrics, *, is_insecure_dev: bool) -> None:
        self._app = app
        self._metrics = metrics
        self._is_insecure_dev = is_insecure_dev

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request or WebSocket; lifespan events pass by."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get(CORRELATION_METADATA, "")
        current = given if _USABLE_ID.fullmatch(given) else new_correlation_id()
        correlation_id.set(current)
        exchange = _Exchange(send, current)
        started = time.perf_counter()
        try:
            check_caller(headers.get("host", ""), headers.get("origin"), is_insecure_dev=self._is_insecure_dev)
            inner = await _whole_body(headers, receive) if scope["type"] == "http" else receive
            await self._app(scope, inner, exchange.send)
        except MeshError as error:
            await exchange.refuse(scope, error)
        except Exception as error:  # noqa: BLE001 - the outermost layer: whatever it is, the caller gets an answer
            _log.error("request_failed", path=scope["path"], exc_info=error)
            await exchange.refuse(scope, MeshError(ErrorCode.INTERNAL, "Internal error; the log has the details."))
        finally:
            self._count(scope, exchange.status, time.perf_counter() - started)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        # The route's template, never the path itself: paths hold names, which are without number.
        route = getattr(scope.get("route"), "path", _UNKNOWN_ROUTE)
        method = scope.get("method", "WEBSOCKET")
        self._metrics.requests.labels(route, method, str(status)).inc()
        if scope["type"] == "http":
            self._metrics.request_seconds.labels(route, method).observe(seconds)
        _log.debug("request", method=method, path=scope["path"], status=status, seconds=round(seconds, 6))


class _Exchange:
    """The answer to one request: adds the correlation id to it and remembers its status."""

    def __init__(self, send: Send, current: str) -> None:
        self._send = send
        self._correlation_id = current
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] in {"http.response.start", "websocket.accept", "websocket.http.response.start"}:
            MutableHeaders(scope=message)[CORRELATION_METADATA] = self._correlation_id
            self.status = message.get("status", 101)
        await self._send(message)

    async def refuse(self, scope: Scope, error: MeshError) -> None:
        """Answers with a problem document, if nothing was answered yet."""
        if self.status:
            return
        trace.get_current_span().set_attribute("mesh.error.code", str(error.code))
        body = orjson.dumps(problem_of(error, self._correlation_id))
        prefix = "websocket." if scope["type"] == "websocket" else ""
        headers = [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", str(len(body)).encode())]
        start = {"type": f"{prefix}http.response.start", "status": error.mapping.http, "headers": headers}
        await self.send(start)
        await self.send({"type": f"{prefix}http.response.body", "body": body})


async def _whole_body(headers: Headers, receive: Receive) -> Receive:
    """Reads the body; returns a `receive` that gives it in one piece.

    Raises:
        MeshError: MESSAGE_TOO_LARGE.
    """
    announced = headers.get("content-length", "")
    if announced.isdigit() and int(announced) > BODY_BYTES_MAX:
        raise _too_large()
    parts: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return _Replay(message, receive)
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > BODY_BYTES_MAX:
            raise _too_large()
        more = message.get("more_body", False)
    return _Replay({"type": "http.request", "body": b"".join(parts), "more_body": False}, receive)


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
