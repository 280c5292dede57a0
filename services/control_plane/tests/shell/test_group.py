"""The Mesh Control Group end to end in one process: seed, join, crash, restart, leave."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from mesh_control.core.model import MeshStatus, NodeState
from meshapi.control.v1 import mcg_pb2
from meshapi.supervisor.v1 import mesh_pb2
from meshcommon.errors import ErrorCode, MeshError

if TYPE_CHECKING:
    from tests.shell.conftest import OneNode, SmallMesh


def status(node: OneNode) -> MeshStatus:
    assert node.node.mcg is not None
    return node.node.mcg.state.status


def digests(nodes: list[OneNode]) -> set[str]:
    return {node.node.require_mcg().state.digest() for node in nodes}


def voters(mesh: SmallMesh) -> set[str]:
    leader = mesh.leader()
    if leader is None:
        return set()
    return {node.name for node in leader.node.require_mcg().state.nodes.values() if node.is_voter}


async def create(node: OneNode, name: str, members: list[int]) -> int:
    command = mcg_pb2.Command(create_stream=mcg_pb2.CreateStream(name=name, node_ids=members))
    return (await node.proposer.propose(command)).allocated_id


async def test_seeded_node_leads_a_healthy_mesh_of_one(mesh: SmallMesh) -> None:
    (a,) = await mesh.grow("a")
    answer = await a.service.GetStatus(mesh_pb2.GetStatusRequest(), None)
    assert (answer.node_id, answer.mcg_leader, answer.has_quorum, answer.is_running) == (1, 1, True, True)
    assert status(a) is MeshStatus.HEALTHY


async def test_three_nodes_agree_and_all_vote(mesh: SmallMesh) -> None:
    nodes = await mesh.grow("a", "b", "c")
    assert [node.node.node_id for node in nodes] == [1, 2, 3]
    await mesh.eventually(lambda: voters(mesh) == {"a", "b", "c"})
    await create(nodes[2], "demo/lines", [1, 2, 3])
    await mesh.eventually(lambda: len(digests(nodes)) == 1)
    assert all(status(node) is MeshStatus.HEALTHY for node in nodes)


async def test_group_forms_over_a_lossy_overlay(mesh: SmallMesh) -> None:
    mesh.loss = 0.15
    nodes = await mesh.grow("a", "b", "c")
    for number in range(10):
        await create(nodes[number % 3], f"demo/s{number}", [1, 2])
    mesh.loss = 0.0
    await mesh.eventually(lambda: len(digests(nodes)) == 1)
    assert len(nodes[0].node.require_mcg().state.streams) == 10


async def test_no_committed_change_is_lost_when_leaders_crash(mesh: SmallMesh) -> None:
    """I1 for the catalogue: what was answered is there after every crash."""
    await mesh.grow("a", "b", "c")
    await mesh.eventually(lambda: voters(mesh) == {"a", "b", "c"})
    for number in range(4):
        leader = mesh.leader()
        assert leader is not None
        name = leader.name
        await create(leader, f"demo/s{number}", [1, 2, 3])
        await mesh.crash(name)
        await mesh.eventually(lambda: mesh.leader() is not None)
        survivor = next(iter(mesh.nodes.values()))
        await create(survivor, f"demo/t{number}", [1, 2, 3])
        mesh.start(name)
    expected = {f"demo/{kind}{number}" for kind in "st" for number in range(4)}
    await mesh.eventually(lambda: len(digests(list(mesh.nodes.values()))) == 1)
    for node in mesh.nodes.values():
        assert {stream.name for stream in node.node.require_mcg().state.streams.values()} == expected


async def test_whole_mesh_restarts_with_its_state(mesh: SmallMesh) -> None:
    nodes = await mesh.grow("a", "b", "c")
    await create(nodes[0], "demo/lines", [1, 2, 3])
    await mesh.eventually(lambda: len(digests(nodes)) == 1)
    before = nodes[0].node.require_mcg().state.view()
    for name in "abc":
        await mesh.crash(name)
    again = [mesh.start(name) for name in "abc"]
    await mesh.eventually(lambda: mesh.leader() is not None and all(node.node.revision for node in again))
    assert {stream.name for stream in again[2].node.require_mcg().state.view().streams} == {"demo/lines"}
    assert again[1].node.require_mcg().state.view().mesh_id == before.mesh_id


async def test_silent_node_degrades_the_mesh_until_it_speaks(mesh: SmallMesh) -> None:
    nodes = await mesh.grow("a", "b", "c")
    await mesh.eventually(lambda: voters(mesh) == {"a", "b", "c"})
    silent = next(node for node in nodes if node is not mesh.leader())
    mesh.cut_off = {silent.name}
    others = [node for node in nodes if node is not silent]
    await mesh.eventually(lambda: all(status(node) is MeshStatus.DEGRADED for node in others))
    await mesh.eventually(lambda: not silent.node.require_mcg().leader_view().has_quorum)
    answer = await silent.service.GetStatus(mesh_pb2.GetStatusRequest(), None)
    assert MeshStatus(answer.view.status) is MeshStatus.CRITICAL
    mesh.cut_off = set()
    await mesh.eventually(lambda: all(status(node) is MeshStatus.HEALTHY for node in nodes))


async def test_without_quorum_a_change_is_answered_with_no_quorum(mesh: SmallMesh) -> None:
    nodes = await mesh.grow("a", "b", "c")
    await mesh.eventually(lambda: voters(mesh) == {"a", "b", "c"})
    mesh.cut_off = {"b", "c"}
    with pytest.raises(MeshError) as caught:
        await nodes[0].proposer.propose(
            mcg_pb2.Command(create_stream=mcg_pb2.CreateStream(name="a/b", node_ids=[1, 2])), timeout_s=1.0
        )
    assert (caught.value.code, caught.value.retryable) == (ErrorCode.NO_QUORUM, True)


async def test_leader_of_two_can_leave(mesh: SmallMesh) -> None:
    """The only voter hands its vote and the leadership over before its removal is committed."""
    a, b = await mesh.grow("a", "b")
    key = a.node.identity.public_key
    await a.lifecycle.leave()
    assert (a.node.membership, a.node.mcg) == (None, None)
    assert a.node.identity.public_key != key
    await mesh.eventually(lambda: b.node.require_mcg().leader_view().is_leader and status(b) is MeshStatus.HEALTHY)
    assert [node.name for node in b.node.require_mcg().state.nodes.values()] == ["b"]
    await a.lifecycle.join("ws://b:1", "", trust_first=True)
    assert a.node.node_id == 3


async def test_each_of_three_can_leave_in_turn(mesh: SmallMesh) -> None:
    nodes = await mesh.grow("a", "b", "c")
    await mesh.eventually(lambda: voters(mesh) == {"a", "b", "c"})
    await nodes[0].lifecycle.leave()
    await nodes[1].lifecycle.leave()
    await mesh.eventually(lambda: voters(mesh) == {"c"})
    with pytest.raises(MeshError) as caught:
        await nodes[2].lifecycle.leave()
    assert caught.value.code is ErrorCode.LAST_NODE


async def test_node_with_a_replica_may_not_leave(mesh: SmallMesh) -> None:
    nodes = await mesh.grow("a", "b", "c")
    await create(nodes[0], "demo/lines", [1, 2])
    with pytest.raises(MeshError) as caught:
        await nodes[1].lifecycle.leave()
    assert caught.value.code is ErrorCode.STREAMS_AT_RISK
    assert caught.value.details == {"streams": "demo/lines"}
    assert nodes[1].node.is_running


async def test_stopped_leader_is_no_failure_and_starts_again(mesh: SmallMesh) -> None:
    nodes = await mesh.grow("a", "b", "c")
    await mesh.eventually(lambda: voters(mesh) == {"a", "b", "c"})
    leader = mesh.leader()
    assert leader is not None
    await leader.lifecycle.stop()
    assert not leader.node.is_running
    with pytest.raises(MeshError) as caught:
        await create(leader, "demo/lines", [1, 2])
    assert caught.value.code is ErrorCode.NODE_STOPPED
    answer = await leader.service.GetStatus(mesh_pb2.GetStatusRequest(), None)
    assert (answer.is_running, answer.has_quorum) == (False, False)
    others = [node for node in nodes if node is not leader]

    def is_stopped_and_healthy() -> bool:
        state = others[0].node.require_mcg().state
        stopped = state.nodes[leader.node.node_id]
        return stopped.state is NodeState.STOPPED and not stopped.is_reachable and state.status == 1

    await mesh.eventually(is_stopped_and_healthy)
    restarted = await mesh.restart(leader.name)
    assert not restarted.node.is_running
    await restarted.lifecycle.start()
    nodes = list(mesh.nodes.values())
    await mesh.eventually(lambda: all(status(node) is MeshStatus.HEALTHY for node in nodes))
    await mesh.eventually(lambda: voters(mesh) == {"a", "b", "c"})
    assert len(restarted.node.require_mcg().state.nodes) == 3


async def test_five_nodes_three_vote_then_five(mesh: SmallMesh) -> None:
    await mesh.grow("a", "b", "c", "d")
    await mesh.eventually(lambda: len(voters(mesh)) == 3)
    fifth = mesh.start("e")
    await fifth.lifecycle.join("ws://d:1", "", trust_first=True)
    await mesh.eventually(lambda: len(voters(mesh)) == 5)


async def test_joining_concurrently_gives_each_a_place(mesh: SmallMesh) -> None:
    await mesh.grow("a")
    newcomers = [mesh.start(name) for name in ("b", "c", "d")]
    places = await asyncio.gather(*(node.lifecycle.join("ws://a:1", "", trust_first=True) for node in newcomers))
    assert sorted(place.node_id for place in places) == [2, 3, 4]


async def test_newcomer_gets_the_state_by_snapshot(mesh: SmallMesh) -> None:
    a, b = await mesh.grow("a", "b")
    for number in range(5):
        await create(a, f"demo/s{number}", [1, 2])
    for node in (a, b):
        node.node.require_mcg().compact()
    c = mesh.start("c")
    await c.lifecycle.join("ws://b:1", "", trust_first=True)
    assert len(c.node.require_mcg().state.streams) == 5
    again = await mesh.restart("c")
    assert len(again.node.require_mcg().state.streams) == 5


async def test_log_is_cut_at_snapshots_and_the_state_survives(mesh: SmallMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """I6: the log does not grow for ever."""
    monkeypatch.setattr("mesh_control.shell.mcg.SNAPSHOT_EVERY_ENTRIES", 10)
    nodes = await mesh.grow("a", "b", "c")
    for number in range(40):
        await create(nodes[number % 3], f"demo/s{number}", [1, 2])
    await mesh.eventually(lambda: len(digests(nodes)) == 1)
    for node in nodes:
        raft = node.node.require_mcg().raft_status()
        assert raft.last_index - raft.first_index < 30
    again = [await mesh.restart(name) for name in "abc"]
    await mesh.eventually(lambda: mesh.leader() is not None and len(digests(again)) == 1)
    assert len(again[1].node.require_mcg().state.streams) == 40


async def test_stream_whose_group_does_not_form_stays_and_says_so(mesh: SmallMesh) -> None:
    """There is no data plane here, so nothing ever forms."""
    a, _b = await mesh.grow("a", "b")
    request = mesh_pb2.CreateStreamRequest(name="demo/lines", members=["a", "b"])
    with pytest.raises(MeshError) as caught:
        await a.service.CreateStream(request, None)
    assert (caught.value.code, caught.value.retryable) == (ErrorCode.STREAM_NOT_FORMED, True)
    with pytest.raises(MeshError) as caught:
        await a.service.CreateStream(request, None)
    assert caught.value.code is ErrorCode.STREAM_EXISTS
    assert caught.value.details["state"] == "FORMING"


async def test_stream_is_found_at_once_on_a_node_that_lags(mesh: SmallMesh) -> None:
    """I13 for the catalogue: a name that is unknown here is looked up again after catching up with the leader."""
    nodes = await mesh.grow("a", "b", "c")
    for number in range(10):
        await create(nodes[0], f"demo/s{number}", [1, 2])
        answer = await nodes[2].service.GetStream(mesh_pb2.GetStreamRequest(name=f"demo/s{number}"), None)
        assert answer.stream.name == f"demo/s{number}"


async def test_catching_up_without_a_quorum_ends_in_time(mesh: SmallMesh) -> None:
    nodes = await mesh.grow("a", "b", "c")
    await mesh.eventually(lambda: voters(mesh) == {"a", "b", "c"})
    mesh.cut_off = {"a", "b", "c"}
    await mesh.eventually(lambda: mesh.leader() is None)
    assert not await nodes[1].node.require_mcg().catch_up(0.5)
