"""Joining: repeats, refusals and lost answers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from mesh_control.core.join_plan import plan_join
from mesh_control.core.limits import JOINING_TIME_MS_MAX
from mesh_control.core.model import MeshStatus, NodeState
from mesh_control.core.versions import MESH_VERSION
from mesh_control.shell.peer_calls import Method
from meshapi.control.v1 import join_pb2, mcg_pb2
from meshapi.overlay.v1 import overlay_pb2
from meshapi.supervisor.v1 import mesh_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId
from meshwire.packet import Protocol

if TYPE_CHECKING:
    from tests.shell.conftest import OneNode, SmallMesh


async def refused(mesh: SmallMesh, node: OneNode, address: str, mesh_id: str = "") -> MeshError:
    with pytest.raises(MeshError) as caught:
        await node.lifecycle.join(address, mesh_id, trust_first=True)
    assert caught.value.code is ErrorCode.ALREADY_MEMBER or node.node.membership is None
    return caught.value


async def test_refusals_leave_the_node_where_it_was(mesh: SmallMesh) -> None:
    a, b = await mesh.grow("a", "b")
    c = mesh.start("c")
    assert (await refused(mesh, c, "b:1")).code is ErrorCode.INVALID_ARGUMENT
    assert (await refused(mesh, c, "ws://nobody:1")).code is ErrorCode.ADDRESS_UNREACHABLE
    assert (await refused(mesh, c, "ws://a:1", "other")).code is ErrorCode.INVALID_ARGUMENT
    other = "00000000-0000-4000-8000-000000000000"
    assert (await refused(mesh, c, "ws://a:1", other)).code is ErrorCode.MESH_ID_MISMATCH
    assert (await refused(mesh, b, "ws://a:1")).code is ErrorCode.ALREADY_MEMBER
    with pytest.raises(MeshError) as caught:
        await a.lifecycle.seed()
    assert caught.value.code is ErrorCode.ALREADY_MEMBER
    assert len(a.node.require_mcg().state.nodes) == 2


async def test_address_of_a_node_in_no_mesh_is_refused(mesh: SmallMesh) -> None:
    mesh.start("a")
    b = mesh.start("b")
    assert (await refused(mesh, b, "ws://a:1")).code is ErrorCode.NOT_A_MEMBER


async def test_taken_name_is_refused(mesh: SmallMesh) -> None:
    await mesh.grow("a", "b")
    stranger = mesh.start("c")
    stranger.node.name = "b"
    assert (await refused(mesh, stranger, "ws://a:1")).code is ErrorCode.NAME_TAKEN


async def test_join_goes_on_over_another_lane_when_one_dies(mesh: SmallMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    (a,) = await mesh.grow("a")
    mesh.timing = replace(mesh.timing, proposal_deadline_s=3.0)
    b = mesh.start("b")
    lanes: list[int] = []
    open_lane = mesh.open_join_lane

    def one_that_dies(joiner: OneNode, address: str) -> overlay_pb2.OpenJoinLaneResponse:
        opened = open_lane(joiner, address)
        if not lanes:
            mesh.lanes[opened.lane_id] = (joiner, "nobody")
        lanes.append(opened.lane_id)
        return opened

    monkeypatch.setattr(mesh, "open_join_lane", one_that_dies)
    place = await b.lifecycle.join("ws://a:1", "", trust_first=True)
    assert (place.node_id, len(lanes), mesh.lanes) == (2, 2, {})
    assert len(a.node.require_mcg().state.nodes) == 2


async def test_newcomer_is_told_that_the_mesh_has_no_quorum(mesh: SmallMesh) -> None:
    await mesh.grow("a", "b", "c")
    await mesh.eventually(lambda: len(mesh.nodes["a"].node.require_mcg().raft_status().voters) == 3)
    mesh.cut_off = {"b", "c"}
    mesh.timing = replace(mesh.timing, proposal_deadline_s=3.0)
    assert (await refused(mesh, mesh.start("d"), "ws://a:1")).code is ErrorCode.NO_QUORUM


async def test_join_whose_answer_was_lost_gets_the_same_place(mesh: SmallMesh) -> None:
    """The crash comes after the admission was committed and before the newcomer knew."""
    a, _b = await mesh.grow("a", "b")
    c = mesh.start("c")
    command = mcg_pb2.Command()
    command.add_node.name = "c"
    command.add_node.public_key = c.node.identity.public_key
    command.add_node.mesh_version = MESH_VERSION
    admitted = (await a.proposer.propose(command)).allocated_id
    again = await mesh.restart("c")
    place = await again.lifecycle.join("ws://a:1", "", trust_first=True)
    assert place.node_id == admitted == 3
    assert len(a.node.require_mcg().state.nodes) == 3


async def test_newcomer_that_crashed_before_it_heard_anything_goes_on(mesh: SmallMesh) -> None:
    """Its place is on disk but its replica is blank: its first view tells it whom to listen to."""
    await mesh.grow("a", "b")
    c = mesh.start("c")
    membership = await c.lifecycle._ask_for_a_place(plan_join("ws://a:1", "", "", trust_first=True))
    mesh.cut_off = {"c"}
    c.node.enter(membership)
    again = await mesh.restart("c")
    view = again.node.view()
    assert view is not None
    assert (len(view.nodes), len(again.node.require_mcg().state.nodes)) == (3, 0)
    mesh.cut_off = set()
    await mesh.eventually(lambda: again.node.is_listed)


async def test_join_is_carried_over_a_member_that_does_not_lead(mesh: SmallMesh) -> None:
    nodes = await mesh.grow("a", "b", "c")
    follower = next(node for node in nodes if node is not mesh.leader())
    d = mesh.start("d")
    place = await d.lifecycle.join(follower.peer_address, "", trust_first=True)
    assert place.node_id == 4


async def test_only_members_propose_and_only_what_is_theirs_to_propose(mesh: SmallMesh) -> None:
    a, b = await mesh.grow("a", "b")
    request = join_pb2.ProposeRequest(proposal_id=5)
    request.command.set_voters.node_ids.append(2)
    with pytest.raises(MeshError) as caught:
        await b.calls.call(Method.PROPOSE, request.SerializeToString(), 5.0, peer=NodeId(1))
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    with pytest.raises(MeshError) as caught:
        await b.calls.call(Method.JOIN, b"", 5.0, peer=NodeId(1))
    assert caught.value.code is ErrorCode.ALREADY_MEMBER
    with pytest.raises(MeshError) as caught:
        await b.calls.call(Method.PROPOSE, b"\xff\xff", 5.0, peer=NodeId(1))
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    stranger = mesh.start("x")
    lane = mesh.open_join_lane(stranger, "ws://a:1")
    with stranger.calls.join_lane(lane.lane_id):
        for method, body, code in (
            (Method.PROPOSE, request.SerializeToString(), ErrorCode.NOT_A_MEMBER),
            (Method.JOIN, b"\xff\xff", ErrorCode.INVALID_ARGUMENT),
            (9, b"", ErrorCode.INVALID_ARGUMENT),
        ):
            with pytest.raises(MeshError) as caught:
                await stranger.calls.call(method, body, 5.0, lane_id=lane.lane_id)
            assert caught.value.code is code
    assert len(a.node.require_mcg().state.nodes) == 2


async def test_garbage_from_peers_is_dropped(mesh: SmallMesh) -> None:
    a, _b = await mesh.grow("a", "b")
    for protocol in (Protocol.JOIN, Protocol.RAFT_MCG):
        for payload in (b"", b"\x00", b"\xff" * 40):
            a.receive(overlay_pb2.InPacket(protocol=protocol, source=2, payload=payload))
    await a.proposer.propose(mcg_pb2.Command(create_stream=mcg_pb2.CreateStream(name="x/y", node_ids=[1, 2])))


async def test_call_to_a_silent_peer_ends_at_its_deadline(mesh: SmallMesh) -> None:
    a, _b = await mesh.grow("a", "b")
    mesh.cut_off = {"b"}
    with pytest.raises(MeshError) as caught:
        await a.calls.call(Method.PROPOSE, b"", 0.3, peer=NodeId(2))
    assert caught.value.code is ErrorCode.DEADLINE_EXCEEDED


async def ask_to_join(mesh: SmallMesh, stranger: OneNode, request: join_pb2.JoinRequest) -> join_pb2.JoinResponse:
    """Sends `request` over a join lane of `stranger`, whose key the lane proves."""
    lane = mesh.open_join_lane(stranger, "ws://a:1")
    with stranger.calls.join_lane(lane.lane_id):
        body = await stranger.calls.call(Method.JOIN, request.SerializeToString(), 5.0, lane_id=lane.lane_id)
    return join_pb2.JoinResponse.FromString(body)


async def test_only_the_key_that_the_lane_proved_is_admitted(mesh: SmallMesh) -> None:
    """A stranger could once take any key, and so the place of a node that had not come yet."""
    (a,) = await mesh.grow("a")
    stranger = mesh.start("x")
    with pytest.raises(MeshError) as caught:
        await ask_to_join(mesh, stranger, join_pb2.JoinRequest(name="x", public_key=b"k" * 32))
    assert caught.value.code is ErrorCode.KEY_MISMATCH
    assert len(a.node.require_mcg().state.nodes) == 1


async def test_repeated_join_changes_nothing(mesh: SmallMesh) -> None:
    """A repeat could once move the address of a member."""
    a, b = await mesh.grow("a", "b")
    state = a.node.require_mcg().state
    before = state.nodes[NodeId(2)]
    request = join_pb2.JoinRequest(name="b", public_key=b.node.identity.public_key, peer_address="ws://elsewhere:9")
    stranger = mesh.start("x")
    stranger.node.identity = b.node.identity
    assert (await ask_to_join(mesh, stranger, request)).node_id == 2
    assert state.nodes[NodeId(2)] == before


@pytest.mark.parametrize(
    "fields",
    [
        {"mesh_id": "m" * 66_000},
        {"mesh_id": "\x00"},
        {"name": "n" * 66_000},
        {"name": "x\x01"},
        {"public_key": b""},
        {"peer_address": "ws://u@\u00e9:1"},
        {"peer_address": "ws://" + "a" * 1_900_000 + ":1"},
    ],
    ids=range(7),
)
async def test_request_that_is_not_sound_is_refused_and_costs_nothing(mesh: SmallMesh, fields: dict[str, Any]) -> None:
    (a,) = await mesh.grow("a")
    stranger = mesh.start("x")
    mcg = a.node.require_mcg()
    # The founding and the leader's first entry; nothing follows by itself.
    await mesh.eventually(lambda: mcg.state.applied_index >= 2)
    applied = mcg.state.applied_index
    sound: dict[str, Any] = {"name": "x", "public_key": stranger.node.identity.public_key}
    with pytest.raises(MeshError) as caught:
        await ask_to_join(mesh, stranger, join_pb2.JoinRequest(**(sound | fields)))
    assert caught.value.code in {ErrorCode.INVALID_ARGUMENT, ErrorCode.ILLEGAL_NAME}
    assert len(caught.value.message) < 500
    assert a.node.require_mcg().state.applied_index == applied


async def test_strangers_that_never_speak_neither_count_nor_stay(mesh: SmallMesh) -> None:
    """Three of them once made a mesh of three CRITICAL, and were given votes."""
    nodes = await mesh.grow("a", "b", "c")
    for number in range(3):
        stranger = mesh.start(f"x{number}")
        key = stranger.node.identity.public_key
        await ask_to_join(
            mesh, stranger, join_pb2.JoinRequest(name=stranger.name, public_key=key, mesh_version=MESH_VERSION)
        )
    state = nodes[0].node.require_mcg().state
    limit_ticks = 3 * mesh.timing.unreachable_after_ticks
    leader = mesh.leader()
    assert leader is not None
    until = leader.node.require_mcg().ticks + limit_ticks
    await mesh.eventually(lambda: leader.node.require_mcg().ticks >= until, 30.0)
    joining = [node for node in state.nodes.values() if node.state is NodeState.JOINING]
    assert [node.name for node in joining] == ["x0", "x1", "x2"]
    assert not any(node.is_voter for node in joining)
    assert state.status is MeshStatus.HEALTHY
    status = await nodes[0].service.GetStatus(mesh_pb2.GetStatusRequest(), None)
    assert sum("is joining" in warning for warning in status.warnings) == 3
    mesh.clock_ahead_ms = JOINING_TIME_MS_MAX
    await mesh.eventually(lambda: len(state.nodes) == 3)
    await mesh.eventually(lambda: not leader.node.require_mcg().configuration().learners)


async def test_join_returns_when_the_node_counts(mesh: SmallMesh) -> None:
    """A stream can be created on it at once."""
    a, b = await mesh.grow("a", "b")
    assert b.node.require_mcg().state.nodes[NodeId(2)].state is NodeState.ACTIVE
    await a.proposer.propose(mcg_pb2.Command(create_stream=mcg_pb2.CreateStream(name="x/y", node_ids=[1, 2])))
