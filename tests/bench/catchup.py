"""A node that was away for 800 MB comes back while publishing goes on: how long it takes, and what it costs the others.

Once with one stream and once with a hundred. A round: three data planes, a client that publishes as fast as it can; the third
node stops, the client goes on until 800 MB are committed without it, then it starts again. It has caught up when it has
applied what the leaders had committed half a second before, while the client never pauses. The leaders' memory is what is
resident at most; their loop stall is the longest wait for an answer of their health page, asked 50 times a second, with
whatever the two cores made it wait besides. Leaves out: the other services.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, Final

from meshapi.supervisor.v1 import data_pb2, data_pb2_grpc
from meshtest.waiting import eventually
from tests.bench import report
from tests.bench.disk_probe import probe
from tests.bench.idle import resident_mb
from tests.bench.mesh_nodes import MeshNode, MeshNodes, running_mesh
from tests.bench.report import Bar, Row

AWAY_BYTES: Final = 800 * 10**6
RECORD_BYTES: Final = 1024
DIRECTORY: Final = report.ROOT / "build" / "bench-catchup"
LEADERS: Final = (1, 2)
RETURNING: Final = 3
_RETAINED_BYTES: Final = 8 << 30
"""Over all streams: nothing that the node missed may be dropped before it has it."""
_STEADY_S: Final = 4.0
_SAMPLE_S: Final = 0.5
_FLOOD_S: Final = 600.0
_PATIENCE_S: Final = 300.0
_MANY: Final = ("--batch-bytes", str(64 * 1024), "--in-flight", "2", "--buffer-bytes", str(256 * 1024))
"""What the client keeps for each of many streams: its default for one, 4 MiB and 1.3 of it sent, is a lot for a hundred."""
_HEALTH: Final = b"GET /healthz HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n"


@dataclass(slots=True)
class Taken:
    """Figures of one case, one a round."""

    seconds: list[float] = field(default_factory=list)
    ratio: list[float] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)
    stall_ms: list[float] = field(default_factory=list)
    details: list[dict[str, Any]] = field(default_factory=list)


class Flood:
    """The client, and how many records it has sent at which time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._seen = [(time.monotonic(), 0)]
        self._reading = asyncio.create_task(self._read(), name="flood")

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            found = json.loads(line)
            if "at" in found:
                self._seen.append((found["at"], found["sent"]))

    def check(self) -> None:
        """Raises SystemExit if the client has ended: figures without it would say nothing."""
        if self._process.returncode is not None:
            raise SystemExit(f"the client ended with status {self._process.returncode}")

    @property
    def sent_bytes(self) -> int:
        """So far."""
        self.check()
        return self._seen[-1][1] * RECORD_BYTES

    def rate(self, since: float) -> float:
        """Bytes a second since then."""
        self.check()
        first = next(seen for seen in reversed(self._seen) if seen[0] <= since)
        last = self._seen[-1]
        return (last[1] - first[1]) * RECORD_BYTES / max(last[0] - first[0], 1e-9)

    async def stop(self) -> None:
        """Ends it."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        await self._reading


class Watch:
    """Memory and answers of nodes, until it is cancelled."""

    def __init__(self, nodes: Sequence[MeshNode]) -> None:
        self._nodes = nodes
        self.memory_mb = 0.0
        self.stall_ms = 0.0

    async def run(self) -> None:
        """Looks 50 times a second."""
        await asyncio.gather(*(self._watch(node) for node in self._nodes))

    async def _watch(self, node: MeshNode) -> None:
        host, _, port = node.admin.rpartition(":")
        while True:
            started = time.monotonic()
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(_HEALTH)
            assert (await reader.read()).startswith(b"HTTP/1.1 200")
            writer.close()
            self.stall_ms = max(self.stall_ms, (time.monotonic() - started) * 1000)
            self.memory_mb = max(self.memory_mb, resident_mb(node.pid))
            await asyncio.sleep(0.02)


@asynccontextmanager
async def flooding(address: str, streams: Sequence[str]) -> AsyncIterator[Flood]:
    """A client that publishes to these streams as fast as it can."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.load_mesh", "flood", address, ",".join(streams)),
        *("--size", str(RECORD_BYTES), "--seconds", str(_FLOOD_S), "--progress", "0.1"),
        *(() if len(streams) == 1 else _MANY),
        stdout=asyncio.subprocess.PIPE,
    )
    flood = Flood(process)
    try:
        yield flood
    finally:
        await flood.stop()


async def replicas(node: MeshNode) -> list[data_pb2.ReplicaInfo]:
    """The replicas of a node."""
    stub: data_pb2_grpc.MeshDataServiceAsyncStub = data_pb2_grpc.MeshDataServiceStub(node.channel)
    return list((await stub.ListReplicas(data_pb2.ListReplicasRequest(), timeout=30)).replicas)


async def committed(mesh: MeshNodes) -> dict[int, int]:
    """Commit index of every stream, as its leader knows it."""
    found: dict[int, int] = {}
    for node in LEADERS:
        found |= {
            info.stream_id: info.commit_index for info in await replicas(mesh.nodes[node]) if info.role == "leader"
        }
    return found


