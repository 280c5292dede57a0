"""The gateway as a process: start, readiness, refusals at start, graceful stop."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from meshapi.supervisor.v1 import data_pb2, mesh_pb2
from meshapi.supervisor.v1.mesh_pb2_grpc import MeshServiceStub
from meshcommon.grpc_client import open_channel
from meshcommon.tls_contexts import trusting
from meshtest.certificates import Authority
from meshtest.fake_services import MESH_SERVICE, FakeServer
from meshtest.ports import free_ports
from meshtest.waiting import eventually

if TYPE_CHECKING:
    from tests.conftest import Gateway


class Ports:
    """Where the process listens."""

    def __init__(self) -> None:
        self.http, self.grpc, self.admin = free_ports(3)


def environment(gateway: Gateway, ports: Ports, folder: Path, **more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MESH_")}
    return {
        **kept,
        "MESH_NODE_NAME": "a",
        "MESH_NODE_DATA_DIR": str(folder),
        "MESH_GATEWAY_HTTP_LISTEN": f"127.0.0.1:{ports.http}",
        "MESH_GATEWAY_GRPC_LISTEN": f"127.0.0.1:{ports.grpc}",
        "MESH_GATEWAY_ADMIN_LISTEN": f"127.0.0.1:{ports.admin}",
        "MESH_GATEWAY_CONTROL_TARGET": gateway.control.target,
        "MESH_GATEWAY_ROUTING_TARGET": gateway.routing.target,
        "MESH_GATEWAY_DATA_TARGET": gateway.data.target,
        **more,
    }


@asynccontextmanager
async def started(settings: dict[str, str]) -> AsyncIterator[Process]:
    """The process; killed at the end if it still runs."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "mesh_gateway", env=settings, stderr=PIPE)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def readiness(ports: Ports) -> dict[str, Any] | None:
    try:
        async with httpx.AsyncClient() as client:
            answer = await client.get(f"http://127.0.0.1:{ports.admin}/readyz")
    except httpx.TransportError:
        return None
    body: dict[str, Any] = answer.json()
    assert (answer.status_code == 200) is body["ready"]
    return body


async def ready(ports: Ports) -> bool:
    body = await readiness(ports)
    return body is not None and body["ready"]


async def test_a_gateway_serves_both_apis_and_stops_with_a_follower_on_it(gateway: Gateway, tmp_path: Path) -> None:
    gateway.control.answer("GetStatus", mesh_pb2.GetStatusResponse(name="a"))

    async def endless(_request: Any, _context: Any) -> AsyncIterator[data_pb2.ReadResponse]:
        yield data_pb2.ReadResponse(next_offset=1)
        await asyncio.Event().wait()

    gateway.data.answer_reads(endless)
    ports = Ports()
    async with started(environment(gateway, ports, tmp_path)) as process:
        await eventually("the gateway is ready", lambda: ready(ports))
        async with httpx.AsyncClient() as client:
            status = await client.get(f"http://127.0.0.1:{ports.http}/v1/mesh")
            assert (status.status_code, status.json()["name"]) == (200, "a")
            metrics = await client.get(f"http://127.0.0.1:{ports.admin}/metrics")
            assert 'mesh_gateway_http_requests_total{method="GET",route="/v1/mesh",status="200"} 1.0' in metrics.text
        async with open_channel(f"127.0.0.1:{ports.grpc}") as channel:
            assert (await MeshServiceStub(channel).GetStatus(mesh_pb2.GetStatusRequest())).name == "a"
        async with connect(f"ws://127.0.0.1:{ports.http}/v1/streams/d/l/follow?from=0") as socket:
            await socket.recv()
            process.terminate()
            with pytest.raises(ConnectionClosed):
                await socket.recv()
        async with asyncio.timeout(10):
            _, log = await process.communicate()
    assert process.returncode == 0, log.decode()
    lines = [json.loads(line) for line in log.splitlines()]
    assert {line["service"] for line in lines} == {"mesh-gateway"}
    assert "Traceback" not in log.decode()


