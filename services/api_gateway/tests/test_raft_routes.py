"""REST about members, leaders, replicas and audits: what is sent on, and what comes back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshapi.common.v1 import view_pb2
from meshapi.supervisor.v1 import data_pb2, mesh_pb2
from meshcommon.errors import ErrorCode, MeshError

if TYPE_CHECKING:
    from tests.conftest import Gateway


async def test_members_are_changed(gateway: Gateway) -> None:
    view = view_pb2.MeshView(nodes=[view_pb2.NodeView(node_id=1, name="a"), view_pb2.NodeView(node_id=4, name="d")])
    gateway.control.answer("GetStatus", mesh_pb2.GetStatusResponse(view=view))
    stream = view_pb2.StreamView(
        name="demo/lines",
        state=view_pb2.STREAM_STATE_ACTIVE,
        members=[view_pb2.StreamMember(node_id=4, is_voter=True)],
        retiring=[view_pb2.RetiringMember(node_id=1, member_id=1)],
    )
    gateway.control.answer(
        "ChangeStreamMembers", mesh_pb2.ChangeStreamMembersResponse(stream=stream, warnings=["Two members."])
    )
    answer = await gateway.http.patch("/v1/streams/demo/lines/members", json={"add": ["d"], "remove": ["a"]})
    assert answer.status_code == 200
    body = answer.json()
    assert body["members"] == [{"node": "d", "node_id": 4, "is_voter": True}]
    assert body["retiring"] == [{"node": "a", "node_id": 1, "is_out": False}]
    assert body["warnings"] == ["Two members."]
    sent = next(item.request for item in gateway.control.asked if item.method == "ChangeStreamMembers")
    assert sent == mesh_pb2.ChangeStreamMembersRequest(name="demo/lines", add=["d"], remove=["a"])
    gateway.control.answer("ChangeStreamMembers", MeshError(ErrorCode.STREAMS_AT_RISK, "No."))
    refused = await gateway.http.patch("/v1/streams/demo/lines/members", json={"remove": ["a"]})
    assert (refused.status_code, refused.json()["code"]) == (409, "STREAMS_AT_RISK")


async def test_leadership_is_handed_over(gateway: Gateway) -> None:
    gateway.data.answer("TransferLeader", data_pb2.TransferLeaderResponse(term=8))
    answer = await gateway.http.put("/v1/streams/demo/lines/leader", json={"node": "b"})
    assert answer.json() == {"leader": "b", "term": 8}
    assert gateway.data.asked[-1].request == data_pb2.TransferLeaderRequest(stream="demo/lines", node="b")
    assert (await gateway.http.put("/v1/streams/demo/lines/leader", json={"node": ""})).status_code == 400


async def test_replicas_are_listed(gateway: Gateway) -> None:
    replica = data_pb2.ReplicaInfo(
        stream="demo/lines", role="leader", voters=["a"], members=[data_pb2.MemberProgress(node="a", matched_index=3)]
    )
    gateway.data.answer("ListReplicas", data_pb2.ListReplicasResponse(node="a", log_bytes=5, replicas=[replica]))
    body = (await gateway.http.get("/v1/raft")).json()
    assert (body["node"], body["log_bytes"]) == ("a", 5)
    assert body["replicas"][0]["members"][0]["matched_index"] == 3


async def test_what_an_audit_found_is_shown(gateway: Gateway) -> None:
    member = data_pb2.MemberAudit(node="a", chain=b"\xab", is_damaged=True, problem="bad", verified_entries=3)
    found = data_pb2.AuditStreamResponse(stream="demo/lines", compared_index=7, is_divergent=True, members=[member])
    gateway.data.answer("AuditStream", found)
    body = (await gateway.http.get("/v1/streams/demo/lines/audit", params={"skip_logs": "true"})).json()
    assert (body["is_divergent"], body["members"][0]["chain"]) == (True, "ab")
    assert gateway.data.asked[-1].request.skip_logs
