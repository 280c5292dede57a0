"""Processes that are killed, stand still, starve or are replaced: nothing acknowledged is lost, and nothing is doubled."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from meshapi.supervisor.v1 import data_pb2
from meshclient import MeshClient
from meshcommon.errors import ErrorCode, MeshError
from meshtest.waiting import eventually
from tests.bench.mesh_nodes import NODES
from tests.faults.cluster import STREAM, Cluster

OTHER = "faults/other"
MONTH_S = 30 * 24 * 3600
DUTY_S = 0.1
SHARE = 0.1


@pytest.mark.parametrize("count", [1, 2, 3])
async def test_members_are_killed(cluster: Cluster, count: int) -> None:
    """Kill -9 of one, of a majority and of all, the leader among them, three times over."""
    async with cluster.under_load(seed=30 + count) as load:
        for _ in range(3):
            leader = await cluster.leader()
            victims = [leader, *(number for number in NODES if number != leader)][:count]
            cluster.kill(*victims)
            await cluster.start(*victims)
            load.healed()
            await load.progress()


async def test_an_acknowledgement_is_lost_with_its_leader(cluster: Cluster) -> None:
    """Leaders die one after the other with batches on their way: what is sent again is recognised, whoever answers (I2)."""
    async with cluster.under_load(seed=35) as load:
        for _ in range(5):
            leader = await cluster.leader()
            await load.progress(20)
            cluster.kill(leader)
            await load.progress(20)
            await cluster.start(leader)
            load.healed()
            await load.progress(20)


async def test_a_leader_stands_still_for_longer_than_an_election(cluster: Cluster) -> None:
    async with cluster.under_load(seed=36) as load:
        old = await cluster.leader()
        others = [number for number in NODES if number != old]
        cluster.signal(old, signal.SIGSTOP)
        try:

            async def another_leads() -> bool:
                return await cluster.leader(others) != old

            await eventually("another node leads", another_leads)
            await load.progress()
        finally:
            cluster.signal(old, signal.SIGCONT)
        load.healed()
        await load.progress()


async def test_a_member_that_comes_back_does_not_disturb_the_term(cluster: Cluster) -> None:
    """Pre-vote (Ongaro's thesis §9.6): neither after standing still nor after a restart."""
    async with cluster.under_load(seed=37) as load:
        leader = await cluster.leader()
        member = next(number for number in NODES if number != leader)
        term = await cluster.term(leader)
        cluster.signal(member, signal.SIGSTOP)
        await load.progress(500)
        cluster.signal(member, signal.SIGCONT)
        await load.progress(500)
        cluster.kill(member)
        await load.progress(500)
        await cluster.start(member)
        load.healed()

        async def has_caught_up() -> bool:
            own = await cluster.gateways[member].describe(STREAM, is_local=True)
            return own.leader == f"n{leader}" and own.next_offset >= load.committed - 1_000

        await eventually("the member follows again", has_caught_up)
        assert (await cluster.leader([member]), await cluster.term(member)) == (leader, term)


@asynccontextmanager
async def starved(cluster: Cluster, number: int) -> AsyncIterator[None]:
    """The node gets a tenth of the processor's time."""

    async def starve() -> None:
        while True:
            cluster.signal(number, signal.SIGSTOP)
            await asyncio.sleep(DUTY_S * (1 - SHARE))
            cluster.signal(number, signal.SIGCONT)
            await asyncio.sleep(DUTY_S * SHARE)

    task = asyncio.create_task(starve(), name="starve")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        cluster.signal(number, signal.SIGCONT)


@pytest.mark.parametrize("is_leader", [True, False])
async def test_a_node_gets_a_tenth_of_a_processor(cluster: Cluster, *, is_leader: bool) -> None:
    async with cluster.under_load(seed=38) as load:
        leader = await cluster.leader()
        victim = leader if is_leader else next(number for number in NODES if number != leader)
        async with starved(cluster, victim):
            await load.progress(300)
        load.healed()
        await load.progress()


async def test_nodes_are_replaced_one_after_the_other(cluster: Cluster) -> None:
    """What a rolling upgrade does: each is stopped gracefully, and another process takes its place."""
    async with cluster.under_load(seed=39) as load:
        for number in NODES:
            await cluster.node(number).stop()
            await load.progress()
            await cluster.start(number)
            load.healed()
            await load.progress()


async def test_a_producer_returns_after_a_month(cluster: Cluster) -> None:
    """There is no window: what was sent before is recognised at any later time, after restarts and many others (§8)."""
    await cluster.mesh.create([OTHER])
    gateway = cluster.gateways[2]
    producer = await gateway.init_producer(OTHER, "patient")
    first = data_pb2.PublishRequest(
        stream=OTHER,
        wait=data_pb2.PUBLISH_WAIT_COMMITTED,
        producer_id=producer.producer_id,
        producer_epoch=producer.producer_epoch,
        base_sequence=0,
        records=[data_pb2.PublishRecord(value=b"3:0"), data_pb2.PublishRecord(value=b"3:1")],
    )
    answer = await gateway.publish_request(first)
    await asyncio.gather(*(gateway.init_producer(OTHER, f"hasty-{number}") for number in range(100)))
    for disk in cluster.disks.values():
        disk.set_clock(MONTH_S)
    cluster.kill(*NODES)
    await cluster.start(*NODES)
    # Delegated keys do not last a month: control planes delegate anew.
    await cluster.mesh.configure(MONTH_S)
    again = await cluster.gateways[3].publish_request(first)
    assert (again.base_offset, again.is_duplicate) == (answer.base_offset, True)


async def test_a_zombie_producer_is_refused(cluster: Cluster) -> None:
    """The second producer of a name fences the first, which may be anywhere between its calls."""
    addresses = [cluster.node(number).client for number in NODES]
    async with MeshClient(*addresses) as old, MeshClient(*addresses[1:]) as new:
        zombie = await old.producer(STREAM, name="one").__aenter__()
        assert await (await zombie.send(b"1:0")) == 0
        async with new.producer(STREAM, name="one") as successor:
            assert await (await successor.send(b"1:1")) == 1
            with pytest.raises(MeshError) as caught:
                await (await zombie.send(b"1:2"))
            assert caught.value.code is ErrorCode.PRODUCER_FENCED
            assert await (await successor.send(b"1:3")) == 2
        await zombie.__aexit__(MeshError, caught.value, None)
        values = [record.value async for record in new.read(STREAM)]
    assert values == [b"1:0", b"1:1", b"1:3"]
