"""Asking before what cannot be undone."""

from __future__ import annotations

import sys

import click

from meshctl.options import EXIT_FAILED


def confirm(is_sure: bool, question: str) -> None:
    """Returns when the user is sure. Without a terminal to ask at, `--yes` is required."""
    if is_sure:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("There is no terminal to ask at: add --yes if you are sure.")
    if not click.confirm(question, err=True):
        click.echo("nothing was changed", err=True)
        raise click.exceptions.Exit(EXIT_FAILED)
