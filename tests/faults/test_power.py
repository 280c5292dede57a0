"""Power cuts that take what was not fsynced: nothing acknowledged is lost (I1), and a build that does not fsync is caught."""

from __future__ import annotations

import pytest

from tests.bench.mesh_nodes import NODES
from tests.faults.cluster import STREAM, Cluster
from tests.faults.faulty_disk import Fsync
from tests.faults.load import under_load


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.9])
async def test_power_of_one_member_is_cut(cluster: Cluster, kept: float) -> None:
    async with cluster.under_load(seed=1) as load:
        leader = await cluster.leader()
        for victim in (leader, *(number for number in NODES if number != leader)):
            cluster.cut_power(victim, kept=kept)
            await load.progress()
            await cluster.start(victim)
            load.healed()
            await load.progress()
            await cluster.repaired(victim)  # or the next cut would be a second fault at the same time


@pytest.mark.parametrize("kept", [0.0, 0.7])
async def test_power_of_all_members_is_cut(cluster: Cluster, kept: float) -> None:
    async with cluster.under_load(seed=2) as load:
        for _ in range(3):
            cluster.cut_power(*NODES, kept=kept)
            await cluster.start(*NODES)
            load.healed()
            await load.progress()


async def test_power_of_a_majority_is_cut(cluster: Cluster) -> None:
    async with cluster.under_load(seed=3) as load:
        leader = await cluster.leader()
        other = next(number for number in NODES if number != leader)
        cluster.cut_power(leader, other)
        await cluster.start(leader, other)
        load.healed()
        await load.progress()


async def test_a_disk_whose_fsync_lies_is_caught(cluster: Cluster) -> None:
    """The harness itself: with the fsync off, the same cut loses acknowledged records, and C1 says so."""
    async with under_load(STREAM, [cluster.node(1).client], [*cluster.gateways.values()], seed=4) as load:
        await load.progress()
        for disk in cluster.disks.values():
            disk.fsync(Fsync.LIES)
        await load.progress(1_000)
    assert cluster.cut_power(*NODES) > 0
    for disk in cluster.disks.values():
        disk.fsync(Fsync.HONEST)
    await cluster.start(*NODES)
    findings = await load.findings(cluster.members(), timeout_s=10)
    assert any(text.startswith("C1") for text in findings), findings[:3]
