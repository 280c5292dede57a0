"""Commands about the weights of the link cost."""

from __future__ import annotations

from typing import Final

import click

from meshapi.common.v1 import weights_pb2
from meshapi.supervisor.v1 import mesh_pb2
from meshcommon.cost_weights import COST_US_MAX, PERMILLE_MAX
from meshctl.connection import run
from meshctl.options import MeshGroup, Options
from meshctl.output import as_json, print_json, print_table

CLASS: Final = click.Choice(["control", "priority", "bulk"])
_PREFIX: Final = "TRAFFIC_CLASS_"
_COST: Final = click.IntRange(0, COST_US_MAX)
_PERMILLE: Final = click.IntRange(0, PERMILLE_MAX)
_WEIGHTS: Final = (
    "latency_permille",
    "jitter_permille",
    "bandwidth_us",
    "utilisation_us",
    "loss_us_per_percent",
    "hop_us",
)


def class_value(name: str) -> weights_pb2.TrafficClass.ValueType:
    """The traffic class that the command line names."""
    return weights_pb2.TrafficClass.Value(_PREFIX + name.upper())


@click.group(cls=MeshGroup)
def weights() -> None:
    """Show or change what makes a link cheap or dear, by traffic class."""


@weights.command()
@click.pass_obj
def show(options: Options) -> None:
    """Show the weights in force; costs are in microseconds of latency that weigh as much."""
    answer = run(options, lambda it: it.call(it.mesh.GetCostWeights, mesh_pb2.GetCostWeightsRequest()))
    if options.is_json:
        print_json(as_json(answer))
        return
    print_table(
        ["CLASS", ">LATENCY", ">JITTER", ">1 MBIT/S", ">FULL USE", ">1 % LOSS", ">HOP"],
        [[_name(item.traffic_class), *_cells(item.weights)] for item in answer.classes],
        "no weights",
    )


@weights.command("set")
@click.argument("traffic_class", metavar="CLASS", type=CLASS)
@click.option("--latency-permille", type=_PERMILLE, help="A microsecond of latency, in thousandths.")
@click.option("--jitter-permille", type=_PERMILLE, help="A microsecond of jitter, in thousandths.")
@click.option("--bandwidth-us", type=_COST, help="A link of 1 Mbit/s; one of n Mbit/s costs an nth of it.")
@click.option("--utilisation-us", type=_COST, help="A link that is fully used.")
@click.option("--loss-us-per-percent", type=_COST, help="1 % of loss.")
@click.option("--hop-us", type=click.IntRange(1, COST_US_MAX), help="Each hop.")
@click.option("--reset", is_flag=True, help="What is not named goes back to its default.")
@click.pass_obj
def set_(options: Options, /, traffic_class: str, reset: bool, **values: int | None) -> None:
    """Change weights of CLASS (control, priority, bulk) for the whole mesh; every node computes its routes anew."""
    changed = {name: value for name, value in values.items() if value is not None}
    if not changed and not reset:
        raise click.UsageError("Name at least one weight, or --reset.")
    change = weights_pb2.ClassWeights(
        traffic_class=class_value(traffic_class), weights=weights_pb2.CostWeights(**changed)
    )
    request = mesh_pb2.SetCostWeightsRequest(change=change, reset=reset)
    answer = run(options, lambda it: it.call(it.mesh.SetCostWeights, request))
    if options.is_json:
        print_json(as_json(answer))
        return
    click.echo(f"{traffic_class}: " + ", ".join(f"{name} {getattr(answer.weights, name)}" for name in _WEIGHTS))


def _name(value: weights_pb2.TrafficClass.ValueType) -> str:
    return weights_pb2.TrafficClass.Name(value).removeprefix(_PREFIX).lower()


def _cells(item: weights_pb2.CostWeights) -> list[str]:
    return [
        f"{item.latency_permille / 1_000:g} us/us",
        f"{item.jitter_permille / 1_000:g} us/us",
        *(f"{value} us" for value in (item.bandwidth_us, item.utilisation_us, item.loss_us_per_percent, item.hop_us)),
    ]


COMMANDS: tuple[click.Command, ...] = (weights,)
