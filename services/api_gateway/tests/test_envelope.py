"""The outermost layer: whatever the headers, an answer below 500; bodies and WebSockets within their budgets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from mesh_gateway.core.byte_budget import ByteBudget
from mesh_gateway.shell import envelope
from mesh_gateway.shell.calls import Calls
from mesh_gateway.shell.envelope import BODY_BYTES_MAX, Envelope
from mesh_gateway.shell.metrics import GatewayMetrics
from mesh_gateway.shell.record_exchanges import opened_budget
from meshapi.supervisor.v1 import data_pb2, mesh_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshtest.effort import scaled
from meshtest.waiting import eventually

if TYPE_CHECKING:
    from tests.conftest import Gateway

Headers = list[tuple[bytes, bytes]]
HOST = (b"host", b"127.0.0.1:7001")
NAMES = [
    *(b"host", b"origin", b"sec-fetch-site", b"sec-fetch-mode", b"sec-fetch-dest", b"x-correlation-id"),
    *(b"content-length", b"content-type", b"accept", b"cookie", b"traceparent", b"tracestate", b"baggage"),
    *(b"forwarded", b"x-forwarded-for", b"x-forwarded-proto", b"range", b"if-modified-since", b"user-agent"),
]
VALUES = [b"http://[", b"[::1", b"\x00", b"\xff" * 20, b"a" * 9_000, b"null", b"00-1-2-3", b"99999999999999999999999"]
WHATEVER = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(VALUES) | st.binary(max_size=50)), max_size=5)


class Caller:
    """One request over ASGI, so that headers need not be legal."""

    def __init__(self, headers: Headers, *, kind: str = "http", method: str = "GET", path: str = "/v1/mesh") -> None:
        self.scope: dict[str, Any] = {
            "type": kind,
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "server": ("127.0.0.1", 7001),
            "client": ("127.0.0.1", 1),
            "scheme": "http" if kind == "http" else "ws",
            "method": method,
            "root_path": "",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": headers,
            "subprotocols": [],
            "state": {},
            "extensions": {"websocket.http.response": {}},
        }
        if kind == "websocket":
            del self.scope["method"]
        self.incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.answered: list[dict[str, Any]] = []

    def give(self, body: bytes = b"", *, more: bool = False) -> Caller:
        self.incoming.put_nowait({"type": "http.request", "body": body, "more_body": more})
        return self

    async def ask(self, app: Any) -> int:
        """The status of the answer; 101 where a WebSocket is accepted."""
        if self.scope["type"] == "websocket":
            self.incoming.put_nowait({"type": "websocket.connect"})
            self.incoming.put_nowait({"type": "websocket.disconnect", "code": 1000})

        async def send(message: dict[str, Any]) -> None:
            self.answered.append(message)

        await app(self.scope, self.incoming.get, send)
        first = self.answered[0]
        return int(first.get("status", 101 if first["type"] == "websocket.accept" else 403))

    @property
    def problem(self) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(b"".join(part.get("body", b"") for part in self.answered))
        return body

    def header(self, name: bytes) -> bytes | None:
        return dict(self.answered[0]["headers"]).get(name)


@settings(max_examples=scaled(50), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(headers=WHATEVER, has_host=st.booleans(), kind=st.sampled_from(["http", "websocket"]))
async def test_no_header_text_is_answered_with_a_failure_of_ours(
    gateway: Gateway, headers: Headers, has_host: bool, kind: str
) -> None:
    gateway.control.answer("GetStatus", mesh_pb2.GetStatusResponse(name="a"))
    path = "/v1/mesh" if kind == "http" else "/v1/streams/d/l/follow"
    caller = Caller([HOST] * has_host + headers, kind=kind, path=path)
    if kind == "http":
        caller.give()
    status = await caller.ask(gateway.app)
    assert status < 500


async def test_a_body_is_counted_until_its_request_is_answered() -> None:
    seen: list[int] = []
    inside = asyncio.Event()
    release = asyncio.Event()

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        seen.append(len((await receive())["body"]))
        inside.set()
        await release.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    layer = Envelope(app, GatewayMetrics(CollectorRegistry()), hosts=frozenset())
    running = asyncio.create_task(Caller([HOST], method="POST").give(bytes(1000)).ask(layer))
    await inside.wait()
    assert (seen, layer.bodies.used_bytes) == ([1000], 1000)
    release.set()
    assert await running == 200
    assert layer.bodies.used_bytes == 0


async def test_bodies_beyond_the_budget_of_all_are_told_to_come_later() -> None:
    """Ten times the budget is sent: what is held stays below it, and nothing is held afterwards."""
    layer = Envelope(_never, GatewayMetrics(CollectorRegistry()), hosts=frozenset())
    layer.bodies = ByteBudget(3_000_000, "request bodies")
    callers = [Caller([HOST], method="POST").give(bytes(1_500_000), more=True) for _ in range(20)]
    running = [asyncio.create_task(caller.ask(layer)) for caller in callers]
    done, held = await asyncio.wait(running, timeout=0.5)
    assert (len(done), len(held)) == (18, 2)
    assert layer.bodies.used_bytes == 3_000_000
    assert {task.result() for task in done} == {429}
    refused = next(caller for caller in callers if caller.answered)
    assert (refused.problem["code"], refused.problem["retryable"]) == ("BACKPRESSURE", True)
    assert refused.header(b"retry-after") == b"1"
    for task in held:
        task.cancel()
    await asyncio.gather(*held, return_exceptions=True)
    assert layer.bodies.used_bytes == 0


async def _never(_scope: Any, _receive: Any, _send: Any) -> None:
    raise AssertionError("the application must not see it")


@pytest.mark.parametrize("headers", [[], [(b"content-length", str(BODY_BYTES_MAX + 1).encode())]])
async def test_a_body_that_is_too_large_is_refused_before_it_is_held(headers: Headers) -> None:
    layer = Envelope(_never, GatewayMetrics(CollectorRegistry()), hosts=frozenset())
    caller = Caller([HOST, *headers], method="POST")
    for _ in range(3):
        caller.give(bytes(BODY_BYTES_MAX // 2), more=True)
    assert await caller.ask(layer) == 413
    assert layer.bodies.used_bytes == 0


async def test_a_body_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envelope, "BODY_S_MAX", 0.05)
    layer = Envelope(_never, GatewayMetrics(CollectorRegistry()), hosts=frozenset())
    caller = Caller([HOST], method="POST").give(b"begins", more=True)
    async with asyncio.timeout(10):
        assert await caller.ask(layer) == 408
    assert caller.problem["code"] == "REQUEST_TOO_SLOW"
    assert layer.bodies.used_bytes == 0


async def test_websockets_beyond_the_limit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envelope, "FOLLOWERS_MAX", 2)
    release = asyncio.Event()

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept", "headers": []})
        await release.wait()

    layer = Envelope(app, GatewayMetrics(CollectorRegistry()), hosts=frozenset())
    running = [asyncio.create_task(Caller([HOST], kind="websocket").ask(layer)) for _ in range(2)]
    await asyncio.sleep(0)
    third = Caller([HOST], kind="websocket")
    assert await third.ask(layer) == 429
    release.set()
    assert await asyncio.gather(*running) == [101, 101]
    assert await Caller([HOST], kind="websocket").ask(layer) == 101


async def test_pages_that_are_read_at_a_time_are_bounded(gateway: Gateway) -> None:
    entered = asyncio.Event()
    release = asyncio.Event()

    async def read(_request: Any, _context: Any) -> AsyncIterator[data_pb2.ReadResponse]:
        yield data_pb2.ReadResponse(records=[data_pb2.ReadRecord(offset=0, value=bytes(1_000))], next_offset=1)
        entered.set()
        await release.wait()

    gateway.data.answer_reads(read)
    calls = Calls(gateway.backends, 5.0, opened_budget())
    calls.pages = ByteBudget(1_500, "pages that are being read")
    first = asyncio.create_task(calls.read("d/l", 0, 10))
    await entered.wait()

    async def is_held() -> bool:
        return calls.pages.used_bytes > 0

    await eventually("the first page is held", is_held)
    with pytest.raises(MeshError) as caught:
        await calls.read("d/l", 0, 10)
    assert caught.value.code is ErrorCode.BACKPRESSURE
    release.set()
    assert len((await first).records) == 1
    assert calls.pages.used_bytes == 0
