"""The operator's token at a gateway that other machines reach: REST, WebSocket and gRPC; nothing of it goes further."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from mesh_gateway.main import REST_HTTP
from mesh_gateway.shell.app import build_app
from mesh_gateway.shell.metrics import GatewayMetrics
from mesh_gateway.shell.proxy import pass_through
from mesh_gateway.shell.record_exchanges import opened_budget
from meshapi.supervisor.v1 import mesh_pb2
from meshapi.supervisor.v1.mesh_pb2_grpc import MeshServiceStub
from meshcommon.errors import ErrorCode
from meshcommon.grpc_client import mesh_error, open_channel
from meshcommon.grpc_server import PUBLIC_CALLS, GrpcServer
from meshcommon.http_server import serve_asgi
from meshcommon.operator_token import OperatorToken, hashed_line, new_token
from meshcommon.wrong_proofs import WRONG_PROOFS_MAX
from meshtest.ports import free_ports
from meshtest.waiting import eventually

if TYPE_CHECKING:
    from tests.conftest import Gateway


@pytest.fixture
def token() -> str:
    return new_token()


@pytest.fixture
def guard(token: str, tmp_path: Path) -> OperatorToken:
    (tmp_path / "token").write_text(hashed_line(token))
    return OperatorToken(tmp_path / "token", "MESH_TEST_FILE")


@asynccontextmanager
async def rest(gateway: Gateway, guard: OperatorToken) -> AsyncIterator[str]:
    """The guarded REST listener, as the process serves it; `host:port`."""
    (port,) = free_ports(1)
    metrics = GatewayMetrics(CollectorRegistry())
    app = build_app("a", gateway.backends, metrics, 5.0, opened_budget(), guard=guard)
    serving = asyncio.create_task(serve_asgi(app, f"127.0.0.1:{port}", "The test", limits=REST_HTTP))

    async def is_open() -> bool:
        serving.done() and serving.result()
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        return True

    await eventually("it listens", is_open)
    yield f"127.0.0.1:{port}"
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


@pytest.fixture
async def guarded(gateway: Gateway, guard: OperatorToken) -> AsyncIterator[str]:
    """The guarded gRPC listener."""
    server = GrpcServer(limits=PUBLIC_CALLS)
    pass_through(server.server, gateway.backends, gateway.metrics, opened_budget())
    port = await server.start("127.0.0.1:0", "The gateway of the test", admission=guard.admit_call)
    await server.set_serving(True)
    yield f"127.0.0.1:{port}"
    await server.server.stop(None)


async def test_rest_wants_the_token_and_says_so(gateway: Gateway, guard: OperatorToken, token: str) -> None:
    gateway.control.answer("GetStatus", mesh_pb2.GetStatusResponse(name="a"))
    async with rest(gateway, guard) as at, httpx.AsyncClient(base_url=f"http://{at}") as http:
        for shown, code in (
            ({}, "OPERATOR_TOKEN_REQUIRED"),
            ({"Authorization": f"Bearer {new_token()}"}, "OPERATOR_TOKEN_WRONG"),
            ({"Authorization": "Basic dXNlcjpwYXNz"}, "OPERATOR_TOKEN_REQUIRED"),
        ):
            refused = await http.get("/v1/mesh", headers=shown)
            assert (refused.status_code, refused.json()["code"]) == (401, code)
            assert refused.headers["www-authenticate"] == 'Bearer realm="mesh"'
            assert refused.headers["content-type"] == "application/problem+json"
        for path in ("/docs", "/openapi.json", "/none", f"/v1/mesh?access_token={token}&token={token}"):
            assert (await http.get(path)).status_code == 401, path
        assert gateway.control.asked == []
        answer = await http.get("/v1/mesh", headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == 200
        assert token not in str(gateway.control.asked[-1].metadata)
        twice = [("Authorization", f"Bearer {token}"), ("Authorization", f"Bearer {token}")]
        assert (await http.get("/v1/mesh", headers=twice)).json()["code"] == "INVALID_ARGUMENT"


async def test_the_rules_about_web_pages_stay(gateway: Gateway, guard: OperatorToken, token: str) -> None:
    async with rest(gateway, guard) as at, httpx.AsyncClient(base_url=f"http://{at}") as http:
        shown = {"Authorization": f"Bearer {token}"}
        assert (await http.get("/v1/mesh", headers=shown | {"Origin": "http://evil.example"})).status_code == 403
        assert (await http.get("/v1/mesh", headers=shown | {"Host": "evil.example"})).status_code == 403


async def test_rest_turns_a_flood_of_wrong_tokens_away(gateway: Gateway, guard: OperatorToken, token: str) -> None:
    gateway.control.answer("GetStatus", mesh_pb2.GetStatusResponse(name="a"))
    async with rest(gateway, guard) as at, httpx.AsyncClient(base_url=f"http://{at}") as http:
        statuses = [
            (await http.get("/v1/mesh", headers={"Authorization": f"Bearer {new_token()}"})).status_code
            for _ in range(WRONG_PROOFS_MAX + 3)
        ]
        assert statuses == [401] * WRONG_PROOFS_MAX + [429] * 3
        assert (await http.get("/v1/mesh", headers={"Authorization": f"Bearer {token}"})).status_code == 200


async def test_a_websocket_shows_it_in_the_upgrade(gateway: Gateway, guard: OperatorToken, token: str) -> None:
    async with rest(gateway, guard) as at:
        url = f"ws://{at}/v1/streams/demo/lines/follow?from=0"
        with pytest.raises(InvalidStatus) as refused:
            async with connect(url):
                pass
        assert refused.value.response.status_code == 401
        assert gateway.data.asked == []
        async with connect(url, additional_headers={"Authorization": f"Bearer {token}"}) as socket:
            assert socket.response is not None
            assert socket.response.status_code == 101


async def test_grpc_wants_the_token_in_its_metadata(gateway: Gateway, guarded: str, token: str) -> None:
    gateway.control.answer("GetStatus", mesh_pb2.GetStatusResponse(name="a"))
    for shown, code in (
        ((), ErrorCode.OPERATOR_TOKEN_REQUIRED),
        ((("authorization", f"Bearer {new_token()}"),), ErrorCode.OPERATOR_TOKEN_WRONG),
        ((("authorization", f"Bearer {token}"),) * 2, ErrorCode.INVALID_ARGUMENT),
    ):
        async with open_channel(guarded) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await MeshServiceStub(channel).GetStatus(mesh_pb2.GetStatusRequest(), metadata=shown)
        assert mesh_error(refused.value, "gateway").code is code
        assert token not in str(refused.value)
    assert gateway.control.asked == []
    async with open_channel(guarded, token=token) as channel:
        assert (await MeshServiceStub(channel).GetStatus(mesh_pb2.GetStatusRequest())).name == "a"
    assert "authorization" not in dict(gateway.control.asked[-1].metadata)


async def test_grpc_health_is_told_without_it(guarded: str) -> None:
    async with open_channel(guarded) as channel:
        # The stubs of grpc_health have no types.
        health: Any = health_pb2_grpc.HealthStub(channel)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await anext(aiter(health.Watch(health_pb2.HealthCheckRequest())))
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
