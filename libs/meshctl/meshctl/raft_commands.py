"""Commands about the groups under streams: `meshctl raft ...` and `meshctl audit`."""

from __future__ import annotations

from typing import Final

import click

from meshapi.supervisor.v1 import data_pb2, mesh_pb2
from meshctl.confirm import confirm
from meshctl.connection import run
from meshctl.options import EXIT_FINDING, EXIT_RETRYABLE, MeshCommand, MeshGroup, Options
from meshctl.output import as_json, print_json, print_table, yes

_AUDIT_EXTRA_S: Final = 600.0
"""Reading gigabytes back takes its time."""


@click.group(cls=MeshGroup)
def raft() -> None:
    """Show the groups under streams, hand leaderships over, recover what lost its quorum."""


@raft.command("ls")
@click.pass_obj
def list_replicas(options: Options) -> None:
    """List the replicas of this node: who leads, terms, voters, lag, bytes."""
    answer = run(options, lambda it: it.call(it.data.ListReplicas, data_pb2.ListReplicasRequest()))
    if options.is_json:
        print_json(as_json(answer))
        return
    print_table(
        ["STREAM", "ROLE", "LEADER", ">TERM", "VOTERS", "LEARNERS", ">APPLIED", ">TO APPLY", ">BYTES", "NOTE"],
        [
            [
                item.stream,
                item.role,
                item.leader or "unknown",
                str(item.term),
                ",".join(item.voters),
                ",".join(item.learners),
                str(item.applied_index),
                str(item.last_index - item.applied_index),
                str(item.retained_bytes),
                item.reason or item.change,
            ]
            for item in answer.replicas
        ],
        f"node {answer.node} holds no streams",
    )
    click.echo(f"log of node {answer.node}: {answer.log_bytes} bytes on the disk")


@raft.command()
@click.argument("stream")
@click.pass_obj
def show(options: Options, stream: str) -> None:
    """Show the members of the group under STREAM as its leader sees them."""
    request = data_pb2.DescribeStreamRequest(stream=stream)
    answer = run(options, lambda it: it.call(it.data.DescribeStream, request))
    if options.is_json:
        print_json(as_json(answer))
        return
    last = max((member.matched_index for member in answer.members), default=answer.applied_index)
    click.echo(f"stream {answer.stream}  leader {answer.leader or 'unknown'}, term {answer.term}")
    if answer.change:
        click.echo(f"change {answer.change}")
    print_table(
        ["MEMBER", "VOTER", ">LOG UP TO", ">LAG", ">LAST HEARD"],
        [
            [it.node, yes(it.is_voter), str(it.matched_index), str(last - it.matched_index), f"{it.quiet_ms} ms ago"]
            for it in answer.members
        ],
        "no leader answers: nobody sees the members",
    )


@raft.command()
@click.argument("stream")
@click.argument("node")
@click.pass_obj
def transfer(options: Options, stream: str, node: str) -> None:
    """Hand the leadership of STREAM to NODE."""
    request = data_pb2.TransferLeaderRequest(stream=stream, node=node)
    answer = run(options, lambda it: it.call(it.data.TransferLeader, request))
    if options.is_json:
        print_json(as_json(answer))
    else:
        click.echo(f"{node} leads {stream} in term {answer.term}")


@raft.command()
@click.argument("stream", required=False)
@click.option("--control-group", "is_control", is_flag=True, help="Recover the control group in place of a stream.")
@click.option("--survivor", "survivors", multiple=True, required=True, help="Name of a node that is left; repeat it.")
@click.option("--yes", "is_sure", is_flag=True, help="Do not ask.")
@click.pass_obj
def recover(options: Options, stream: str | None, is_control: bool, survivors: tuple[str, ...], is_sure: bool) -> None:
    """Let the group under STREAM, or the control group, go on with the survivors alone.

    For a group that has no leader and waits for members that are lost for good. Run it at each survivor, with the same names: the
    group leads again when all of them were told, with the longest log among them. What only lost members held is lost.
    """
    if (stream is None) != is_control:
        raise click.UsageError("Name a stream, or give --control-group.")
    names = ", ".join(survivors)
    confirm(
        is_sure,
        f"All members of {stream or 'the control group'} but {names} are lost for good, and never come back: is that so?",
    )
    answer: data_pb2.RecoverStreamResponse | mesh_pb2.RecoverControlGroupResponse
    if stream is None:
        control = mesh_pb2.RecoverControlGroupRequest(survivors=survivors)
        answer = run(options, lambda it: it.call(it.mesh.RecoverControlGroup, control))
        doubtful = f"changes of the mesh after revision {answer.revision}"
    else:
        request = data_pb2.RecoverStreamRequest(stream=stream, survivors=survivors)
        answer = run(options, lambda it: it.call(it.data.RecoverStream, request))
        doubtful = f"acknowledged records at offset {answer.doubtful_from_offset} and above"
    if options.is_json:
        print_json(as_json(answer))
        return
    click.echo(f"this node goes on with {names}: its log ends at index {answer.last_index} of term {answer.last_term}")
    if answer.is_below_quorum:
        click.echo(f"they are no quorum: {doubtful} may be lost, unless another survivor names a higher one")


@click.command(cls=MeshCommand)
@click.argument("stream")
@click.option("--skip-logs", is_flag=True, help="Only compare hash chains, do not read the logs back.")
@click.pass_obj
def audit(options: Options, stream: str, skip_logs: bool) -> None:
    """Compare all members of STREAM at one log index, and verify their logs.

    Exit status 4 when a member differs or its log is damaged, 3 when not every member could be looked at.
    """
    request = data_pb2.AuditStreamRequest(stream=stream, skip_logs=skip_logs)
    answer = run(options, lambda it: it.call(it.data.AuditStream, request, extra_s=_AUDIT_EXTRA_S))
    if options.is_json:
        print_json(as_json(answer))
    else:
        _print_audit(answer)
    if answer.is_divergent or any(member.is_damaged for member in answer.members):
        raise click.exceptions.Exit(EXIT_FINDING)
    if any(member.problem for member in answer.members):
        raise click.exceptions.Exit(EXIT_RETRYABLE)


def _print_audit(answer: data_pb2.AuditStreamResponse) -> None:
    print_table(
        ["MEMBER", "VERDICT", ">APPLIED", ">VERIFIED ENTRIES", ">BYTES", "CHAIN", "PROBLEM"],
        [
            [
                item.node,
                "damaged" if item.is_damaged else "not known" if item.problem else "good",
                str(item.applied_index),
                str(item.verified_entries),
                str(item.verified_bytes),
                item.chain.hex()[:16],
                item.problem,
            ]
            for item in answer.members
        ],
        "no members",
    )
    if answer.is_divergent:
        click.echo(f"members DIFFER at index {answer.compared_index}")
    elif answer.compared_index:
        click.echo(f"members agree at index {answer.compared_index}")
    else:
        click.echo("no two members could be compared")


COMMANDS: Final = (raft, audit)
