"""Disks of control planes that lose what they confirmed: silent in the group, whoever leads, then another member of it.

Architecture §7: a wiped or rolled-back disk is recognised and its membership retired, never trusted.
"""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING

import pytest

from mesh_control.shell.peer_calls import Method
from meshapi.control.v1 import join_pb2, mcg_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.store_files import PEERS_FILE, StoreFiles
from meshwire.packet import Protocol, TrafficClass

if TYPE_CHECKING:
    from pathlib import Path

    from tests.shell.conftest import OneNode, SmallMesh


def log_of(mesh: SmallMesh, name: str) -> Path:
    return mesh.directory / name / "raft"


def knows(mesh: SmallMesh, name: str, other: str) -> bool:
    """Whether a node has noted the present incarnation of another one's store."""
    record = StoreFiles(log_of(mesh, other), None).read().record
    seen = StoreFiles(log_of(mesh, name), None).read_peers().seen
    return record is not None and record.lineage.present.incarnation_id in {
        item.incarnation_id for item in seen.values()
    }


def is_led(mesh: SmallMesh) -> bool:
    return mesh.leader() is not None


def streams(node: OneNode) -> set[str]:
    return {stream.name for stream in node.node.require_mcg().state.streams.values()}


def is_renewed(node: OneNode) -> bool:
    mcg = node.node.mcg
    return mcg is not None and not node.node.is_distrusted and mcg.place.mcg_member > 3


async def create(node: OneNode, name: str) -> None:
    await node.proposer.propose(mcg_pb2.Command(create_stream=mcg_pb2.CreateStream(name=name, node_ids=[1, 2])))


async def confirmed_without_b(mesh: SmallMesh) -> Path:
    """A and C commit what B never gets; then all three are down. Returns a copy of C's log from before."""
    await mesh.grow("a", "b", "c")
    await mesh.eventually(lambda: len(mesh.nodes["a"].node.require_mcg().raft_status().voters) == 3)
    await create(mesh.nodes["a"], "demo/before")
    await mesh.eventually(lambda: all(streams(node) == {"demo/before"} for node in mesh.nodes.values()))
    await mesh.crash("c")
    copy = mesh.directory / "copy"
    shutil.copytree(log_of(mesh, "c"), copy)
    back = mesh.start("c")
    await mesh.eventually(lambda: knows(mesh, "b", "c") and back.node.require_mcg().leader_view().has_quorum)
    await mesh.crash("b")
    await mesh.eventually(lambda: is_led(mesh))
    await create(mesh.nodes["c"], "demo/only-a-and-c")
    await mesh.crash("c")
    await mesh.crash("a")
    return copy


async def lead_nobody(mesh: SmallMesh) -> None:
    """B and C are a majority, and must not decide without what A and C confirmed."""
    await asyncio.sleep(5 * mesh.timing.tick_s * mesh.timing.election_ticks)
    assert mesh.leader() is None


@pytest.mark.parametrize("damage", ["rolled back", "wiped"])
async def test_a_log_that_forgot_elects_nobody_and_its_node_becomes_another_member(
    mesh: SmallMesh, damage: str
) -> None:
    copy = await confirmed_without_b(mesh)
    shutil.rmtree(log_of(mesh, "c"))
    if damage == "rolled back":
        shutil.copytree(copy, log_of(mesh, "c"))
    mesh.start("b")
    back = mesh.start("c")
    await mesh.eventually(lambda: back.node.is_distrusted)
    assert damage in back.node.store.reason
    await mesh.eventually(lambda: any(damage in warning for warning in back.readiness.warnings()))
    await lead_nobody(mesh)
    mesh.start("a")
    await mesh.eventually(lambda: is_renewed(back) and streams(back) == {"demo/before", "demo/only-a-and-c"}, 30)
    await mesh.eventually(lambda: is_led(mesh))
    leader = mesh.leader()
    assert leader is not None
    renewed = back.node.require_mcg().place.mcg_member
    await mesh.eventually(lambda: sorted(leader.node.require_mcg().raft_status().voters) == [1, 2, renewed])
    await create(back, "demo/after")
    await mesh.eventually(lambda: len({node.node.require_mcg().state.digest() for node in mesh.nodes.values()}) == 1)
    await mesh.eventually(lambda: back.readiness.warnings() == [])
    again = await mesh.restart("c")
    await mesh.eventually(lambda: again.node.require_mcg().leader_view().has_quorum)
    assert not again.node.is_distrusted


async def test_without_the_exchange_it_would_be_lost(mesh: SmallMesh) -> None:
    """The mistake planted: what B remembers of C is taken from it. The test above can fail."""
    copy = await confirmed_without_b(mesh)
    shutil.rmtree(log_of(mesh, "c"))
    shutil.copytree(copy, log_of(mesh, "c"))
    (log_of(mesh, "b") / PEERS_FILE).unlink()
    mesh.start("b")
    mesh.start("c")
    await mesh.eventually(lambda: is_led(mesh))
    leader = mesh.leader()
    assert leader is not None
    await create(leader, "demo/fork")
    assert streams(leader) == {"demo/before", "demo/fork"}


async def test_a_restart_of_all_is_no_rollback(mesh: SmallMesh) -> None:
    await mesh.grow("a", "b", "c")
    for name in ("a", "b", "c"):
        await mesh.restart(name)
    await mesh.eventually(lambda: is_led(mesh))
    for name in ("a", "b", "c"):
        await mesh.crash(name)
    for name in ("c", "b", "a"):
        mesh.start(name)
    await mesh.eventually(lambda: all(node.node.require_mcg().leader_view().has_quorum for node in mesh.nodes.values()))
    assert not any(node.node.is_distrusted for node in mesh.nodes.values())


async def test_nobody_renews_another_and_malformed_messages_change_nothing(mesh: SmallMesh) -> None:
    a, b = await mesh.grow("a", "b")
    a.send(Protocol.RAFT_MCG, TrafficClass.CONTROL, b.node.node_id, b"\x02\x63")
    command = mcg_pb2.Command(renew_member=mcg_pb2.RenewMember(node_id=1))
    request = join_pb2.ProposeRequest(command=command, proposal_id=1)
    with pytest.raises(MeshError) as refused:
        await b.calls.call(Method.PROPOSE, request.SerializeToString(), 5.0, peer=a.node.node_id)
    assert refused.value.code is ErrorCode.INVALID_ARGUMENT
    await create(b, "demo/lines")
    assert not b.node.is_distrusted
