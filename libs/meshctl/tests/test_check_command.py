"""`meshctl check`: what it asks, prints and exits with. The decisions are in test_checks."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from meshapi.common.v1 import view_pb2
from meshapi.supervisor.v1 import data_pb2, mesh_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshctl.check_command import CHECKS, REMOTE_STREAMS_MAX
from tests.test_checks import sound

if TYPE_CHECKING:
    from meshtest.fake_services import FakeServer
    from tests.conftest import Program


@pytest.fixture
def answers(gateway: FakeServer) -> Any:
    """The gateway of a sound mesh; a test changes the messages in place."""
    given: Any = sound()
    gateway.answer("GetStatus", given.status)
    gateway.answer("ListLinks", given.links)
    gateway.answer("GetForwarding", given.forwarding)
    gateway.answer("ListReplicas", given.replicas)
    gateway.answer("ShowCa", given.ca)
    gateway.answer("ListCertificates", given.certificates)
    gateway.answer("DescribeStream", given.remote["s/there"])
    return given


@pytest.mark.usefixtures("answers")
async def test_a_sound_mesh_is_a_line_for_each_check_and_status_0(meshctl: Program) -> None:
    result = await meshctl.run("check")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.split()[:2] for line in lines[:-2]] == [["✓", check.id] for check in CHECKS]
    assert lines[-1] == f"{len(CHECKS)} ok, 0 warnings, 0 failed, 0 skipped"


async def test_a_warning_has_its_hint_below_and_status_0(meshctl: Program, answers: Any) -> None:
    answers.status.join_policy = view_pb2.JOIN_POLICY_OPEN
    result = await meshctl.run("check")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("! mesh.join-policy"))
    assert lines[at + 1].startswith("    → `meshctl policy set key-required`")


async def test_a_failure_is_status_4(meshctl: Program, answers: Any) -> None:
    answers.status.has_quorum = False
    result = await meshctl.run("check")
    assert result.exit_code == 4
    assert "✗ mesh.quorum" in result.stdout
    assert "– mesh.nodes-reachable" in result.stdout
    assert (await meshctl.run("check", "--only", "lanes.up")).exit_code == 0


@pytest.mark.usefixtures("answers")
async def test_something_that_could_not_be_looked_at_is_status_3(gateway: FakeServer, meshctl: Program) -> None:
    gateway.answer("DescribeStream", MeshError(ErrorCode.BACKPRESSURE, "Too many calls."))
    result = await meshctl.run("check")
    assert result.exit_code == 3
    assert "– streams.leaders" in result.stdout


async def test_for_programs_it_is_an_array_of_results(meshctl: Program, answers: Any) -> None:
    answers.status.view.nodes[2].is_reachable = False
    result = await meshctl.run("check", "--json", "--only", "mesh.nodes-reachable", "--only", "node.member")
    assert result.exit_code == 4
    body = json.loads(result.stdout)
    assert [(item["id"], item["status"]) for item in body] == [
        ("node.member", "ok"),
        ("mesh.nodes-reachable", "failed"),
    ]
    assert set(body[0]) == {"id", "status", "summary", "hint", "details"}
    assert body[1]["details"]["unreachable"] == ["c"]
    assert "node forget" in body[1]["hint"]


async def test_without_a_gateway_it_is_a_finding_and_no_error(gateway: FakeServer, meshctl: Program) -> None:
    await gateway.server.server.stop(None)
    result = await meshctl.run("check")
    assert result.exit_code == 4
    assert result.stdout.startswith(f"✗ gateway.reachable     no gateway answers at {meshctl.target}")
    assert result.stderr == ""


async def test_wait_repeats_until_nothing_fails(gateway: FakeServer, meshctl: Program, answers: Any) -> None:
    answers.status.has_quorum = False

    async def recovers(_request: Any, _context: Any) -> mesh_pb2.GetStatusResponse:
        # True from the second question on.
        now = mesh_pb2.GetStatusResponse()
        now.CopyFrom(answers.status)
        answers.status.has_quorum = True
        return now

    gateway.answers["GetStatus"] = recovers
    result = await meshctl.run("check", "--wait", "30", "--json")
    assert result.exit_code == 0
    assert result.stderr == "waiting for mesh.quorum\n"
    assert len(json.loads(result.stdout)) == len(CHECKS)
    assert sum(asked.method == "GetStatus" for asked in gateway.asked) == 2


async def test_wait_ends_with_what_still_fails(gateway: FakeServer, meshctl: Program, answers: Any) -> None:
    answers.status.has_quorum = False
    assert (await meshctl.run("check", "--wait", "0.2")).exit_code == 4
    assert sum(asked.method == "GetStatus" for asked in gateway.asked) == 2


async def test_streams_held_elsewhere_are_asked_about_up_to_a_limit(
    gateway: FakeServer, meshctl: Program, answers: Any
) -> None:
    for number in range(REMOTE_STREAMS_MAX):
        answers.status.view.streams.add(stream_id=10 + number, name=f"x/{number}", state=view_pb2.STREAM_STATE_ACTIVE)
    result = await meshctl.run("check", "--only", "streams.leaders")
    assert result.exit_code == 3
    assert "1 not looked at" in result.stdout
    asked = [it.request for it in gateway.asked if it.method == "DescribeStream"]
    assert len(asked) == REMOTE_STREAMS_MAX
    assert data_pb2.DescribeStreamRequest(stream="s/there") in asked
    assert data_pb2.DescribeStreamRequest(stream="s/here") not in asked


@pytest.mark.usefixtures("answers")
async def test_a_call_has_about_four_seconds_and_less_if_the_user_says_so(
    gateway: FakeServer, meshctl: Program
) -> None:
    for arguments, limit_s in (((), 4.0), (("--timeout", "2"), 2.0)):
        gateway.asked.clear()
        await meshctl.run("check", *arguments)
        remaining = [asked.time_remaining_s for asked in gateway.asked]
        assert len(remaining) == 7
        assert all(it is not None and limit_s - 1.5 < it < limit_s + 0.5 for it in remaining)


async def test_an_unknown_id_is_wrong_usage_and_the_known_ones_are_named(gateway: FakeServer, meshctl: Program) -> None:
    result = await meshctl.run("check", "--only", "no.such")
    assert result.exit_code == 2
    assert "mesh.quorum" in result.stderr
    assert gateway.asked == []
