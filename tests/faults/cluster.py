"""Three data planes as processes, each on a disk that fails on demand, and one stream on all of them."""

from __future__ import annotations

import asyncio
import signal
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from meshtest.data_plane_client import DataPlane
from meshtest.processes import Child
from meshtest.waiting import eventually
from tests.bench.mesh_nodes import NODES, MeshNode, MeshNodes, running_mesh
from tests.faults.faulty_disk import FaultyDisk
from tests.faults.load import CHECKERS, Load, under_load

STREAM = "faults/one"


@dataclass(slots=True)
class Tally:
    """What all tests of one run found, for the report."""

    findings: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(CHECKERS, 0)))
    acknowledged: int = 0
    reads: int = 0

    def add(self, load: Load, findings: Sequence[str]) -> None:
        """One load and what the checkers say of it."""
        self.acknowledged += load.committed
        self.reads += len(load.reads)
        self.findings.update(text[:2] for text in findings)


@dataclass(frozen=True, slots=True)
class Cluster:
    """The running three, by number; node 1 is the preferred leader."""

    mesh: MeshNodes
    disks: dict[int, FaultyDisk]
    gateways: dict[int, DataPlane]
    tally: Tally

    def node(self, number: int) -> MeshNode:
        """One node."""
        return self.mesh.nodes[number]

    def kill(self, *numbers: int) -> None:
        """SIGKILL, to all of them before any is gone."""
        for number in numbers:
            self._child(number).signal(signal.SIGKILL)
        for number in numbers:
            self._child(number).kill()
            self.node(number).child = None

    def _child(self, number: int) -> Child:
        child = self.node(number).child
        assert child is not None, f"node {number} does not run"
        return child

    def signal(self, number: int, signal_number: int) -> None:
        """Any signal to one of them."""
        self._child(number).signal(signal_number)

    def is_running(self, number: int) -> bool:
        """Whether its process is there."""
        child = self.node(number).child
        return child is not None and child.exit_status is None

    async def readiness(self, number: int) -> str:
        """Status and body of its `/readyz`."""
        async with httpx.AsyncClient(timeout=10) as http:
            answer = await http.get(f"http://{self.node(number).admin}/readyz")
        return f"{answer.status_code} {answer.text}"

    async def term(self, number: int) -> int:
        """Raft's term, as one of them knows it."""
        return (await self.gateways[number].describe(STREAM, is_local=True)).term

    async def start(self, *numbers: int) -> None:
        """Starts them again; they know the stream from their disks."""
        await asyncio.gather(*(self.node(number).start() for number in numbers))

    async def repaired(self, number: int) -> None:
        """Waits until the node's member is full again: until then the group goes on only with both others."""

        async def is_repaired() -> bool:
            replicas = (await self.gateways[number].replicas()).replicas
            return bool(replicas) and not any(replica.reason for replica in replicas)

        await eventually(f"the log of node {number} is repaired", is_repaired)

    def cut_power(self, *numbers: int, kept: float = 0.0) -> int:
        """Kills them and takes from their disks what was not fsynced; returns how many changes that were."""
        self.kill(*numbers)
        return sum(self.disks[number].cut_power(kept) for number in numbers)

    async def leader(self, ask: Iterable[int] = NODES) -> int:
        """The node that leads, as soon as one of `ask` knows."""

        async def known() -> int:
            for number in ask:
                if self.node(number).child is not None:
                    named = (await self.gateways[number].describe(STREAM, is_local=True)).leader
                    if named:
                        return int(named.removeprefix("n"))
            return 0

        return await eventually("the stream has a leader", known)

    @asynccontextmanager
    async def under_load(self, seed: int, at: Iterable[int] = NODES) -> AsyncIterator[Load]:
        """Producers and readers at the nodes `at` while the body runs; afterwards all five checkers hold on every member."""
        addresses = [self.node(number).client for number in at]
        async with under_load(STREAM, addresses, [self.gateways[number] for number in at], seed) as load:
            yield load
        findings = await load.findings(self.members())
        self.tally.add(load, findings)
        assert findings == [], findings[:5]

    def members(self) -> dict[str, DataPlane]:
        """The nodes by name."""
        return {f"n{number}": gateway for number, gateway in self.gateways.items()}


@asynccontextmanager
async def running_cluster(tally: Tally) -> AsyncIterator[Cluster]:
    """Three nodes with one stream; everything is ended and removed afterwards."""
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mesh-faults-")))
        disks = {number: FaultyDisk(directory / f"n{number}", directory / f"control-{number}") for number in NODES}
        for disk in disks.values():
            stack.callback(disk.close)
        environments = {number: disk.environment() for number, disk in disks.items()}
        mesh = await stack.enter_async_context(running_mesh(directory, environments=environments, is_tls=True))
        gateways = {number: await stack.enter_async_context(DataPlane(mesh.nodes[number].grpc)) for number in NODES}
        await mesh.create([STREAM])
        yield Cluster(mesh, disks, gateways, tally)
