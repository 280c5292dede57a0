"""Commands about who may join: what they ask and print."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from meshapi.common.v1 import view_pb2
from meshapi.supervisor.v1 import mesh_pb2

if TYPE_CHECKING:
    from meshtest.fake_services import FakeServer
    from tests.conftest import Program

TOKEN = "mesh1.AAAA"


async def test_seed_prints_the_line_to_run_at_the_other_node(gateway: FakeServer, meshctl: Program) -> None:
    gateway.answer("Seed", mesh_pb2.SeedResponse(mesh_id="m", node_id=1, token=TOKEN))
    said = (await meshctl.run("seed", "--name", "plant")).stdout
    assert said.splitlines()[-1] == f"meshctl join {TOKEN}"
    expected = mesh_pb2.SeedRequest(name="plant", policy=view_pb2.JOIN_POLICY_KEY_REQUIRED)
    assert gateway.asked[-1].request == expected
    gateway.answer("Seed", mesh_pb2.SeedResponse(mesh_id="m", node_id=1))
    assert "join" not in (await meshctl.run("seed", "--policy", "open")).stdout
    assert gateway.asked[-1].request == mesh_pb2.SeedRequest(policy=view_pb2.JOIN_POLICY_OPEN)


async def test_token_is_one_line_and_nothing_else(gateway: FakeServer, meshctl: Program) -> None:
    gateway.answer("IssueToken", mesh_pb2.IssueTokenResponse(token=TOKEN, token_id="0f"))
    assert (await meshctl.run("token", "issue")).stdout == f"{TOKEN}\n"
    assert gateway.asked[-1].request == mesh_pb2.IssueTokenRequest(uses=1, ttl_s=900)
    body = json.loads(
        (await meshctl.run("token", "issue", "--json", "--uses", "3", "--ttl", "2h", "--name", "b")).stdout
    )
    assert body == {"token": TOKEN, "token_id": "0f"}
    assert gateway.asked[-1].request == mesh_pb2.IssueTokenRequest(uses=3, ttl_s=7200, name="b")


async def test_join_takes_the_token_from_standard_input_too(gateway: FakeServer, meshctl: Program) -> None:
    gateway.answer("Join", mesh_pb2.JoinResponse(mesh_id="m", node_id=2))
    for arguments, given in ((("join", TOKEN), None), (("join", "-"), f"{TOKEN}\n".encode())):
        await meshctl.run(*arguments, "--address", "ws://b:1", given=given)
        assert gateway.asked[-1].request == mesh_pb2.JoinRequest(token=TOKEN, address="ws://b:1")


async def test_tokens_are_listed_with_what_is_left_of_them(gateway: FakeServer, meshctl: Program) -> None:
    tokens = [
        mesh_pb2.TokenInfo(token_id="aa", uses_left=2, expires_at_ms=1_700_000_000_000),
        mesh_pb2.TokenInfo(token_id="bb", name="b", is_expired=True),
    ]
    gateway.answer("ListTokens", mesh_pb2.ListTokensResponse(tokens=tokens))
    lines = (await meshctl.run("token", "ls")).stdout.splitlines()
    assert "any node" in lines[2]
    assert "2023-11-14 22:13:20 UTC" in lines[2]
    assert lines[3].split() == ["bb", "0", "b", "expired"]
    assert json.loads((await meshctl.run("token", "ls", "--json")).stdout)["tokens"][0]["uses_left"] == 2


async def test_policy_is_shown_as_it_is_written(gateway: FakeServer, meshctl: Program) -> None:
    gateway.answer("GetStatus", mesh_pb2.GetStatusResponse(join_policy=view_pb2.JOIN_POLICY_KEY_REQUIRED))
    assert (await meshctl.run("policy", "show")).stdout == "key-required\n"
    assert json.loads((await meshctl.run("policy", "show", "--json")).stdout) == {"join_policy": "KEY_REQUIRED"}
    gateway.answer("GetStatus", mesh_pb2.GetStatusResponse())
    assert "no mesh" in (await meshctl.run("policy", "show")).stdout


async def test_status_shows_name_and_policy(gateway: FakeServer, meshctl: Program) -> None:
    view = view_pb2.MeshView(mesh_id="the-mesh", status=view_pb2.MESH_STATUS_HEALTHY)
    answer = mesh_pb2.GetStatusResponse(view=view, mesh_name="plant", join_policy=view_pb2.JOIN_POLICY_CLOSED)
    gateway.answer("GetStatus", answer)
    line = (await meshctl.run("status")).stdout.splitlines()[0]
    assert line.split() == ["mesh", "plant", "the-mesh", "HEALTHY", "revision", "0", "CLOSED"]
