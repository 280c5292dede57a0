"""REST about the life of node and mesh, and its topology."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from meshapi.common.v1 import view_pb2, weights_pb2
from meshapi.supervisor.v1 import data_pb2, mesh_pb2, topology_pb2
from meshcommon.cost_weights import DEFAULTS, weights_message, write_weights
from meshcommon.errors import ErrorCode, MeshError
from meshwire.packet import TrafficClass

if TYPE_CHECKING:
    from tests.conftest import Gateway


KEY_REQUIRED = view_pb2.JOIN_POLICY_KEY_REQUIRED


def status_of_two() -> mesh_pb2.GetStatusResponse:
    view = view_pb2.MeshView(
        revision=7,
        mesh_id="m",
        mesh_epoch=1,
        status=view_pb2.MESH_STATUS_DEGRADED,
        nodes=[
            view_pb2.NodeView(
                node_id=1, name="a", public_key=b"\x01\x02", state=view_pb2.NODE_STATE_ACTIVE, is_reachable=True
            ),
            view_pb2.NodeView(node_id=2, name="b", state=view_pb2.NODE_STATE_STOPPED, peer_address="ws://b:1"),
        ],
        streams=[
            view_pb2.StreamView(stream_id=1, name="demo/lines", state=view_pb2.STREAM_STATE_ACTIVE),
            view_pb2.StreamView(stream_id=2, name="demo/gone", state=view_pb2.STREAM_STATE_DELETING),
        ],
    )
    return mesh_pb2.GetStatusResponse(
        node_id=1,
        name="a",
        is_running=True,
        view=view,
        mcg_leader=2,
        mcg_term=3,
        mcg_applied=9,
        warnings=["w"],
        mesh_name="plant",
        join_policy=KEY_REQUIRED,
    )


async def test_status_names_the_leader_and_leaves_tombstones_out(gateway: Gateway) -> None:
    gateway.control.answer("GetStatus", status_of_two())
    answer = await gateway.http.get("/v1/mesh")
    assert answer.status_code == 200
    body = answer.json()
    assert body["mcg_leader"] == "b"
    assert (body["status"], body["mesh_name"], body["join_policy"]) == ("DEGRADED", "plant", "KEY_REQUIRED")
    assert body["stream_count"] == 1
    assert [node["state"] for node in body["nodes"]] == ["ACTIVE", "STOPPED"]
    assert body["nodes"][0]["public_key"] == "0102"
    assert body["warnings"] == ["w"]


async def test_status_of_a_node_in_no_mesh(gateway: Gateway) -> None:
    gateway.control.answer("GetStatus", mesh_pb2.GetStatusResponse(name="a"))
    body = (await gateway.http.get("/v1/mesh")).json()
    assert (body["mesh_id"], body["status"], body["nodes"], body["mcg_leader"]) == (None, None, [], None)
    assert (await gateway.http.get("/v1/nodes")).json() == {"nodes": []}


async def test_seed_and_join(gateway: Gateway) -> None:
    gateway.control.answer("Seed", mesh_pb2.SeedResponse(mesh_id="m", node_id=1, token="mesh1.x"))
    gateway.control.answer("Join", mesh_pb2.JoinResponse(mesh_id="m", node_id=2))
    seeded = await gateway.http.post("/v1/mesh/seed")
    root = {"ca_fingerprint": "", "ca_root_key_file": ""}
    assert (seeded.status_code, seeded.json()) == (201, {"mesh_id": "m", "node_id": 1, "token": "mesh1.x"} | root)
    assert gateway.control.asked[-1].request == mesh_pb2.SeedRequest(name="mesh", policy=KEY_REQUIRED)
    await gateway.http.post("/v1/mesh/seed", json={"name": "plant", "policy": "OPEN"})
    assert gateway.control.asked[-1].request == mesh_pb2.SeedRequest(name="plant", policy=view_pb2.JOIN_POLICY_OPEN)
    joined = await gateway.http.post("/v1/mesh/join", json={"token": "mesh1.x", "mesh_id": "m"})
    assert (joined.status_code, joined.json()) == (200, {"mesh_id": "m", "node_id": 2})
    assert gateway.control.asked[-1].request == mesh_pb2.JoinRequest(token="mesh1.x", mesh_id="m")
    await gateway.http.post("/v1/mesh/join", json={"address": "ws://b:1", "trust_first": True})
    assert gateway.control.asked[-1].request == mesh_pb2.JoinRequest(address="ws://b:1", trust_first=True)


async def test_tokens_and_policy(gateway: Gateway) -> None:
    gateway.control.answer("IssueToken", mesh_pb2.IssueTokenResponse(token="mesh1.x", token_id="0123456789abcdef"))
    listed = mesh_pb2.TokenInfo(token_id="0123456789abcdef", uses_left=2, expires_at_ms=99, name="b", is_expired=True)
    gateway.control.answer("ListTokens", mesh_pb2.ListTokensResponse(tokens=[listed]))
    gateway.control.answer("RevokeToken", mesh_pb2.RevokeTokenResponse())
    gateway.control.answer("SetJoinPolicy", mesh_pb2.SetJoinPolicyResponse())
    issued = await gateway.http.post("/v1/mesh/tokens", json={"uses": 3, "ttl_s": 60, "name": "b"})
    assert (issued.status_code, issued.json()) == (201, {"token": "mesh1.x", "token_id": "0123456789abcdef"})
    assert gateway.control.asked[-1].request == mesh_pb2.IssueTokenRequest(uses=3, ttl_s=60, name="b")
    await gateway.http.post("/v1/mesh/tokens")
    assert gateway.control.asked[-1].request == mesh_pb2.IssueTokenRequest(uses=1, ttl_s=900)
    (token,) = (await gateway.http.get("/v1/mesh/tokens")).json()["tokens"]
    assert token == {
        "token_id": "0123456789abcdef",
        "uses_left": 2,
        "expires_at_ms": 99,
        "name": "b",
        "is_expired": True,
    }
    assert (await gateway.http.delete("/v1/mesh/tokens/0123456789abcdef")).status_code == 204
    assert gateway.control.asked[-1].request.token_id == "0123456789abcdef"
    assert (await gateway.http.put("/v1/mesh/policy", json={"policy": "CLOSED"})).status_code == 204
    assert gateway.control.asked[-1].request.policy == view_pb2.JOIN_POLICY_CLOSED
    asked = len(gateway.control.asked)
    for path, body in (
        ("/v1/mesh/tokens", {"uses": 0}),
        ("/v1/mesh/tokens", {"ttl_s": 2_592_001}),
        ("/v1/mesh/seed", {"policy": "UNSPECIFIED"}),
        ("/v1/mesh/join", {"token": "x" * 4097}),
    ):
        assert (await gateway.http.post(path, json=body)).status_code == 400
    assert len(gateway.control.asked) == asked


@pytest.mark.parametrize("body", [None, {}, {"accept_risk": True}])
async def test_forgetting_a_node_passes_name_and_consent(gateway: Gateway, body: dict[str, bool] | None) -> None:
    gateway.control.answer("ForgetNode", mesh_pb2.ForgetNodeResponse(streams=["x/y"]))
    answer = await gateway.http.post("/v1/mesh/nodes/b/forget", json=body)
    assert (answer.status_code, answer.json()) == (200, {"streams": ["x/y"]})
    asked = gateway.control.asked[-1].request
    assert asked == mesh_pb2.ForgetNodeRequest(name="b", accept_risk=bool(body and body.get("accept_risk")))
    assert (await gateway.http.post("/v1/mesh/nodes/b/forget", json={"risk": True})).status_code == 400


@pytest.mark.parametrize(
    ("path", "method", "response"),
    [
        ("/v1/mesh/leave", "Leave", mesh_pb2.LeaveResponse()),
        ("/v1/mesh/stop", "Stop", mesh_pb2.StopResponse()),
        ("/v1/mesh/start", "Start", mesh_pb2.StartResponse()),
    ],
)
async def test_commands_without_answer_give_204(gateway: Gateway, path: str, method: str, response: Any) -> None:
    gateway.control.answer(method, response)
    answer = await gateway.http.post(path)
    assert (answer.status_code, answer.content) == (204, b"")
    assert [call.method for call in gateway.control.asked] == [method]


async def test_topology(gateway: Gateway) -> None:
    link = topology_pb2.Link(to="b", latency_us=120, cost=1.5, is_two_way=True)
    setattr(link, "from", "a")
    gateway.routing.answer(
        "ListLinks",
        topology_pb2.ListLinksResponse(
            links=[link],
            topology_version=4,
            protection=topology_pb2.Protection(pairs=3, connected=3, protected=1),
        ),
    )
    path = topology_pb2.TopologyPath(nodes=["a", "b", "c"], cost=2.5, terms=topology_pb2.CostTerms(hops=2))
    gateway.routing.answer("ListPaths", topology_pb2.ListPathsResponse(paths=[path]))
    links = (await gateway.http.get("/v1/links")).json()
    assert links["topology_version"] == 4
    assert (links["links"][0]["from"], links["links"][0]["to"], links["links"][0]["latency_us"]) == ("a", "b", 120)
    paths = await gateway.http.get("/v1/paths", params={"from": "a", "to": "c"})
    (found,) = paths.json()["paths"]
    assert (found["nodes"], found["cost"], found["terms"]["hops"]) == (["a", "b", "c"], 2.5, 2)
    asked = gateway.routing.asked[-1].request
    assert (getattr(asked, "from"), asked.to, asked.count) == ("a", "c", 0)
    assert links["links"][0]["loss_ppm"] is None
    assert links["protection"] == {"pairs": 3, "connected": 3, "protected": 1}
    params = {"from": "a", "to": "c", "count": "4", "class": "BULK"}
    await gateway.http.get("/v1/paths", params=params)
    asked = gateway.routing.asked[-1].request
    assert (asked.count, asked.traffic_class) == (4, weights_pb2.TRAFFIC_CLASS_BULK)
    await gateway.http.get("/v1/paths", params={"from": "a", "to": "c", "disjoint": "LINK"})
    assert gateway.routing.asked[-1].request.disjoint == topology_pb2.DISJOINTNESS_LINK
    before = len(gateway.routing.asked)
    for wrong in ({"disjoint": "ALL"}, {"count": "17"}, {"count": "-1"}, {"class": "BEST"}):
        assert (await gateway.http.get("/v1/paths", params={**params, **wrong})).status_code == 400
    assert len(gateway.routing.asked) == before


async def test_what_if_names_the_pairs_and_counts_them(gateway: Gateway) -> None:
    answer = topology_pb2.WhatIfResponse(
        before=topology_pb2.Protection(pairs=3, connected=3, protected=3),
        after=topology_pb2.Protection(pairs=3, connected=2),
        lost=[topology_pb2.NodePair(one="a", other="c")],
        lost_count=1,
        unprotected=[topology_pb2.NodePair(one="a", other="b")],
        unprotected_count=2_000,
    )
    gateway.routing.answer("WhatIf", answer)
    body = (await gateway.http.get("/v1/whatif/cut", params={"one": "a", "other": "c"})).json()
    assert (body["lost"], body["unprotected"], body["unprotected_count"]) == ([["a", "c"]], [["a", "b"]], 2_000)
    asked = gateway.routing.asked[-1].request
    assert asked == topology_pb2.WhatIfRequest(cut=topology_pb2.LinkEnds(one="a", other="c"))
    assert (await gateway.http.get("/v1/whatif/stop", params={"node": "b"})).json()["after"]["connected"] == 2
    assert gateway.routing.asked[-1].request == topology_pb2.WhatIfRequest(stop="b")


async def test_forwarding_and_ping(gateway: Gateway) -> None:
    forwarding = data_pb2.GetForwardingResponse(
        lanes=[data_pb2.Lane(peer="b", is_dialled=True, rtt_us=90, up_s=2.5)],
        routes=[data_pb2.ForwardingRoute(destination="c", path=["a", "c"], backup=["a", "b", "c"])],
        route_version=3,
        failed_dials=[data_pb2.FailedDial(peer="c", code="CLOCK_SKEW", reason="Here it is noon.")],
    )
    gateway.data.answer("GetForwarding", forwarding)
    gateway.data.answer("Ping", data_pb2.PingResponse(rtt_us=77, path=["a", "b"]))
    body = (await gateway.http.get("/v1/forwarding")).json()
    assert body["lanes"] == [{"peer": "b", "is_dialled": True, "rtt_us": 90, "up_s": 2.5}]
    assert body["routes"] == [{"destination": "c", "path": ["a", "c"], "backup": ["a", "b", "c"]}]
    assert body["failed_dials"] == [{"peer": "c", "code": "CLOCK_SKEW", "reason": "Here it is noon."}]
    ping = await gateway.http.post("/v1/nodes/b/ping", params={"timeout_ms": 500})
    assert ping.json() == {"rtt_us": 77, "path": ["a", "b"]}
    assert gateway.data.asked[-1].request == data_pb2.PingRequest(node="b", timeout_ms=500)


ROUTES = [
    ("GET", "/v1/mesh", "control", "GetStatus"),
    ("POST", "/v1/mesh/seed", "control", "Seed"),
    ("POST", "/v1/mesh/tokens", "control", "IssueToken"),
    ("GET", "/v1/mesh/tokens", "control", "ListTokens"),
    ("DELETE", "/v1/mesh/tokens/0123456789abcdef", "control", "RevokeToken"),
    ("POST", "/v1/mesh/leave", "control", "Leave"),
    ("POST", "/v1/mesh/nodes/b/forget", "control", "ForgetNode"),
    ("POST", "/v1/mesh/stop", "control", "Stop"),
    ("POST", "/v1/mesh/start", "control", "Start"),
    ("GET", "/v1/nodes", "control", "GetStatus"),
    ("GET", "/v1/links", "routing", "ListLinks"),
    ("GET", "/v1/paths?from=a&to=b", "routing", "ListPaths"),
    ("GET", "/v1/whatif/stop?node=a", "routing", "WhatIf"),
    ("GET", "/v1/mesh/weights", "control", "GetCostWeights"),
    ("GET", "/v1/forwarding", "data", "GetForwarding"),
    ("POST", "/v1/nodes/b/ping", "data", "Ping"),
    ("GET", "/v1/streams", "control", "ListStreams"),
    ("GET", "/v1/streams/demo/lines", "control", "GetStream"),
    ("DELETE", "/v1/streams/demo/lines", "control", "DeleteStream"),
    ("POST", "/v1/streams/demo/lines/producers", "data", "InitProducer"),
]


@pytest.mark.parametrize(("verb", "path", "service", "method"), ROUTES)
async def test_refusals_of_the_services_become_problems(
    gateway: Gateway, verb: str, path: str, service: str, method: str
) -> None:
    gateway.control.answer("GetStatus", mesh_pb2.GetStatusResponse())
    refusal = MeshError(ErrorCode.UNKNOWN_NODE, "There is no node b: see `meshctl nodes`.", {"node": "b"})
    getattr(gateway, service).answer(method, refusal)
    answer = await gateway.http.request(verb, path, headers={"x-correlation-id": "it-is-me"})
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-correlation-id"] == "it-is-me"
    assert answer.json() == {
        "type": "urn:mesh:error:UNKNOWN_NODE",
        "title": "The mesh has no node of this name or id.",
        "status": 404,
        "detail": "There is no node b: see `meshctl nodes`.",
        "code": "UNKNOWN_NODE",
        "retryable": False,
        "details": {"node": "b"},
        "correlation_id": "it-is-me",
    }


@pytest.mark.parametrize(("verb", "path", "service", "method"), ROUTES)
async def test_a_service_that_is_away_is_named(
    gateway: Gateway, verb: str, path: str, service: str, method: str
) -> None:
    gateway.control.answer("GetStatus", mesh_pb2.GetStatusResponse())
    await getattr(gateway, service).server.server.stop(None)
    answer = await gateway.http.request(verb, path)
    assert answer.status_code == 503
    problem = answer.json()
    assert problem["code"] == "UNAVAILABLE"
    assert problem["retryable"] is True
    assert {"control": "control plane", "routing": "routing", "data": "data plane"}[service] in problem["detail"]


async def test_the_correlation_id_reaches_the_service_or_is_made(gateway: Gateway) -> None:
    gateway.control.answer("Stop", mesh_pb2.StopResponse())
    await gateway.http.post("/v1/mesh/stop", headers={"x-correlation-id": "order-17"})
    assert gateway.control.asked[-1].metadata["x-correlation-id"] == "order-17"
    answer = await gateway.http.post("/v1/mesh/stop", headers={"x-correlation-id": "not usable\x7f"})
    made = answer.headers["x-correlation-id"]
    assert made != "not usable\x7f"
    assert gateway.control.asked[-1].metadata["x-correlation-id"] == made


async def test_every_call_has_a_deadline(gateway: Gateway) -> None:
    gateway.control.answer("Stop", mesh_pb2.StopResponse())
    await gateway.http.post("/v1/mesh/stop")
    remaining = gateway.control.asked[-1].time_remaining_s
    assert remaining is not None
    assert 0 < remaining < 6


async def test_weights_are_shown_and_changed_by_class(gateway: Gateway) -> None:
    gateway.control.answer("GetCostWeights", mesh_pb2.GetCostWeightsResponse(classes=write_weights(DEFAULTS)))
    gateway.control.answer(
        "SetCostWeights", mesh_pb2.SetCostWeightsResponse(weights=weights_message(DEFAULTS[TrafficClass.BULK]))
    )
    shown = (await gateway.http.get("/v1/mesh/weights")).json()["classes"]
    assert shown["CONTROL"]["hop_us"] == 2_000
    assert set(shown) == {"CONTROL", "PRIORITY", "BULK"}
    answer = await gateway.http.patch("/v1/mesh/weights/BULK", json={"hop_us": 5, "reset": True})
    assert (answer.status_code, answer.json()["bandwidth_us"]) == (200, 1_000_000)
    asked = gateway.control.asked[-1].request
    assert (asked.change.traffic_class, asked.reset) == (weights_pb2.TRAFFIC_CLASS_BULK, True)
    assert asked.change.weights == weights_pb2.CostWeights(hop_us=5)
    before = len(gateway.control.asked)
    for path, body in (
        ("BULK", {"hop_us": 0}),
        ("BULK", {"latency_permille": 100_001}),
        ("BULK", {"latency_permille": -1}),
        ("BULK", {"unknown": 1}),
        ("UNSPECIFIED", {"hop_us": 1}),
    ):
        assert (await gateway.http.patch(f"/v1/mesh/weights/{path}", json=body)).status_code == 400
    assert len(gateway.control.asked) == before
