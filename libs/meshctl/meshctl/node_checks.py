"""Checks of this node: its services, its membership, its stores and its lanes. See `checks`."""

from __future__ import annotations

from collections.abc import Sized
from typing import Final

from meshapi.common.v1 import view_pb2
from meshapi.supervisor.v1 import mesh_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshctl.checks import (
    AWAY,
    CONTROL_PLANE,
    DATA_PLANE,
    ROUTING,
    Answers,
    Check,
    Finding,
    NoAnswerError,
    count,
    failed,
    ok,
    some,
    told,
    warning,
)

# The status tells its warnings as sentences only. A sentence that no check here knows is shown by `node.warnings`, so a
# sentence that is worded anew moves there and is not lost.
_REMOVED: Final = "This node was removed from the mesh"
_NO_POSTGRES: Final = "No Postgres is set"
_STORES: Final = ("Postgres ", "Redis ", "The tables are behind", _NO_POSTGRES)
_OF_CA: Final = ("Certificates end", "Rotation of the CA", "The key of the CA")
_OF_OTHER_CHECKS: Final = (_REMOVED, *_STORES, *_OF_CA, "This mesh is OPEN", "Node '", "Stream '")
_AWAY: Final = frozenset(
    (
        ErrorCode.ADDRESS_UNREACHABLE,
        ErrorCode.NODE_STOPPED,
        ErrorCode.HANDSHAKE_FAILED,
        ErrorCode.MEMBERSHIP_OUTDATED,
        ErrorCode.WRONG_PROTOCOL,
    )
)
"""Why a dial fails while a node is away, restarts or joins: `mesh.nodes-reachable` tells of it, if it lasts."""
_MORE_LEADERLESS: Final = "more streams have no leader"


def _gateway_reachable(answers: Answers) -> Finding:
    given = (answers.status, answers.links, answers.forwarding, answers.replicas)
    broken = next((it for it in given if isinstance(it, MeshError) and "gateway" in it.details), None)
    if broken is not None:
        return failed(
            f"no gateway answers at {answers.gateway}",
            "start the node, or name its gateway's gRPC address (not that of REST or of meshclient) with --gateway or "
            "MESH_CTL_GATEWAY",
        )
    if all(isinstance(it, MeshError) and it.code is ErrorCode.DEADLINE_EXCEEDED for it in given):
        return failed(
            f"{answers.gateway} did not answer in time",
            "check the address, and the machine and the network behind it",
        )
    return ok(f"answers at {answers.gateway}")


def _services(answers: Answers) -> Finding:
    given = {CONTROL_PLANE: answers.status, ROUTING: answers.links, DATA_PLANE: answers.forwarding}
    errors = {name: answer for name, answer in given.items() if isinstance(answer, MeshError)}
    away = [name for name, error in errors.items() if error.code in AWAY]
    if away:
        return failed(
            f"no answer from {some(away)}",
            "start it again; if it runs, its log and /readyz on its admin port say why it does not answer",
            services=away,
        )
    for name, error in errors.items():
        # A node that is in no mesh, or stopped, has services that answer just that.
        if error.code not in (ErrorCode.NOT_A_MEMBER, ErrorCode.NODE_STOPPED):
            raise NoAnswerError(name, error)
    return ok("control plane, routing and data plane answer")


def _member(answers: Answers) -> Finding:
    status = told(answers.status, CONTROL_PLANE)
    if any(text.startswith(_REMOVED) for text in status.warnings):
        return failed(
            f"node {status.name} was removed from the mesh", "run `meshctl leave` here, then `meshctl join TOKEN`"
        )
    if not status.HasField("view"):
        return failed(f"node {status.name} is in no mesh", "`meshctl seed` founds one, `meshctl join TOKEN` joins one")
    mesh = f"{status.mesh_name!r} ({status.view.mesh_id})" if status.mesh_name else status.view.mesh_id
    return ok(f"node {status.name} (id {status.node_id}) is a member of mesh {mesh}", mesh_id=status.view.mesh_id)


def _running(answers: Answers) -> Finding:
    status = told(answers.status, CONTROL_PLANE)
    if not status.is_running:
        return failed(f"node {status.name} was stopped on purpose", "`meshctl start` starts it again")
    return ok(f"node {status.name} runs")


def _stores(answers: Answers) -> Finding:
    status = told(answers.status, CONTROL_PLANE)
    found = [text for text in status.warnings if text.startswith(_STORES)]
    if not found:
        return ok("no trouble with Postgres or Redis")
    # The reason in brackets is in the details: two stores that are away still fit a line.
    summary = "; ".join(text.partition(" (")[0].removesuffix(".") for text in found)
    if all(text.startswith(_NO_POSTGRES) for text in found):
        return warning(summary, "set MESH_NODE_POSTGRES_URL, or accept it", warnings=found)
    return failed(summary, "start the store again; streams go on without it, nothing is lost", warnings=found)


def _other_warnings(answers: Answers) -> Finding:
    status = told(answers.status, CONTROL_PLANE)
    found = [text for text in status.warnings if not text.startswith(_OF_OTHER_CHECKS) and _MORE_LEADERLESS not in text]
    if not found:
        return ok("the control plane warns of nothing else")
    more = f" (and {count(len(found) - 1, 'more')})" if len(found) > 1 else ""
    return warning(found[0].removesuffix(".") + more, "`meshctl status` shows every warning", warnings=found)


def _lanes_up(answers: Answers) -> Finding:
    forwarding = told(answers.forwarding, DATA_PLANE)
    peers = sorted({lane.peer for lane in forwarding.lanes})
    refused = [dial for dial in forwarding.failed_dials if dial.code not in _AWAY]
    if refused:
        named = ", ".join(f"{dial.peer} ({dial.code})" for dial in refused)
        find = warning if peers else failed
        return find(
            f"{count(len(peers), 'lane')} up, and no lane can be opened to {named}",
            refused[0].reason,
            peers=peers,
            refused={dial.peer: dial.code for dial in refused},
        )
    if peers:
        return ok(f"{count(len(forwarding.lanes), 'lane')} up, to {some(peers)}", peers=peers)
    if _is_alone(answers.status, forwarding.routes):
        return ok("no other node runs: no lane is needed")
    return failed(
        "no lane to any node is up",
        "check that the addresses of `meshctl nodes` can be reached from here; the data plane's log says what fails",
    )


def _is_alone(status: mesh_pb2.GetStatusResponse | MeshError, routes: Sized) -> bool:
    """Whether no other node should run. Without the control plane, which knows, the data plane's routes decide."""
    if isinstance(status, MeshError):
        return not routes
    return not any(
        node.state == view_pb2.NODE_STATE_ACTIVE and node.node_id != status.node_id for node in status.view.nodes
    )


NODE_CHECKS: Final = (
    Check("gateway.reachable", _gateway_reachable),
    Check("node.services", _services, ("gateway.reachable",)),
    Check("node.member", _member, ("gateway.reachable",)),
    Check("node.running", _running, ("gateway.reachable", "node.member")),
    Check("node.stores", _stores, ("gateway.reachable",)),
    Check("node.warnings", _other_warnings, ("gateway.reachable",)),
)
LANES_UP: Final = Check("lanes.up", _lanes_up, ("gateway.reachable", "node.member", "node.running"))
