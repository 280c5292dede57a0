"""A lost node is forgotten, and one whose disk was wiped comes back under its name."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from mesh_control.core.join_plan import plan_join
from mesh_control.core.model import MeshStatus
from mesh_control.shell.peer_calls import Method
from meshapi.control.v1 import mcg_pb2
from meshapi.supervisor.v1 import mesh_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId
from meshcommon.overlay_calls import Caller

if TYPE_CHECKING:
    from tests.shell.conftest import OneNode, SmallMesh


async def forget(node: OneNode, name: str, *, accept_risk: bool = False) -> list[str]:
    request = mesh_pb2.ForgetNodeRequest(name=name, accept_risk=accept_risk)
    return list((await node.service.ForgetNode(request, None)).streams)


async def not_forgotten(node: OneNode, name: str) -> MeshError:
    with pytest.raises(MeshError) as caught:
        await forget(node, name)
    return caught.value


async def wipe(mesh: SmallMesh, name: str) -> OneNode:
    """Starts the node on an empty disk."""
    await mesh.crash(name)
    shutil.rmtree(mesh.directory / name)
    return mesh.start(name)


async def test_wiped_node_comes_back_under_its_name(mesh: SmallMesh) -> None:
    a, _b, c = await mesh.grow("a", "b", "c")
    await mesh.eventually(lambda: sum(node.is_voter for node in a.node.require_mcg().state.nodes.values()) == 3)
    create = mcg_pb2.CreateStream(name="x/y", node_ids=[1, 2, 3])
    stream = (await a.proposer.propose(mcg_pb2.Command(create_stream=create))).allocated_id
    await a.proposer.propose(mcg_pb2.Command(stream_formed=mcg_pb2.StreamFormed(stream_id=stream)))
    key = c.node.identity.public_key
    wiped = await wipe(mesh, "c")
    state = a.node.require_mcg().state
    await mesh.eventually(lambda: not state.nodes[NodeId(3)].is_reachable)
    with pytest.raises(MeshError) as caught:
        await wiped.lifecycle.join("ws://a:1", "", trust_first=True)
    assert caught.value.code is ErrorCode.NAME_TAKEN
    assert "`meshctl node forget c`" in caught.value.message
    assert await forget(a, "c") == ["x/y"]
    assert (state.status, set(state.nodes)) == (MeshStatus.HEALTHY, {1, 2})
    place = await wiped.lifecycle.join("ws://a:1", "", trust_first=True)
    assert (place.node_id, wiped.node.identity.public_key != key) == (4, True)
    await mesh.eventually(lambda: sum(node.is_voter for node in state.nodes.values()) == 3)
    assert (await not_forgotten(a, "d")).code is ErrorCode.UNKNOWN_NODE


async def test_node_that_is_heard_or_spoke_just_now_is_not_forgotten(mesh: SmallMesh) -> None:
    nodes = await mesh.grow("a", "b", "c")
    leader = mesh.leader()
    assert leader is not None
    other = next(node for node in nodes if node is not leader)
    asked = next(node for node in nodes if node not in (leader, other))
    for name in (leader.name, other.name):
        assert (await not_forgotten(asked, name)).code is ErrorCode.NODE_IS_HEARD
    # The leader hears it, whatever was committed: the word is seconds old.
    judge = leader.node.require_leadership()._reachability
    judge.changes = lambda *_arguments: []  # type: ignore[method-assign]
    silence = mcg_pb2.SetReachability(node_id=other.node.node_id, is_reachable=False)
    await leader.proposer.propose(mcg_pb2.Command(set_reachability=silence))
    assert not leader.node.require_mcg().state.nodes[other.node.node_id].is_reachable
    assert (await not_forgotten(leader, other.name)).code is ErrorCode.NODE_IS_HEARD


async def test_member_that_lags_catches_up_before_it_knows_no_such_node(mesh: SmallMesh) -> None:
    """A node admitted by another member, which the asked one has not heard of, is no unknown node."""
    a, b = await mesh.grow("a", "b")
    mcg, hears = b.node.require_mcg(), b.node.receive_raft
    catches_up = mcg.catch_up
    b.node.receive_raft = lambda peer, frame: None  # type: ignore[method-assign]
    place = await mesh.start("c").lifecycle._ask_for_a_place(plan_join("ws://a:1", "", "", trust_first=True))
    assert place.node_id not in mcg.state.nodes

    async def catch_up(timeout_s: float) -> bool:
        b.node.receive_raft = hears  # type: ignore[method-assign]
        return await catches_up(timeout_s)

    mcg.catch_up = catch_up  # type: ignore[method-assign]
    assert await forget(b, "c") == []
    assert place.node_id not in a.node.require_mcg().state.nodes


async def test_stream_that_would_lose_its_quorum_needs_consent(mesh: SmallMesh) -> None:
    a, _b = await mesh.grow("a", "b")
    create = mcg_pb2.CreateStream(name="x/y", node_ids=[1, 2])
    stream = (await a.proposer.propose(mcg_pb2.Command(create_stream=create))).allocated_id
    await a.proposer.propose(mcg_pb2.Command(stream_formed=mcg_pb2.StreamFormed(stream_id=stream)))
    await mesh.crash("b")
    state = a.node.require_mcg().state
    await mesh.eventually(lambda: state.status is MeshStatus.CRITICAL)
    error = await not_forgotten(a, "b")
    assert (error.code, error.details) == (ErrorCode.STREAMS_AT_RISK, {"streams": "x/y"})
    assert await forget(a, "b", accept_risk=True) == ["x/y"]
    assert state.status is MeshStatus.HEALTHY


async def test_forgotten_node_that_comes_back_is_told_and_may_leave_and_join_again(mesh: SmallMesh) -> None:
    mesh.ask_after_s = 0.3
    a, _b, _c = await mesh.grow("a", "b", "c")
    state = a.node.require_mcg().state
    await mesh.eventually(lambda: sum(node.is_voter for node in state.nodes.values()) == 3)
    await mesh.crash("c")
    await mesh.eventually(lambda: not state.nodes[NodeId(3)].is_reachable)
    await forget(a, "c")
    back = mesh.start("c")
    await mesh.eventually(lambda: back.node.is_removed)
    status = await back.service.GetStatus(mesh_pb2.GetStatusRequest(), None)
    assert any("removed from the mesh" in warning for warning in status.warnings)
    with pytest.raises(MeshError) as caught:
        await back.proposer.propose(mcg_pb2.Command(create_stream=mcg_pb2.CreateStream(name="x/y", node_ids=[1, 2])))
    assert caught.value.code is ErrorCode.UNKNOWN_NODE
    await back.lifecycle.leave()
    assert (await back.lifecycle.join("ws://a:1", "", trust_first=True)).node_id == 4


async def test_member_that_is_only_cut_off_is_told_nothing_of_the_kind(mesh: SmallMesh) -> None:
    mesh.ask_after_s = 0.1
    nodes = await mesh.grow("a", "b", "c")
    await mesh.eventually(lambda: sum(node.is_voter for node in nodes[0].node.require_mcg().state.nodes.values()) == 3)
    asked: list[int] = []
    respond = nodes[0].calls._handlers[int(Method.STANDING)]

    async def counted(caller: Caller, body: bytes, timeout_s: float) -> bytes:
        asked.append(caller.node)
        return await respond(caller, body, timeout_s)

    for node in nodes[:2]:
        node.calls.serve(Method.STANDING, counted)
    mesh.cut_off = {"c"}
    await mesh.eventually(lambda: len(asked) >= 2)
    assert not nodes[2].node.is_removed
    mesh.cut_off = set()
    await mesh.eventually(lambda: nodes[2].node.require_mcg().leader_view().has_quorum)