async def test_both_apis_over_tls_follow_the_operators_files(gateway: Gateway, tmp_path: Path) -> None:
    gateway.control.answer("GetStatus", mesh_pb2.GetStatusResponse(name="a"))
    ports, old, new = Ports(), Authority(tmp_path, "old"), Authority(tmp_path, "new")
    pair = old.issue("gateway", ends_in=timedelta(days=30))
    files = {"MESH_GATEWAY_TLS_CERTIFICATE": str(pair.certificate), "MESH_GATEWAY_TLS_KEY": str(pair.key)}

    async def answers(authority: Authority) -> bool:
        credentials = grpc.ssl_channel_credentials(authority.file.read_bytes())
        try:
            async with httpx.AsyncClient(verify=trusting(authority.file)) as client:
                status = await client.get(f"https://127.0.0.1:{ports.http}/v1/mesh")
            async with open_channel(f"127.0.0.1:{ports.grpc}", credentials) as channel:
                name = (await MeshServiceStub(channel).GetStatus(mesh_pb2.GetStatusRequest())).name
        except (httpx.ConnectError, grpc.aio.AioRpcError):
            return False
        return (status.json()["name"], name) == ("a", "a")

    async def warns() -> bool:
        body = await readiness(ports)
        return body is not None and body["ready"] and str(pair.key) in str(body["warnings"])

    async with started(environment(gateway, ports, tmp_path, **files)) as process:
        await eventually("the gateway is ready", lambda: ready(ports))
        assert await answers(old)
        assert not await answers(new)
        pair.key.write_text("no key")
        await eventually("the bad file is named", warns)
        assert await answers(old), "the certificate of before is shown"
        new.issue("newer", ends_in=timedelta(days=30)).copy_to(pair)
        await eventually("the new pair is shown", lambda: answers(new))
        assert not await warns()
        # A handshake that does not end keeps it from nothing.
        _, writer = await asyncio.open_connection("127.0.0.1", ports.http)
        process.terminate()
        async with asyncio.timeout(10):
            _, log = await process.communicate()
        writer.close()
    assert process.returncode == 0, log.decode()
    assert "Traceback" not in log.decode()


async def test_readiness_names_the_service_that_is_away_and_recovers(gateway: Gateway, tmp_path: Path) -> None:
    ports = Ports()
    target = gateway.control.target
    async with started(environment(gateway, ports, tmp_path)) as process:
        await eventually("the gateway is ready", lambda: ready(ports))
        await gateway.control.server.server.stop(None)

        async def blames_the_control_plane() -> bool:
            body = await readiness(ports)
            assert body is not None
            return [reason for reason in body["reasons"] if "control plane" in reason and target in reason] != []

        await eventually("the control plane is blamed", blames_the_control_plane)
        async with FakeServer((MESH_SERVICE,), listen=target) as back:
            await eventually("the gateway is ready again", lambda: ready(ports))
            await back.server.set_serving(False)
            await eventually("a service that says it is not serving is blamed", blames_the_control_plane)
        assert process.returncode is None


@pytest.mark.parametrize(
    ("more", "code", "status"),
    [
        ({"MESH_GATEWAY_HTTP_LISTEN": "0.0.0.0:7001"}, "INSECURE_NOT_ALLOWED", 77),
        ({"MESH_GATEWAY_GRPC_LISTEN": "[::]:7002"}, "INSECURE_NOT_ALLOWED", 77),
        ({"MESH_GATEWAY_HTTP_LISTEN": "nowhere"}, "SETTING_INVALID", 78),
        ({"MESH_GATEWAY_REQUEST_TIMEOUT_S": "soon"}, "SETTING_INVALID", 78),
        ({"MESH_GATEWAY_HTTP_LISTENS": "127.0.0.1:1"}, "SETTING_UNKNOWN", 78),
        ({"MESH_GATEWAY_TLS_CERTIFICATE": "/a.pem"}, "SETTING_INVALID", 78),
        ({"MESH_GATEWAY_TLS_CERTIFICATE": "/no.pem", "MESH_GATEWAY_TLS_KEY": "/no.key"}, "SETTING_INVALID", 78),
    ],
)
async def test_bad_settings_end_the_start_with_one_line(
    gateway: Gateway, tmp_path: Path, more: dict[str, str], code: str, status: int
) -> None:
    async with started(environment(gateway, Ports(), tmp_path, **more)) as process:
        _, log = await process.communicate()
    assert process.returncode == status
    last = json.loads(log.splitlines()[-1])
    assert (last["event"], last["code"]) == ("start_failed", code)
    assert b"Traceback" not in log


