"""`make bench-publish`: publishing to three nodes that fsync on a quorum, and to NATS JetStream R3, in turn in one run.

Rounds alternate the sides, so that a machine that others use meanwhile is unfair to both alike: ratios from one run count,
absolute figures say what the machine had left, and processor time a message (in `runs`) what a change to our side gave.
Each row has streams of its own on both sides.
NATS runs with its defaults and without fsync; its load generator speaks the protocol directly. Debian's version cannot
publish atomic batches. Writes build/bench/publish.json and a picture of it, publish.svg.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from tests.bench import nats_nodes, plot, report
from tests.bench.cpu import Stopwatch
from tests.bench.disk_probe import probe
from tests.bench.full_mesh import STREAM as FULL_STREAM
from tests.bench.full_mesh import running_full_mesh
from tests.bench.mesh_nodes import MeshNodes, running_mesh
from tests.bench.nats_nodes import NatsNodes, running_nats
from tests.bench.report import Bar, Row

DIRECTORY: Final = report.ROOT / "build" / "bench" / "nodes"
TEN: Final = tuple(f"bench/s{number}" for number in range(10))
ONE: Final = "128 B batched"
MTLS_CASES: Final = (ONE, "128 B unbatched", "64 KiB batched")


@dataclass(frozen=True, slots=True)
class Case:
    """One row of throughput: how both sides are loaded."""

    name: str
    size: int
    bar: Bar
    streams: tuple[str, ...] = ("bench/one",)
    mesh: tuple[str, ...] = ()
    nats: tuple[str, ...] = ()


CASES: Final = (
    Case(ONE, 128, Bar(ours=500_000, ratio=10)),
    Case("128 B unbatched", 128, Bar(ratio=1.3), mesh=("--records", "1", "--in-flight", "1024")),
    Case("128 B batched ten streams", 128, Bar(), streams=TEN),
    Case("1 KiB batched", 1024, Bar(ratio=5)),
    Case("16 KiB batched", 16_384, Bar(), nats=("--window", "512")),
    Case("64 KiB batched", 65_536, Bar(ours=125e6 / 65_536, ratio=1.5), nats=("--window", "256")),
)


@dataclass(slots=True)
class Taken:
    """Figures of one row, one a round."""

    ours: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)
    details: list[dict[str, Any]] = field(default_factory=list)


async def load(module: str, *arguments: str) -> dict[str, Any]:
    """Runs a load generator in its own process; returns its figures."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", f"tests.bench.{module}", *arguments, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise SystemExit(f"{module} {' '.join(arguments)} ended with status {process.returncode}")
    found: dict[str, Any] = json.loads(output)
    return found


async def flood(mesh: MeshNodes, case: Case, seconds: float) -> dict[str, Any]:
    """One row once on our side: what the load generator found, and `cpu_us`, processor time a message by process."""
    how = ("--size", str(case.size), "--seconds", str(seconds), *case.mesh)
    await mesh.create(case.streams)
    watch = Stopwatch(node.pid for node in mesh.nodes.values())
    found = await load("load_mesh", "flood", mesh.nodes[1].client, ",".join(case.streams), *how)
    nodes_s = watch.used_s()
    await mesh.delete(case.streams)
    names = ("leader", "follower", "follower 2") if len(case.streams) == 1 else ("node 1", "node 2", "node 3")
    used_s = dict(zip(names, nodes_s, strict=True)) | {"client": found["cpu_s"]}
    # The nodes were watched during the warm-up too.
    messages = {name: found["messages"] if name == "client" else found["messages_in_all"] for name in used_s}
    found["cpu_us"] = {name: float(f"{used / messages[name] * 1e6:.3g}") for name, used in used_s.items()}
    return found


