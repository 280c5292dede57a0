"""Seeded faults while two producers publish: what was acknowledged is there, once, in order, on every member."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from data_plane_testing.stream_cluster import NAME, A, B, C, Cluster, cluster, make_view, read, request, until
from mesh_data.core.view import StreamPhase
from meshapi.supervisor.v1 import data_pb2
from meshcommon.ids import NodeId

BATCHES = 30


async def publish_numbered(
    site_of: Cluster, node: NodeId, name: str, chance: random.Random, acknowledged: dict[int, bytes]
) -> None:
    """Publishes batches of one producer, pipelined, and notes every acknowledged record by offset."""
    api = site_of.sites[node].api
    ready = await api.InitProducer(data_pb2.InitProducerRequest(stream=NAME, producer_name=name), None)
    sent: list[list[bytes]] = []

    async def requests() -> AsyncIterator[data_pb2.PublishBatchRequest]:
        sequence = 0
        for _ in range(BATCHES):
            values = [b"%s-%d" % (name.encode(), sequence + at) for at in range(chance.randint(1, 4))]
            sent.append(values)
            yield request(values, (ready.producer_id, ready.producer_epoch, sequence))
            sequence += len(values)
            if chance.random() < 0.3:
                await asyncio.sleep(0.01)

    answered = 0
    async for response in api.PublishBatch(requests(), None):
        assert response.error.code in ("", "OUTCOME_UNKNOWN", "NO_QUORUM", "SEQUENCE_GAP"), response.error.message
        if not response.error.code:
            for at, value in enumerate(sent[answered]):
                acknowledged[response.base_offset + at] = value
        answered += 1
    assert answered == BATCHES


async def make_faults(three: Cluster, chance: random.Random) -> None:
    """Cuts links, cuts nodes off, restarts C; then everything is whole again."""
    for _ in range(3):
        await asyncio.sleep(chance.random() * 0.3)
        match chance.choice(("isolate", "cut", "restart")):
            case "isolate":
                three.network.isolate(chance.choice((A, B, C)))
            case "cut":
                node = chance.choice((A, B, C))
                three.network.cut(node, NodeId(node % 3 + 1))
            case _:
                await three.stop(C)
                await asyncio.sleep(0.1)
                three.start(C, make_view(2, StreamPhase.ACTIVE))
        await asyncio.sleep(chance.random() * 0.6)
        three.network.heal()
    three.network.loss = 0.0


@pytest.mark.parametrize("seed", range(4))
async def test_acknowledged_records_are_on_every_member_once_and_in_order(tmp_path: Path, seed: int) -> None:
    """C1, C2, C4 of I1, I2, I4, I5 under loss, cuts and restarts."""
    print(f"SEED={seed}")
    chance = random.Random(seed)
    async with cluster(tmp_path, loss=0.1, delay_s=0.002, seed=seed) as three:
        await until(lambda: len(three.leaders()) == 1)
        three.set_view(make_view(2, StreamPhase.ACTIVE))
        acknowledged: dict[int, bytes] = {}
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(publish_numbered(three, A, "pa", chance, acknowledged))
            tasks.create_task(publish_numbered(three, B, "pb", chance, acknowledged))
            tasks.create_task(make_faults(three, chance))
        await three.converged()
        for site in three.sites.values():
            values = await read(site)
            assert {offset: values[offset] for offset in acknowledged} == acknowledged
            for name in (b"pa", b"pb"):
                own = [int(value.split(b"-")[1]) for value in values if value.startswith(name)]
                assert own == list(range(len(own)))
