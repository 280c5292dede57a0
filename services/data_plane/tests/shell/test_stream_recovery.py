"""A member's log is damaged on the disk: it is repaired from the others, and nothing that was acknowledged is lost.

Source: Alagappan et al., Protocol-Aware Recovery (FAST 2018); architecture I1.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from data_plane_testing.stream_cluster import (
    STREAM,
    A,
    B,
    C,
    Cluster,
    cluster,
    make_view,
    numbered,
    publish_values,
    read,
    until,
)
from mesh_data.core.view import StreamState
from meshapi.supervisor.v1 import data_pb2
from meshcommon.ids import NodeId

ACTIVE = StreamState.ACTIVE
LOG_FILE_HEADER_BYTES = 69
LOG_FILE_BYTES = 64 << 20


def damage(directory: Path, node: NodeId, chance: random.Random, *, from_share: float = 0.0) -> None:
    """Flips one bit of the node's log, in the part behind `from_share` of it."""
    (file,) = (directory / str(node)).rglob("*.raftlog")
    data = bytearray(file.read_bytes())
    position = chance.randrange(max(LOG_FILE_HEADER_BYTES, int(len(data) * from_share)), len(data))
    data[position] ^= 1 << chance.randrange(8)
    file.write_bytes(data)


async def written(three: Cluster) -> list[bytes]:
    await three.formed()
    values = numbered(60)
    for start in range(0, 60, 5):
        await publish_values(three.sites[A], values[start : start + 5])
    await three.converged()
    return values


def is_in_doubt(three: Cluster, node: NodeId) -> bool:
    replica = three.sites[node].groups.replicas()
    return bool(replica) and replica[0].status().in_doubt


@pytest.mark.parametrize("seed", range(8))
async def test_a_flipped_bit_on_one_disk_loses_nothing_and_the_group_goes_on(tmp_path: Path, seed: int) -> None:
    """At a random byte; in the first quarter it takes the birth of the group too."""
    print(f"SEED={seed}")
    async with cluster(tmp_path, nodes=(A, B, C)) as three:
        values = await written(three)
        await three.stop(C)
        damage(tmp_path, C, random.Random(seed), from_share=0.25 * (seed % 4))
        repaired = three.start(C, make_view(2, ACTIVE))
        assert three.leaders() == [A]
        await publish_values(three.sites[A], numbered(10, 60))
        await three.converged()
        await until(lambda: not is_in_doubt(three, C))
        assert await read(repaired) == values + numbered(10, 60)
        await three.stop(A)
        await until(lambda: bool(three.leaders()))
        assert await read(three.sites[B]) == values + numbered(10, 60)
        three.start(A, make_view(2, ACTIVE))
        await three.converged()
        assert list((tmp_path / "3").rglob("*.raftlog.damaged"))


async def test_without_an_intact_quorum_the_group_waits_for_the_third_and_says_so(tmp_path: Path) -> None:
    async with cluster(tmp_path, nodes=(A, B, C)) as three:
        values = await written(three)
        chance = random.Random(1)
        for node in (A, B, C):
            await three.stop(node)
        for node in (A, B):
            damage(tmp_path, node, chance, from_share=0.5)
            three.start(node, make_view(2, ACTIVE))
        await until(lambda: is_in_doubt(three, A) and is_in_doubt(three, B))
        await until(lambda: three.sites[A].replica.status().silent == [13])
        assert await note_of(three, A) == "in doubt: the log here was damaged; without a leader the group waits for n3"
        assert three.leaders() == []
        three.start(C, make_view(2, ACTIVE))
        await until(lambda: three.leaders() == [C])
        await three.converged()
        assert [await read(three.sites[node]) for node in (A, B, C)] == [values] * 3
        await until(lambda: not is_in_doubt(three, A) and not is_in_doubt(three, B))
        assert await note_of(three, A) == ""


async def test_a_damaged_record_in_a_full_file_gives_the_membership_up_when_it_is_read(tmp_path: Path) -> None:
    """Full files are not read at the start. The others go on, and this membership is to be replaced by a new one."""
    chance = random.Random(1)
    async with cluster(tmp_path, nodes=(A, B, C)) as three:
        await three.formed()
        await three.stop(C)
        values = [chance.randbytes(1 << 20) for _ in range(LOG_FILE_BYTES // (1 << 20) + 2)]
        for value in values:
            await publish_values(three.sites[A], [value])
        await three.stop(B)
        full = min((tmp_path / "2").rglob("*.raftlog"))
        content = bytearray(full.read_bytes())
        content[content.index(values[50][:64])] ^= 1
        full.write_bytes(content)
        bad = three.start(B, make_view(2, ACTIVE))
        await until(lambda: bad.groups.replica(STREAM) is not None and bad.replica.status().leader != 0)
        three.sites[A].replica.give_leadership_to(bad.replica.member_id)
        await until(lambda: three.leaders() == [B])
        three.start(C, make_view(2, ACTIVE))
        await until(lambda: any(report.is_distrusted for report in bad.groups.reports()))
        assert "the log is damaged" in bad.groups.reports()[0].reason
        await until(lambda: three.leaders() == [A])
        await until(lambda: three.sites[C].replica.state.applied_index == three.sites[A].replica.state.applied_index)
        assert await read(three.sites[C], from_offset=40) == values[40:]


async def note_of(three: Cluster, node: NodeId) -> str:
    """What `meshctl raft ls` says about the replica there."""
    (replica,) = (await three.sites[node].raft_api.ListReplicas(data_pb2.ListReplicasRequest(), None)).replicas
    return replica.reason
