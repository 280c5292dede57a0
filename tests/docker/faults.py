"""Faults of real networks and containers, each under load with checks C1, C2, C4 and C5.

Each function is one step: it asserts, and leaves a healthy mesh behind.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from meshcommon.errors import ErrorCode, MeshError
from meshtest.trio import NODES
from meshtest.waiting import eventually
from tests.docker.engine import CommandFailedError, docker
from tests.docker.stage import SERVICES, STORES, WANS, Stage
from tests.e2e.workload import held_by

PAUSE_S: Final = 5.0
"""Many elections long (at most one second each on the preset `lan`)."""
ISOLATED_RECORDS: Final = 300


async def wan_goes_and_comes_back(stage: Stage) -> None:
    """Without wan-ab packets between a and b go through c, which only dials; afterwards directly again."""
    async with stage.under_load("docker/wan", "a") as workload:
        await stage.cut("b", "wan-ab")
        await stage.wait_for_path("a", "b", ["a", "c", "b"])
        await workload.progress()
        await stage.heal("b", "wan-ab")
        workload.healed()
        await stage.wait_for_path("a", "b", ["a", "b"], timeout_s=60)
        await workload.progress()
    await stage.wait_until_healthy()


async def site_loses_both_wans(stage: Stage) -> None:
    """Site c alone loses its quorum and says so; a and b go on; c catches up."""
    async with stage.under_load("docker/island", "a") as workload:
        for wan in WANS["c"]:
            await stage.cut("c", wan)
        await workload.progress(ISOLATED_RECORDS, timeout_s=60)

        async def is_alone() -> bool:
            return not (await stage.gateways["c"].status()).has_quorum

        await eventually("c knows that it is without a quorum", is_alone)
        for wan in WANS["c"]:
            await stage.heal("c", wan)
        workload.healed()
        await stage.wait_for_path("a", "c", ["a", "c"], timeout_s=60)
        await workload.progress()
    await stage.wait_until_healthy()


async def leader_is_paused(stage: Stage) -> None:
    """The leader's data plane stands still for longer than its election: another leads, and none of both forgets."""
    async with stage.under_load("docker/paused", "b") as workload:

        async def a_leads() -> bool:
            return await stage.leader("docker/paused", "b") == "a"

        async def another_leads() -> bool:
            return await stage.leader("docker/paused", "b") in {"b", "c"}

        # a is the preferred leader; the publisher is not at the node that will stand still.
        await eventually("a leads", a_leads)
        paused = await stage.compose.container("a-data")
        started = time.monotonic()
        await docker("pause", paused)
        try:
            await eventually("another node leads", another_leads)
            stage.narrator.say(f"    a paused; another leads after {time.monotonic() - started:.1f} s")
            await workload.progress()
            await asyncio.sleep(max(0.0, PAUSE_S - (time.monotonic() - started)))
        finally:
            await docker("unpause", paused)
        workload.healed()
        await workload.progress(timeout_s=60)
    await stage.wait_until_healthy()


async def every_container_crashes(stage: Stage) -> None:
    """SIGKILL to each of the containers in turn: its restart policy brings it back, and nothing acknowledged is lost."""
    async with stage.under_load("docker/crash", "b") as workload:
        for node in NODES:
            for part in (*STORES, *SERVICES):
                service = f"{node}-{part}"
                pid = await stage.compose.crash(service)
                await stage.wait_for_restart(service, pid, timeout_s=60)
                workload.healed()
                await workload.progress(timeout_s=60)
            stage.narrator.say(f"    each of the six containers of {node} was killed and is back")
    await stage.wait_until_healthy()


async def stores_stop_and_start(stage: Stage) -> None:
    """Without its Postgres and Redis a site goes on, and says that they are away for as long as they are."""
    async with stage.under_load("docker/stores", "a") as workload, stage.http("a", 20) as http:

        async def warns_of_postgres() -> bool:
            warnings = (await http.get("/v1/mesh")).json()["warnings"]
            return any("Postgres" in warning for warning in warnings)

        async def is_silent() -> bool:
            return not await warns_of_postgres()

        await eventually("a has its Postgres", is_silent, timeout_s=60)
        for store in STORES:
            await docker("stop", await stage.compose.container(f"a-{store}"))
        await stage.create_stream("docker/without-stores")
        await workload.progress()
        await eventually("a says that Postgres is away", warns_of_postgres)
        for store in STORES:
            await docker("start", await stage.compose.container(f"a-{store}"))
        workload.healed()
        await eventually("the warning goes when Postgres is back", is_silent, timeout_s=60)
        await workload.progress()


async def delay_and_loss(stage: Stage) -> None:
    """Delay on c's links shows in the echo, loss costs retransmissions: records keep flowing."""
    await _degrade(stage, "delay 40 ms, loss 2 %")


async def _degrade(stage: Stage, what: str) -> None:
    async with stage.under_load("docker/slow", "c") as workload:
        before = (await stage.gateways["a"].ping("c")).rtt_us
        how = await _slow_down(stage)
        try:

            async def is_slower() -> bool:
                return (await stage.gateways["a"].ping("c")).rtt_us > before + 30_000

            await eventually("the delay shows in the echo between a and c", is_slower, timeout_s=60)
            after = (await stage.gateways["a"].ping("c")).rtt_us
            stage.narrator.say(f"    {what} by {how}: echo a–c {before / 1000:.1f} → {after / 1000:.1f} ms")
            await workload.progress(timeout_s=60)
        finally:
            lost = await _speed_up(stage)
        workload.healed()
        stage.narrator.say(f"    {lost}")
        await workload.progress(timeout_s=60)
    await stage.wait_until_healthy()


