"""Commands about who may join the mesh: tokens and the policy."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, Final

import click

from meshapi.common.v1 import view_pb2
from meshapi.supervisor.v1 import mesh_pb2
from meshctl.connection import run
from meshctl.options import MeshGroup, Options
from meshctl.output import as_json, print_json, print_table, short_name

POLICY: Final = click.Choice(["open", "key-required", "closed"])
_DURATION: Final = re.compile(r"([1-9][0-9]{0,6})([smhd])", re.ASCII)
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}


def policy_value(name: str) -> view_pb2.JoinPolicy.ValueType:
    """The policy that the command line names."""
    return view_pb2.JoinPolicy.Value(f"JOIN_POLICY_{name.upper().replace('-', '_')}")


class _Duration(click.ParamType[int]):
    """So many seconds, minutes, hours or days."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Seconds."""
        if isinstance(value, int):
            return value
        match = _DURATION.fullmatch(str(value))
        if match is None:
            self.fail(f"{value!r} is no duration: write for example 90s, 15m, 2h or 7d.", param, ctx)
        return int(match.group(1)) * _SECONDS[match.group(2)]


@click.group(cls=MeshGroup)
def token() -> None:
    """Issue, list and revoke join tokens."""


@token.command()
@click.option("--uses", type=click.IntRange(1, 1_000), default=1, show_default=True, help="How many nodes it admits.")
@click.option("--ttl", type=_Duration(), default="15m", show_default=True, help="How long it is valid, at most 30d.")
@click.option("--name", default="", help="Name of the node that it is for; without it any.")
@click.pass_obj
def issue(options: Options, uses: int, ttl: int, name: str) -> None:
    """Print a new join token: one line for `meshctl join` at the other node. Keep it secret until it is used."""
    request = mesh_pb2.IssueTokenRequest(uses=uses, ttl_s=ttl, name=name)
    answer = run(options, lambda it: it.call(it.mesh.IssueToken, request))
    if options.is_json:
        print_json(as_json(answer))
    else:
        click.echo(answer.token)


@token.command()
@click.pass_obj
def ls(options: Options) -> None:
    """List the join tokens that the mesh knows."""
    answer = run(options, lambda it: it.call(it.mesh.ListTokens, mesh_pb2.ListTokensRequest()))
    if options.is_json:
        print_json(as_json(answer))
        return
    print_table(
        ["ID", ">USES LEFT", "FOR", "EXPIRES"],
        [[item.token_id, str(item.uses_left), item.name or "any node", _expiry(item)] for item in answer.tokens],
        "no tokens",
    )


def _expiry(item: mesh_pb2.TokenInfo) -> str:
    if item.is_expired:
        return "expired"
    return datetime.fromtimestamp(item.expires_at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


@token.command()
@click.argument("token_id", metavar="ID")
@click.pass_obj
def revoke(options: Options, token_id: str) -> None:
    """Make the token ID worthless; see `meshctl token ls`. Nodes that have joined by it stay."""
    request = mesh_pb2.RevokeTokenRequest(token_id=token_id)
    run(options, lambda it: it.call(it.mesh.RevokeToken, request))
    if options.is_json:
        print_json({})
    else:
        click.echo(f"revoked {token_id}")


@click.group(cls=MeshGroup)
def policy() -> None:
    """Show or change who may become a member of the mesh."""


@policy.command()
@click.pass_obj
def show(options: Options) -> None:
    """Show the policy."""
    answer = run(options, lambda it: it.call(it.mesh.GetStatus, mesh_pb2.GetStatusRequest()))
    if options.is_json:
        print_json({"join_policy": short_name(answer, "join_policy")})
    elif answer.join_policy:
        click.echo(short_name(answer, "join_policy").lower().replace("_", "-"))
    else:
        click.echo("this node knows of no mesh yet")


@policy.command("set")
@click.argument("new", metavar="POLICY", type=POLICY)
@click.pass_obj
def set_(options: Options, new: str) -> None:
    """Admit from now on: open (every node that reaches a member), key-required (who holds a token), closed (no node)."""
    request = mesh_pb2.SetJoinPolicyRequest(policy=policy_value(new))
    run(options, lambda it: it.call(it.mesh.SetJoinPolicy, request))
    if options.is_json:
        print_json({})
    else:
        click.echo(f"the policy is {new}")


COMMANDS: tuple[click.Command, ...] = (token, policy)
