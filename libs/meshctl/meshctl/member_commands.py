"""Commands that change the members of a stream: `meshctl stream members ...`."""

from __future__ import annotations

import click

from meshapi.supervisor.v1 import mesh_pb2
from meshctl.confirm import confirm
from meshctl.connection import run
from meshctl.options import MeshGroup, Options
from meshctl.output import as_json, print_json


@click.group(cls=MeshGroup)
def members() -> None:
    """Add, remove, replace and renew the members of a stream.

    A change is committed at once; the stream's group then follows step by step. `meshctl stream info` shows how far it is.
    """


_accept_risk = click.option(
    "--accept-risk", is_flag=True, help="Also when too few of the voters that remain are reachable to take writes."
)


@members.command()
@click.argument("name")
@click.argument("nodes", nargs=-1, required=True, metavar="NODE...")
@click.pass_obj
def add(options: Options, name: str, nodes: tuple[str, ...]) -> None:
    """Make each NODE a member of the stream NAME."""
    _change(options, mesh_pb2.ChangeStreamMembersRequest(name=name, add=nodes))


@members.command()
@click.argument("name")
@click.argument("nodes", nargs=-1, required=True, metavar="NODE...")
@_accept_risk
@click.option("--yes", "is_sure", is_flag=True, help="Do not ask.")
@click.pass_obj
def remove(options: Options, name: str, nodes: tuple[str, ...], accept_risk: bool, is_sure: bool) -> None:
    """Take the stream NAME from each NODE, and then its data there."""
    confirm(is_sure, f"Remove {', '.join(nodes)} from stream {name}, with all its records there?")
    _change(options, mesh_pb2.ChangeStreamMembersRequest(name=name, remove=nodes, accept_risk=accept_risk))


@members.command()
@click.argument("name")
@click.argument("old")
@click.argument("new")
@_accept_risk
@click.option("--yes", "is_sure", is_flag=True, help="Do not ask.")
@click.pass_obj
def replace(options: Options, name: str, old: str, new: str, accept_risk: bool, is_sure: bool) -> None:
    """Let node NEW take the place of node OLD in the stream NAME."""
    confirm(is_sure, f"Replace {old} by {new} in stream {name}, and drop all its records at {old}?")
    request = mesh_pb2.ChangeStreamMembersRequest(name=name, add=[new], remove=[old], accept_risk=accept_risk)
    _change(options, request)


@members.command()
@click.argument("name")
@click.argument("node")
@click.option("--yes", "is_sure", is_flag=True, help="Do not ask.")
@click.pass_obj
def renew(options: Options, name: str, node: str, is_sure: bool) -> None:
    """Let NODE drop its data of the stream NAME, which are not trusted, and fetch them anew."""
    confirm(is_sure, f"Drop all records of stream {name} at {node} and fetch them anew?")
    _change(options, mesh_pb2.ChangeStreamMembersRequest(name=name, renew=[node]))


def _change(options: Options, request: mesh_pb2.ChangeStreamMembersRequest) -> None:
    answer = run(options, lambda it: it.call(it.mesh.ChangeStreamMembers, request))
    if options.is_json:
        print_json(as_json(answer))
        return
    click.echo(
        f"stream {answer.stream.name} is to have {len(answer.stream.members)} members: see `meshctl stream info`"
    )
    for warning in answer.warnings:
        click.echo(f"warning: {warning}")
