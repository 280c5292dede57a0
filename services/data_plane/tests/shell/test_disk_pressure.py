"""Disks of members that fill up: publishers are told and wait, and go on by themselves when there is room."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from data_plane_testing.stream_cluster import A, B, C, cluster, numbered, publish, publish_values, read, request, until
from mesh_data.shell.groups import disk_watch
from meshcommon.errors import ErrorCode
from meshcommon.ids import NodeId

MIB = 1 << 20
GIB = 1 << 30


class Disks:
    """What the file systems of the nodes say."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free_bytes = dict.fromkeys((A, B, C), 5 * GIB)
        self._directory = directory
        monkeypatch.setattr(disk_watch, "measure", self.measure)

    def measure(self, directory: Path) -> tuple[int, int]:
        return 10 * GIB, self.free_bytes[NodeId(int(directory.name))]


@pytest.mark.parametrize("full", [A, C])
async def test_publishers_wait_while_a_members_disk_is_short_of_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: NodeId
) -> None:
    disks = Disks(tmp_path, monkeypatch)
    async with cluster(tmp_path) as three:
        await three.formed()
        await publish_values(three.sites[A], numbered(1))
        disks.free_bytes[full] = GIB
        await until(lambda: three.sites[full].readiness.warnings() != [])
        assert "short of room (1024 of 10240 MiB are free)" in three.sites[full].readiness.warnings()[0]
        leader = three.sites[A].replica
        await until(lambda: leader.refusal(leader.stream) is not None)
        (answer,) = await publish(three.sites[B], [request([b"refused"])])
        assert answer.error.code == ErrorCode.DISK_PRESSURE, answer
        assert answer.error.retryable
        assert f"The disk of n{full}" in answer.error.message
        # Who waits gets through as soon as there is room; what was refused is nowhere.
        waiting = asyncio.create_task(publish_values(three.sites[B], [b"accepted"]))
        disks.free_bytes[full] = 5 * GIB
        assert not (await waiting)[0].HasField("error")
        assert three.sites[full].readiness.warnings() == []
        assert await read(three.sites[C]) == [*numbered(1), b"accepted"]


async def test_a_reserve_is_kept_and_let_go_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disks = Disks(tmp_path, monkeypatch)
    async with cluster(tmp_path) as three:
        await three.formed()
        reserve = tmp_path / str(B) / "reserve"
        await until(reserve.exists)
        assert reserve.stat().st_blocks * 512 >= disk_watch.RESERVE_BYTES
        disks.free_bytes[B] = 4 * MIB
        await until(lambda: not reserve.exists())
        disks.free_bytes[B] = 20 * MIB
        await until(lambda: three.sites[B].readiness.warnings() != [])
        assert not reserve.exists()
        disks.free_bytes[B] = 5 * GIB
        await until(reserve.exists)