@pytest.mark.parametrize("listener", ["http", "grpc", "admin"])
async def test_a_port_in_use_ends_the_start(gateway: Gateway, tmp_path: Path, listener: str) -> None:
    ports = Ports()
    taken = f"MESH_GATEWAY_{listener.upper()}_LISTEN"
    async with started(environment(gateway, ports, tmp_path, **{taken: gateway.control.target})) as process:
        async with asyncio.timeout(20):
            _, log = await process.communicate()
    assert process.returncode == 71, log.decode()
    assert json.loads(log.splitlines()[-1])["code"] == "ADDRESS_IN_USE"


async def test_an_open_gateway_warns_loudly_and_still_knows_its_names(gateway: Gateway, tmp_path: Path) -> None:
    ports = Ports()
    settings = environment(gateway, ports, tmp_path, MESH_INSECURE_DEV="1", MESH_GATEWAY_HOSTS="Mesh-A,other")
    settings["MESH_GATEWAY_HTTP_LISTEN"] = f"0.0.0.0:{ports.http}"
    async with started(settings) as process:
        await eventually("the gateway is ready", lambda: ready(ports))
        body = await readiness(ports)
        assert body is not None
        assert "MESH_INSECURE_DEV" in body["warnings"][0]
        async with httpx.AsyncClient() as client:
            for host, status in (("mesh-a:7001", 200), ("evil.example:7001", 403)):
                answer = await client.get(f"http://127.0.0.1:{ports.http}/docs", headers={"host": host})
                assert answer.status_code == status
        process.terminate()
        await process.communicate()
    assert process.returncode == 0


def resident_mib(process: Process) -> float:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


async def test_memory_stays_flat_under_bodies_and_pings_of_strangers(gateway: Gateway, tmp_path: Path) -> None:
    """Ten times the budget of bodies is offered, and pings are sent that nobody reads: both used to be held."""
    gateway.control.answer("GetStatus", mesh_pb2.GetStatusResponse(name="a"))
    ports = Ports()
    head = b"POST /v1/streams HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2000000\r\n\r\n"
    async with started(environment(gateway, ports, tmp_path)) as process, AsyncExitStack() as stack:
        await eventually("the gateway is ready", lambda: ready(ports))
        before = resident_mib(process)

        async def offer() -> None:
            _, writer = await asyncio.open_connection("127.0.0.1", ports.http)
            stack.callback(writer.transport.abort)
            writer.write(head + bytes(1_900_000))
            with suppress(TimeoutError, ConnectionError):
                await asyncio.wait_for(writer.drain(), 2)

        await asyncio.gather(*(offer() for _ in range(170)))
        assert resident_mib(process) - before < 32 + 60
        await stack.aclose()
        socket = await stack.enter_async_context(
            connect(f"ws://127.0.0.1:{ports.http}/v1/streams/d/l/follow?from=0", ping_interval=None)
        )
        socket.transport.pause_reading()
        with suppress(TimeoutError, ConnectionClosed):
            async with asyncio.timeout(2):
                while True:
                    await socket.ping()
        assert resident_mib(process) - before < 32 + 60
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"http://127.0.0.1:{ports.http}/v1/mesh")).status_code == 200
