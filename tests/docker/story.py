"""What containers add to the demo's story: start-up, isolation, hardening, and REST and gRPC from outside.

Each function is one step: it asserts, and leaves a healthy mesh behind.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx

from meshtest.demo_input import default_input
from meshtest.line_stream import Reader, RecordingPublisher, publish_paced, split_lines
from meshtest.trio import NODES
from meshtest.waiting import eventually
from tests.docker.engine import docker
from tests.docker.stage import FORMED_BOUND_S, MEMORY_BOUND_MIB, SERVICES, Stage

STORY_LINES: Final = 30_000
PACE_PER_S: Final = 2_000
PORTS: Final = (7001, 7002, 7003, 7101, 7102, 7201, 7202, 7300, 7301, 7302)
LISTENER_PORT: Final = 9999
IMAGE_BOUND_MB: Final = 250.0
_PROBE: Final = 'for p in {ports}; do timeout 2 bash -c "exec 3<>/dev/tcp/{host}/$p" 2>/dev/null && echo $p; done; true'


async def start_up(stage: Stage) -> None:
    """`compose up` with images present ends in a formed mesh, and an idle site is small."""
    seconds = await stage.up()
    verdict = "within" if seconds < FORMED_BOUND_S else "MISSED:"
    stage.narrator.say(f"    compose up → formed mesh: {seconds:.1f} s ({verdict} the bound of {FORMED_BOUND_S:.0f} s)")
    await stage.wait_until_healthy()
    memory = await stage.memory_mib()
    shown = ", ".join(f"{node} {mib:.0f} MiB" for node, mib in memory.items())
    stage.narrator.say(f"    idle memory: {shown} (bound {MEMORY_BOUND_MIB:.0f} MiB a site)")
    assert max(memory.values()) < MEMORY_BOUND_MIB


async def hardening(stage: Stage) -> None:
    """Services run without root, compiler and writable root, and publish on the loopback alone; images stay small."""
    sizes = {service: await _check_image(stage, f"a-{service}") for service in SERVICES}
    shown = ", ".join(f"{service} {size_mb:.0f}" for service, size_mb in sizes.items())
    stage.narrator.say(f"    images in MB: {shown} (bound {IMAGE_BOUND_MB:.0f})")
    for node in NODES:
        for service in SERVICES:
            document = await stage.compose.inspect(f"{node}-{service}")
            assert document["Config"]["User"] == "mesh", f"{node}-{service}"
            assert document["HostConfig"]["ReadonlyRootfs"] is True, f"{node}-{service}"
            assert document["HostConfig"]["CapDrop"] == ["ALL"], f"{node}-{service}"
            assert document["Config"]["Labels"]["org.opencontainers.image.title"].startswith("mesh ")
            bindings = [
                binding for found in (document["NetworkSettings"]["Ports"] or {}).values() for binding in found or []
            ]
            assert {binding["HostIp"] for binding in bindings} <= {"127.0.0.1"}, f"{node}-{service}"
            assert bool(bindings) == (service == "gateway"), f"{node}-{service}"
            secrets = [item for item in document["Config"]["Env"] if "PASSWORD" in item and "_FILE=" not in item]
            assert secrets == [], f"{node}-{service}"


async def _check_image(stage: Stage, service: str) -> float:
    """No compiler, a health check, and logs in JSON; returns the image's size in MB."""
    document = await stage.compose.inspect(service)
    image: list[dict[str, Any]] = json.loads(await docker("image", "inspect", document["Image"]))
    size_mb = float(image[0]["Size"]) / 1e6
    assert size_mb <= IMAGE_BOUND_MB, f"the image of {service} takes {size_mb:.0f} MB"
    assert image[0]["Config"]["Healthcheck"], service
    look = "for tool in cc gcc c++ rustc cargo make; do command -v $tool; done; true"
    found = (await docker("exec", document["Id"], "bash", "-c", look)).split()
    assert found == [], f"{service} has {found}"
    lines = (await stage.compose.logs(service)).splitlines()
    assert lines, f"{service} logs nothing"
    assert all("event" in json.loads(line) for line in lines), lines
    return size_mb