class Bench:
    """Both sides, up and running, and what was measured so far."""

    def __init__(self, mesh: MeshNodes, nats: NatsNodes, seconds: float) -> None:
        self._mesh = mesh
        self._nats = nats
        self._duration_s = seconds
        self._seconds = ("--seconds", str(seconds))
        self._address = mesh.nodes[1].client
        self.rates: dict[str, Taken] = {case.name: Taken() for case in CASES}
        self.latencies: dict[str, Taken] = {"p50": Taken(), "p99": Taken()}

    async def round(self, number: int) -> None:
        """Every row once, ours and theirs in turn."""
        for case in CASES:
            taken = self.rates[case.name]
            ours = await flood(self._mesh, case, self._duration_s)
            theirs = await self._flood_nats(case)
            taken.ours.append(ours["rate"])
            taken.peer.append(theirs["rate"])
            taken.details.append({"cpu_us_per_message": ours["cpu_us"]})
            shown = ", ".join(f"{name} {figure:g}" for name, figure in ours["cpu_us"].items())
            print(
                f"round {number}  {case.name:26} ours {ours['rate']:>10,.0f}/s   nats {theirs['rate']:>10,.0f}/s"
                f"   us of processor a message: {shown}",
                flush=True,
            )
        await self._mesh.create(["bench/one"])
        ours = await load("load_mesh", "single", self._address, "bench/one", *self._seconds)
        await self._mesh.delete(["bench/one"])
        await self._nats.create("single")
        theirs = await load("load_nats", "single", await self._nats.leader("single"), "single", *self._seconds)
        await self._nats.delete("single")
        for key, taken in self.latencies.items():
            taken.ours.append(ours[key])
            taken.peer.append(theirs[key])
        print(
            f"round {number}  one at a time p50           ours {ours['p50']:.2f} ms   nats {theirs['p50']:.2f} ms",
            flush=True,
        )

    async def _flood_nats(self, case: Case) -> dict[str, Any]:
        names = [name.replace("/", "-") for name in case.streams]
        for name in names:
            await self._nats.create(name)
        how = ("--size", str(case.size), *self._seconds, *case.nats)
        found = await load("load_nats", "flood", await self._nats.leader(names[0]), ",".join(names), *how)
        for name in names:
            await self._nats.delete(name)
        return found

    def rows(self) -> list[Row]:
        """What was measured."""
        one_stream = Bar(ours=statistics.median(self.rates[ONE].ours))
        rows = [
            Row(
                case.name,
                "messages/s",
                self.rates[case.name].ours,
                self.rates[case.name].peer,
                bar=one_stream if case.streams is TEN else case.bar,
                details=self.rates[case.name].details,
            )
            for case in CASES
        ]
        for key, taken in self.latencies.items():
            rows.append(Row(f"one at a time {key}", "ms", taken.ours, taken.peer, Bar(ratio=1.2), "lower"))
        return rows


async def measure_full_mesh(mesh: MeshNodes, rounds: int, seconds: float) -> Row:
    """The first row with all services, its peer the same with data planes alone, in turn."""
    full, alone = [], []
    how = ("--size", "128", "--seconds", str(seconds))
    async with running_full_mesh(DIRECTORY / "full") as address:
        for number in range(rounds):
            full.append((await load("load_mesh", "flood", address, FULL_STREAM, *how))["rate"])
            await mesh.create(["bench/one"])
            alone.append((await load("load_mesh", "flood", mesh.nodes[1].client, "bench/one", *how))["rate"])
            await mesh.delete(["bench/one"])
            print(
                f"round {number + 1}  full mesh {ONE}    all services {full[-1]:>10,.0f}/s   data planes alone {alone[-1]:>10,.0f}/s",
                flush=True,
            )
    return Row(f"full mesh {ONE}", "messages/s", full, alone, bar=Bar(ratio=0.5))


