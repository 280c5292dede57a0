"""Reads that may be stale: they work where no leader can be reached, and never claim to be newer than they are."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from data_plane_testing.stream_cluster import (
    NAME,
    STREAM,
    A,
    B,
    C,
    D,
    cluster,
    make_view,
    numbered,
    opened,
    publish_values,
    read,
    read_stale,
    until,
)
from mesh_data.core.view import StreamPhase
from meshapi.supervisor.v1 import data_pb2
from meshcommon.errors import ErrorCode, MeshError


async def test_with_a_leader_the_view_is_new(tmp_path: Path) -> None:
    async with cluster(tmp_path, nodes=(A, B, C, D)) as four:
        await until(lambda: four.leaders() == [A])
        await publish_values(four.sites[A], numbered(3))
        await four.converged()
        loop = asyncio.get_running_loop()
        for site in four.sites.values():
            began = loop.time()
            values, view = await read_stale(site)
            assert values == numbered(3)
            assert view.applied_index == four.sites[A].replica.state.applied_index
            assert view.age_ms_max <= (loop.time() - began) * 1000 + 2
            assert (await read_stale(site, 3))[0] == []


async def test_without_one_it_is_as_old_as_it_says_at_most(tmp_path: Path) -> None:
    """Every record that was acknowledged before the stated age is in the view."""
    async with cluster(tmp_path) as three:
        await three.formed()
        loop = asyncio.get_running_loop()
        acknowledged: list[float] = []
        site = three.sites[C]

        async def check() -> int:
            values, view = await read_stale(site)
            assert view.HasField("age_ms_max")
            as_of = loop.time() - view.age_ms_max / 1000
            assert len(values) >= sum(at <= as_of for at in acknowledged)
            return int(view.age_ms_max)

        for number in range(30):
            await publish_values(three.sites[A], [b"%d" % number])
            acknowledged.append(loop.time())
            if number == 15:
                await check()
                three.network.isolate(C)
            if number % 5 == 0:
                await check()
        cut_age_ms = await check()
        await asyncio.sleep(0.2)
        assert await check() >= cut_age_ms + 200
        assert len((await read_stale(site))[0]) == 16
        # What is certainly not there is said not to be known, rather than not to exist.
        with pytest.raises(MeshError) as unknown:
            await read_stale(site, 20)
        assert unknown.value.code == ErrorCode.STREAM_UNAVAILABLE
        three.network.heal()
        assert await read(site) == [b"%d" % number for number in range(30)]


async def test_after_a_restart_alone_the_age_is_not_known(tmp_path: Path) -> None:
    async with cluster(tmp_path) as three:
        await three.formed()
        await publish_values(three.sites[A], numbered(3))
        await three.converged()
        await three.stop(C)
        three.network.isolate(C)
        site = three.start(C, make_view(2, StreamPhase.ACTIVE))
        three.network.isolate(C)
        await until(lambda: site.groups.replica(STREAM) is not None and site.replica.next_offset == 3)
        values, view = await read_stale(site)
        assert values == numbered(3)
        assert not view.HasField("age_ms_max")
        assert view.applied_index == site.replica.state.applied_index


async def test_node_without_a_replica_gets_the_view_of_a_member(tmp_path: Path) -> None:
    async with cluster(tmp_path, nodes=(A, B, C, D)) as four:
        await until(lambda: four.leaders() == [A])
        await publish_values(four.sites[A], numbered(3))
        await four.converged()
        await read_stale(four.sites[C])
        # No quorum is left, one member can be reached.
        await four.stop(A)
        await four.stop(B)
        values, view = await read_stale(four.sites[D])
        assert values == numbered(3)
        assert view.applied_index == four.sites[C].replica.state.applied_index
        assert view.age_ms_max >= 0
        with pytest.raises(MeshError) as refused:
            await read(four.sites[D])
        assert refused.value.code == ErrorCode.STREAM_UNAVAILABLE


async def test_following_may_begin_stale_and_gets_what_comes(tmp_path: Path) -> None:
    async with cluster(tmp_path) as three:
        await three.formed()
        await publish_values(three.sites[A], numbered(2))
        await three.converged()
        three.network.isolate(C)
        asked = data_pb2.ReadBatchesRequest(
            stream=NAME, follow=True, records_max=3, consistency=data_pb2.READ_CONSISTENCY_STALE_OK
        )
        responses = three.sites[C].api.ReadBatches(asked, None)
        assert (await anext(responses)).HasField("view")
        assert [value for _, value in opened(await anext(responses))] == numbered(2)
        three.network.heal()
        await publish_values(three.sites[A], numbered(1, start=2))
        assert [value for _, value in opened(await anext(responses), 2)] == numbered(1, start=2)