async def nobody_reaches_c(stage: Stage) -> None:
    """Nothing of c answers on the wan networks; with NEW inbound packets dropped as by a NAT all goes on."""
    for node, wan in (("a", "wan-ac"), ("b", "wan-bc")):
        host = await stage.compose.address(wan, "c-data")
        probe = _PROBE.format(ports=" ".join(map(str, PORTS)), host=host)
        answering = (await stage.compose.in_network_of(f"{node}-data", "bash", "-c", probe)).split()
        assert answering == [], f"c answers {node} on {answering}"
    # The probe can find something: b's peer listener, and that alone.
    host = await stage.compose.address("wan-ab", "b-data")
    probe = _PROBE.format(ports=" ".join(map(str, PORTS)), host=host)
    assert (await stage.compose.in_network_of("a-data", "bash", "-c", probe)).split() == ["7300"]
    rules = (
        "iptables -A INPUT -i lo -j ACCEPT; iptables -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT; "
        "for wan in {addresses}; do iptables -A INPUT -d $wan -m conntrack --ctstate NEW -j DROP; done; iptables -S INPUT"
    )
    addresses = [await stage.compose.address(wan, "c-data") for wan in ("wan-ac", "wan-bc")]
    async with stage.under_load("docker/nat", "c") as workload, _listener_at_c(stage):
        connects = partial(_connects, stage, addresses[0])
        await eventually("a listener at c can be dialled while nothing forbids it", connects)
        shown = await stage.compose.in_network_of("c-data", "bash", "-ec", rules.format(addresses=" ".join(addresses)))
        assert shown.count("DROP") == 2
        assert not await connects()
        counted = await stage.compose.in_network_of("c-data", "iptables", "-nvxL", "INPUT")
        dropped = sum(int(line.split()[0]) for line in counted.splitlines() if "DROP" in line and "ctstate" in line)
        assert dropped > 0, counted
        stage.narrator.say(f"    a dial from a to a listener at c: {dropped} packets dropped, no connection")
        pid = await stage.compose.crash("a-data")
        await stage.wait_for_restart("a-data", pid)
        workload.healed()
        await workload.progress(timeout_s=60)
        await stage.wait_for_path("a", "c", ["a", "c"], timeout_s=60)
    await stage.compose.in_network_of("c-data", "iptables", "-F", "INPUT")


@asynccontextmanager
async def _listener_at_c(stage: Stage) -> AsyncIterator[None]:
    """A program that listens in c's network namespace, as the site's own applications might."""
    name = f"{stage.compose.project}-listener"
    network = f"container:{await stage.compose.container('c-data')}"
    program = ("python3", "-m", "http.server", str(LISTENER_PORT))
    await stage.compose.beside("--detach", "--name", name, "--network", network, program=program)
    try:
        yield
    finally:
        await docker("rm", "--force", name)


async def _connects(stage: Stage, host: str) -> bool:
    """Whether a's data plane could dial the listener at c."""
    probe = _PROBE.format(ports=LISTENER_PORT, host=host)
    return bool((await stage.compose.in_network_of("a-data", "bash", "-c", probe)).split())


async def prometheus_sees_every_service(stage: Stage) -> None:
    """The profile `observability`: every service of every site is scraped, and a query about a stream answers."""
    expected = len(NODES) * len(SERVICES)
    base = f"http://127.0.0.1:{stage.compose.environment['MESH_PROMETHEUS_PORT']}/api/v1"
    await stage.compose("--profile", "observability", "up", "-d", "--no-deps", "prometheus")
    try:
        async with httpx.AsyncClient(timeout=10) as http:

            async def query(text: str) -> list[dict[str, Any]]:
                try:
                    answer = await http.get(f"{base}/query", params={"query": text})
                except httpx.TransportError:
                    return []
                return list(answer.json()["data"]["result"]) if answer.status_code == 200 else []

            async def sees_all() -> bool:
                return len(await query("up == 1")) == expected

            async def sees_the_stream() -> list[dict[str, Any]]:
                return await query('mesh_stream_applied_index{stream="demo/lines"}')

            await eventually(f"Prometheus scrapes {expected} services", sees_all, timeout_s=60)
            found = await eventually("Prometheus knows the stream", sees_the_stream, timeout_s=60)
            assert {item["metric"]["site"] for item in found} == {*NODES}
            stage.narrator.say(f"    {expected} targets are up; {len(found)} replicas report their applied index")
            await _only_admin_pages_answer(stage)
    finally:
        await docker("rm", "--force", await stage.compose.container("prometheus"))


