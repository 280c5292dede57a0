"""Checks of the mesh: its quorum, nodes, versions, join policy, addresses and routes. See `checks`."""

from __future__ import annotations

from typing import Final

from meshapi.common.v1 import view_pb2
from meshcommon.address import is_peer_address
from meshctl.checks import (
    CONTROL_PLANE,
    DATA_PLANE,
    Answers,
    Check,
    Finding,
    count,
    failed,
    ok,
    skipped,
    some,
    told,
    warning,
)
from meshctl.output import path, short_name

_MEMBER: Final = ("gateway.reachable", "node.member")
_RUNNING: Final = (*_MEMBER, "node.running")


def _quorum(answers: Answers) -> Finding:
    status = told(answers.status, CONTROL_PLANE)
    voters = [node.name for node in status.view.nodes if node.is_voter]
    if not status.has_quorum:
        return failed(
            f"this node is not in touch with a quorum of the {count(len(voters), 'voter')} ({some(voters)})",
            "start the voters and repair the links to them; only if a majority of them is lost for good: "
            "`meshctl raft recover --control-group --survivor NODE` at each node that is left",
            voters=voters,
        )
    names = {node.node_id: node.name for node in status.view.nodes}
    leader = names.get(status.mcg_leader, "unknown")
    return ok(f"leader {leader} in term {status.mcg_term}, voters {some(voters)}", leader=leader, voters=voters)


def _nodes_reachable(answers: Answers) -> Finding:
    view = told(answers.status, CONTROL_PLANE).view
    active = [node for node in view.nodes if node.state == view_pb2.NODE_STATE_ACTIVE]
    away = [node.name for node in active if not node.is_reachable]
    stopped = [node.name for node in view.nodes if node.state == view_pb2.NODE_STATE_STOPPED]
    joining = [node.name for node in view.nodes if node.state == view_pb2.NODE_STATE_JOINING]
    told_of = {"unreachable": away, "stopped": stopped, "joining": joining}
    if away:
        return failed(
            f"{len(away)} of {count(len(active), 'active node')} unreachable: {some(away)}; "
            f"the mesh is {short_name(view, 'status')}",
            "start it again or repair its links; only if its disk is lost for good: `meshctl node forget NAME`",
            **told_of,
        )
    if joining:
        return warning(
            f"{some(joining)} was admitted and has not been heard yet",
            "start it and look at its log; `meshctl node forget NAME` gives its name free",
            **told_of,
        )
    planned = f"; stopped on purpose: {some(stopped)}" if stopped else ""
    return ok(f"{len(active)} of {count(len(active), 'active node')} reachable{planned}", **told_of)


def _versions(answers: Answers) -> Finding:
    view = told(answers.status, CONTROL_PLANE).view
    # 0 stands for 1, in the mesh as in a node.
    mesh = view.mesh_version or 1
    versions = {node.name: node.mesh_version or 1 for node in view.nodes}
    newest = max(versions.values(), default=mesh)
    too_old = sorted(name for name, version in versions.items() if version < mesh)
    if too_old:
        return failed(
            f"the mesh is at version {mesh}, which the software of {some(too_old)} does not know",
            "update that software: until then it applies no more changes of the mesh",
            mesh=mesh,
            nodes=versions,
        )
    behind = sorted(name for name, version in versions.items() if version < newest)
    if behind:
        return warning(
            f"the mesh stays at version {mesh} of {newest} because of {some(behind)}",
            "update the software there; the mesh raises its version by itself then",
            mesh=mesh,
            nodes=versions,
        )
    return ok(f"the mesh is at version {mesh}, and every node supports {newest}", mesh=mesh, nodes=versions)


def _join_policy(answers: Answers) -> Finding:
    status = told(answers.status, CONTROL_PLANE)
    policy = short_name(status, "join_policy")
    if status.join_policy == view_pb2.JOIN_POLICY_UNSPECIFIED:
        return skipped("this node does not know the policy of the mesh yet", "run it again, or with --wait")
    if status.join_policy == view_pb2.JOIN_POLICY_OPEN:
        return warning(
            "the mesh is OPEN: every node that reaches a member can join it",
            "`meshctl policy set key-required` asks new nodes for a token",
            policy=policy,
        )
    return ok(
        {"KEY_REQUIRED": "a new node needs a token", "CLOSED": "no node can join"}.get(policy, policy), policy=policy
    )


def _lanes_tls(answers: Answers) -> Finding:
    view = told(answers.status, CONTROL_PLANE).view
    addresses = {node.name: node.peer_address for node in view.nodes if node.peer_address}
    unusable = sorted(name for name, address in addresses.items() if not is_peer_address(address))
    plain = sorted(name for name, address in addresses.items() if address.startswith("ws://"))
    if unusable:
        return failed(
            f"nobody dials {some(unusable)}: what it has for an address is none",
            "let it leave, correct MESH_CONTROL_PEER_ADDRESS there, and let it join again",
            unusable=unusable,
            plain=plain,
        )
    if plain:
        return warning(
            f"without TLS: the address of {some(plain)} is ws://",
            "give it a wss:// address; see MESH_DATA_PEER_TLS in docs/settings.md",
            unusable=unusable,
            plain=plain,
        )
    return ok(f"{count(len(addresses), 'address', 'addresses')} to dial, each wss://", addresses=addresses)


def _routes(answers: Answers) -> Finding:
    routes = told(answers.forwarding, DATA_PLANE).routes
    # An unreachable or stopped node needs no route here: mesh.nodes-reachable tells of it. Without a status all count.
    excused: set[str] = set()
    if not isinstance(answers.status, Exception) and answers.status.has_quorum:
        excused = {
            node.name
            for node in answers.status.view.nodes
            if node.state != view_pb2.NODE_STATE_ACTIVE or not node.is_reachable
        }
    wanted = [route for route in routes if route.destination not in excused]
    missing = [route.destination for route in wanted if not route.path]
    if missing:
        return failed(
            f"no path to {some(missing)}",
            "`meshctl links` shows which links are known; repair one that leads there",
            missing=missing,
        )
    single = [route.destination for route in wanted if not route.backup]
    longest = max(wanted, key=lambda route: len(route.path), default=None)
    by_relay = f", the longest {path(longest.path)}" if longest is not None and len(longest.path) > 2 else ""
    return ok(f"a path to {count(len(wanted), 'other node')}{by_relay}", without_backup=single)


MESH_CHECKS: Final = (
    Check("mesh.quorum", _quorum, _RUNNING),
    Check("mesh.nodes-reachable", _nodes_reachable, (*_RUNNING, "mesh.quorum")),
    Check("mesh.versions", _versions, _MEMBER),
    Check("mesh.join-policy", _join_policy, _MEMBER),
)
LANES_TLS: Final = Check("lanes.tls", _lanes_tls, _MEMBER)
LANES_ROUTES: Final = Check("lanes.routes", _routes, (*_RUNNING, "lanes.up"))
