"""A member's log is damaged on the disk: it is repaired or replaced, and nothing that was acknowledged is lost.

Source: docs/design/recovery.md; architecture I1.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Awaitable
from pathlib import Path

import pytest

from data_plane_testing.stream_cluster import (
    NAME,
    STREAM,
    A,
    B,
    C,
    Cluster,
    Site,
    cluster,
    make_view,
    numbered,
    publish_values,
    read,
    until,
)
from mesh_data.core.replica_report import ReplicaState
from mesh_data.core.view import StreamPhase
from meshapi.supervisor.v1 import data_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NO_NODE, NodeId
from tests.shell.test_store_truth import renew_c

ACTIVE = StreamPhase.ACTIVE
LOG_FILE_HEADER_BYTES = 69
LOG_FILE_BYTES = 64 << 20


def damage(directory: Path, node: NodeId, chance: random.Random) -> None:
    """Flips one bit of the node's log."""
    (file,) = (directory / str(node)).rglob("*.raftlog")
    data = bytearray(file.read_bytes())
    data[chance.randrange(LOG_FILE_HEADER_BYTES, len(data.rstrip(b"\0")))] ^= 1 << chance.randrange(8)
    file.write_bytes(data)


def tear(directory: Path, node: NodeId) -> None:
    """The end of the last write is not there."""
    (file,) = (directory / str(node)).rglob("*.raftlog")
    data = file.read_bytes()
    file.write_bytes(data[: len(data.rstrip(b"\0")) - 3])


async def written(three: Cluster) -> list[bytes]:
    await three.formed()
    values = numbered(60)
    for start in range(0, 60, 5):
        await publish_values(three.sites[A], values[start : start + 5])
    await three.converged()
    return values


def member_state(three: Cluster, node: NodeId) -> str:
    replica = three.sites[node].groups.replicas()
    return replica[0].status().member_state if replica else ""


@pytest.mark.parametrize("seed", range(4))
async def test_a_flipped_bit_on_one_disk_loses_nothing_and_the_group_goes_on(tmp_path: Path, seed: int) -> None:
    """Earlier damage: the membership is retired, and the node gets another one (here the test is the catalogue)."""
    print(f"SEED={seed}")
    async with cluster(tmp_path, nodes=(A, B, C)) as three:
        values = await written(three)
        await three.stop(C)
        damage(tmp_path, C, random.Random(seed))
        repaired = three.start(C, make_view(2, ACTIVE))
        assert three.leaders() == [A]
        await publish_values(three.sites[A], numbered(10, 60))
        await until(lambda: any(report.is_distrusted for report in repaired.groups.reports()))
        assert "was damaged before its last write" in repaired.groups.reports()[0].reason
        await renew_c(three)
        await until(lambda: 21 in three.sites[A].replica.status().voters)
        await three.converged()
        assert await read(repaired) == values + numbered(10, 60)
        await three.stop(A)
        await until(lambda: bool(three.leaders()))
        assert await read(three.sites[B]) == values + numbered(10, 60)
        assert list((tmp_path / "3").rglob("*.raftlog.damaged"))
        await three.stop(C)
        again = three.start(C, three.sites[B].overlay.view())
        await until(lambda: member_state(three, C) == "full")
        assert not any(report.is_distrusted for report in again.groups.reports())


async def test_a_torn_write_costs_a_probation(tmp_path: Path) -> None:
    async with cluster(tmp_path, nodes=(A, B, C)) as three:
        values = await written(three)
        await three.stop(C)
        tear(tmp_path, C)
        repaired = three.start(C, make_view(2, ACTIVE))
        await publish_values(three.sites[A], numbered(10, 60))
        await three.converged()
        await until(lambda: member_state(three, C) == "full")
        assert await read(repaired) == values + numbered(10, 60)
        assert repaired.replica.member_id == 13


async def test_without_an_intact_quorum_the_group_waits_for_the_third_and_says_so(tmp_path: Path) -> None:
    async with cluster(tmp_path, nodes=(A, B, C)) as three:
        values = await written(three)
        for node in (A, B, C):
            await three.stop(node)
        for node in (A, B):
            tear(tmp_path, node)
            three.start(node, make_view(2, ACTIVE))
        await until(lambda: member_state(three, A) == member_state(three, B) == "probation")
        await until(lambda: three.sites[A].replica.status().waits_for == [13])
        assert await note_of(three, A) == (
            "on probation: the last write to the log here was damaged; without a leader the group waits for n3"
        )
        assert three.leaders() == []
        three.start(C, make_view(2, ACTIVE))
        await until(lambda: bool(three.leaders()))
        await three.converged()
        assert [await read(three.sites[node]) for node in (A, B, C)] == [values] * 3
        await until(lambda: member_state(three, A) == member_state(three, B) == "full")
        assert await note_of(three, A) == ""