async def _only_admin_pages_answer(stage: Stage) -> None:
    """From where Prometheus is, services have their admin ports; no site's own network is within its reach.

    A data plane's peer listener is there, too: it has to be on both wan networks, and is made for strangers.
    """
    prometheus = await stage.compose.inspect("prometheus")
    networks = {name.removeprefix(f"{stage.compose.project}_") for name in prometheus["NetworkSettings"]["Networks"]}
    assert networks == {"metrics-a", "metrics-b", "metrics-c", "observe"}, networks
    expected = {"control": ["7102"], "routing": ["7202"], "data": ["7300", "7302"], "gateway": ["7003"]}
    for service, ports in expected.items():
        host = await stage.compose.address("metrics-b", f"b-{service}")
        probe = _PROBE.format(ports=" ".join(map(str, PORTS)), host=host)
        answering = (await stage.compose.in_network_of("prometheus", "bash", "-c", probe)).split()
        assert answering == ports, f"b-{service} answers Prometheus on {answering}"


async def demo_story(stage: Stage) -> None:
    """REST and gRPC from outside; a file through a stream while a wan network goes away; every byte compared."""
    async with stage.http("a", 30) as at_a, stage.http("b", 30) as at_b, stage.http("c", 30) as at_c:
        created = await at_a.post("/v1/streams", json={"name": "demo/lines", "members": [*NODES]})
        assert created.status_code in {200, 201}, created.text
        record = {"wait": "committed", "records": [{"value": "first\n"}]}
        published = await at_b.post("/v1/streams/demo/lines/records", json=record)
        assert published.status_code in {200, 201}, published.text
        read = await at_c.get("/v1/streams/demo/lines/records", params={"from": 0})
        assert read.json()["records"][0]["value"] == "first\n"
        assert (await at_c.get("/docs")).status_code == 200
        foreign = await at_c.get("/v1/mesh", headers={"Authorization": f"Bearer {stage.tokens['a']}"})
        assert (foreign.status_code, foreign.json()["code"]) == (401, "OPERATOR_TOKEN_WRONG"), "each site has its own"
    lines = split_lines(default_input())[:STORY_LINES]
    data = b"".join(lines)
    with tempfile.TemporaryDirectory(prefix="mesh-docker-") as directory:
        output = Path(directory) / "received"
        publisher = RecordingPublisher(stage.gateways["a"], "demo/lines")
        reader = Reader(stage.gateways["c"], "demo/lines", output, next_offset=1)
        go = asyncio.Event()
        go.set()
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(reader.run(), name="reader at c")
            sending = group.create_task(publisher.run(), name="publisher at a")
            group.create_task(publish_paced(publisher, lines, PACE_PER_S, go), name="pace")
            await stage.wait_for_path("a", "c", ["a", "c"])
            await stage.cut("c", "wan-ac")
            await stage.wait_for_path("a", "c", ["a", "b", "c"])
            await stage.heal("c", "wan-ac")
            await stage.wait_for_path("a", "c", ["a", "c"], timeout_s=60)
            pid = await stage.compose.crash("b-data")
            await stage.wait_for_restart("b-data", pid)
            await sending

            async def has_all() -> bool:
                return len(reader.lines) >= len(lines)

            await eventually("the reader at c has every line", has_all, timeout_s=60)
            reading.cancel()
        received = output.read_bytes()
    assert reader.out_of_order == 0
    assert hashlib.sha256(received).digest() == hashlib.sha256(data).digest()
    stage.narrator.say(
        f"    {len(lines):,} lines, {len(data):,} B: every byte equal ({publisher.retries} retried calls)"
    )
    await stage.wait_until_healthy()
