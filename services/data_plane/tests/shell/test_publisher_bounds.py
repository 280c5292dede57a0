"""Publishers that want more than the stream can take: they are held back, and memory stays flat."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import resource
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from data_plane_testing import stream_cluster
from data_plane_testing.stream_cluster import NAME, A, B, C, Site, cluster, publish_values, request, until
from mesh_data.shell.streams.publish_call import CREDIT_BYTES
from meshapi.supervisor.v1 import data_pb2

VALUE = bytes(256 * 1024)


def resident_bytes() -> int:
    """What is in use: the allocator gives back first what it keeps of what was freed, which grows with how busy the machine is."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with Path("/proc/self/statm").open() as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


async def test_publisher_that_reads_no_answers_is_held_back_and_holds_up_nobody(tmp_path: Path) -> None:
    async with cluster(tmp_path) as three:
        await three.formed()
        for node in (A, B):
            pulled = 0

            async def requests() -> AsyncIterator[data_pb2.PublishBatchRequest]:
                nonlocal pulled
                while True:
                    pulled += 1
                    yield request([VALUE])

            answers = three.sites[node].api.PublishBatch(requests(), None)
            assert isinstance(answers, AsyncGenerator)
            await anext(answers)
            # The loop below publishes, so that there is time in which more could have been taken.
            before = three.sites[A].replica.next_offset
            held = -1
            while held != pulled:
                held = pulled
                await publish_values(three.sites[C], [b"meanwhile"] * 20)
            assert pulled * len(VALUE) <= CREDIT_BYTES + 3 * len(VALUE)
            assert three.sites[A].replica.next_offset >= before + 20
            await answers.aclose()


async def test_answers_that_nobody_reads_hold_nothing_of_what_all_publishers_share(tmp_path: Path) -> None:
    """Some sixty such callers once kept everybody else from publishing at this node, for as long as they liked."""
    async with cluster(tmp_path) as three:
        await three.formed()
        budget = three.sites[A].budgets.publish

        async def requests() -> AsyncIterator[data_pb2.PublishBatchRequest]:
            while True:
                yield request([VALUE])

        unread = []
        for _ in range(3):
            answers = three.sites[A].api.PublishBatch(requests(), None)
            assert isinstance(answers, AsyncGenerator)
            await anext(answers)
            unread.append(answers)
        await until(lambda: budget.used_bytes == 0)
        assert budget.flows == 3
        for answers in unread:
            # What was held back goes on when the answers are read.
            for _ in range(40):
                await anext(answers)
            await answers.aclose()
        assert (budget.used_bytes, budget.flows, len(budget.line)) == (0, 0, 0)


async def test_what_is_not_committed_yet_is_bounded_and_memory_stays_flat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight publishers have 32 MiB to give at once; the leader takes 2 MiB before a slow quorum has them."""
    uncommitted_bytes_max = 2 * 1024 * 1024
    timing = replace(stream_cluster.TIMING, uncommitted_bytes_max=uncommitted_bytes_max, publish_deadline_s=60.0)
    monkeypatch.setattr(stream_cluster, "TIMING", timing)
    async with cluster(tmp_path, delay_s=0.005) as three:
        await three.formed()
        leader = three.sites[A].replica
        most = 0

        async def publish_many(site: Site, batches: int) -> None:
            nonlocal most

            async def requests() -> AsyncIterator[data_pb2.PublishBatchRequest]:
                ready = await site.api.InitProducer(data_pb2.InitProducerRequest(stream=NAME), None)
                for number in range(batches):
                    yield request([VALUE], (ready.producer_id, ready.producer_epoch, number))

            async for response in site.api.PublishBatch(requests(), None):
                assert response.error.code == ""
                most = max(most, leader.raft.proposals.size_bytes)

        async def round_of(batches: int) -> int:
            async with asyncio.TaskGroup() as tasks:
                for node in (A, B, C, A, B, C, A, B):
                    tasks.create_task(publish_many(three.sites[node], batches))
            return resident_bytes()

        after_warming_up = await round_of(80)  # caches of entries are full then
        after_rounds = [await round_of(60) for _ in range(3)]
        # What is committed counts here until it is applied, which takes longer on a busy machine.
        assert uncommitted_bytes_max // 2 < most <= 2 * uncommitted_bytes_max
        # 360 MiB went through three nodes in this process: kept anywhere even once, they would show.
        assert after_rounds[-1] - after_warming_up < 120 * 1024 * 1024
        await until(lambda: leader.next_offset == 8 * 260)
