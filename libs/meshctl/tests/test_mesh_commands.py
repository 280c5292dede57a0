"""Commands about the mesh: what they print, what they give programs, how they fail."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from meshapi.common.v1 import view_pb2, weights_pb2
from meshapi.supervisor.v1 import data_pb2, mesh_pb2, topology_pb2
from meshcommon.errors import ErrorCode, MeshError

if TYPE_CHECKING:
    from meshtest.fake_services import FakeServer
    from tests.conftest import Program


def status_of_two() -> mesh_pb2.GetStatusResponse:
    view = view_pb2.MeshView(
        revision=7,
        mesh_id="the-mesh",
        status=view_pb2.MESH_STATUS_DEGRADED,
        nodes=[
            view_pb2.NodeView(
                node_id=1, name="a", public_key=b"\x01\x02", state=view_pb2.NODE_STATE_ACTIVE, is_reachable=True
            ),
            view_pb2.NodeView(node_id=2, name="b", state=view_pb2.NODE_STATE_ACTIVE, peer_address="ws://b:1"),
        ],
    )
    return mesh_pb2.GetStatusResponse(
        node_id=1, name="a", is_running=True, view=view, mcg_leader=2, mcg_term=3, mcg_applied=9, warnings=["No Redis."]
    )


def link() -> topology_pb2.Link:
    message = topology_pb2.Link(
        to="b", latency_us=1_250, loss_ppm=20_000, is_loss_measured=True, cost=1300.4, is_two_way=True
    )
    setattr(message, "from", "a")
    return message


async def test_status_for_people(gateway: FakeServer, meshctl: Program) -> None:
    gateway.answer("GetStatus", status_of_two())
    result = await meshctl.run("status")
    assert result.exit_code == 0
    for expected in ("the-mesh", "DEGRADED", "1 of 2 active reachable", "leader b", "warning: No Redis."):
        assert expected in result.stdout


async def test_status_for_programs_has_numbers_and_nothing_left_out(gateway: FakeServer, meshctl: Program) -> None:
    gateway.answer("GetStatus", status_of_two())
    for arguments in (("status", "--json"), ("--json", "status")):
        body = json.loads((await meshctl.run(*arguments)).stdout)
        assert body["node_id"] == 1
        assert body["view"]["status"] == "DEGRADED"
        assert body["view"]["nodes"][0]["public_key"] == "0102"
        assert body["view"]["nodes"][0]["peer_address"] == ""
        assert body["has_quorum"] is False


async def test_status_of_a_node_in_no_mesh_says_what_to_do(gateway: FakeServer, meshctl: Program) -> None:
    gateway.answer("GetStatus", mesh_pb2.GetStatusResponse(name="a"))
    assert "meshctl seed" in (await meshctl.run("status")).stdout
    assert json.loads((await meshctl.run("status", "--json")).stdout)["view"] is None


async def test_nodes(gateway: FakeServer, meshctl: Program) -> None:
    gateway.answer("GetStatus", status_of_two())
    lines = (await meshctl.run("nodes")).stdout.splitlines()
    assert lines[0].split() == ["ID", "NAME", "STATE", "REACHABLE", "VOTER", "ADDRESS"]
    assert lines[2].split() == ["1", "a", "ACTIVE", "yes", "no", "only", "dials"]
    assert [node["name"] for node in json.loads((await meshctl.run("nodes", "--json")).stdout)] == ["a", "b"]


async def test_nodes_shows_who_joins_and_which_address_is_none(gateway: FakeServer, meshctl: Program) -> None:
    answer = status_of_two()
    answer.view.nodes[0].state = view_pb2.NODE_STATE_JOINING
    answer.view.nodes[1].peer_address = "ws://u@b:1\x1b[2J"
    gateway.answer("GetStatus", answer)
    said = (await meshctl.run("nodes")).stdout
    assert "JOINING" in said
    assert "(no address, not dialled)" in said
    assert "\x1b" not in said
    assert "0 of 1 active reachable, 1 joining" in (await meshctl.run("status")).stdout


async def test_forget_says_what_was_on_the_node_and_passes_the_consent(gateway: FakeServer, meshctl: Program) -> None:
    gateway.answer("ForgetNode", mesh_pb2.ForgetNodeResponse(streams=["x/y", "x/z"]))
    result = await meshctl.run("node", "forget", "b", "--accept-risk", "--yes")
    assert "x/y, x/z" in result.stdout
    assert gateway.asked[-1].request == mesh_pb2.ForgetNodeRequest(name="b", accept_risk=True)
    assert json.loads((await meshctl.run("node", "forget", "b", "--yes", "--json")).stdout)["streams"] == ["x/y", "x/z"]


def _terms() -> topology_pb2.CostTerms:
    return topology_pb2.CostTerms(latency=500, hops=4_000)


async def test_what_if_tells_shares_and_pairs(gateway: FakeServer, meshctl: Program) -> None:
    pairs = [topology_pb2.NodePair(one="a", other=f"n{number}") for number in range(30)]
    answer = topology_pb2.WhatIfResponse(
        before=topology_pb2.Protection(pairs=40, connected=40, protected=30),
        after=topology_pb2.Protection(pairs=40, connected=10),
        lost=pairs,
        lost_count=30,
        unprotected=pairs[:1],
        unprotected_count=1,
    )
    gateway.answer("WhatIf", answer)
    lines = (await meshctl.run("whatif", "cut", "a", "b")).stdout.splitlines()
    assert lines[0] == "now    75.0 % of 40 pairs protected, 40 with a path"
    assert lines[1] == "then   0.0 % of 40 pairs protected, 10 with a path"
    assert lines[2].startswith("30 pairs would lose their last path: a-n0, a-n1")
    assert lines[2].endswith("a-n19 and 10 more")
    assert lines[3] == "1 pair would keep one path and no second one: a-n0"
    assert gateway.asked[-1].request == topology_pb2.WhatIfRequest(cut=topology_pb2.LinkEnds(one="a", other="b"))
    assert json.loads((await meshctl.run("whatif", "stop", "b", "--json")).stdout)["lost_count"] == 30
    assert gateway.asked[-1].request == topology_pb2.WhatIfRequest(stop="b")


async def test_links_paths_ping_and_forwarding(gateway: FakeServer, meshctl: Program) -> None:
    gateway.answer("ListLinks", topology_pb2.ListLinksResponse(links=[link()], topology_version=2))
    path = topology_pb2.TopologyPath(nodes=["a", "b", "c"], cost=4_500, terms=_terms())
    gateway.answer("ListPaths", topology_pb2.ListPathsResponse(paths=[path]))
    gateway.answer("Ping", data_pb2.PingResponse(rtt_us=1_500, path=["a", "b"]))
    route = data_pb2.ForwardingRoute(destination="c", path=["a", "c"], backup=["a", "b", "c"])
    lane = data_pb2.Lane(peer="b", is_dialled=True, rtt_us=90, up_s=2.5)
    gateway.answer("GetForwarding", data_pb2.GetForwardingResponse(lanes=[lane], routes=[route]))
    links = (await meshctl.run("links")).stdout
    assert "1.25 ms" in links
    assert "2.00 %" in links
    assert "unknown" in links
    assert json.loads((await meshctl.run("links", "--json")).stdout)["links"][0]["from"] == "a"
    assert "a → b → c" in (await meshctl.run("paths", "a", "c")).stdout
    asked = gateway.asked[-1].request
    assert (getattr(asked, "from"), asked.to, asked.count) == ("a", "c", 0)
    lines = (await meshctl.run("paths", "a", "c", "-k", "4", "--class", "bulk")).stdout.splitlines()
    assert lines[-1].split()[-8:] == ["4500", "500", "0", "0", "0", "0", "4000", "0"]
    asked = gateway.asked[-1].request
    assert (asked.count, asked.traffic_class) == (4, weights_pb2.TRAFFIC_CLASS_BULK)
    await meshctl.run("paths", "a", "c", "--disjoint", "node")
    assert gateway.asked[-1].request.disjoint == topology_pb2.DISJOINTNESS_NODE
    assert (await meshctl.run("ping", "b")).stdout == "b: 1.50 ms over a → b\n"
    forwarding = (await meshctl.run("forwarding")).stdout
    assert "this node" in forwarding
    assert "a → b → c" in forwarding
    for command in (("paths", "a", "c"), ("ping", "b"), ("forwarding",)):
        assert json.loads((await meshctl.run(*command, "--json")).stdout)


@pytest.mark.parametrize(
    ("arguments", "method", "answer", "said"),
    [
        (("seed",), "Seed", mesh_pb2.SeedResponse(mesh_id="m", node_id=1), "founded mesh m"),
        (("join", "mesh1.x"), "Join", mesh_pb2.JoinResponse(mesh_id="m", node_id=2), "joined mesh m"),
        (("token", "revoke", "0f"), "RevokeToken", mesh_pb2.RevokeTokenResponse(), "revoked 0f"),
        (("policy", "set", "closed"), "SetJoinPolicy", mesh_pb2.SetJoinPolicyResponse(), "the policy is closed"),
        (("leave", "--yes"), "Leave", mesh_pb2.LeaveResponse(), "left the mesh"),
        (("node", "forget", "b", "--yes"), "ForgetNode", mesh_pb2.ForgetNodeResponse(streams=["x/y"]), "forgot b"),
        (("stop",), "Stop", mesh_pb2.StopResponse(), "stopped"),
        (("start",), "Start", mesh_pb2.StartResponse(), "started"),
    ],
)
async def test_commands_that_change(
    gateway: FakeServer, meshctl: Program, arguments: tuple[str, ...], method: str, answer: Any, said: str
) -> None:
    gateway.answer(method, answer)
    result = await meshctl.run(*arguments)
    assert result.exit_code == 0
    assert said in result.stdout
    json.loads((await meshctl.run(*arguments, "--json")).stdout)
    assert [asked.method for asked in gateway.asked] == [method, method]


async def test_join_passes_the_expected_mesh_id(gateway: FakeServer, meshctl: Program) -> None:
    gateway.answer("Join", mesh_pb2.JoinResponse())
    await meshctl.run("join", "ws://b:1", "--mesh-id", "m", "--trust-first")
    assert gateway.asked[-1].request == mesh_pb2.JoinRequest(address="ws://b:1", mesh_id="m", trust_first=True)


async def test_leaving_without_a_terminal_needs_yes(gateway: FakeServer, meshctl: Program) -> None:
    result = await meshctl.run("leave", given=b"y\n")
    assert result.exit_code == 2
    assert "--yes" in result.stderr
    assert gateway.asked == []


@pytest.mark.parametrize("target", ["http://127.0.0.1:7002", "127.0.0.1:99999", "127.0.0.1", "127.0.0.1:²"])
async def test_an_address_of_another_form_is_refused_with_the_form(meshctl: Program, target: str) -> None:
    result = await meshctl.run("--gateway", target, "status")
    assert result.exit_code == 2
    assert "without http://" in result.stderr
    assert "65535" in result.stderr


@pytest.mark.parametrize(
    ("code", "status"), [(ErrorCode.NAME_TAKEN, 1), (ErrorCode.NO_QUORUM, 3), (ErrorCode.INTERNAL, 1)]
)
async def test_a_refusal_is_one_line_and_a_status(
    gateway: FakeServer, meshctl: Program, code: ErrorCode, status: int
) -> None:
    gateway.answer("Join", MeshError(code, "It is so."))
    result = await meshctl.run("join", "mesh1.x")
    assert result.exit_code == status
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {code}: It is so.")
    assert len(result.stderr.splitlines()) == 1


async def test_a_gateway_that_is_not_there_is_told_with_its_address(gateway: FakeServer, meshctl: Program) -> None:
    await gateway.server.server.stop(None)
    for arguments in (
        ("status",),
        ("stream", "ls"),
        ("subscribe", "demo/lines"),
        ("publish", "d/l", "--timeout", "0.2"),
    ):
        result = await meshctl.run(*arguments)
        assert result.exit_code == 3
        assert "error: UNAVAILABLE: " in result.stderr
        assert "Traceback" not in result.output
    result = await meshctl.run("status")
    assert meshctl.target in result.stderr


async def test_the_time_limit_is_the_users(gateway: FakeServer, meshctl: Program) -> None:
    gateway.answer("GetStatus", mesh_pb2.GetStatusResponse())
    await meshctl.run("--timeout", "7", "status")
    remaining = gateway.asked[-1].time_remaining_s
    assert remaining is not None
    assert 5 < remaining < 8


@pytest.mark.parametrize(
    "arguments",
    [
        ("status", "--gateway", "nowhere"),
        ("--gateway", "h:0", "status"),
        ("--timeout", "0", "status"),
        ("frobnicate",),
        ("join",),
        ("join", "ws://b:1"),
        ("join", "ws://b:1", "--address", "ws://b:2", "--trust-first"),
        ("token", "issue", "--uses", "0"),
        ("token", "issue", "--ttl", "15"),
        ("token", "issue", "--ttl", "0m"),
        ("policy", "set", "ajar"),
        ("seed", "--policy", "ajar"),
        ("subscribe", "d/l", "--from", "3", "--earliest"),
        ("subscribe", "d/l", "--from", "-1"),
        ("publish", "d/l", "/does/not/exist"),
        ("stream", "create", "d/l"),
    ],
)
async def test_wrong_usage_is_status_2_and_asks_nobody(
    gateway: FakeServer, meshctl: Program, arguments: tuple[str, ...]
) -> None:
    result = await meshctl.run(*arguments)
    assert result.exit_code == 2
    assert result.stderr
    assert gateway.asked == []


async def test_an_option_after_the_command_overrides_one_before_it(gateway: FakeServer, meshctl: Program) -> None:
    gateway.answer("GetStatus", mesh_pb2.GetStatusResponse(name="a"))
    result = await meshctl.run("--gateway", "127.0.0.1:1", "status", "--gateway", gateway.target)
    assert result.exit_code == 0
    result = await meshctl.run("--gateway", "127.0.0.1:1", "status")
    assert result.exit_code == 3
    assert "127.0.0.1:1:" in result.stderr


async def test_the_correlation_id_is_sent(gateway: FakeServer, meshctl: Program) -> None:
    gateway.answer("GetStatus", MeshError(ErrorCode.INTERNAL, "It is so."))
    result = await meshctl.run("status")
    assert str(gateway.asked[-1].metadata["x-correlation-id"]) in result.stderr
