"""What many idle streams cost a node: three data planes hold 1,000 streams of three members, and nobody publishes.

Streams are led by each node in turn. A round is a stretch of time in which the processor time of the three processes is
taken; its figure is that of the busiest node, in per cent of one core. A node without streams is measured first, so that
what the process costs anyway can be told from what the streams add. Leaves out: the other services of a node.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import time
from importlib import metadata
from pathlib import Path
from typing import Final

from tests.bench import report
from tests.bench.disk_probe import probe
from tests.bench.mesh_nodes import MeshNodes, running_mesh
from tests.bench.report import Bar, Row

BAR_PERCENT: Final = 5.0
DIRECTORY: Final = report.ROOT / "build" / "bench-idle"
_CLOCK_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """Processor time that a process has used, in user and kernel mode, all threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _CLOCK_TICKS_PER_S


def resident_mb(pid: int) -> float:
    """Memory of a process that is in RAM, in MB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


async def load_percent(mesh: MeshNodes, rounds: int, seconds: float) -> list[float]:
    """Per cent of one core that the busiest node used, a figure a round."""
    pids = _pids(mesh)
    found = []
    for _ in range(rounds):
        started, before = time.monotonic(), [cpu_s(pid) for pid in pids]
        await asyncio.sleep(seconds)
        elapsed_s = time.monotonic() - started
        used_s = [cpu_s(pid) - earlier for pid, earlier in zip(pids, before, strict=True)]
        found.append(100 * max(used_s) / elapsed_s)
    return found


async def run(streams: int, rounds: int, seconds: float) -> None:
    """The whole bench; its nodes' directories are removed at the end."""
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    try:
        disk_mb_per_s = probe(DIRECTORY)
        async with running_mesh(DIRECTORY / "mesh") as mesh:
            empty = await load_percent(mesh, rounds, seconds)
            empty_mb = max(resident_mb(pid) for pid in _pids(mesh))
            started = time.monotonic()
            await mesh.create([f"idle/{number}" for number in range(streams)])
            print(f"{streams:,} streams formed in {time.monotonic() - started:.1f} s", flush=True)
            # The first stretch still has what forming them left to do.
            await load_percent(mesh, 1, seconds)
            idle = await load_percent(mesh, rounds, seconds)
            grown_kb = (max(resident_mb(pid) for pid in _pids(mesh)) - empty_mb) * 1000 / streams
    finally:
        shutil.rmtree(DIRECTORY, ignore_errors=True)
    bar = Bar(ours=BAR_PERCENT) if streams == 1000 else Bar()
    rows = [
        Row(f"idle {streams:,} streams", "% of a core", idle, bar=bar, better="lower"),
        Row("idle without streams", "% of a core", empty, better="lower"),
        Row(f"memory of one of {streams:,} streams", "kB", [grown_kb], better="lower"),
    ]
    versions = {"websockets": metadata.version("websockets")}
    path = report.write("idle", rows, versions=versions, raw_disk_mb_per_s=disk_mb_per_s)
    print(report.table(json.loads(path.read_text())["rows"]))
    print(f"median {statistics.median(idle):.1f} % of a core; written to {path.relative_to(report.ROOT)}")


def _pids(mesh: MeshNodes) -> list[int]:
    return [node.child.pid for node in mesh.nodes.values() if node.child is not None]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    given = parser.parse_args()
    asyncio.run(run(given.streams, given.rounds, given.seconds))


if __name__ == "__main__":
    main()
