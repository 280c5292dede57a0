"""Commands on the node itself about the operator's token of its site (ADR 0023). They speak to no gateway."""

from __future__ import annotations

import os
from pathlib import Path

import click

from meshcommon.durable import write_durably
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.operator_token import FILE_BYTES_MAX, FILE_NAME, hashed_line, new_token, parse_tokens
from meshctl.options import MeshGroup, Options
from meshctl.output import print_json


@click.group("operator-token", cls=MeshGroup)
def operator_token() -> None:
    """Make the token that callers from other machines have to show."""


@operator_token.command()
@click.option(
    "--data-dir",
    required=True,
    envvar="MESH_NODE_DATA_DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The node's data directory, on this machine.  [env: MESH_NODE_DATA_DIR]",
)
@click.option("--keep-old", is_flag=True, help="Accept the token of before as well, until the next rotation.")
@click.pass_obj
def rotate(options: Options, data_dir: Path, *, keep_old: bool) -> None:
    """Make a new operator's token, print it once, and store its hash in the data directory.

    Gateway and data plane take it within five seconds, without a restart. Connections that are open go on: restart both to
    end those of a token that was stolen.
    """
    path = data_dir / FILE_NAME
    kept = _newest_hash(path) if keep_old else ""
    token = new_token()
    _write(path, (hashed_line(token) + kept).encode())
    if options.is_json:
        print_json({"token": token, "file": str(path)})
    else:
        click.echo(token)


def _newest_hash(path: Path) -> str:
    """The line of the token that was made last; a file that is not there has none."""
    try:
        with path.open("rb") as file:
            newest = parse_tokens(file.read(FILE_BYTES_MAX + 1))[0]
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        text = f"{path} {why}: rotate without --keep-old to replace it."
        raise MeshError(ErrorCode.INVALID_ARGUMENT, text) from None
    return f"sha256:{newest.hex()}\n"


def _write(path: Path, content: bytes) -> None:
    try:
        owner = path.parent.stat()
        write_durably(path, content)
        if os.geteuid() == 0:
            # The node's services have to read what root writes for them.
            os.chown(path, owner.st_uid, owner.st_gid)
    except OSError as error:
        raise MeshError(
            ErrorCode.DATA_DIR_UNWRITABLE, f"{path} cannot be written ({error.strerror}): run this as the node's user."
        ) from error
