"""What the mesh says and does when the machine around its containers is wrong: files, ports, disks and clocks.

Each function is one step: it asserts, and leaves a healthy mesh behind.
"""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from meshtest.ports import free_ports
from meshtest.waiting import eventually
from tests.docker.engine import CommandFailedError, docker
from tests.docker.stage import PROJECT, Stage, remove

HOUR_MS: Final = 3_600_000
_SLACK_MS: Final = 300_000
_COPY_LIBRARY: Final = "cp /usr/lib/*/faketime/libfaketimeMT.so.1 /clock/ && chmod 0755 /clock"


async def compose_says_what_is_wrong(stage: Stage) -> None:
    """Without the secrets, or with a published port in use, compose fails and names the file or the port."""
    with socket.create_server(("127.0.0.1", 0)) as other_program:
        taken = str(other_program.getsockname()[1])
        free = str(free_ports(1)[0])
        printed = await _refusal(stage, "a-postgres", {"MESH_SECRETS": "/nowhere"}, "/nowhere/a-postgres-password")
        stage.narrator.say(f"    missing secret: {printed}")
        printed = await _refusal(stage, "a-gateway", {"MESH_A_HTTP_PORT": taken, "MESH_A_GRPC_PORT": free}, taken)
        assert "in use" in printed or "allocated" in printed, printed
        stage.narrator.say(f"    published port in use: {printed}")


async def _refusal(stage: Stage, service: str, changes: Mapping[str, str], says: str) -> str:
    """Starts one service of a project of its own; returns the line of the refusal that holds `says`."""
    environment = {**stage.compose.environment, **changes}
    compose = replace(stage.compose, project=f"{PROJECT}-refused", environment=environment)
    try:
        await compose("up", "-d", "--no-deps", service)
    except CommandFailedError as error:
        lines = [line.strip() for line in str(error).splitlines() if says in line]
        if not lines:
            raise
        return lines[-1]
    finally:
        await remove(compose)
    raise AssertionError(f"{service} was started with {changes}")


async def disk_is_full(stage: Stage) -> None:
    """Without room on its disk b closes its streams, is not ready and says why; with room and a restart it catches up."""
    async with stage.under_load("docker/full", "a") as workload:
        container = await stage.compose.container("b-data")
        full = await stage.compose.beside(
            *("--detach", "--pid", f"container:{container}", "--cap-add", "SYS_PTRACE"),
            program=(
                "strace",
                "-f",
                "-q",
                "-p",
                "1",
                "-o",
                "/dev/null",
                "-e",
                "inject=pwrite64,fallocate:error=ENOSPC",
            ),
        )
        try:

            async def reason() -> str:
                answer = await stage.compose.readiness("b-data", "b-data.metrics:7302")
                return answer.strip() if '"ready":false' in answer else ""

            shown = await eventually("b's data plane is not ready", reason, timeout_s=60)
            stage.narrator.say(f"    {shown}")
            assert "StorageFull" in shown
            await workload.progress(timeout_s=60)
            # What the sentence promises: packets are forwarded meanwhile.
            await stage.cut("c", "wan-ac")
            await stage.wait_for_path("a", "c", ["a", "b", "c"])
            echo = await stage.gateways["a"].ping("c")
            assert list(echo.path) == ["a", "b", "c"]
            await workload.progress(timeout_s=60)
            await stage.heal("c", "wan-ac")
        finally:
            await docker("rm", "--force", full.strip())
        await docker("restart", container)
        workload.healed()
        await workload.progress(timeout_s=60)
    await stage.wait_until_healthy()


async def clock_is_off_by_an_hour(stage: Stage) -> None:
    """With b an hour ahead, and leading, the mesh forms and publishes; times of records are b's, and never go back.

    Its gateway and control plane keep the right time: certificates of an issuer that is an hour ahead have not begun yet for
    users elsewhere, who are told so.
    """
    services = ["b-data", "b-routing"]
    with tempfile.TemporaryDirectory(prefix="mesh-clock-") as directory:
        await stage.compose.beside("--volume", f"{directory}:/clock", program=("bash", "-c", _COPY_LIBRARY))
        environment = {**stage.compose.environment, "MESH_TEST_CLOCK": directory}
        files = ("-f", "compose.yaml", "-f", "tests/docker/wrong-clock.yaml")
        await replace(stage.compose, environment=environment)(*files, "up", "-d", "--no-deps", *services)
        await stage.wait_until_healthy(timeout_s=90)
        async with stage.under_load("docker/clock", "c", ["b", "a", "c"]) as workload:

            async def b_leads() -> bool:
                leader = await stage.leader("docker/clock", "c")
                if leader in {"a", "c"}:
                    # Leaders hand over when they stop; the stream may have been born before b was back.
                    await docker("restart", await stage.compose.container(f"{leader}-data"))
                return leader == "b"

            await eventually("b, whose clock is wrong, leads", b_leads, timeout_s=60, poll_s=2)
            await workload.progress()
            # Back to the right clock while records flow: the next leader's clock is an hour behind the log's.
            await stage.compose("up", "-d", "--no-deps", *services)
            await workload.progress(timeout_s=60)
        await stage.wait_until_healthy(timeout_s=90)
    times = [record.timestamp_ms async for record in stage.gateways["a"].read("docker/clock")]
    ahead_ms = times[-1] - int(time.time() * 1000)
    assert times == sorted(times)
    assert abs(ahead_ms - HOUR_MS) < _SLACK_MS, f"the last record is {ahead_ms} ms ahead"
    stage.narrator.say(f"    {len(times):,} records in order, their times {ahead_ms / 60_000:.0f} minutes ahead")
