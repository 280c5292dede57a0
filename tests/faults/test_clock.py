"""Wall clocks that jump: order and liveness do not depend on them, and times in a stream never fall (architecture §7)."""

from __future__ import annotations

import pytest

from tests.bench.mesh_nodes import NODES
from tests.faults.cluster import STREAM, Cluster

HOUR_S = 3600
DAY_S = 24 * HOUR_S


@pytest.mark.parametrize("jumps", [(HOUR_S, -DAY_S), (-DAY_S, HOUR_S, 0)])
async def test_the_leaders_clock_jumps(cluster: Cluster, jumps: tuple[int, ...]) -> None:
    async with cluster.under_load(seed=50) as load:
        for jump in jumps:
            cluster.disks[await cluster.leader()].set_clock(jump)
            await load.progress()
        load.healed()
        await load.progress()
    times = [record.timestamp_ms async for record in cluster.gateways[2].read(STREAM)]
    assert times == sorted(times)


async def test_every_clock_is_different_and_leaders_change(cluster: Cluster) -> None:
    # A clock half a day ahead is refused by name: delegated keys are over for it (docs/design/identity.md).
    for disk, offset_s in zip(cluster.disks.values(), (-DAY_S, 0, 8 * HOUR_S), strict=True):
        disk.set_clock(offset_s)
    async with cluster.under_load(seed=51) as load:
        for _ in NODES:
            leader = await cluster.leader()
            cluster.kill(leader)
            await cluster.start(leader)
            load.healed()
            await load.progress()
    times = [record.timestamp_ms async for record in cluster.gateways[1].read(STREAM)]
    assert times == sorted(times)
