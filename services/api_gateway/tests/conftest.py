"""A gateway in the test's own process, in front of three fake services."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import httpx
import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette

from mesh_gateway.shell.app import build_app
from mesh_gateway.shell.backends import Backends
from mesh_gateway.shell.metrics import GatewayMetrics
from mesh_gateway.shell.record_exchanges import opened_budget
from meshtest.fake_services import CA_SERVICE, DATA_SERVICE, MESH_SERVICE, TOPOLOGY_SERVICE, FakeServer


@dataclass(frozen=True, slots=True)
class Gateway:
    """What a test needs of the gateway: the fakes behind it, its application, a client."""

    control: FakeServer
    routing: FakeServer
    data: FakeServer
    backends: Backends
    app: Starlette
    registry: CollectorRegistry
    metrics: GatewayMetrics
    http: httpx.AsyncClient


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    async with AsyncExitStack() as stack:
        control = await stack.enter_async_context(FakeServer((MESH_SERVICE, CA_SERVICE)))
        routing = await stack.enter_async_context(FakeServer((TOPOLOGY_SERVICE,)))
        data = await stack.enter_async_context(FakeServer((DATA_SERVICE,)))
        backends = Backends(control.target, routing.target, data.target)
        stack.push_async_callback(backends.close)
        registry = CollectorRegistry()
        metrics = GatewayMetrics(registry)
        app = build_app("a", backends, metrics, 5.0, opened_budget(), hosts=["mesh.example"])
        transport = httpx.ASGITransport(app)
        http = await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:7001"))
        yield Gateway(control, routing, data, backends, app, registry, metrics, http)
