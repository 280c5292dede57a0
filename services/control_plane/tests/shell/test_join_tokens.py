"""Joining by token, end to end between control planes: policies, repeats, and a man in the middle."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from mesh_control.core.join_plan import plan_join
from mesh_control.core.join_tokens import encode_token, parse_token, prove, verifier_of
from mesh_control.core.model import JoinPolicy
from mesh_control.core.versions import MESH_VERSION
from mesh_control.shell.peer_calls import Method
from meshapi.common.v1 import view_pb2
from meshapi.control.v1 import join_pb2
from meshapi.overlay.v1 import overlay_pb2
from meshapi.supervisor.v1 import mesh_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId
from meshcommon.wrong_proofs import WRONG_PROOFS_MAX
from meshwire.request import OkResponse, decode_response, encode_response

if TYPE_CHECKING:
    from tests.shell.conftest import OneNode, SmallMesh

KEY_REQUIRED = JoinPolicy.KEY_REQUIRED
_LEAD = 9
"""Bytes before the body of an overlay request: kind and id."""


async def refused(node: OneNode, token: str, *, trust_first: bool = False, address: str = "") -> ErrorCode:
    """The code of a refused join, after which the node is as free as before."""
    with pytest.raises(MeshError) as caught:
        await node.lifecycle.join(address, "", token, trust_first=trust_first)
    assert node.node.membership is None
    assert parse_token(token).secret.hex() not in str(caught.value) if token else True
    return caught.value.code


def names(mesh: SmallMesh) -> list[str]:
    return sorted(node.name for node in mesh.nodes["a"].node.require_mcg().state.nodes.values())


async def test_seed_gives_a_token_and_the_token_a_place(mesh: SmallMesh) -> None:
    a, b = mesh.start("a"), mesh.start("b")
    seeded = await a.service.Seed(mesh_pb2.SeedRequest(name="plant"), None)
    joined = await b.service.Join(mesh_pb2.JoinRequest(token=seeded.token), None)
    assert (joined.mesh_id, joined.node_id) == (seeded.mesh_id, 2)
    state = b.node.require_mcg().state
    assert (state.mesh_name, state.join_policy) == ("plant", KEY_REQUIRED)
    assert [token.uses_left for token in state.tokens.values()] == [0]
    status = await b.service.GetStatus(mesh_pb2.GetStatusRequest(), None)
    assert (status.mesh_name, status.join_policy) == ("plant", view_pb2.JOIN_POLICY_KEY_REQUIRED)
    assert not [warning for warning in status.warnings if "OPEN" in warning]


async def test_seed_repeated_gives_the_same_mesh_and_a_new_token(mesh: SmallMesh) -> None:
    a = mesh.start("a")
    first = await a.service.Seed(mesh_pb2.SeedRequest(name="plant"), None)
    a = await mesh.restart("a")
    again = await a.service.Seed(mesh_pb2.SeedRequest(name="plant"), None)
    assert (again.mesh_id, again.node_id) == (first.mesh_id, first.node_id)
    assert again.token != first.token
    for request in (
        mesh_pb2.SeedRequest(name="other"),
        mesh_pb2.SeedRequest(name="plant", policy=view_pb2.JOIN_POLICY_OPEN),
    ):
        with pytest.raises(MeshError) as caught:
            await a.service.Seed(request, None)
        assert caught.value.code is ErrorCode.ALREADY_MEMBER
    b = mesh.start("b")
    await b.lifecycle.join("", "", again.token)
    with pytest.raises(MeshError) as caught:
        await b.service.Seed(mesh_pb2.SeedRequest(name="plant"), None)
    assert caught.value.code is ErrorCode.ALREADY_MEMBER, "it has not founded that mesh"


async def test_policies_decide_who_joins_without_a_token(mesh: SmallMesh) -> None:
    (a,) = await mesh.grow("a", policy=KEY_REQUIRED)
    b = mesh.start("b")
    assert await refused(b, "", address="ws://a:1") is ErrorCode.TOKEN_REQUIRED, "nobody is asked"
    assert await refused(b, "", trust_first=True, address="ws://a:1") is ErrorCode.TOKEN_REQUIRED
    token, _ = await a.tokens.issue()
    await a.tokens.set_policy(JoinPolicy.CLOSED)
    assert await refused(b, token) is ErrorCode.JOIN_CLOSED
    assert await refused(b, "", trust_first=True, address="ws://a:1") is ErrorCode.JOIN_CLOSED
    await a.tokens.set_policy(JoinPolicy.OPEN)
    assert any("OPEN" in text for text in (await a.service.GetStatus(mesh_pb2.GetStatusRequest(), None)).warnings)
    await b.lifecycle.join("ws://a:1", "", trust_first=True)
    assert names(mesh) == ["a", "b"]


async def test_token_that_is_over_admits_nobody(mesh: SmallMesh) -> None:
    (a,) = await mesh.grow("a", policy=KEY_REQUIRED)
    b = mesh.start("b")
    short, _ = await a.tokens.issue(ttl_s=1)
    revoked, revoked_id = await a.tokens.issue()
    for_another, _ = await a.tokens.issue(name="c")
    await a.tokens.revoke(revoked_id)
    assert await refused(b, revoked) is ErrorCode.TOKEN_UNKNOWN
    assert await refused(b, for_another) is ErrorCode.TOKEN_FOR_ANOTHER_NAME
    mesh.clock_ahead_ms = 2_000
    assert await refused(b, short) is ErrorCode.TOKEN_EXPIRED
    with pytest.raises(MeshError) as caught:
        await a.tokens.revoke(revoked_id)
    assert caught.value.code is ErrorCode.TOKEN_UNKNOWN
    listed = (await a.service.ListTokens(mesh_pb2.ListTokensRequest(), None)).tokens
    assert [(item.name, item.is_expired) for item in listed] == [("", True), ("c", False)]
    await mesh.start("c").lifecycle.join("", "", for_another)
    assert names(mesh) == ["a", "c"]


async def test_last_use_admits_one_of_two(mesh: SmallMesh) -> None:
    """J2."""
    (a,) = await mesh.grow("a", policy=KEY_REQUIRED)
    token, _ = await a.tokens.issue()
    newcomers = [mesh.start("b"), mesh.start("c")]
    results = await asyncio.gather(*(node.lifecycle.join("", "", token) for node in newcomers), return_exceptions=True)
    refusals = [result for result in results if isinstance(result, BaseException)]
    assert len(refusals) == 1
    assert isinstance(refusals[0], MeshError)
    assert refusals[0].code is ErrorCode.TOKEN_USED_UP
    assert len(names(mesh)) == 2


async def test_join_through_a_member_without_a_vote_that_lags(mesh: SmallMesh) -> None:
    """The token is newer than what that member has applied: it catches up before it says that it knows none."""
    a, b = await mesh.grow("a", "b", policy=KEY_REQUIRED)
    assert not b.node.require_mcg().state.nodes[NodeId(2)].is_voter
    c = mesh.start("c")
    mcg, hears = b.node.require_mcg(), b.node.receive_raft
    catches_up = mcg.catch_up
    b.node.receive_raft = lambda peer, frame: None  # type: ignore[method-assign]
    token, token_id = await a.tokens.issue()
    assert token_id not in mcg.state.tokens

    async def catch_up(timeout_s: float) -> bool:
        b.node.receive_raft = hears  # type: ignore[method-assign]
        return await catches_up(timeout_s)

    mcg.catch_up = catch_up  # type: ignore[method-assign]
    place = await c.lifecycle.join(b.peer_address, "", token)
    assert place.node_id == 3


async def test_answer_that_was_lost_costs_no_second_use(mesh: SmallMesh) -> None:
    """J1: the same name and key get the same place again, by the used-up token, or a new one, or through another member."""
    a, b = await mesh.grow("a", "b", policy=KEY_REQUIRED)
    token, token_id = await a.tokens.issue()
    c = mesh.start("c")
    first = await c.lifecycle._ask_for_a_place(plan_join("", "", token, trust_first=False))
    again = await mesh.restart("c")
    second = await again.lifecycle._ask_for_a_place(plan_join(b.peer_address, "", token, trust_first=False))
    assert (first.node_id, second.node_id) == (3, 3)
    assert a.node.require_mcg().state.tokens[token_id].uses_left == 0
    place = await again.lifecycle.join("", "", token)
    assert place.node_id == 3


async def test_addresses_are_asked_in_turn(mesh: SmallMesh) -> None:
    a, b = await mesh.grow("a", "b", policy=KEY_REQUIRED)
    token, _ = await a.tokens.issue()
    assert parse_token(token).addresses == (a.peer_address, b.peer_address)
    mesh.cut_off = {"a"}
    # The leader is away with it: once it is back the next attempt ends well.
    asyncio.get_running_loop().call_later(0.2, mesh.cut_off.clear)
    assert (await mesh.start("c").lifecycle.join("", "", token)).node_id == 3


async def test_token_of_a_mesh_that_listens_nowhere_needs_an_address(mesh: SmallMesh) -> None:
    a = mesh.start("a")
    a.node.peer_address = ""
    seeded = await a.service.Seed(mesh_pb2.SeedRequest(), None)
    assert parse_token(seeded.token).addresses == ()
    b = mesh.start("b")
    assert await refused(b, seeded.token) is ErrorCode.INVALID_ARGUMENT
    assert (await b.lifecycle.join("ws://a:1", "", seeded.token)).node_id == 2


async def test_token_of_another_mesh_is_refused(mesh: SmallMesh) -> None:
    await mesh.grow("a", policy=KEY_REQUIRED)
    other = mesh.start("z")
    await other.lifecycle.seed("other")
    token, _ = await other.tokens.issue()
    b = mesh.start("b")
    assert await refused(b, token, address="ws://a:1") is ErrorCode.MESH_ID_MISMATCH


async def test_wrong_proofs_cost_their_sender(mesh: SmallMesh) -> None:
    """J4."""
    (a,) = await mesh.grow("a", policy=KEY_REQUIRED)
    token, _ = await a.tokens.issue()
    key = parse_token(token)
    guessed = encode_token(type(key)(key.mesh_id, key.addresses, bytes(32)))
    stranger = mesh.start("x")
    for _ in range(WRONG_PROOFS_MAX):
        assert await refused(stranger, guessed) is ErrorCode.TOKEN_UNKNOWN
    assert await refused(stranger, guessed) is ErrorCode.BACKPRESSURE
    assert await refused(stranger, token) is ErrorCode.BACKPRESSURE
    assert (await mesh.start("b").lifecycle.join("", "", token)).node_id == 2, "the host alone is refused"


async def ask(stranger: OneNode, request: join_pb2.JoinRequest) -> bytes:
    lane = stranger.mesh.open_join_lane(stranger, "ws://a:1")
    with stranger.calls.join_lane(lane.lane_id):
        return await stranger.calls.call(Method.JOIN, request.SerializeToString(), 5.0, lane_id=lane.lane_id)


async def test_proof_admits_only_the_key_and_fields_that_it_covers(mesh: SmallMesh) -> None:
    """J1: a recorded proof admits nobody else."""
    (a,) = await mesh.grow("a", policy=KEY_REQUIRED)
    token, _ = await a.tokens.issue()
    verifier = verifier_of(parse_token(token).secret)
    x, b = mesh.start("x"), mesh.start("b")
    mesh_id = a.node.require_mcg().state.mesh_id
    request = join_pb2.JoinRequest(
        mesh_id=mesh_id, name="b", public_key=b.node.identity.public_key, mesh_version=MESH_VERSION
    )
    prove(request, verifier)
    replayed = join_pb2.JoinRequest()
    replayed.CopyFrom(request)
    replayed.public_key = x.node.identity.public_key
    for field, value in (("public_key", replayed.public_key), ("name", "x"), ("peer_address", "ws://x:1")):
        changed = join_pb2.JoinRequest()
        changed.CopyFrom(request)
        setattr(changed, field, value)
        sender = x if field == "public_key" else b
        with pytest.raises(MeshError) as caught:
            await ask(sender, changed)
        assert caught.value.code is ErrorCode.TOKEN_UNKNOWN
    with pytest.raises(MeshError) as caught:
        await ask(x, request)
    assert caught.value.code is ErrorCode.KEY_MISMATCH
    assert names(mesh) == ["a"]
    assert join_pb2.JoinResponse.FromString(await ask(b, request)).node_id == 2


def _swap_view(answer: join_pb2.JoinResponse) -> None:
    answer.view.nodes[0].public_key = b"m" * 32


def _swap_address(answer: join_pb2.JoinResponse) -> None:
    answer.view.nodes[0].peer_address = "ws://mallory:1"


def _forget_confirmation(answer: join_pb2.JoinResponse) -> None:
    answer.ClearField("confirmation")


@pytest.mark.parametrize("change", [_swap_view, _swap_address, _forget_confirmation, None])
async def test_man_in_the_middle_cannot_change_the_answer(
    mesh: SmallMesh, change: Callable[[join_pb2.JoinResponse], None] | None
) -> None:
    """J3: it relays the handshake and every packet, and swaps a key, an address, or drops the confirmation."""
    (a,) = await mesh.grow("a", policy=KEY_REQUIRED)
    b = mesh.start("b")
    deliver = b.receive

    def in_between(packet: overlay_pb2.InPacket) -> None:
        if b.node.membership is None and packet.lane_id and change is not None:
            response = decode_response(packet.payload[_LEAD:])
            assert isinstance(response, OkResponse)
            answer = join_pb2.JoinResponse.FromString(bytes(response.body))
            change(answer)
            packet.payload = packet.payload[:_LEAD] + encode_response(answer.SerializeToString())
        deliver(packet)

    b.receive = in_between  # type: ignore[method-assign]
    token, _ = await a.tokens.issue()
    if change is None:
        assert (await b.lifecycle.join("", "", token)).node_id == 2, "the same in-between, and it changes nothing"
    else:
        assert await refused(b, token) is ErrorCode.KEY_MISMATCH