async def measure_mtls(plain: MeshNodes, rounds: int, seconds: float) -> list[Row]:
    """Rows with lanes in TLS and packets sealed, as they always are; the peer has neither, in turn.

    Packets are sealed on the plain rows too, since no setting turns that off; the peer here is the only one without
    (`unsealed`). What the plain mesh takes in the same round is in `runs`.
    """
    cases = [case for case in CASES if case.name in MTLS_CASES]
    taken = {case.name: Taken() for case in cases}
    bare = (sys.executable, "-m", "tests.bench.unsealed")
    async with (
        running_mesh(DIRECTORY / "mtls", is_tls=True) as sealed,
        running_mesh(DIRECTORY / "bare", bare) as clear,
    ):
        for number in range(rounds):
            for case in cases:
                found = {
                    name: await flood(mesh, case, seconds)
                    for name, mesh in (("mtls", sealed), ("clear", clear), ("sealed without tls", plain))
                }
                rates = {name: item["rate"] for name, item in found.items()}
                used_us = {name: sum(item["cpu_us"].values()) for name, item in found.items()}
                taken[case.name].ours.append(rates["mtls"])
                taken[case.name].peer.append(rates["clear"])
                taken[case.name].details.append(
                    {
                        "sealed_without_tls": float(f"{rates['sealed without tls']:.4g}"),
                        "cpu_us_per_message": {name: float(f"{used:.3g}") for name, used in used_us.items()},
                    }
                )
                shown = "   ".join(f"{name} {rate:,.0f}/s {used_us[name]:.3g} us" for name, rate in rates.items())
                print(f"round {number + 1}  {case.name:26} {shown}", flush=True)
    return [
        Row(
            f"{case.name} mtls",
            "messages/s",
            taken[case.name].ours,
            taken[case.name].peer,
            bar=Bar(ratio=0.7),
            details=taken[case.name].details,
        )
        for case in cases
    ]


async def measure_peers(mesh: MeshNodes, rounds: int, seconds: float) -> list[Row]:
    """The rows in comparison with NATS."""
    async with running_nats(DIRECTORY / "nats") as nats:
        bench = Bench(mesh, nats, seconds)
        for number in range(rounds):
            await bench.round(number + 1)
    return bench.rows()


async def run(rounds: int, seconds: float, *, has_full_mesh: bool, only_mtls: bool = False) -> None:
    """The whole bench; its nodes' directories are removed at the end."""
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    machine = report.machine()
    disk = [probe(DIRECTORY)]
    print(f"raw disk: {disk[0]:.0f} MB/s for each of three writers with fdatasync per MB", flush=True)
    try:
        async with AsyncExitStack() as stack:
            mesh = await stack.enter_async_context(running_mesh(DIRECTORY / "mesh"))
            rows = [] if only_mtls else await measure_peers(mesh, rounds, seconds)
            disk.append(probe(DIRECTORY))
            rows += await measure_mtls(mesh, rounds, seconds)
            if has_full_mesh and not only_mtls:
                rows.append(await measure_full_mesh(mesh, rounds, seconds))
    finally:
        shutil.rmtree(DIRECTORY, ignore_errors=True)
    publish_report(rows, disk, machine)


def publish_report(rows: Sequence[Row], disk: Sequence[float], machine: Mapping[str, Any]) -> None:
    """Writes and prints everything."""
    versions = {"nats-server": nats_nodes.version(), "picows": metadata.version("picows")}
    path = report.write("publish", rows, versions=versions, raw_disk_mb_per_s=statistics.median(disk), taken_on=machine)
    found = json.loads(path.read_text())
    picture = path.with_suffix(".svg")
    plot.draw(found, "Publishing to three nodes, compared with NATS JetStream R3", picture)
    print(report.table(found["rows"]))
    print(
        "The peer of the full mesh is the same load on data planes alone, that of rows with mtls neither TLS nor seals."
    )
    print(
        f"raw disk: {', '.join(f'{figure:.0f}' for figure in disk)} MB/s; written to {_shown(path)}, {_shown(picture)}"
    )


def _shown(path: Path) -> str:
    return str(path.relative_to(report.ROOT))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--without-full-mesh", action="store_true", help="leaves out the row with all services")
    parser.add_argument("--only-mtls", action="store_true", help="measures only what TLS and seals cost")
    given = parser.parse_args()
    asyncio.run(run(given.rounds, given.seconds, has_full_mesh=not given.without_full_mesh, only_mtls=given.only_mtls))


if __name__ == "__main__":
    main()
