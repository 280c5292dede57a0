"""The program `meshctl`: operates a node, publishes to and reads from its streams, through the node's gateway."""

from __future__ import annotations

import click

from meshctl import ca_commands, join_commands, mesh_commands, raft_commands, topology_commands, weight_commands
from meshctl.check_command import check
from meshctl.options import MeshGroup
from meshctl.publish_command import publish
from meshctl.stream_commands import stream
from meshctl.subscribe_command import subscribe
from meshctl.token_commands import operator_token


@click.group(cls=MeshGroup, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Operate a node of the mesh through its gateway."""


for commands in (
    mesh_commands.COMMANDS,
    topology_commands.COMMANDS,
    weight_commands.COMMANDS,
    join_commands.COMMANDS,
    ca_commands.COMMANDS,
    raft_commands.COMMANDS,
):
    for command in commands:
        cli.add_command(command)
for command in (check, stream, publish, subscribe, operator_token):
    cli.add_command(command)


def main() -> None:
    """Entry point of the console script."""
    cli.main(prog_name="meshctl")
