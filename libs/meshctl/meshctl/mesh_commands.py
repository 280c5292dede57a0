"""Commands about the life of node and mesh."""

from __future__ import annotations

import sys
from typing import Final

import click

from meshapi.common.v1 import view_pb2
from meshapi.supervisor.v1 import data_pb2, mesh_pb2
from meshcommon.address import is_peer_address
from meshcommon.peer_text import printable
from meshctl.confirm import confirm
from meshctl.connection import run
from meshctl.join_commands import POLICY, policy_value
from meshctl.options import MeshCommand, MeshGroup, Options
from meshctl.output import as_json, milliseconds, path, print_json, print_table, short_name, yes

JOIN_PREFIX: Final = "mesh1."


def _status(options: Options) -> mesh_pb2.GetStatusResponse:
    return run(options, lambda it: it.call(it.mesh.GetStatus, mesh_pb2.GetStatusRequest()))


@click.command(cls=MeshCommand)
@click.pass_obj
def status(options: Options) -> None:
    """Show what the node knows of the mesh and of itself."""
    answer = _status(options)
    if options.is_json:
        print_json(as_json(answer))
        return
    if not answer.HasField("view"):
        click.echo(f"node {answer.name} is in no mesh: `meshctl seed` founds one, `meshctl join TOKEN` joins one")
    else:
        _print_status(answer)
    for warning in answer.warnings:
        click.echo(f"warning: {warning}")


def _print_status(answer: mesh_pb2.GetStatusResponse) -> None:
    view = answer.view
    names = {node.node_id: node.name for node in view.nodes}
    active = [node for node in view.nodes if node.state == view_pb2.NODE_STATE_ACTIVE]
    reachable = sum(node.is_reachable for node in active)
    streams = sum(stream.state != view_pb2.STREAM_STATE_DELETING for stream in view.streams)
    running = "running" if answer.is_running else "stopped"
    quorum = "in touch with a quorum" if answer.has_quorum else "without a quorum"
    name = f"{answer.mesh_name}  " if answer.mesh_name else ""
    policy = f"  {short_name(answer, 'join_policy')}" if answer.join_policy else ""
    click.echo(f"mesh     {name}{view.mesh_id}  {short_name(view, 'status')}  revision {view.revision}{policy}")
    click.echo(f"node     {answer.name} (id {answer.node_id})  {running}, {quorum}")
    joining = sum(node.state == view_pb2.NODE_STATE_JOINING for node in view.nodes)
    click.echo(
        f"nodes    {len(view.nodes)}, {reachable} of {len(active)} active reachable"
        f"{f', {joining} joining' if joining else ''}"
    )
    click.echo(f"streams  {streams}")
    leader = names.get(answer.mcg_leader, "unknown")
    click.echo(f"MCG      leader {leader}, term {answer.mcg_term}, applied {answer.mcg_applied}")


@click.command(cls=MeshCommand)
@click.pass_obj
def nodes(options: Options) -> None:
    """List the members of the mesh."""
    members = _status(options).view.nodes
    if options.is_json:
        print_json([as_json(node) for node in members])
        return
    print_table(
        [">ID", "NAME", "STATE", "REACHABLE", "VOTER", "ADDRESS"],
        [
            [
                str(node.node_id),
                node.name,
                short_name(node, "state"),
                yes(node.is_reachable),
                yes(node.is_voter),
                _address(node.peer_address),
            ]
            for node in members
        ],
        "this node is in no mesh",
    )


def _address(address: str) -> str:
    if not address:
        return "only dials"
    return address if is_peer_address(address) else f"{printable(address)} (no address, not dialled)"


@click.command(cls=MeshCommand)
@click.argument("node")
@click.option("--limit-ms", type=click.IntRange(1, 60_000), default=2_000, show_default=True, help="Time to answer.")
@click.pass_obj
def ping(options: Options, node: str, limit_ms: int) -> None:
    """Send an echo to a node through the overlay."""
    request = data_pb2.PingRequest(node=node, timeout_ms=limit_ms)
    answer = run(options, lambda it: it.call(it.data.Ping, request, extra_s=limit_ms / 1000))
    if options.is_json:
        print_json(as_json(answer))
    else:
        click.echo(f"{node}: {milliseconds(answer.rtt_us)} over {path(answer.path)}")


@click.command(cls=MeshCommand)
@click.pass_obj
def forwarding(options: Options) -> None:
    """Show the lanes of the node and its route to every other."""
    answer = run(options, lambda it: it.call(it.data.GetForwarding, data_pb2.GetForwardingRequest()))
    if options.is_json:
        print_json(as_json(answer))
        return
    print_table(
        ["LANE TO", "DIALLED BY", ">ROUND TRIP", ">UP"],
        [
            [lane.peer, "this node" if lane.is_dialled else "the peer", milliseconds(lane.rtt_us), f"{lane.up_s:.0f} s"]
            for lane in answer.lanes
        ],
        "no lane is up",
    )
    click.echo()
    print_table(
        ["ROUTE TO", "PATH", "BACKUP"],
        [[route.destination, path(route.path), path(route.backup)] for route in answer.routes],
        "no routes",
    )


