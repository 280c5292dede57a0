"""Commands about links and paths: what there is, what it costs, and what would become of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import click

from meshapi.supervisor.v1 import topology_pb2
from meshctl.connection import run
from meshctl.options import MeshCommand, MeshGroup, Options
from meshctl.output import as_json, milliseconds, path, print_json, print_table, yes
from meshctl.weight_commands import CLASS, class_value

PAIRS_SHOWN_MAX: Final = 20
_TERMS: Final = ("latency", "jitter", "bandwidth", "utilisation", "loss", "hops", "admin")


@click.command(cls=MeshCommand)
@click.pass_obj
def links(options: Options) -> None:
    """List the links between nodes, one line for each direction, and how many pairs of nodes are protected."""
    answer = run(options, lambda it: it.call(it.topology.ListLinks, topology_pb2.ListLinksRequest()))
    if options.is_json:
        print_json(as_json(answer))
        return
    print_table(
        ["FROM", "TO", ">LATENCY", ">JITTER", ">LOSS", ">BANDWIDTH", ">USE", ">COST", "TWO-WAY"],
        [
            [
                getattr(link, "from"),
                link.to,
                milliseconds(link.latency_us),
                milliseconds(link.jitter_us),
                f"{link.loss_ppm / 10_000:.2f} %" if link.is_loss_measured else "unknown",
                f"{link.bandwidth_kbit / 1_000:g} Mbit/s" if link.HasField("bandwidth_kbit") else "unknown",
                f"{link.utilisation_permille / 10:g} %" if link.HasField("utilisation_permille") else "unknown",
                f"{link.cost:.0f}",
                yes(link.is_two_way),
            ]
            for link in answer.links
        ],
        "no links",
    )
    if answer.protection.pairs:
        click.echo(_protection(answer.protection))


@click.command(cls=MeshCommand)
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.option("-k", "count", type=click.IntRange(1, 16), help="So many of the shortest; else the best and its backup.")
@click.option("--class", "traffic_class", type=CLASS, default="control", show_default=True, help="Whose weights count.")
@click.option(
    "--disjoint", type=click.Choice(["link", "node"]), help="The two that share none and cost least together."
)
@click.pass_obj
def paths(
    options: Options, source: str, target: str, count: int | None, traffic_class: str, disjoint: str | None
) -> None:
    """Show the paths between two nodes, best first, and what makes up their cost (microseconds of latency)."""
    request = topology_pb2.ListPathsRequest(
        to=target,
        count=count or 0,
        traffic_class=class_value(traffic_class),
        disjoint=topology_pb2.Disjointness.Value(f"DISJOINTNESS_{(disjoint or 'unspecified').upper()}"),
    )
    # `from` is a keyword of Python.
    setattr(request, "from", source)
    answer = run(options, lambda it: it.call(it.topology.ListPaths, request))
    if options.is_json:
        print_json(as_json(answer))
        return
    rows = [
        [str(rank), path(item.nodes), f"{item.cost:.0f}", *(f"{getattr(item.terms, term)}" for term in _TERMS)]
        for rank, item in enumerate(answer.paths, 1)
    ]
    print_table([">#", "PATH", ">COST", *(f">{term.upper()}" for term in _TERMS)], rows, "no path")


@click.group(cls=MeshGroup)
def whatif() -> None:
    """Show which pairs of nodes would suffer from an event. Changes nothing."""


@whatif.command()
@click.argument("one", metavar="A")
@click.argument("other", metavar="B")
@click.pass_obj
def cut(options: Options, one: str, other: str) -> None:
    """If the link between the nodes A and B were cut."""
    ends = topology_pb2.LinkEnds(one=one, other=other)
    _tell(options, topology_pb2.WhatIfRequest(cut=ends))


@whatif.command()
@click.argument("node")
@click.pass_obj
def stop(options: Options, node: str) -> None:
    """If the node NODE stopped."""
    _tell(options, topology_pb2.WhatIfRequest(stop=node))


def _tell(options: Options, request: topology_pb2.WhatIfRequest) -> None:
    answer = run(options, lambda it: it.call(it.topology.WhatIf, request))
    if options.is_json:
        print_json(as_json(answer))
        return
    click.echo(f"now    {_protection(answer.before)}")
    click.echo(f"then   {_protection(answer.after)}")
    _show("would lose their last path", answer.lost, answer.lost_count)
    _show("would keep one path and no second one", answer.unprotected, answer.unprotected_count)
    if not (answer.lost_count or answer.unprotected_count):
        click.echo("no pair of nodes would suffer")


def _show(what: str, pairs: Sequence[topology_pb2.NodePair], count: int) -> None:
    if not count:
        return
    shown = ", ".join(f"{pair.one}-{pair.other}" for pair in pairs[:PAIRS_SHOWN_MAX])
    more = f" and {count - PAIRS_SHOWN_MAX} more" if count > PAIRS_SHOWN_MAX else ""
    click.echo(f"{count} {'pair' if count == 1 else 'pairs'} {what}: {shown}{more}")


def _protection(counts: topology_pb2.Protection) -> str:
    share = 100 * counts.protected / counts.pairs if counts.pairs else 100.0
    return f"{share:.1f} % of {counts.pairs} pairs protected, {counts.connected} with a path"


COMMANDS: tuple[click.Command, ...] = (links, paths, whatif)
