"""Commands about members, leaders and audits: what they send, show, and how they end."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from meshapi.common.v1 import view_pb2
from meshapi.supervisor.v1 import data_pb2, mesh_pb2

if TYPE_CHECKING:
    from meshtest.fake_services import FakeServer
    from tests.conftest import Program


@pytest.mark.parametrize(
    ("arguments", "sent"),
    [
        (("add", "x/y", "d", "e"), mesh_pb2.ChangeStreamMembersRequest(name="x/y", add=["d", "e"])),
        (
            ("remove", "x/y", "a", "--yes", "--accept-risk"),
            mesh_pb2.ChangeStreamMembersRequest(name="x/y", remove=["a"], accept_risk=True),
        ),
        (
            ("replace", "x/y", "a", "d", "--yes"),
            mesh_pb2.ChangeStreamMembersRequest(name="x/y", add=["d"], remove=["a"]),
        ),
        (("renew", "x/y", "a", "--yes"), mesh_pb2.ChangeStreamMembersRequest(name="x/y", renew=["a"])),
    ],
)
async def test_members_are_changed(
    gateway: FakeServer, meshctl: Program, arguments: tuple[str, ...], sent: mesh_pb2.ChangeStreamMembersRequest
) -> None:
    stream = view_pb2.StreamView(name="x/y", members=[view_pb2.StreamMember(node_id=1)] * 2)
    gateway.answer(
        "ChangeStreamMembers", mesh_pb2.ChangeStreamMembersResponse(stream=stream, warnings=["Two members."])
    )
    result = await meshctl.run("stream", "members", *arguments)
    assert result.exit_code == 0
    assert gateway.asked[-1].request == sent
    assert "is to have 2 members" in result.output
    assert "warning: Two members." in result.output


async def test_removing_asks_first(gateway: FakeServer, meshctl: Program) -> None:
    assert (await meshctl.run("stream", "members", "remove", "x/y", "a")).exit_code == 2


async def test_replicas_are_listed(gateway: FakeServer, meshctl: Program) -> None:
    replica = data_pb2.ReplicaInfo(
        stream="x/y", role="leader", leader="a", term=3, voters=["a", "b"], change="taking in"
    )
    gateway.answer("ListReplicas", data_pb2.ListReplicasResponse(node="a", replicas=[replica], log_bytes=77))
    result = await meshctl.run("raft", "ls")
    assert result.exit_code == 0
    assert "a,b" in result.output
    assert "taking in" in result.output
    assert "77 bytes" in result.output
    shown = json.loads((await meshctl.run("raft", "ls", "--json")).output)
    assert shown["replicas"][0]["term"] == 3


async def test_a_group_is_shown_with_lag(gateway: FakeServer, meshctl: Program) -> None:
    members = [
        data_pb2.MemberProgress(node="a", is_voter=True, matched_index=50),
        data_pb2.MemberProgress(node="b", matched_index=8),
    ]
    gateway.answer("DescribeStream", data_pb2.DescribeStreamResponse(stream="x/y", leader="a", members=members))
    result = await meshctl.run("raft", "show", "x/y")
    assert result.exit_code == 0
    assert "42" in result.output


async def test_a_leadership_is_handed_over(gateway: FakeServer, meshctl: Program) -> None:
    gateway.answer("TransferLeader", data_pb2.TransferLeaderResponse(term=9))
    result = await meshctl.run("raft", "transfer", "x/y", "b")
    assert result.output == "b leads x/y in term 9\n"
    assert gateway.asked[-1].request == data_pb2.TransferLeaderRequest(stream="x/y", node="b")


@pytest.mark.parametrize(
    ("member", "is_divergent", "status", "said"),
    [
        (data_pb2.MemberAudit(node="a"), False, 0, "agree at index 7"),
        (data_pb2.MemberAudit(node="a", problem="away"), False, 3, "not known"),
        (data_pb2.MemberAudit(node="a", problem="bad log", is_damaged=True), False, 4, "damaged"),
        (data_pb2.MemberAudit(node="a"), True, 4, "DIFFER at index 7"),
    ],
)
async def test_an_audit_ends_with_what_it_found(
    gateway: FakeServer, meshctl: Program, member: data_pb2.MemberAudit, is_divergent: bool, status: int, said: str
) -> None:
    found = data_pb2.AuditStreamResponse(stream="x/y", compared_index=7, is_divergent=is_divergent, members=[member])
    gateway.answer("AuditStream", found)
    result = await meshctl.run("audit", "x/y")
    assert result.exit_code == status
    assert said in result.output
    assert (await meshctl.run("audit", "x/y", "--json")).exit_code == status


async def test_a_group_goes_on_with_its_survivors(gateway: FakeServer, meshctl: Program) -> None:
    answer = data_pb2.RecoverStreamResponse(doubtful_from_offset=60, is_below_quorum=True, last_index=70, last_term=3)
    gateway.answer("RecoverStream", answer)
    named = ("raft", "recover", "x/y", "--survivor", "a", "--survivor", "b")
    assert (await meshctl.run(*named)).exit_code == 2, "it asks first, and there is no terminal"
    result = await meshctl.run(*named, "--yes")
    assert result.exit_code == 0
    assert gateway.asked[-1].request == data_pb2.RecoverStreamRequest(stream="x/y", survivors=["a", "b"])
    assert "ends at index 70 of term 3" in result.output
    assert "acknowledged records at offset 60 and above may be lost" in result.output


async def test_recovering_needs_survivors(gateway: FakeServer, meshctl: Program) -> None:
    assert (await meshctl.run("raft", "recover", "x/y", "--yes")).exit_code == 2


async def test_the_control_group_goes_on_with_its_survivors(gateway: FakeServer, meshctl: Program) -> None:
    answer = mesh_pb2.RecoverControlGroupResponse(revision=9, is_below_quorum=True, last_index=7, last_term=3)
    gateway.answer("RecoverControlGroup", answer)
    result = await meshctl.run("raft", "recover", "--control-group", "--survivor", "a", "--yes")
    assert result.exit_code == 0
    assert gateway.asked[-1].request == mesh_pb2.RecoverControlGroupRequest(survivors=["a"])
    assert "changes of the mesh after revision 9 may be lost" in result.output
    both = await meshctl.run("raft", "recover", "x/y", "--control-group", "--survivor", "a", "--yes")
    assert both.exit_code == 2