async def _slow_down(stage: Stage) -> str:
    """Delays and loses what c sends to its peers; returns by which means."""
    try:
        for interface in (await stage.compose.in_network_of("c-data", "ls", "/sys/class/net")).split():
            if interface.startswith("eth"):
                words = ("tc", "qdisc", "replace", "dev", interface, "root", "netem", "delay", "40ms", "loss", "2%")
                await stage.compose.in_network_of("c-data", *words)
    except CommandFailedError:
        rules = (
            "iptables -A OUTPUT -o eth+ -p tcp --dport 7300 -m statistic --mode random --probability 0.02 -j DROP; "
            "iptables -A OUTPUT -o eth+ -p tcp --dport 7300 -j NFQUEUE --queue-num 1 --queue-bypass"
        )
        await stage.compose.in_network_of("c-data", "bash", "-ec", rules)
        network = f"container:{await stage.compose.container('c-data')}"
        await stage.compose.beside(
            *("--detach", "--name", f"{stage.compose.project}-delay", "--network", network, "--cap-add", "NET_ADMIN"),
            program=("delay-packets", "1", "0.04"),
        )
        return "NFQUEUE"
    return "netem"


async def _speed_up(stage: Stage) -> str:
    """Ends what `_slow_down` began; returns how much was lost, where the kernel counts it by rule."""
    counted = await stage.compose.in_network_of("c-data", "iptables", "-nvxL", "OUTPUT")
    dropped, passed = (_packets(counted, target) for target in ("DROP", "NFQUEUE"))
    await stage.compose.in_network_of("c-data", "iptables", "-F", "OUTPUT")
    for name in (await docker("ps", "--quiet", "--filter", f"name=^{stage.compose.project}-delay$")).split():
        await docker("rm", "--force", name)
    clear = "for i in /sys/class/net/eth*; do tc qdisc del dev ${i##*/} root 2>/dev/null; done; true"
    await stage.compose.in_network_of("c-data", "bash", "-c", clear)
    if not dropped:
        return "netem keeps no count of what it lost"
    return f"{dropped:,} of {dropped + passed:,} packets from c were lost ({dropped / (dropped + passed):.1%})"


def _packets(counters: str, target: str) -> int:
    """Packets that met the rules with a target, from `iptables -nvxL`."""
    rows = [line.split() for line in counters.splitlines()]
    return sum(int(row[0]) for row in rows if len(row) > 2 and row[2] == target)


async def everything_stops_and_starts(stage: Stage) -> None:
    """`down` and `up` with volumes kept: the same mesh, every acknowledged record, and the seed service changes nothing."""
    async with stage.under_load("docker/restart", "a") as workload:
        await workload.progress()
    mesh_id = (await stage.gateways["a"].status()).view.mesh_id
    started = time.monotonic()
    await stage.compose("stop")
    graceful_s = time.monotonic() - started
    for node in NODES:
        for part in SERVICES:
            # 137 is what is left when the grace period of 10 s was not enough.
            state = (await stage.compose.inspect(f"{node}-{part}"))["State"]
            assert state["ExitCode"] == 0, f"{node}-{part} ended with status {state['ExitCode']}"
    await stage.compose.down()
    stopped_s = time.monotonic() - started
    seconds = await stage.up()
    stage.narrator.say(
        f"    all services stopped by themselves in {graceful_s:.1f} s, removed after {stopped_s:.1f} s, the same mesh again after {seconds:.1f} s"
    )
    await stage.wait_until_healthy()
    for node in NODES:
        assert (await stage.gateways[node].status()).view.mesh_id == mesh_id

    async def is_served() -> bool:
        return bool((await stage.gateways["a"].describe("docker/restart")).leader)

    await eventually("the stream has a leader again", is_served, timeout_s=60)
    await stage.check(workload)


async def wiped_node_is_recognised(stage: Stage) -> None:
    """A node whose volumes are gone is no member any more: its name is refused, by a sentence, and the others go on."""
    await stage.create_stream("docker/wiped")
    parts = [f"c-{service}" for service in ("data", "control", "routing")]
    for part in parts:
        await docker("rm", "--force", await stage.compose.container(part))
        await docker("volume", "rm", f"{stage.compose.project}_{part}")
    await stage.compose("up", "-d")
    assert await stage.wait_for_seed() == 1
    said = await stage.compose.logs("seed")
    assert "NAME_TAKEN" in said, said
    await stage.trust()  # c has another issuer: the key was on its volume
    assert (await stage.gateways["c"].status()).node_id == 0
    await stage.gateways["a"].publish("docker/wiped", [b"1:0"])
    held = await held_by(stage.gateways["b"], "docker/wiped", 1)
    assert held[0].offset == 0

    async def refusal() -> MeshError | None:
        try:
            await stage.gateways["c"].publish("docker/wiped", [b"1:1"])
        except MeshError as error:
            # The gateway is still connecting to the new data plane for a moment.
            return None if error.code is ErrorCode.UNAVAILABLE else error
        raise AssertionError("a node that is in no mesh published")

    error = await eventually("c refuses, with a reason", refusal)
    stage.narrator.say(f"    c answers {error.code}: {error.message}")
    assert error.code is ErrorCode.NOT_A_MEMBER
