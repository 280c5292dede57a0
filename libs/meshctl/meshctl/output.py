"""What commands print: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Final

import click
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from rich import box
from rich.console import Console
from rich.table import Table

_PIPE_WIDTH: Final = 240


def as_json(message: Message) -> dict[str, Any]:
    """The message as a JSON object: every field present, numbers as numbers, bytes as hexadecimal, enums by short name.

    Not protobuf's own JSON form: that writes 64-bit numbers as text and leaves zeros out, which every reader trips over.
    """
    return {field.name: _field(message, field) for field in message.DESCRIPTOR.fields}


def _field(message: Message, field: Any) -> Any:
    value = getattr(message, field.name)
    if field.is_repeated:
        return [_value(field, item) for item in value]
    if field.has_presence and not message.HasField(field.name):
        return None
    return _value(field, value)


def _value(field: FieldDescriptor, value: Any) -> Any:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        return as_json(value)
    if field.type == FieldDescriptor.TYPE_ENUM:
        return enum_name(field, value)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return bytes(value).hex()
    return value


def enum_name(field: Any, number: int) -> str:
    """Short name of an enum's value, for example `ACTIVE` of `NODE_STATE_ACTIVE`; its number if it is newer than us."""
    names = {} if field.enum_type is None else field.enum_type.values_by_number
    if number not in names:
        return str(number)
    prefix = names[0].name.removesuffix("UNSPECIFIED") if 0 in names else ""
    return str(names[number].name).removeprefix(prefix)


def short_name(message: Message, field_name: str) -> str:
    """Short name of the value of an enum field of `message`."""
    return enum_name(message.DESCRIPTOR.fields_by_name[field_name], getattr(message, field_name))


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_json_line(value: Any) -> None:
    """One JSON document on a line of its own."""
    click.echo(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], empty: str) -> None:
    """A table; `>` before a column's title aligns it to the right. `empty` is said instead of a table without rows."""
    listed = list(rows)
    if not listed:
        click.echo(empty)
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        justify: Any = "right" if column.startswith(">") else "left"
        table.add_column(column.removeprefix(">"), justify=justify, overflow="fold")
    for row in listed:
        table.add_row(*row)
    # A pipe has no width; wrapping at 80 columns would break what scripts cut out of the table.
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False, markup=False).print(
        table
    )


def milliseconds(microseconds: float) -> str:
    """Microseconds as people read them."""
    return f"{microseconds / 1000:.2f} ms"


def yes(value: bool) -> str:
    """`yes` or `no`."""
    return "yes" if value else "no"


def path(nodes: Iterable[str]) -> str:
    """Names along a path."""
    return " → ".join(nodes) or "none"