@click.command(cls=MeshCommand)
@click.option("--name", default="", help="Name of the mesh, a DNS label.  [default: mesh]")
@click.option("--policy", type=POLICY, default="key-required", show_default=True, help="Who may become a member.")
@click.pass_obj
def seed(options: Options, name: str, policy: str) -> None:
    """Found a new mesh with this node as its first. Repeated, it changes nothing and prints a new token."""
    request = mesh_pb2.SeedRequest(name=name, policy=policy_value(policy))
    answer = run(options, lambda it: it.call(it.mesh.Seed, request))
    if options.is_json:
        print_json(as_json(answer))
        return
    click.echo(f"founded mesh {answer.mesh_id}; this node has id {answer.node_id}")
    if answer.ca_fingerprint:
        click.echo(f"fingerprint of the mesh's root: {answer.ca_fingerprint}")
    if answer.ca_root_key_file:
        click.echo(
            f"the root's key is in {answer.ca_root_key_file}: move it to a safe place, the mesh works without it"
        )
    if answer.token:
        click.echo(f"to join a node within 15 minutes, run there:\nmeshctl join {answer.token}")


@click.command(cls=MeshCommand)
@click.argument("token", metavar="TOKEN|ADDRESS")
@click.option("--address", default="", help="With a token: ask this address instead of those that it names.")
@click.option("--mesh-id", default="", help="Expected id of the mesh; without it whichever answers is joined.")
@click.option("--trust", metavar="FINGERPRINT", default="", help="With an address: the mesh's root has this SHA-256.")
@click.option("--trust-first", is_flag=True, help="With an address: accept that nothing shows which mesh answers.")
@click.pass_obj
def join(options: Options, token: str, address: str, mesh_id: str, trust: str, trust_first: bool) -> None:
    """Join the mesh that issued TOKEN (`meshctl token issue` at a member; `-` reads it from standard input).

    In an OPEN mesh the ADDRESS of a member (wss://host:port) will do, with the fingerprint that `meshctl ca show` prints at a
    member (--trust), or with --trust-first.
    """
    if token == "-":  # noqa: S105 - the usual name of standard input
        token = sys.stdin.readline().strip()
    request = mesh_pb2.JoinRequest(mesh_id=mesh_id, trust_first=trust_first, trust_fingerprint=trust)
    if token.startswith(JOIN_PREFIX):
        request.token, request.address = token, address
    elif address:
        raise click.UsageError(f"A token begins with {JOIN_PREFIX} and has no spaces: copy the whole line.")
    elif not trust_first and not trust:
        raise click.UsageError("Join with a token, or, in an OPEN mesh, by an address with --trust or --trust-first.")
    else:
        request.address = token
    answer = run(options, lambda it: it.call(it.mesh.Join, request))
    if options.is_json:
        print_json(as_json(answer))
    else:
        click.echo(f"joined mesh {answer.mesh_id}; this node has id {answer.node_id}")


@click.command(cls=MeshCommand)
@click.option("--yes", "is_sure", is_flag=True, help="Do not ask.")
@click.pass_obj
def leave(options: Options, is_sure: bool) -> None:
    """Leave the mesh for good: the node forgets it and its streams' data."""
    confirm(is_sure, "Leave the mesh for good and forget this node's copy of its streams?")
    run(options, lambda it: it.call(it.mesh.Leave, mesh_pb2.LeaveRequest()))
    _done(options, "left the mesh")


@click.command(cls=MeshCommand)
@click.pass_obj
def stop(options: Options) -> None:
    """Stop the node on purpose: lanes and groups close, data stay."""
    run(options, lambda it: it.call(it.mesh.Stop, mesh_pb2.StopRequest()))
    _done(options, "stopped; `meshctl start` starts the node again")


@click.command(cls=MeshCommand)
@click.pass_obj
def start(options: Options) -> None:
    """Start a stopped node again."""
    run(options, lambda it: it.call(it.mesh.Start, mesh_pb2.StartRequest()))
    _done(options, "started")


def _done(options: Options, text: str) -> None:
    if options.is_json:
        print_json({})
    else:
        click.echo(text)


@click.group(cls=MeshGroup)
def node() -> None:
    """Act on another node of the mesh."""


@node.command()
@click.argument("name")
@click.option("--accept-risk", is_flag=True, help="Also when streams lose their quorum or their last member by it.")
@click.option("--yes", "is_sure", is_flag=True, help="Do not ask.")
@click.pass_obj
def forget(options: Options, name: str, accept_risk: bool, is_sure: bool) -> None:
    """Remove the node NAME, which is lost: its disk is gone or wiped, and the mesh no longer hears it.

    Its name is free afterwards. Streams that keep their quorum go on without it.
    """
    confirm(is_sure, f"Forget node {name} for good, with its copies of streams?")
    request = mesh_pb2.ForgetNodeRequest(name=name, accept_risk=accept_risk)
    answer = run(options, lambda it: it.call(it.mesh.ForgetNode, request))
    if options.is_json:
        print_json(as_json(answer))
        return
    click.echo(f"forgot {name}; it may join again as a new node")
    if answer.streams:
        click.echo(f"streams that were on it: {', '.join(answer.streams)}; see `meshctl stream members add`")


COMMANDS: tuple[click.Command, ...] = (
    status,
    nodes,
    ping,
    forwarding,
    seed,
    join,
    leave,
    node,
    stop,
    start,
)
