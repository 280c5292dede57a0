"""A node whose software is older than the mesh: it stops applying, says so, still stores and acknowledges, and goes on after an update."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mesh_control.core.versions import MESH_VERSION
from meshapi.control.v1 import mcg_pb2
from meshapi.supervisor.v1 import mesh_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId

if TYPE_CHECKING:
    from tests.shell.conftest import OneNode, SmallMesh

NEWER = MESH_VERSION + 1


def create(name: str, *, min_version: int = 0) -> mcg_pb2.Command:
    stream = mcg_pb2.CreateStream(name=name, node_ids=[1, 2])
    return mcg_pb2.Command(create_stream=stream, min_version=min_version)


def version(node: OneNode) -> int:
    return node.node.require_mcg().state.mesh_version


async def upgraded(mesh: SmallMesh) -> OneNode:
    """A mesh of a, b and c at the newer version, in which c then came back with old software; returns c."""
    for name in "abc":
        mesh.supported[name] = NEWER
    await mesh.grow("a", "b", "c")
    state = mesh.nodes["a"].node.require_mcg().state
    await mesh.eventually(lambda: all(version(node) == NEWER for node in mesh.nodes.values()))
    await mesh.eventually(lambda: sum(node.is_voter for node in state.nodes.values()) == 3)
    mesh.supported["c"] = MESH_VERSION
    return await mesh.restart("c")


async def test_version_rises_by_itself_when_the_last_node_is_updated(mesh: SmallMesh) -> None:
    a, b = await mesh.grow("a", "b")
    mesh.supported["a"] = NEWER
    a = await mesh.restart("a")
    await mesh.eventually(lambda: b.node.require_mcg().state.nodes[NodeId(1)].mesh_version == NEWER)
    with pytest.raises(MeshError) as caught:
        await a.proposer.propose(create("x/y", min_version=NEWER))
    assert caught.value.code is ErrorCode.MESH_VERSION_TOO_LOW
    assert version(a) == MESH_VERSION
    mesh.supported["b"] = NEWER
    b = await mesh.restart("b")
    await mesh.eventually(lambda: version(a) == version(b) == NEWER)
    await a.proposer.propose(create("x/y", min_version=NEWER))


async def test_node_that_is_too_old_is_not_admitted(mesh: SmallMesh) -> None:
    mesh.supported = {"a": NEWER}
    (a,) = await mesh.grow("a")
    await mesh.eventually(lambda: version(a) == NEWER)
    with pytest.raises(MeshError) as caught:
        await mesh.start("b").lifecycle.join("ws://a:1", "", trust_first=True)
    assert caught.value.code is ErrorCode.UPDATE_REQUIRED
    assert len(a.node.require_mcg().state.nodes) == 1


async def test_old_node_stops_says_so_and_goes_on_after_an_update(mesh: SmallMesh) -> None:
    old = await upgraded(mesh)
    mcg = old.node.require_mcg()
    await mesh.eventually(lambda: mcg.beyond is not None)
    await mesh.eventually(lambda: not old.readiness.is_ready)
    assert any("UPDATE_REQUIRED" in reason and f"version {NEWER}" in reason for reason in old.readiness.reasons())
    with pytest.raises(MeshError) as caught:
        await old.proposer.propose(create("x/old"))
    assert caught.value.code is ErrorCode.UPDATE_REQUIRED
    applied = mcg.state.applied_index
    answer = await old.service.GetStatus(mesh_pb2.GetStatusRequest(), None)
    assert [node.name for node in answer.view.nodes][:1] == ["a"]
    # It still stores and acknowledges: with it alone the others have a quorum.
    others = [node for node in mesh.nodes.values() if node is not old]
    await mesh.eventually(lambda: mesh.leader() in others)
    leader = mesh.leader()
    assert leader is not None
    mesh.cut_off = {node.name for node in others if node is not leader}
    await leader.proposer.propose(create("x/new"))
    mesh.cut_off = set()
    assert mcg.state.applied_index == applied
    mcg.compact()
    assert mcg.raft_status().first_index <= applied + 1
    mesh.supported["c"] = NEWER
    updated = await mesh.restart("c")
    digest = leader.node.require_mcg().state.digest
    await mesh.eventually(lambda: bool(updated.node.revision) and updated.node.require_mcg().state.digest() == digest())
    assert updated.node.require_mcg().beyond is None


async def test_old_node_that_is_elected_hands_over(mesh: SmallMesh) -> None:
    old = await upgraded(mesh)
    await mesh.eventually(lambda: old.node.require_mcg().beyond is not None)
    await mesh.eventually(lambda: mesh.leader() not in (None, old))
    leader = mesh.leader()
    assert leader is not None

    def is_handed_over() -> bool:
        # Raft gives a transfer up that takes too long, so it is asked for until it is done.
        leader.node.require_mcg().transfer_leadership(old.node.require_mcg().place.mcg_member)
        return mesh.leader() is not leader

    await mesh.eventually(is_handed_over)
    await mesh.eventually(lambda: mesh.leader() not in (None, old))
    other = mesh.leader()
    assert other is not None
    await other.proposer.propose(create("x/y"))


async def test_snapshot_of_a_newer_mesh_is_kept_for_newer_software(mesh: SmallMesh) -> None:
    old = await upgraded(mesh)
    await mesh.eventually(lambda: old.node.require_mcg().beyond is not None)
    await mesh.crash("c")
    a = mesh.nodes["a"]
    for number in range(5):
        await a.proposer.propose(create(f"x/s{number}"))
    for node in mesh.nodes.values():
        node.node.require_mcg().compact()
    old = mesh.start("c")
    commit = a.node.require_mcg().raft_status().commit
    await mesh.eventually(lambda: old.node.require_mcg().raft_status().commit >= commit)
    assert old.node.require_mcg().beyond is not None
    assert not old.node.require_mcg().state.streams
    mesh.supported["c"] = NEWER
    updated = await mesh.restart("c")
    await mesh.eventually(lambda: len(updated.node.require_mcg().state.streams) == 5)
