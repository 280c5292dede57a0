"""`make bench-latency`: latency under load, open loop, at 10, 50 and 80 % of what each side can take; ours and NATS in turn.

The maximum is measured at the start of the run, each side's own; so at the same share ours carries many times the messages.
128 B a message, default batching, one stream of three members. Writes build/bench/latency.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
from importlib import metadata
from typing import Any, Final

from tests.bench import nats_nodes, report
from tests.bench.disk_probe import probe
from tests.bench.mesh_nodes import running_mesh
from tests.bench.nats_nodes import NatsNodes, running_nats
from tests.bench.publish import DIRECTORY, Taken, load
from tests.bench.report import Row

SHARES: Final = (10, 50, 80)
FIGURES: Final = ("p50", "p99", "p99.9")
STREAM: Final = "bench/one"
_NATS_STREAM: Final = "latency"


async def measure(address: str, nats: NatsNodes, rounds: int, seconds: float) -> list[Row]:
    """All rows."""
    how = ("--seconds", str(seconds))
    maxima, taken = Taken(), {(share, figure): Taken() for share in SHARES for figure in FIGURES}
    await nats.create(_NATS_STREAM)
    for number in range(rounds):
        leader = await nats.leader(_NATS_STREAM)
        maxima.ours.append((await load("load_mesh", "flood", address, STREAM, *how))["rate"])
        maxima.peer.append((await load("load_nats", "flood", leader, _NATS_STREAM, *how))["rate"])
        print(
            f"round {number + 1}  maximum   ours {maxima.ours[-1]:,.0f}/s   nats {maxima.peer[-1]:,.0f}/s", flush=True
        )
        for share in SHARES:
            rates = {"rate": maxima.ours[-1] * share / 100, "peer_rate": maxima.peer[-1] * share / 100}
            ours = await load("load_mesh", "paced", address, STREAM, *how, "--rate", str(rates["rate"]))
            leader = await nats.leader(_NATS_STREAM)
            theirs = await load("load_nats", "paced", leader, _NATS_STREAM, *how, "--rate", str(rates["peer_rate"]))
            for figure in FIGURES:
                row = taken[share, figure]
                row.ours.append(ours[figure])
                row.peer.append(theirs[figure])
                row.details.append({name: round(rate) for name, rate in rates.items()})
            print(f"round {number + 1}  {share:3} %   ours {_shown(ours)}   nats {_shown(theirs)}", flush=True)
    rows = [Row("maximum", "messages/s", maxima.ours, maxima.peer)]
    for (share, figure), found in taken.items():
        rows.append(Row(f"{share} % {figure}", "ms", found.ours, found.peer, better="lower", details=found.details))
    return rows


def _shown(found: dict[str, Any]) -> str:
    return ", ".join(f"{figure} {found[figure]:.2f} ms" for figure in FIGURES)


async def run(rounds: int, seconds: float) -> None:
    """The whole bench; its nodes' directories are removed at the end."""
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    machine = report.machine()
    disk = probe(DIRECTORY)
    try:
        async with running_mesh(DIRECTORY / "mesh") as mesh, running_nats(DIRECTORY / "nats") as nats:
            await mesh.create([STREAM])
            rows = await measure(mesh.nodes[1].client, nats, rounds, seconds)
    finally:
        shutil.rmtree(DIRECTORY, ignore_errors=True)
    versions = {"nats-server": nats_nodes.version(), "picows": metadata.version("picows")}
    path = report.write("latency", rows, versions=versions, raw_disk_mb_per_s=disk, taken_on=machine)
    print(report.table(json.loads(path.read_text())["rows"]))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    given = parser.parse_args()
    asyncio.run(run(given.rounds, given.seconds))


if __name__ == "__main__":
    main()
