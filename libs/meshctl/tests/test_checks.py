"""Each check both ways, and the frame: what a failure skips, what a missing answer skips, what `--only` shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import pytest

from meshapi.common.v1 import view_pb2
from meshapi.supervisor.v1 import ca_pb2, data_pb2, mesh_pb2, topology_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshctl.check_command import CHECKS
from meshctl.checks import Answers, Check, Finding, Result, Status, failed, ok, run_checks, some, unsettled
from meshctl.stream_checks import remote_streams

AWAY: Final = MeshError(ErrorCode.UNAVAILABLE, "It does not answer.")
SLOW: Final = MeshError(ErrorCode.DEADLINE_EXCEEDED, "Not in time.")
NO_GATEWAY: Final = MeshError(ErrorCode.UNAVAILABLE, "No gateway.", {"gateway": "h:1"})
BUSY: Final = MeshError(ErrorCode.BACKPRESSURE, "Too many calls.")
OUTSIDE: Final = MeshError(ErrorCode.NOT_A_MEMBER, "In no mesh.")


def sound() -> Answers:
    """What node a answers in a sound mesh of three that holds two streams, one of them only at b and c."""
    nodes = [
        view_pb2.NodeView(
            node_id=number,
            name=name,
            state=view_pb2.NODE_STATE_ACTIVE,
            is_reachable=True,
            is_voter=True,
            peer_address=f"wss://{name}:1" if name != "c" else "",
            mesh_version=2,
        )
        for number, name in enumerate("abc", 1)
    ]
    streams = [
        view_pb2.StreamView(
            stream_id=number,
            name=name,
            state=view_pb2.STREAM_STATE_ACTIVE,
            retained_bytes_max=64 << 20,
            members=[view_pb2.StreamMember(node_id=node) for node in members],
        )
        for number, name, members in ((1, "s/here", (1, 2, 3)), (2, "s/there", (2, 3, 1)))
    ]
    view = view_pb2.MeshView(
        mesh_id="id", status=view_pb2.MESH_STATUS_HEALTHY, nodes=nodes, streams=streams, mesh_version=2
    )
    return Answers(
        gateway="h:1",
        status=mesh_pb2.GetStatusResponse(
            node_id=1,
            name="a",
            is_running=True,
            view=view,
            mcg_leader=2,
            mcg_term=3,
            has_quorum=True,
            mesh_name="plant",
            join_policy=view_pb2.JOIN_POLICY_KEY_REQUIRED,
        ),
        links=topology_pb2.ListLinksResponse(),
        forwarding=data_pb2.GetForwardingResponse(
            lanes=[data_pb2.Lane(peer="b")],
            routes=[
                data_pb2.ForwardingRoute(destination="b", path=["a", "b"]),
                data_pb2.ForwardingRoute(destination="c", path=["a", "b", "c"]),
            ],
        ),
        replicas=data_pb2.ListReplicasResponse(
            node="a",
            log_bytes=1,
            replicas=[
                data_pb2.ReplicaInfo(
                    stream="s/here",
                    stream_id=1,
                    role="leader",
                    leader="a",
                    first_index=5,
                    members=[data_pb2.MemberProgress(node="b", matched_index=9)],
                )
            ],
        ),
        remote={"s/there": data_pb2.DescribeStreamResponse(stream="s/there", leader="b")},
        ca=ca_pb2.ShowCaResponse(exists=True, root_fingerprints=["ab" * 32], issuers=["a", "b", "c"]),
        certificates=ca_pb2.ListCertificatesResponse(
            certificates=[ca_pb2.CertificateInfo(kind=kind, life_left=0.9) for kind in ("root", "intermediate", "node")]
        ),
    )


def find(answers: Answers, check_id: str) -> Finding:
    (result,) = run_checks(CHECKS, answers, {check_id})
    return result.finding


def statuses(answers: Answers) -> dict[str, Status]:
    return {result.id: result.finding.status for result in run_checks(CHECKS, answers)}


def without_gateway(error: MeshError) -> Answers:
    return Answers("h:1", error, error, error, error)


def warned(text: str) -> Callable[[Any], None]:
    return lambda it: it.status.warnings.append(text)


def _set(**fields: Any) -> Callable[[Any], None]:
    """Changes fields of the status."""

    def change(answers: Any) -> None:
        for name, value in fields.items():
            setattr(answers.status, name, value)

    return change


def _node(index: int, **fields: Any) -> Callable[[Any], None]:
    def change(answers: Any) -> None:
        for name, value in fields.items():
            setattr(answers.status.view.nodes[index], name, value)

    return change


def _stream(**fields: Any) -> Callable[[Any], None]:
    def change(answers: Any) -> None:
        for name, value in fields.items():
            setattr(answers.status.view.streams[0], name, value)

    return change


def _replica(**fields: Any) -> Callable[[Any], None]:
    def change(answers: Any) -> None:
        for name, value in fields.items():
            setattr(answers.replicas.replicas[0], name, value)

    return change


def _ca(**fields: Any) -> Callable[[Any], None]:
    def change(answers: Any) -> None:
        for name, value in fields.items():
            if isinstance(value, list):
                del getattr(answers.ca, name)[:]
                getattr(answers.ca, name).extend(value)
            else:
                setattr(answers.ca, name, value)

    return change


def _life(kind: str, left: float) -> Callable[[Any], None]:
    def change(answers: Any) -> None:
        for item in answers.certificates.certificates:
            if item.kind == kind:
                item.life_left = left

    return change


def _no_node_certificate(answers: Any) -> None:
    del answers.certificates.certificates[-1]


def _no_path(destination: int) -> Callable[[Any], None]:
    return lambda it: it.forwarding.routes[destination].ClearField("path")


def _no_lane(answers: Any) -> None:
    answers.forwarding.ClearField("lanes")


def _refused_dial(answers: Any) -> None:
    answers.forwarding.failed_dials.add(peer="c", code="CLOCK_SKEW", reason="Here it is noon.")


def _refused_by_all(answers: Any) -> None:
    _no_lane(answers)
    _refused_dial(answers)


def _dialled_while_away(answers: Any) -> None:
    _no_lane(answers)
    answers.forwarding.failed_dials.add(peer="c", code="ADDRESS_UNREACHABLE", reason="Nobody answers.")


def _two_members(answers: Any) -> None:
    answers.status.view.streams[0].members.pop()


def _late_member(answers: Any) -> None:
    answers.replicas.replicas[0].members[0].matched_index = 3


def _without_view(answers: Any) -> None:
    answers.status.ClearField("view")


Case = tuple[str, Callable[[Any], None], Status, str]
W, F, S = Status.WARNING, Status.FAILED, Status.SKIPPED
CASES: Final[list[Case]] = [
    ("node.member", _without_view, F, "node a is in no mesh"),
    ("node.member", warned("This node was removed from the mesh: leave."), F, "was removed from the mesh"),
    ("node.running", _set(is_running=False), F, "was stopped on purpose"),
    (
        "node.stores",
        warned("Redis of this site does not answer since noon (x)."),
        F,
        "Redis of this site does not answer",
    ),
    ("node.stores", warned("The tables are behind: the log says why."), F, "The tables are behind"),
    ("node.stores", warned("No Postgres is set (X): nothing can be queried."), W, "No Postgres is set"),
    ("node.warnings", warned("The moon is full."), W, "The moon is full"),
    ("mesh.quorum", _set(has_quorum=False), F, "not in touch with a quorum of the 3 voters (a, b, c)"),
    ("mesh.nodes-reachable", _node(1, is_reachable=False), F, "1 of 3 active nodes unreachable: b"),
    ("mesh.nodes-reachable", _node(1, state=view_pb2.NODE_STATE_JOINING), W, "b was admitted"),
    ("mesh.versions", _node(2, mesh_version=0), F, "which the software of c does not know"),
    ("mesh.versions", _node(2, mesh_version=3), W, "stays at version 2 of 3 because of a, b"),
    ("mesh.join-policy", _set(join_policy=view_pb2.JOIN_POLICY_OPEN), W, "the mesh is OPEN"),
    ("mesh.join-policy", _set(join_policy=view_pb2.JOIN_POLICY_UNSPECIFIED), S, "does not know the policy"),
    ("ca.present", _ca(exists=False), W, "no certificate authority"),
    ("ca.certificates", _life("node", 0.0), F, "ended: node"),
    ("ca.certificates", _life("intermediate", 0.3), W, "less than a third of its life is left: intermediate"),
    ("ca.certificates", _no_node_certificate, W, "this node has no certificate"),
    ("ca.rotation", _ca(is_rotation_due=True), W, "is no member any more"),
    ("ca.keys", _ca(voters_without_key=["c"]), W, "cannot issue certificates: c"),
    ("ca.keys", _ca(issuers=[]), F, "no node can issue certificates"),
    ("lanes.up", _no_lane, F, "no lane to any node is up"),
    ("lanes.up", _dialled_while_away, F, "no lane to any node is up"),
    ("lanes.up", _refused_dial, W, "1 lane up, and no lane can be opened to c (CLOCK_SKEW)"),
    ("lanes.up", _refused_by_all, F, "0 lanes up, and no lane can be opened to c (CLOCK_SKEW)"),
    ("lanes.tls", _node(1, peer_address="ws://b:1"), W, "the address of b is ws://"),
    ("lanes.tls", _node(1, peer_address="b"), F, "nobody dials b"),
    ("lanes.routes", _no_path(1), F, "no path to c"),
    ("streams.leaders", _replica(leader=""), F, "1 of 2 streams without a leader: s/here"),
    ("streams.copies", _node(1, is_reachable=False), W, "s/here (2 of 3)"),
    ("streams.copies", _node(1, state=view_pb2.NODE_STATE_STOPPED), W, "s/here (2 of 3)"),
    ("streams.copies", _stream(state=view_pb2.STREAM_STATE_FORMING), W, "not formed yet: s/here"),
    ("streams.copies", _two_members, W, "two members"),
    ("streams.replicas", _replica(role="failed", reason="bad disk"), F, "s/here (bad disk)"),
    ("streams.replicas", _replica(reason="is on probation"), W, "s/here: is on probation"),
    ("streams.replicas", _replica(change="adds d"), W, "s/here: adds d"),
    ("streams.replicas", _late_member, W, "b of s/here"),
    ("streams.disk", _replica(retained_bytes=100 << 20), W, "above the limit of bytes kept: s/here"),
]


def test_all_is_ok_in_a_sound_mesh() -> None:
    results = run_checks(CHECKS, sound())
    assert {result.id: result.finding for result in results if result.finding.status is not Status.OK} == {}
    assert [result.id for result in results] == [check.id for check in CHECKS]
    assert unsettled(results) == []


@pytest.mark.parametrize(("check_id", "change", "status", "said"), CASES)
def test_what_is_wrong_is_found_and_has_a_hint(
    check_id: str, change: Callable[[Any], None], status: Status, said: str
) -> None:
    answers = sound()
    change(answers)
    found = find(answers, check_id)
    assert found.status is status
    assert said in found.summary
    assert found.hint


def test_every_check_is_seen_to_object() -> None:
    by_answer = {"gateway.reachable", "node.services"}
    assert {case[0] for case in CASES} | by_answer == {check.id for check in CHECKS}


@pytest.mark.parametrize(
    ("error", "said"), [(NO_GATEWAY, "no gateway answers at h:1"), (SLOW, "did not answer in time")]
)
def test_without_a_gateway_one_check_fails_and_all_others_are_skipped(error: MeshError, said: str) -> None:
    found = statuses(without_gateway(error))
    assert found.pop("gateway.reachable") is Status.FAILED
    assert set(found.values()) == {Status.SKIPPED}
    assert said in find(without_gateway(error), "gateway.reachable").summary
    assert "gateway.reachable failed" in find(without_gateway(error), "streams.disk").summary


@pytest.mark.parametrize("error", [AWAY, SLOW])
def test_a_service_that_does_not_answer_is_named_and_what_it_tells_is_skipped(error: MeshError) -> None:
    answers = replace(sound(), forwarding=error, replicas=error)
    assert find(answers, "node.services").summary == "no answer from data plane"
    assert find(answers, "lanes.up").summary == "not looked at: no answer from data plane"
    found = statuses(answers)
    assert {name for name, status in found.items() if status is Status.SKIPPED} == {
        "lanes.up",
        "lanes.routes",
        "streams.leaders",
        "streams.replicas",
        "streams.disk",
    }
    assert found["mesh.quorum"] is Status.OK


def test_streams_and_lanes_are_looked_at_while_the_control_plane_is_down() -> None:
    found = statuses(replace(sound(), status=AWAY))
    assert found["node.services"] is Status.FAILED
    for name in ("lanes.up", "lanes.routes", "streams.leaders", "streams.replicas"):
        assert found[name] is Status.OK, name
    assert found["mesh.quorum"] is Status.SKIPPED


def test_an_answer_that_was_refused_is_neither_good_nor_bad() -> None:
    found = find(replace(sound(), links=BUSY), "node.services")
    assert found.status is Status.SKIPPED
    assert "BACKPRESSURE: Too many calls." in found.summary


def test_services_of_a_node_in_no_mesh_answer() -> None:
    answers = Answers("h:1", mesh_pb2.GetStatusResponse(name="a"), OUTSIDE, OUTSIDE, OUTSIDE)
    found = statuses(answers)
    assert found["node.services"] is Status.OK
    assert [name for name, status in found.items() if status is Status.FAILED] == ["node.member"]
    assert unsettled(run_checks(CHECKS, answers)) == ["node.member"]


def test_warnings_that_another_check_tells_are_not_told_twice() -> None:
    answers: Any = sound()
    for text in (
        "Node 'b' is unreachable.",
        "This mesh is OPEN: x.",
        "Stream 's' has two members: x.",
        "Postgres is away.",
    ):
        answers.status.warnings.append(text)
    answers.status.warnings.append("7 more streams have no leader either: `meshctl raft ls` names them.")
    assert find(answers, "node.warnings").status is Status.OK


def test_a_stopped_node_is_no_failure_of_the_others() -> None:
    answers = sound()
    _node(2, state=view_pb2.NODE_STATE_STOPPED, is_reachable=False)(answers)
    _no_path(1)(answers)
    assert "stopped on purpose: c" in find(answers, "mesh.nodes-reachable").summary
    assert find(answers, "lanes.routes").status is Status.OK


def test_without_a_quorum_what_was_committed_about_reachability_is_not_believed() -> None:
    answers = sound()
    _set(has_quorum=False)(answers)
    _node(2, is_reachable=False)(answers)
    _no_path(1)(answers)
    assert find(answers, "mesh.nodes-reachable").status is Status.SKIPPED
    assert find(answers, "lanes.routes").summary == "no path to c"


def test_the_only_node_of_a_mesh_needs_no_lane() -> None:
    answers: Any = sound()
    del answers.status.view.nodes[1:]
    answers.forwarding.Clear()
    assert find(answers, "lanes.up").status is Status.OK


def test_a_node_whose_peers_were_all_stopped_on_purpose_needs_no_lane() -> None:
    answers: Any = sound()
    answers.forwarding.ClearField("lanes")
    _node(1, state=view_pb2.NODE_STATE_STOPPED)(answers)
    assert find(answers, "lanes.up").status is Status.FAILED
    _node(2, state=view_pb2.NODE_STATE_STOPPED)(answers)
    assert find(answers, "lanes.up").status is Status.OK


def test_without_the_control_plane_the_routes_tell_whether_a_lane_is_needed() -> None:
    answers: Any = replace(sound(), status=AWAY)
    answers.forwarding.ClearField("lanes")
    assert find(answers, "lanes.up").status is Status.FAILED
    answers.forwarding.ClearField("routes")
    assert find(answers, "lanes.up").status is Status.OK


def test_streams_held_elsewhere_are_asked_about_and_told_apart() -> None:
    answers: Any = sound()
    assert remote_streams(answers.status, answers.replicas) == ["s/there"]
    no_leader = MeshError(ErrorCode.STREAM_UNAVAILABLE, "No leader.")
    gone = MeshError(ErrorCode.STREAM_NOT_FOUND, "Deleted meanwhile.")
    assert find(replace(answers, remote={"s/there": no_leader}), "streams.leaders").details["leaderless"] == ["s/there"]
    assert find(replace(answers, remote={"s/there": gone}), "streams.leaders").status is Status.OK
    for partly in (replace(answers, remote={"s/there": BUSY}), replace(answers, not_asked=1)):
        found = find(partly, "streams.leaders")
        assert found.status is Status.SKIPPED
        assert "1 not looked at" in found.summary
        assert unsettled(run_checks(CHECKS, partly)) == ["streams.leaders"]


def test_a_member_that_the_leader_has_not_heard_yet_is_not_called_late() -> None:
    answers: Any = sound()
    answers.replicas.replicas[0].members[0].matched_index = 0
    assert find(answers, "streams.replicas").status is Status.OK


def test_a_check_may_only_need_earlier_ones_and_ids_are_unique() -> None:
    known: set[str] = set()
    for check in CHECKS:
        assert set(check.needs) <= known, check.id
        assert check.id not in known
        known.add(check.id)


def test_a_need_is_looked_at_even_if_it_is_not_shown() -> None:
    checks = (Check("x.bad", lambda _: failed("bad", "mend it")), Check("x.rest", lambda _: ok("fine"), ("x.bad",)))
    (result,) = run_checks(checks, sound(), {"x.rest"})
    assert result == Result("x.rest", Finding(Status.SKIPPED, "not looked at: x.bad failed"))


def test_a_long_list_is_cut_in_the_summary() -> None:
    assert some(f"n{number}" for number in range(7)) == "n0, n1, n2, n3, n4 and 2 more"
