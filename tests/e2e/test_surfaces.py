"""What a user touches at a running mesh: REST, WebSocket, the API page, the command line, admin pages, logs, Postgres."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import asyncpg
import grpc.aio
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from websockets.asyncio.client import connect

from meshapi.common.v1 import view_pb2
from meshcommon.errors import MeshError
from meshtest.site import MODULES
from meshtest.trio import Trio, served_everywhere
from meshtest.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_publish_and_read_by_rest_and_follow_by_websocket(mesh: Trio) -> None:
    a, c = mesh.sites["a"].config.rest, mesh.sites["c"].config.rest
    async with httpx.AsyncClient(timeout=20) as http:
        created = await http.post(f"{a}/v1/streams", json={"name": "rest/one", "members": ["a", "b", "c"]})
        assert created.status_code in {200, 201}, created.text
        await served_everywhere(mesh.gateways, "rest/one", created.json()["stream_id"])
        body = {"wait": "committed", "records": [{"value": "größer"}, {"value_base64": "AP8=", "key": "k"}]}
        published = await http.post(f"{a}/v1/streams/rest/one/records", json=body)
        assert published.status_code in {200, 201}, published.text
        assert published.json()["base_offset"] == 0
        read = await http.get(f"{c}/v1/streams/rest/one/records", params={"from": 0})
        records = read.json()["records"]
        assert records[0]["value"] == "größer"
        assert records[1]["value_base64"] == "AP8="
        missing = await http.get(f"{c}/v1/streams/rest/none/records", params={"from": 0})
        assert missing.status_code == 404
        assert missing.headers["content-type"].startswith("application/problem+json")
        assert missing.json()["code"] == "STREAM_NOT_FOUND"
    url = c.replace("http://", "ws://") + "/v1/streams/rest/one/follow?from=1"
    async with connect(url) as socket:
        first = json.loads(await asyncio.wait_for(socket.recv(), 10))
        assert first["records"][0]["offset"] == 1
        await mesh.gateways["b"].publish("rest/one", [b"later"])
        second = json.loads(await asyncio.wait_for(socket.recv(), 10))
        assert second["records"][0]["value"] == "later"


async def test_the_api_page_is_there_and_needs_nothing_from_outside(mesh: Trio) -> None:
    base = mesh.sites["a"].config.rest
    async with httpx.AsyncClient(timeout=10) as http:
        page = await http.get(f"{base}/docs")
        schema = (await http.get(f"{base}/openapi.json")).json()
    assert page.status_code == 200
    assert "https://" not in page.text.replace("https://www.w3.org", "")
    assert "/v1/streams/{namespace}/{name}/records" in schema["paths"]


async def direct(mesh: Trio, one: str, other: str) -> None:
    """Returns once packets between two nodes take their own link."""

    async def is_direct() -> bool:
        return list((await mesh.gateways[one].ping(other)).path) == [one, other]

    await eventually(f"{one} reaches {other} directly", is_direct)


def meshctl(mesh: Trio, node: str, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "meshctl", "--gateway", mesh.sites[node].config.gateway, *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=60, check=False)


async def ctl(mesh: Trio, node: str, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return await asyncio.to_thread(meshctl, mesh, node, *arguments, stdin=stdin)


async def test_every_command_of_meshctl(mesh: Trio) -> None:
    await direct(mesh, "a", "c")
    for arguments in (("status",), ("nodes",), ("links",), ("paths", "a", "c"), ("ping", "c"), ("stream", "ls")):
        done = await ctl(mesh, "a", *arguments)
        assert done.returncode == 0, (arguments, done.stderr)
        assert done.stdout
        as_json = await ctl(mesh, "a", "--json", *arguments)
        assert as_json.returncode == 0, (arguments, as_json.stderr)
        json.loads(as_json.stdout)
    assert (await ctl(mesh, "a", "stream", "create", "ctl/one", "--members", "a,b,c")).returncode == 0
    await eventually("c knows the stream", lambda: mesh.gateways["c"].describe("ctl/one"))
    payload = b"first\n\nthird\r\nno newline"
    published = await ctl(mesh, "a", "publish", "ctl/one", "-", stdin=payload)
    assert published.returncode == 0, published.stderr
    received = await ctl(mesh, "c", "subscribe", "ctl/one", "--max", "4")
    assert received.returncode == 0, received.stderr
    assert received.stdout == payload
    assert (await ctl(mesh, "b", "stream", "info", "ctl/one")).returncode == 0
    assert (await ctl(mesh, "b", "stream", "rm", "ctl/one", "--yes")).returncode == 0

    async def is_refused() -> subprocess.CompletedProcess[bytes] | None:
        done = await ctl(mesh, "b", "stream", "info", "ctl/one")
        return done if done.returncode == 1 else None

    refused = await eventually("b knows that the stream is gone", is_refused)
    assert b"STREAM_NOT_FOUND" in refused.stderr
    assert b"Traceback" not in refused.stderr


async def test_check_is_content_with_a_sound_mesh_and_finds_a_stopped_node(mesh: Trio) -> None:
    sound = await ctl(mesh, "a", "check", "--wait", "30", "--json")
    assert sound.returncode == 0, sound.stdout
    assert {item["status"] for item in json.loads(sound.stdout)} <= {"ok", "warning"}
    await mesh.gateways["c"].stop()
    stopped = await ctl(mesh, "c", "check", "--json")
    assert stopped.returncode == 4, stopped.stdout
    assert [item["id"] for item in json.loads(stopped.stdout) if item["status"] == "failed"] == ["node.running"]

    async def is_seen_from_a() -> bool:
        seen = json.loads((await ctl(mesh, "a", "check", "--json", "--only", "mesh.nodes-reachable")).stdout)
        return bool(seen[0]["details"].get("stopped") == ["c"])

    await eventually("a knows that c was stopped", is_seen_from_a)
    await mesh.gateways["c"].start()
    back = await ctl(mesh, "c", "check", "--wait", "30")
    assert back.returncode == 0, back.stdout.decode()


async def test_admin_pages_and_health_of_every_service(mesh: Trio) -> None:
    site = mesh.sites["b"].config
    async with httpx.AsyncClient(timeout=10) as http:
        for service in MODULES:
            base = f"http://127.0.0.1:{site.ports[f'{service}_admin']}"
            assert (await http.get(f"{base}/healthz")).status_code == 200
            ready = await http.get(f"{base}/readyz")
            assert ready.status_code == 200, (service, ready.text)
            assert "# HELP" in (await http.get(f"{base}/metrics")).text
            async with grpc.aio.insecure_channel(site.target(service)) as channel:
                # The package's stubs do not know the calls of their own class.
                stub: Any = health_pb2_grpc.HealthStub(channel)
                answer = await stub.Check(health_pb2.HealthCheckRequest())
                assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_logs_are_json_and_carry_the_correlation_id(mesh: Trio) -> None:
    site = mesh.sites["a"]
    async with httpx.AsyncClient(timeout=10) as http:
        answer = await http.get(
            f"{site.config.rest}/v1/streams/log/none", headers={"x-correlation-id": "correlated-by-test"}
        )
        assert answer.headers["x-correlation-id"] == "correlated-by-test"
    for service in MODULES:
        lines = (site.config.directory / "log" / f"{service}.log").read_text().splitlines()
        assert lines, f"{service} logged nothing"
        for line in lines:
            if not line.startswith("E"):  # gRPC's own C core writes in its own form
                entry = json.loads(line)
                assert {"event", "level", "service", "node", "time"} <= set(entry)


async def test_the_projection_in_postgres_follows_the_mesh(mesh: Trio) -> None:
    await mesh.gateways["a"].create_stream("projected/one", ["a", "b"])
    socket = Path(mesh.sites["c"].postgres.url.partition("host=")[2])
    connection = await asyncpg.connect(host=str(socket), user="postgres", database="postgres")
    try:

        async def is_projected() -> bool:
            return bool(await connection.fetchval("SELECT count(*) FROM streams WHERE name = 'projected/one'"))

        await eventually("the stream is in c's Postgres", is_projected)
        assert await connection.fetchval("SELECT count(*) FROM nodes") == 3
    finally:
        await connection.close()


async def test_ping_goes_through_b_between_nodes_whose_link_is_dead(mesh: Trio) -> None:
    await direct(mesh, "a", "c")
    mesh.link("a", "c").cut()

    async def relayed() -> bool:
        return list((await mesh.gateways["a"].ping("c")).path) == ["a", "b", "c"]

    await eventually("packets from a to c are relayed by b", relayed)

    async def is_computed() -> bool:
        return ["a", "b", "c"] in await mesh.gateways["a"].paths("a", "c")

    await eventually("routing has the path through b", is_computed)
    mesh.link("a", "c").heal()
    await direct(mesh, "a", "c")


async def test_a_stopped_node_is_no_failure_and_starts_again(mesh: Trio) -> None:
    await mesh.gateways["c"].stop()

    async def is_told() -> view_pb2.MeshView | None:
        view = (await mesh.gateways["a"].status()).view
        state = next(node.state for node in view.nodes if node.name == "c")
        return view if state == view_pb2.NODE_STATE_STOPPED else None

    view = await eventually("a knows that c was stopped", is_told)
    assert view.status == view_pb2.MESH_STATUS_HEALTHY
    await mesh.gateways["c"].start()

    async def is_back() -> bool:
        return (await mesh.gateways["c"].ping("a")).rtt_us > 0

    await eventually("c is back", is_back)


async def test_a_node_that_leaves_is_gone_and_may_join_again(mesh: Trio) -> None:
    for stream in await mesh.gateways["a"].streams():
        with contextlib.suppress(MeshError):  # an earlier test has deleted it
            await mesh.gateways["a"].delete_stream(stream.name)

    async def left() -> bool:
        await mesh.gateways["c"].leave()
        return True

    await eventually("c may leave", left)
    assert not (await mesh.gateways["c"].status()).node_id

    async def is_gone() -> bool:
        return len((await mesh.gateways["a"].status()).view.nodes) == 2

    await eventually("a and b are alone", is_gone)
    token = await mesh.gateways["a"].issue_token()
    joined = await mesh.gateways["c"].join(mesh.sites["c"].config.dial["a"], token=token)
    assert joined.node_id > 3
