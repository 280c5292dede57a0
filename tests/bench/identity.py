"""`make bench-identity`: what proving who one is costs: lane handshakes a second, and the return of a site with 50 peers.

`handshakes/s`: two processes open lanes to one data plane process and close them again, each lane a whole handshake
(`load_lanes`); processor time of one handshake, at the listener and at the dialler, is in `runs`.
`reconnect 50 peers`: a data plane with 50 lanes is killed, is away until all peers dial at their slowest, and starts again
from its disk. The clock starts before Python does and stops when all 50 peers have a lane. The peers are 50 overlays in this
one process, each the product's own, with sockets and TLS: they share one processor and one address. Leaves out the other services of a
site: lanes do not wait for them. Writes build/bench/identity.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import shutil
import statistics
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib import metadata
from typing import Any, Final

import structlog

from mesh_data.core.timing import PRESETS
from mesh_data.shell.overlay.overlay import Overlay
from meshtest.waiting import eventually
from tests.bench import hub, report
from tests.bench.cpu import Stopwatch
from tests.bench.mesh_nodes import MeshNode
from tests.bench.report import Row

DIRECTORY: Final = report.ROOT / "build" / "bench" / "identity"
DIALLERS: Final = 2
"""One would be the bottleneck: a handshake costs the dialler as much as the listener."""
AT_ONCE: Final = 6
"""Handshakes under way from each; the gate of the port lets 16 sockets of one address be unproven."""
AWAY_S: Final = 5.0
"""Longer than it takes until the peers' delay between two dials is the longest."""


async def handshakes(node: MeshNode, seconds: float) -> dict[str, float]:
    """One round: lanes a second, and microseconds of processor a lane at both ends."""
    processes = []
    for number in range(DIALLERS):
        nodes = ",".join(map(str, hub.PEERS[number * AT_ONCE : (number + 1) * AT_ONCE]))
        command = [sys.executable, "-m", "tests.bench.load_lanes", node.peer, nodes, "--seconds", str(seconds)]
        processes.append(await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE))
    outputs = [process.stdout for process in processes if process.stdout is not None]
    if not all([await output.readline() for output in outputs]):
        raise SystemExit("a dialler failed before it was warm: its message is above")
    watch, started = Stopwatch([node.pid]), time.monotonic()
    told = [await output.read() for output in outputs]
    (listener_s,), elapsed_s = watch.used_s(), time.monotonic() - started
    if any([await process.wait() for process in processes]):
        raise SystemExit("a dialler failed: its message is above")
    found: list[Mapping[str, Any]] = [json.loads(text) for text in told]
    opened = sum(item["opened"] for item in found)
    return {
        "rate": sum(item["opened"] / item["seconds"] for item in found),
        "listener_us": listener_s / opened * 1e6,
        "dialler_us": sum(item["cpu_s"] for item in found) / opened * 1e6,
        "listener_share_of_a_core": listener_s / elapsed_s,
    }


@asynccontextmanager
async def running_peers(address: str) -> AsyncIterator[list[Overlay]]:
    """The fifty, dialling the hub."""
    view, overlays = hub.view_of(address), []
    tasks = []
    for node in hub.PEERS:
        overlay = Overlay(PRESETS["lan"], {}, None)
        tasks.append(asyncio.create_task(overlay.run(), name=f"overlay {node}"))
        overlays.append(overlay)
    await asyncio.sleep(0)
    for node, overlay in zip(hub.PEERS, overlays, strict=True):
        overlay.configure(hub.member(node), view, is_running=True)
    try:
        yield overlays
    finally:
        await asyncio.gather(*(overlay.say_goodbye() for overlay in overlays))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def reconnect(node: MeshNode, overlays: list[Overlay]) -> tuple[float, float]:
    """One round: seconds from the start of the process until it has its lanes again, and until its port is open."""

    def lanes() -> int:
        return sum(link.is_up for overlay in overlays for link in overlay.core.links())

    async def are_all_up() -> bool:
        return lanes() == len(overlays)

    async def are_all_down() -> bool:
        return not lanes()

    await eventually("every peer has its lane", are_all_up, timeout_s=60, poll_s=0.01)
    assert node.child is not None
    node.child.kill()
    node.child = None
    await eventually("no peer has a lane", are_all_down, timeout_s=60, poll_s=0.01)
    await asyncio.sleep(AWAY_S)
    started = time.monotonic()
    starting = asyncio.create_task(node.start(), name="the hub starts")
    listening_s = await _first(lambda: lanes() > 0, started)
    await eventually("every peer has its lane again", are_all_up, timeout_s=60, poll_s=0.002)
    took_s = time.monotonic() - started
    await starting
    return took_s, listening_s


async def _first(condition: Any, started: float) -> float:
    """Seconds since `started` when the condition holds for the first time."""

    async def look() -> bool:
        return bool(condition())

    await eventually("the first lane is up", look, timeout_s=60, poll_s=0.002)
    return time.monotonic() - started


async def run(rounds: int, seconds: float) -> None:
    """The whole bench; the hub's directory is removed at the end."""
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    machine = report.machine()
    floods, times = [], []
    try:
        for number in range(rounds):
            async with hub.running_hub(DIRECTORY / f"flood-{number}") as node:
                floods.append(await handshakes(node, seconds))
            print(f"round {number + 1}  {_shown(floods[-1])}", flush=True)
        async with hub.running_hub(DIRECTORY / "reconnect") as node, running_peers(node.peer) as overlays:
            for number in range(rounds):
                times.append(await reconnect(node, overlays))
                print(f"round {number + 1}  50 peers {times[-1][0]:.2f} s, the first {times[-1][1]:.2f} s", flush=True)
    finally:
        shutil.rmtree(DIRECTORY, ignore_errors=True)
    details = [{key: float(f"{value:.3g}") for key, value in found.items() if key != "rate"} for found in floods]
    rows = [
        Row("handshakes/s", "lanes/s", [found["rate"] for found in floods], details=details),
        Row(
            "reconnect 50 peers",
            "s",
            [took for took, _ in times],
            better="lower",
            details=[{"first_s": float(f"{first:.3g}")} for _, first in times],
        ),
    ]
    versions = {"picows": metadata.version("picows"), "cryptography": metadata.version("cryptography")}
    path = report.write("identity", rows, versions=versions, raw_disk_mb_per_s=None, taken_on=machine)
    print(report.table(json.loads(path.read_text())["rows"]))
    share = statistics.median(found["listener_share_of_a_core"] for found in floods)
    print(f"the listener used {share:.2f} of a core; written to {path.relative_to(report.ROOT)}")


def _shown(found: Mapping[str, float]) -> str:
    return (
        f"{found['rate']:,.0f} handshakes/s, us of processor each: listener {found['listener_us']:.0f}, dialler "
        f"{found['dialler_us']:.0f}; the listener used {found['listener_share_of_a_core']:.2f} of a core"
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement of handshakes")
    given = parser.parse_args()
    # Fifty overlays tell of every lane.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    asyncio.run(run(given.rounds, given.seconds))


if __name__ == "__main__":
    main()