async def catch_up(mesh: MeshNodes) -> float:
    """Seconds until the node that came back has what the leaders had committed half a second before."""
    started = time.monotonic()
    behind: dict[int, int] = {}
    while time.monotonic() - started < _PATIENCE_S:
        wanted = await committed(mesh)
        await asyncio.sleep(_SAMPLE_S)
        has = {info.stream_id: info.applied_index for info in await replicas(mesh.nodes[RETURNING])}
        behind = {stream: index - has.get(stream, 0) for stream, index in wanted.items() if has.get(stream, 0) < index}
        if wanted and not behind:
            return time.monotonic() - started
    raise SystemExit(
        f"not caught up after {_PATIENCE_S:.0f} s: {len(behind)} streams are behind, by {max(behind.values())}"
    )


async def one_round(streams: Sequence[str], away_bytes: int, taken: Taken) -> None:
    """One round of one case."""
    async with running_mesh(DIRECTORY / "mesh") as mesh:
        await mesh.create(streams, _RETAINED_BYTES // len(streams))
        async with flooding(mesh.nodes[1].client, streams) as flood:

            async def has_begun() -> bool:
                return flood.sent_bytes > 0

            await eventually("the client publishes", has_begun, timeout_s=60)
            await asyncio.sleep(2.0)
            steady_since = time.monotonic()
            await asyncio.sleep(_STEADY_S)
            steady = flood.rate(steady_since)
            await mesh.nodes[RETURNING].stop()
            before = flood.sent_bytes
            at_rest_mb = max(resident_mb(mesh.nodes[node].pid) for node in LEADERS)

            async def is_far_ahead() -> bool:
                return flood.sent_bytes - before >= away_bytes

            await eventually(f"{away_bytes / 1e6:.0f} MB without the third node", is_far_ahead, timeout_s=_PATIENCE_S)
            away = flood.sent_bytes - before
            watch = Watch([mesh.nodes[node] for node in LEADERS])
            watching = asyncio.create_task(watch.run(), name="watch")
            returned = time.monotonic()
            await mesh.nodes[RETURNING].start()
            started_s = time.monotonic() - returned
            await mesh.configure()
            try:
                seconds = await catch_up(mesh)
                during = flood.rate(returned + started_s)
            finally:
                watching.cancel()
                await asyncio.wait((watching,))
            if not watching.cancelled():
                watching.result()  # it failed: what it saw is not all
    taken.seconds.append(seconds)
    taken.ratio.append(during / steady)
    taken.memory_mb.append(watch.memory_mb)
    taken.stall_ms.append(watch.stall_ms)
    taken.details.append(
        {
            "away_mb": round(away / 1e6),
            "steady_mb_per_s": round(steady / 1e6, 1),
            "during_mb_per_s": round(during / 1e6, 1),
            "leader_mb_before": round(at_rest_mb),
        }
    )


def rows(name: str, taken: Taken) -> list[Row]:
    """What was measured of one case."""
    return [
        Row(name, "s", taken.seconds, bar=Bar(ours=15), better="lower", details=taken.details),
        Row(f"{name} publish ratio", "of the rate before", taken.ratio, bar=Bar(ours=0.7)),
        Row(f"{name} leader memory", "MB", taken.memory_mb, bar=Bar(ours=200), better="lower"),
        Row(f"{name} loop stall", "ms", taken.stall_ms, better="lower"),
    ]


async def run(rounds: int, away_bytes: int, groups: int | None) -> None:
    """The whole bench; its nodes' directories are removed at the end."""
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    machine = report.machine()
    one = f"catch-up {away_bytes // 10**6} MB"
    cases = {one: ["bench/one"], f"{one} hundred groups": [f"bench/s{number}" for number in range(100)]}
    if groups is not None:
        cases = {name: streams for name, streams in cases.items() if len(streams) == groups}
    found = {name: Taken() for name in cases}
    disk = probe(DIRECTORY)
    for number in range(rounds):
        for name, streams in cases.items():
            taken = found[name]
            try:
                await one_round(streams, away_bytes, taken)
            finally:
                shutil.rmtree(DIRECTORY, ignore_errors=True)
            print(
                f"round {number + 1}  {name}: {taken.seconds[-1]:.1f} s, publishing {taken.ratio[-1]:.2f} of the rate before, "
                f"leader {taken.memory_mb[-1]:.0f} MB, longest stall {taken.stall_ms[-1]:.0f} ms   {taken.details[-1]}",
                flush=True,
            )
    written = [row for name, taken in found.items() for row in rows(name, taken)]
    versions = {"picows": metadata.version("picows")}
    path = report.write("catchup", written, versions=versions, raw_disk_mb_per_s=disk, taken_on=machine)
    print(report.table(json.loads(path.read_text())["rows"]))
    print(f"written to {path.relative_to(report.ROOT)}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=AWAY_BYTES // 10**6)
    parser.add_argument("--groups", type=int, choices=(1, 100), help="only this case")
    given = parser.parse_args()
    asyncio.run(run(given.rounds, given.megabytes * 10**6, given.groups))


if __name__ == "__main__":
    main()
