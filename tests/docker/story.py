"""What containers add to the demo's story: start-up, isolation, hardening, and REST and gRPC from outside.

Each function is one step: it asserts, and leaves a healthy mesh behind.
"""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from pathlib import Path
from typing import Final

import httpx

from meshtest.demo_input import default_input
from meshtest.line_stream import Reader, RecordingPublisher, publish_paced, split_lines
from meshtest.trio import NODES
from meshtest.waiting import eventually
from tests.docker.stage import FORMED_BOUND_S, MEMORY_BOUND_MIB, SERVICES, Stage

STORY_LINES: Final = 30_000
PACE_PER_S: Final = 2_000
PORTS: Final = (7001, 7002, 7003, 7101, 7102, 7201, 7202, 7300, 7301, 7302)
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
    """Services run without root, compiler and writable root, and publish on the loopback alone."""
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
    async with stage.under_load("docker/nat", "c") as workload:
        shown = await stage.compose.in_network_of("c-data", "bash", "-ec", rules.format(addresses=" ".join(addresses)))
        assert shown.count("DROP") == 2
        pid = await stage.compose.crash("a-data")
        await stage.wait_for_restart("a-data", pid)
        await workload.progress(timeout_s=60)
        await stage.wait_for_path("a", "c", ["a", "c"], timeout_s=60)
    await stage.compose.in_network_of("c-data", "iptables", "-F", "INPUT")


async def demo_story(stage: Stage) -> None:
    """REST and gRPC from outside; a file through a stream while a wan network goes away; every byte compared."""
    async with httpx.AsyncClient(timeout=30) as http:
        created = await http.post(f"{stage.rest['a']}/v1/streams", json={"name": "demo/lines", "members": [*NODES]})
        assert created.status_code in {200, 201}, created.text
        record = {"wait": "committed", "records": [{"value": "first\n"}]}
        published = await http.post(f"{stage.rest['b']}/v1/streams/demo/lines/records", json=record)
        assert published.status_code in {200, 201}, published.text
        read = await http.get(f"{stage.rest['c']}/v1/streams/demo/lines/records", params={"from": 0})
        assert read.json()["records"][0]["value"] == "first\n"
        assert (await http.get(f"{stage.rest['c']}/docs")).status_code == 200
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
