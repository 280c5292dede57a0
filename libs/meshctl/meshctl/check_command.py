"""`meshctl check`: asks the gateway, and prints what `checks` makes of its answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Final, TypeVar

import click

from meshapi.supervisor.v1 import ca_pb2, data_pb2, mesh_pb2, topology_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshctl.ca_checks import CA_CHECKS
from meshctl.checks import Answers, Check, Result, Status, count, lines, run_checks, some, tally, unsettled
from meshctl.connection import Connection, run
from meshctl.mesh_checks import LANES_ROUTES, LANES_TLS, MESH_CHECKS
from meshctl.node_checks import LANES_UP, NODE_CHECKS
from meshctl.options import EXIT_FINDING, EXIT_RETRYABLE, MeshCommand, Options
from meshctl.output import print_json
from meshctl.stream_checks import STREAM_CHECKS, remote_streams

CHECKS: Final[tuple[Check, ...]] = (
    *NODE_CHECKS,
    *MESH_CHECKS,
    *CA_CHECKS,
    LANES_UP,
    LANES_TLS,
    LANES_ROUTES,
    *STREAM_CHECKS,
)
"""Every check, in the order in which they are printed."""
CALL_S_MAX: Final = 4.0
"""Time limit of a call, and of all questions about remote streams together: the answer is there within ten seconds."""
REMOTE_STREAMS_MAX: Final = 64
"""Streams held only by others that are asked about: each costs a call to its leader."""
_REMOTE_AT_ONCE: Final = 8
_PAUSE_S: Final = 1.0

_MARKS: Final = {
    Status.OK: ("✓", "green"),
    Status.WARNING: ("!", "yellow"),
    Status.FAILED: ("✗", "red"),
    Status.SKIPPED: ("–", "bright_black"),
}
ResultT = TypeVar("ResultT")


@click.command(cls=MeshCommand)
@click.option(
    "--only",
    multiple=True,
    metavar="ID",
    type=click.Choice([check.id for check in CHECKS]),
    help="Only this check; repeat it. `docs/check.md` lists the ids.",
)
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(0, 86_400),
    default=0,
    metavar="SECONDS",
    help="Repeat for so long, until nothing fails and nothing is skipped.  [default: once]",
)
@click.pass_obj
def check(options: Options, only: tuple[str, ...], wait_s: float) -> None:
    """Tell whether this node and its mesh are all right, and what to do if not.

    Exit status 0 when nothing failed (warnings are accepted), 4 when a check failed, 3 when none failed but not
    everything could be looked at. A call takes at most 4 s.
    """
    options.timeout_s = min(options.timeout_s, CALL_S_MAX)
    results = run(options, lambda connection: _repeat(connection, only, wait_s))
    if options.is_json:
        print_json([result.as_json() for result in results])
    else:
        _print(results)
    counts = tally(results)
    if counts[Status.FAILED]:
        raise click.exceptions.Exit(EXIT_FINDING)
    if counts[Status.SKIPPED]:
        raise click.exceptions.Exit(EXIT_RETRYABLE)


async def _repeat(connection: Connection, only: tuple[str, ...], wait_s: float) -> list[Result]:
    end = time.monotonic() + wait_s
    said = ""
    while True:
        results = run_checks(CHECKS, await _ask(connection), only)
        left_s = end - time.monotonic()
        waits_for = some(unsettled(results))
        if not waits_for or left_s <= 0:
            return results
        if waits_for != said:
            # On standard error: what a program reads stays one answer.
            click.echo(f"waiting for {waits_for}", err=True)
            said = waits_for
        await asyncio.sleep(min(_PAUSE_S, left_s))


async def _ask(connection: Connection) -> Answers:
    status_call = connection.call(connection.mesh.GetStatus, mesh_pb2.GetStatusRequest())
    links_call = connection.call(connection.topology.ListLinks, topology_pb2.ListLinksRequest())
    forwarding_call = connection.call(connection.data.GetForwarding, data_pb2.GetForwardingRequest())
    replicas_call = connection.call(connection.data.ListReplicas, data_pb2.ListReplicasRequest())
    ca_call = connection.call(connection.ca.ShowCa, ca_pb2.ShowCaRequest())
    certificates_call = connection.call(connection.ca.ListCertificates, ca_pb2.ListCertificatesRequest())
    status, links, forwarding, replicas, ca, certificates = await asyncio.gather(
        _tell(status_call),
        _tell(links_call),
        _tell(forwarding_call),
        _tell(replicas_call),
        _tell(ca_call),
        _tell(certificates_call),
    )
    names: list[str] = []
    if not isinstance(status, MeshError) and not isinstance(replicas, MeshError) and status.is_running:
        names = remote_streams(status, replicas)
    asked = names[:REMOTE_STREAMS_MAX]
    permits = asyncio.Semaphore(_REMOTE_AT_ONCE)
    end = time.monotonic() + connection.options.timeout_s

    async def describe(name: str) -> data_pb2.DescribeStreamResponse | MeshError:
        async with permits:
            left_s = end - time.monotonic()
            if left_s <= 0:
                # Not DEADLINE_EXCEEDED, which says that the stream did not answer: nobody asked it.
                return MeshError(ErrorCode.BACKPRESSURE, "There was no time to ask.")
            request = data_pb2.DescribeStreamRequest(stream=name)
            extra_s = left_s - connection.options.timeout_s
            return await _tell(connection.call(connection.data.DescribeStream, request, extra_s=extra_s))

    described = await asyncio.gather(*map(describe, asked))
    return Answers(
        connection.options.gateway,
        status,
        links,
        forwarding,
        replicas,
        dict(zip(asked, described, strict=True)),
        len(names) - len(asked),
        ca,
        certificates,
    )


async def _tell(call: Awaitable[ResultT]) -> ResultT | MeshError:
    """The answer, or the error in its place: a missing answer is something to report, not the end."""
    try:
        return await call
    except MeshError as error:
        return error


def _print(results: list[Result]) -> None:
    for status, line, hint in lines(results):
        mark, color = _MARKS[status]
        click.echo(f"{click.style(mark, fg=color)} {line}")
        if hint:
            click.echo(f"    → {hint}")
    counts = tally(results)
    warnings = count(counts[Status.WARNING], "warning")
    click.echo(
        f"\n{counts[Status.OK]} ok, {warnings}, {counts[Status.FAILED]} failed, {counts[Status.SKIPPED]} skipped"
    )
