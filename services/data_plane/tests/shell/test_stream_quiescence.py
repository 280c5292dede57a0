"""Idle stream groups quiesce, and wake when they are used or their leader is gone."""

from __future__ import annotations

from pathlib import Path

from data_plane_testing.stream_cluster import A, B, C, Cluster, cluster, numbered, publish_values, read, until
from mesh_data.shell.streams_metrics import APPLIED_INDEX
from meshcommon.ids import NodeId
from meshraft import GroupStatus


def quiesced(three: Cluster) -> set[NodeId]:
    return {
        node
        for node, site in three.sites.items()
        if (replicas := site.groups.replicas()) and replicas[0].status().quiesced
    }


async def test_an_idle_stream_quiesces_and_a_publish_wakes_it(tmp_path: Path) -> None:
    async with cluster(tmp_path, nodes=(A, B, C)) as three:
        await three.formed()
        await publish_values(three.sites[B], numbered(3))
        await until(lambda: quiesced(three) == {A, B, C})
        await publish_values(three.sites[B], numbered(3, 3))
        assert await read(three.sites[C]) == numbered(6)
        await until(lambda: quiesced(three) == {A, B, C})


async def test_a_quiesced_stream_whose_leader_dies_is_led_by_another(tmp_path: Path) -> None:
    async with cluster(tmp_path, nodes=(A, B, C)) as three:
        await three.formed()
        await publish_values(three.sites[A], numbered(3))
        await until(lambda: quiesced(three) == {A, B, C})
        assert three.leaders() == [A]
        await three.stop(A)
        await until(lambda: bool(three.leaders()))
        await publish_values(three.sites[B], numbered(3, 3))
        assert await read(three.sites[C]) == numbered(6)


async def test_the_gauges_of_a_quiesced_group_are_right_and_it_is_not_asked_again(tmp_path: Path) -> None:
    async with cluster(tmp_path, nodes=(A, B, C)) as three:
        await three.formed()
        await publish_values(three.sites[A], numbered(3))
        (replica,) = three.sites[B].groups.replicas()

        def news() -> GroupStatus | None:
            return replica.news()

        await until(lambda: news() is None)
        shown = APPLIED_INDEX.labels(replica.stream.name)._value.get()
        assert shown == replica.state.applied_index
        await publish_values(three.sites[A], numbered(1, 3))
        await three.converged()
        assert news() is not None
