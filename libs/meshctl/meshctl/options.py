"""Options that every command takes, before or after its name, and how a failure leaves the process.

Exit status: 0 done; 1 refused or failed; 2 wrong usage; 3 failed, but the same command may succeed later, or not
everything could be looked at; 4 an audit found damage or a check failed; 130 after Ctrl-C; 141 when the reader of
standard output went away.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import click

from meshcommon.address import split
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.logging import correlation_id

DEFAULT_GATEWAY: Final = "127.0.0.1:7002"
EXIT_FAILED: Final = 1
EXIT_RETRYABLE: Final = 3
EXIT_FINDING: Final = 4
EXIT_INTERRUPTED: Final = 130
EXIT_BROKEN_PIPE: Final = 141


@dataclass(slots=True)
class Options:
    """What the user chose."""

    gateway: str = DEFAULT_GATEWAY
    is_json: bool = False
    timeout_s: float = 30.0
    is_tls: bool = False
    tls_ca: str = ""
    token_file: str = ""

    @property
    def uses_tls(self) -> bool:
        """Whether the gateway is spoken to over TLS: an authority to trust says so as well."""
        return self.is_tls or bool(self.tls_ca)


_FIELDS: Final = {"as_json": "is_json", "timeout": "timeout_s", "tls": "is_tls"}
"""Fields of `Options` whose parameters have other names."""


def _remember(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Later wins: an option after the command's name overrides the same one before it."""
    options = context.ensure_object(Options)
    source = context.get_parameter_source(str(parameter.name))
    if value is None or source == click.core.ParameterSource.DEFAULT:
        return
    is_own_level = source == click.core.ParameterSource.COMMANDLINE or context.parent is None
    if is_own_level:
        setattr(options, _FIELDS.get(str(parameter.name), str(parameter.name)), value)


def _target(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None:
        host, separator, port = value.rpartition(":")
        is_port = port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536
        if not (separator and host and "/" not in host and is_port and _is_host(value)):
            raise click.BadParameter(
                f"{value!r} is not HOST:PORT, without http://, IPv6 hosts in brackets, and with a port of at most 65535; "
                f"for example {DEFAULT_GATEWAY}."
            )
    return value


def _is_host(value: str) -> bool:
    try:
        split(value)
    except MeshError:
        return False
    return True


def _gateway(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    _remember(context, parameter, _target(context, parameter, value))


def _shared_options() -> list[click.Parameter]:
    return [
        click.Option(
            ["--gateway"],
            metavar="HOST:PORT",
            envvar="MESH_CTL_GATEWAY",
            expose_value=False,
            callback=_gateway,
            help=f"gRPC address of a node's gateway.  [env: MESH_CTL_GATEWAY; default: {DEFAULT_GATEWAY}]",
        ),
        click.Option(
            ["--tls"],
            is_flag=True,
            envvar="MESH_CTL_TLS",
            expose_value=False,
            callback=_remember,
            help="Speak TLS, and trust the authorities of this system.  [env: MESH_CTL_TLS]",
        ),
        click.Option(
            ["--tls-ca"],
            metavar="FILE",
            envvar="MESH_CTL_TLS_CA",
            expose_value=False,
            callback=_remember,
            help="Speak TLS, and trust only the authorities in this PEM file.  [env: MESH_CTL_TLS_CA]",
        ),
        click.Option(
            ["--token-file"],
            metavar="FILE",
            envvar="MESH_CTL_TOKEN_FILE",
            expose_value=False,
            callback=_remember,
            help="Show the operator's token in this file, or else the one in MESH_TOKEN.  [env: MESH_CTL_TOKEN_FILE]",
        ),
        click.Option(
            ["--json", "as_json"], is_flag=True, expose_value=False, callback=_remember, help="Output for programs."
        ),
        click.Option(
            ["--timeout"],
            type=click.FloatRange(min=0, min_open=True),
            metavar="SECONDS",
            expose_value=False,
            callback=_remember,
            help="Time limit of a call.  [default: 30]",
        ),
    ]


class MeshCommand(click.Command):
    """A command that takes the shared options."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.params += _shared_options()


STREAM_ID: Final = click.option(
    "--stream-id",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    metavar="N",
    help="Refuse another stream that has the name by now.",
)
"""Which one of the streams that may have had a name; 0 for the present one."""


class MeshGroup(click.Group):
    """The program or a group of commands: takes the shared options, answers failures with one line and a status."""

    command_class = MeshCommand
    group_class = type

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.params += _shared_options()

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the chosen command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # Python flushes standard output once more on its way out; give it a place where that cannot fail.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise click.exceptions.Exit(EXIT_BROKEN_PIPE) from None

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Runs the program; ends the process with its exit status when `standalone_mode`."""
        status = self._guarded(args, prog_name, complete_var, **extra)
        if standalone_mode:
            sys.exit(status)
        return status

    def _guarded(
        self, args: Sequence[str] | None, prog_name: str | None, complete_var: str | None, **extra: Any
    ) -> int:
        try:
            status = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        except click.ClickException as error:
            error.show()
            return error.exit_code
        except (click.Abort, KeyboardInterrupt):
            click.echo("interrupted", err=True)
            return EXIT_INTERRUPTED
        except MeshError as error:
            click.echo(f"error: {error.code}: {error.message}{_trail(error)}", err=True)
            return EXIT_RETRYABLE if error.retryable else EXIT_FAILED
        return status if isinstance(status, int) else 0


def _trail(error: MeshError) -> str:
    """Where to look further, for the one error that cannot explain itself."""
    current = correlation_id.get()
    return f" (correlation id {current})" if error.code == ErrorCode.INTERNAL and current else ""
