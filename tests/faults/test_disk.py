"""Disks that fail, fill up, are slow, or stop between two steps of a write: the others go on, and nothing is lost (I1)."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable

import pytest

from meshtest.waiting import eventually
from tests.bench.mesh_nodes import NODES
from tests.faults.cluster import Cluster
from tests.faults.faulty_disk import FaultyDisk, Fsync

SLOW_S = 0.3


def _failing_fsync(disk: FaultyDisk) -> None:
    disk.fsync(Fsync.FAILS)


def _full(disk: FaultyDisk) -> None:
    disk.refuse_writes(errno.ENOSPC)


def _unreadable(disk: FaultyDisk) -> None:
    disk.refuse_writes(errno.EIO)


@pytest.mark.parametrize("fail", [_failing_fsync, _full, _unreadable])
@pytest.mark.parametrize("is_leader", [True, False])
async def test_a_disk_fails_under_one_member(
    cluster: Cluster, fail: Callable[[FaultyDisk], None], *, is_leader: bool
) -> None:
    """EIO from fsync, EIO and ENOSPC from writes: the node says so and keeps answering; a repaired disk takes part again."""
    async with cluster.under_load(seed=10) as load:
        leader = await cluster.leader()
        victim = leader if is_leader else next(number for number in NODES if number != leader)
        fail(cluster.disks[victim])

        async def is_told() -> bool:
            return (await cluster.readiness(victim)).startswith("503 ")

        await eventually("the node says that its log cannot be written", is_told)
        shown = await cluster.readiness(victim)
        assert "log of this node's streams cannot be written" in shown, shown
        assert "Packets are forwarded meanwhile" in shown, shown
        await load.progress()
        assert cluster.is_running(victim)
        cluster.disks[victim].fsync(Fsync.HONEST)
        cluster.disks[victim].refuse_writes(0)
        # What was not synced when fsync failed is gone: a disk does not try again (fsyncgate).
        cluster.cut_power(victim)
        await cluster.start(victim)
        load.healed()
        await load.progress()


@pytest.mark.parametrize("is_leader", [True, False])
async def test_one_members_disk_is_slow(cluster: Cluster, *, is_leader: bool) -> None:
    async with cluster.under_load(seed=11) as load:
        leader = await cluster.leader()
        victim = leader if is_leader else next(number for number in NODES if number != leader)
        cluster.disks[victim].slow_down(SLOW_S)
        await load.progress(500)
        cluster.disks[victim].slow_down(0)
        load.healed()
        await load.progress()


@pytest.mark.parametrize("seed", range(4))
async def test_members_crash_between_any_two_steps_of_a_write(cluster: Cluster, seed: int) -> None:
    """Before and after each change and each fsync, drawn; what was not synced goes with the process, in part or whole."""
    rng = random.Random(seed)
    async with cluster.under_load(seed=20 + seed) as load:
        for _ in range(4):
            victim = rng.choice(NODES)
            cluster.disks[victim].crash_after(rng.randint(1, 40))

            async def has_crashed(victim: int = victim) -> bool:
                return not cluster.is_running(victim)

            await eventually(f"node {victim} crashes at its disk", has_crashed)
            cluster.disks[victim].cut_power(kept=rng.choice((0.0, 0.5, 1.0)))
            await cluster.start(victim)
            load.healed()
            await load.progress(50)
