"""A disk that lost what it confirmed, met by a leader that never knew: nothing acknowledged goes, the member is renewed.

Real processes, real disks. The worst case that one bad disk makes: what it confirmed is on one other disk only, and that one's
node is away when the bad disk comes back. C1, C2 and C4 over all members; architecture §7, I1.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from meshapi.common.v1 import view_pb2
from meshapi.supervisor.v1 import data_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.store_files import StoreFiles
from meshtest.gateway_client import Gateway
from meshtest.site import Site
from meshtest.trio import Trio
from meshtest.waiting import eventually
from tests.e2e.workload import check, held_by, publishing

pytestmark = pytest.mark.asyncio(loop_scope="module")


def volume(site: Site) -> Path:
    """Everything that the data plane keeps."""
    return site.config.directory / "state" / "data"


def control_log(site: Site) -> Path:
    """The log of the control group."""
    return site.config.directory / "state" / "control" / "raft"


def store_files(site: Site) -> StoreFiles:
    (log,) = (path.parent for path in volume(site).glob("raft/*/store.identity"))
    return StoreFiles(log, None)


def knows(files: StoreFiles, other: StoreFiles) -> bool:
    """Whether a store's memory has the present incarnation of another one."""
    record = other.read().record
    assert record is not None
    return record.lineage.present.incarnation_id in {seen.incarnation_id for seen in files.read_peers().seen.values()}


async def members_of(gateway: Gateway, name: str) -> view_pb2.StreamView:
    return next(stream for stream in await gateway.streams() if stream.name == name)


async def replica_at(gateway: Gateway, name: str) -> data_pb2.ReplicaInfo | None:
    return next((item for item in (await gateway.replicas()).replicas if item.stream == name), None)


async def stopped_with_a_copy(mesh: Trio, name: str, copy: Path) -> None:
    """Copies c's disk while it is stopped; starts c again and lets b see it."""
    mesh.sites["c"].stop_service("data")
    shutil.copytree(volume(mesh.sites["c"]), copy)
    mesh.sites["c"].start_service("data")

    async def is_back() -> bool:
        replica = await replica_at(mesh.gateways["c"], name)
        has_leader = replica is not None and bool(replica.leader)
        return has_leader and knows(store_files(mesh.sites["b"]), store_files(mesh.sites["c"]))

    await eventually("c is back and b has noted its store", is_back, 60)


@pytest.mark.parametrize("damage", ["rolled back", "wiped"])
async def test_a_disk_that_forgot_elects_nobody_and_is_renewed(mesh: Trio, damage: str, tmp_path: Path) -> None:
    name = f"disks/{damage.replace(' ', '-')}"
    await mesh.create_stream(name)
    await mesh.gateways["a"].transfer_leader(name, "a")
    before = await members_of(mesh.gateways["a"], name)
    async with publishing(mesh.gateways["a"], name) as workload:
        await stopped_with_a_copy(mesh, name, tmp_path / "copy")
        mesh.sites["b"].kill_service("data")
        await workload.progress()  # on a and c
    mesh.sites["c"].kill_service("data")
    shutil.rmtree(volume(mesh.sites["c"]))
    if damage == "rolled back":
        shutil.copytree(tmp_path / "copy", volume(mesh.sites["c"]))
    mesh.sites["a"].kill_service("data")
    mesh.sites["b"].start_service("data")
    mesh.sites["c"].start_service("data")

    async def is_told() -> bool:
        replica = await replica_at(mesh.gateways["c"], name)
        return replica is not None and damage in replica.reason and "node b has seen" in replica.reason

    await eventually("c knows that its disk forgot", is_told, 60)
    left = await eventually("b answers", lambda: replica_at(mesh.gateways["b"], name))
    assert left.role != "leader"
    mesh.sites["a"].start_service("data")

    async def is_renewed() -> bool:
        now = await members_of(mesh.gateways["a"], name)
        live = await mesh.gateways["b"].describe(name)
        voters = {member.node for member in live.members if member.is_voter}
        is_new = [item.member_id for item in now.members] != [item.member_id for item in before.members]
        return is_new and not now.retiring and voters == {"a", "b", "c"} and not live.change

    await eventually("c has another membership", is_renewed, 90)
    await held_by(mesh.gateways["c"], name, len(workload.acknowledged()))
    await check(mesh, workload)


@pytest.mark.parametrize("damage", ["rolled back", "wiped"])
async def test_a_control_plane_whose_log_forgot_is_another_member_of_its_group(
    mesh: Trio, damage: str, tmp_path: Path
) -> None:
    sites, gateways = mesh.sites, mesh.gateways
    before, name = f"disks/before-{damage[0]}", f"disks/only-a-and-c-{damage[0]}"
    await mesh.create_stream(before, ["a", "b"])
    sites["c"].stop_service("control")
    shutil.copytree(control_log(sites["c"]), tmp_path / "copy")
    sites["c"].start_service("control")

    async def is_back() -> bool:
        has_quorum = (await gateways["c"].status()).has_quorum
        logs = {site: StoreFiles(control_log(sites[site]), None) for site in ("b", "c")}
        return has_quorum and knows(logs["b"], logs["c"])

    await eventually("c is back and b has noted its store", is_back, 60)
    sites["b"].kill_service("control")

    async def is_created() -> bool:
        try:
            await gateways["c"].create_stream(name, ["a", "c"])
        except MeshError as error:
            return error.code is ErrorCode.STREAM_EXISTS
        return True

    await eventually("a and c commit what b never gets", is_created, 60)
    sites["c"].kill_service("control")
    sites["a"].kill_service("control")
    shutil.rmtree(control_log(sites["c"]))
    if damage == "rolled back":
        shutil.copytree(tmp_path / "copy", control_log(sites["c"]))
    sites["b"].start_service("control")
    sites["c"].start_service("control")

    async def is_told() -> bool:
        return any(damage in warning for warning in (await gateways["c"].status()).warnings)

    await eventually("c knows that its log forgot", is_told, 60)

    async def is_alone() -> bool:
        return not (await gateways["b"].status()).has_quorum

    await eventually("b is back, and without a quorum", is_alone, 60)
    sites["a"].start_service("control")

    async def is_whole() -> bool:
        status = await gateways["c"].status()
        names = {stream.name for stream in status.view.streams}
        told = any(damage in warning for warning in status.warnings)
        voters = [node.name for node in status.view.nodes if node.is_voter]
        return status.has_quorum and {before, name} <= names and not told and sorted(voters) == ["a", "b", "c"]

    await eventually("c is another member, with everything that was committed", is_whole, 90)
    await gateways["c"].create_stream(f"disks/after-{damage[0]}", ["b", "c"])