async def test_the_member_that_is_left_tells_its_control_plane_that_it_knows_no_leader(tmp_path: Path) -> None:
    """Also after its restart, and beside one whose disk was lost: the status of the node warns because of it."""

    def told(site: Site) -> list[tuple[ReplicaState, int]]:
        return [(report.state, report.leader_node) for report in site.groups.reports()]

    async with cluster(tmp_path, nodes=(A, B, C)) as three:
        await written(three)
        assert told(three.sites[A]) == [(ReplicaState.OPEN, A)]
        await three.stop(B)
        await three.stop(C)
        shutil.rmtree(tmp_path / "2")
        three.start(B, make_view(2, ACTIVE))
        await until(lambda: told(three.sites[A]) == [(ReplicaState.OPEN, NO_NODE)])
        await three.stop(A)
        again = three.start(A, make_view(2, ACTIVE))
        await until(lambda: told(again) == [(ReplicaState.OPEN, NO_NODE)])
        three.start(C, make_view(2, ACTIVE))
        await until(lambda: told(again)[0][1] != NO_NODE)


def recover(three: Cluster, node: NodeId, *names: str) -> Awaitable[data_pb2.RecoverStreamResponse]:
    request = data_pb2.RecoverStreamRequest(stream=NAME, survivors=names)
    return three.sites[node].raft_api.RecoverStream(request, None)


async def test_an_operator_lets_the_survivor_go_on_alone(tmp_path: Path) -> None:
    async with cluster(tmp_path, nodes=(A, B, C)) as three:
        values = await written(three)
        with pytest.raises(MeshError, match="has a leader"):
            await recover(three, C, "n3")
        await three.stop(A)
        await three.stop(B)
        await until(lambda: three.sites[C].replica.status().waits_for == [11, 12])
        found = await recover(three, C, "n3")
        assert (found.doubtful_from_offset, found.is_below_quorum) == (60, True)
        await until(lambda: three.leaders() == [C])
        await publish_values(three.sites[C], numbered(3, 60))
        assert await read(three.sites[C]) == values + numbered(3, 60)
        assert 11 not in three.sites[C].replica.status().voters


async def test_every_survivor_is_told(tmp_path: Path) -> None:
    async with cluster(tmp_path, nodes=(A, B, C)) as three:
        values = await written(three)
        for node in (A, B, C):
            await three.stop(node)
        for node in (B, C):
            tear(tmp_path, node)
            three.start(node, make_view(2, ACTIVE))
        await until(lambda: member_state(three, B) == member_state(three, C) == "probation")
        await until(lambda: three.sites[B].replica.status().waits_for == [11])
        found = await recover(three, B, "n2", "n3")
        assert not found.is_below_quorum
        assert three.leaders() == []
        await recover(three, C, "n2", "n3")
        await until(lambda: bool(three.leaders()))
        await publish_values(three.sites[B], numbered(3, 60))
        await until(lambda: member_state(three, B) == member_state(three, C) == "full")
        assert await read(three.sites[C]) == values + numbered(3, 60)


@pytest.mark.parametrize(
    ("names", "code"),
    [
        ((), ErrorCode.INVALID_ARGUMENT),
        (("n3", "n3"), ErrorCode.INVALID_ARGUMENT),
        (tuple(f"n{number}" for number in range(11)), ErrorCode.INVALID_ARGUMENT),
        (("n1",), ErrorCode.INVALID_ARGUMENT),
        (("n3", "n4"), ErrorCode.INVALID_ARGUMENT),
        (("n3", "\n"), ErrorCode.UNKNOWN_NODE),
    ],
)
async def test_survivors_that_cannot_be_are_refused(tmp_path: Path, names: tuple[str, ...], code: ErrorCode) -> None:
    async with cluster(tmp_path, nodes=(A, B, C)) as three:
        await three.formed()
        with pytest.raises(MeshError) as refused:
            await recover(three, C, *names)
        assert refused.value.code == code


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
        three.sites[A].replica.transfer_to(bad.replica.member_id)
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
