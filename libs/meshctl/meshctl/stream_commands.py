"""Commands about the catalogue of streams."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click

from meshapi.common.v1 import view_pb2
from meshapi.supervisor.v1 import data_pb2, mesh_pb2
from meshcommon.errors import MeshError
from meshctl.confirm import confirm
from meshctl.connection import Connection, run
from meshctl.member_commands import members
from meshctl.options import MeshGroup, Options
from meshctl.output import as_json, print_json, print_table, short_name, yes

Names = dict[int, str]


@click.group(cls=MeshGroup)
def stream() -> None:
    """Create, list, show and remove streams."""


@stream.command()
@click.argument("name")
@click.option(
    "--members", required=True, metavar="A,B,C", help="Nodes that hold it, 2 to 10; the first is the preferred leader."
)
@click.option(
    "--retained-bytes",
    type=click.IntRange(min=0, max=2**63 - 1),
    default=0,
    help="Bytes that each member keeps before the oldest go; at least 64 MiB.  [default: 8 GiB]",
)
@click.pass_obj
def create(options: Options, name: str, members: str, retained_bytes: int) -> None:
    """Create the stream NAME (namespace/name) and wait until it has formed."""
    request = mesh_pb2.CreateStreamRequest(
        name=name,
        members=[member.strip() for member in members.split(",") if member.strip()],
        retained_bytes_max=retained_bytes,
    )
    answer = run(options, lambda it: it.call(it.mesh.CreateStream, request))
    if options.is_json:
        print_json(as_json(answer))
        return
    click.echo(f"created stream {answer.stream.name} (id {answer.stream.stream_id})")
    for warning in answer.warnings:
        click.echo(f"warning: {warning}")


@stream.command("ls")
@click.pass_obj
def list_streams(options: Options) -> None:
    """List the streams."""
    streams, names = run(options, _catalogue)
    if options.is_json:
        print_json([_stream_json(item, names) for item in streams])
        return
    print_table(
        [">ID", "NAME", "STATE", "MEMBERS"],
        [[str(item.stream_id), item.name, short_name(item, "state"), _members(item, names)] for item in streams],
        "no streams: `meshctl stream create NAME --members a,b,c` makes one",
    )


@stream.command()
@click.argument("name")
@click.pass_obj
def info(options: Options, name: str) -> None:
    """Show one stream and the live state of its group."""
    item, names, live = run(options, lambda it: _describe(it, name))
    if options.is_json:
        shown = (
            {"live": None, "warnings": [str(live)]}
            if isinstance(live, MeshError)
            else {"live": as_json(live), "warnings": []}
        )
        print_json({**_stream_json(item, names), **shown})
        return
    created = datetime.fromtimestamp(item.created_at_ms / 1000, UTC).isoformat(timespec="seconds")
    click.echo(f"stream    {item.name} (id {item.stream_id})  {short_name(item, 'state')}  created {created}")
    click.echo(f"members   {_members(item, names)}")
    for former in item.retiring:
        what = "its data are going" if former.is_out else "still part of the group"
        click.echo(f"retiring  {names.get(former.node_id, f'node {former.node_id}')} ({what})")
    if isinstance(live, MeshError):
        click.echo(f"warning: no live state: {live}")
        return
    held = live.next_offset - live.floor_offset
    click.echo(f"records   {held}, offsets {live.floor_offset} to {live.next_offset} (excluded)")
    click.echo(f"bytes     {live.retained_bytes} of at most {item.retained_bytes_max}")
    click.echo(f"leader    {live.leader}, term {live.term}, applied {live.applied_index}")
    if live.change:
        click.echo(f"change    {live.change}")
    click.echo(f"hash      {live.state_hash.hex()}")
    click.echo()
    print_table(
        ["MEMBER", "VOTER", ">LOG UP TO", ">LAST HEARD"],
        [[it.node, yes(it.is_voter), str(it.matched_index), f"{it.quiet_ms} ms ago"] for it in live.members],
        "no members",
    )


@stream.command("rm")
@click.argument("name")
@click.option("--yes", "is_sure", is_flag=True, help="Do not ask.")
@click.pass_obj
def remove(options: Options, name: str, is_sure: bool) -> None:
    """Delete a stream and its data on every member."""
    confirm(is_sure, f"Delete stream {name} and all its records on every member?")
    run(options, lambda it: it.call(it.mesh.DeleteStream, mesh_pb2.DeleteStreamRequest(name=name)))
    if options.is_json:
        print_json({})
    else:
        click.echo(f"deleted stream {name}")


stream.add_command(members)


async def _catalogue(connection: Connection) -> tuple[list[view_pb2.StreamView], Names]:
    answer = await connection.call(connection.mesh.ListStreams, mesh_pb2.ListStreamsRequest())
    return sorted(answer.streams, key=lambda item: item.name), await _names(connection)


async def _names(connection: Connection) -> Names:
    status = await connection.call(connection.mesh.GetStatus, mesh_pb2.GetStatusRequest())
    return {node.node_id: node.name for node in status.view.nodes}


async def _describe(
    connection: Connection, name: str
) -> tuple[view_pb2.StreamView, Names, data_pb2.DescribeStreamResponse | MeshError]:
    found = await connection.call(connection.mesh.GetStream, mesh_pb2.GetStreamRequest(name=name))
    names = await _names(connection)
    try:
        live = await connection.call(connection.data.DescribeStream, data_pb2.DescribeStreamRequest(stream=name))
    except MeshError as error:
        # The catalogue's part is worth showing while the group has no leader.
        return found.stream, names, error
    return found.stream, names, live


def _members(item: view_pb2.StreamView, names: Names) -> str:
    return ", ".join(names.get(member.node_id, f"node {member.node_id}") for member in item.members)


def _stream_json(item: view_pb2.StreamView, names: Names) -> dict[str, Any]:
    result = as_json(item)
    for member, shown in zip(item.members, result["members"], strict=True):
        shown["node"] = names.get(member.node_id, "")
    return result
