"""The reference page of all settings, `docs/settings.md`, made from the services' own settings classes.

    scripts/settings-page            writes the page
    scripts/settings-page --verify   changes nothing; fails when the page is not what the classes say

Leaves out the variables that belong to no section; those few sentences are in the page's beginning below.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Final, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from pydantic.fields import FieldInfo

from mesh_control.shell.settings import ControlSettings
from mesh_data.shell.settings import DataSettings
from mesh_gateway.settings import GatewaySettings
from mesh_routing.settings import RoutingSettings
from meshcommon.settings import (
    CertificateName,
    Endpoint,
    HostName,
    Listen,
    NodeName,
    NodeSettings,
    PeerAddress,
    Section,
)

ROOT: Final = Path(__file__).resolve().parents[2]
PAGE: Final = ROOT / "docs" / "settings.md"

SERVICES: Final[dict[str, type[Section]]] = {
    "control": ControlSettings,
    "routing": RoutingSettings,
    "data": DataSettings,
    "gateway": GatewaySettings,
}
SECTIONS: Final[dict[str, tuple[str, type[Section]]]] = {
    "node": ("What all services of a site share", NodeSettings),
    "control": ("Control plane", ControlSettings),
    "routing": ("Routing", RoutingSettings),
    "data": ("Data plane", DataSettings),
    "gateway": ("API gateway", GatewaySettings),
}

_NAMED_TYPES: Final[list[tuple[Any, str]]] = [
    (Listen, "`host:port`"),
    (Endpoint, "`host:port` or `unix:/path`"),
    (HostName, "host name"),
    (CertificateName, "host name or IP address"),
    (NodeName, "name"),
    (PeerAddress, "`ws://` or `wss://` address"),
    (str, "text"),
    (int, "whole number"),
    (float, "number"),
    (bool, "`true` or `false`"),
    (Path, "path"),
]
_BOUNDS: Final = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}

_BEGINNING: Final = """\
# Settings

<!-- Made by scripts/settings-page from the settings classes. Change those, not this page. -->

A service takes each setting from the first of these that has it: the environment, the file that `MESH_CONFIG_FILE`
names ([an example](mesh.example.toml)), the default. All services of a site may share one file and one environment:
each reads `[node]` and its own section. No setting reloads live; restart the service.

A key or a `MESH_` variable that does not exist, and a missing or malformed value, end the start with SETTING_UNKNOWN or
SETTING_INVALID, exit status 78, and a sentence that names the setting. In a variable, a table is written as
`name=value,name=value`, a list as `value,value`.

| variable | for all services | default |
|---|---|---|
| `MESH_CONFIG_FILE` | path of the settings file (TOML); empty: none | empty |
| `MESH_INSECURE_DEV` | `1` accepts that listeners which other machines reach, and calls to other machines, are neither encrypted nor authenticated. For packet captures and tests: with MESH_NODE_TLS_DIR nothing needs it. Only in the environment. | empty |

Variables that start with `MESH_CTL_` belong to the command line, those that start with `MESH_TEST_` to the tests.
"""


class Row(NamedTuple):
    """One line of a table, as text."""

    variable: str
    key: str
    kind: str
    default: str
    meaning: str


def kind_of(hint: Any) -> str:
    """A type in words that fit a TOML file."""
    for known, words in _NAMED_TYPES:
        if hint == known:
            return words
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(f"`{value}`" if value else "empty" for value in arguments)
    if origin in {Union, UnionType}:
        return " or ".join(kind_of(argument) for argument in arguments)
    if origin is dict:
        return f"table of name = {kind_of(arguments[1])}"
    if origin in {list, tuple}:
        return f"list, each a {kind_of(arguments[0])}"
    raise TypeError(f"the settings page has no words for the type {hint}")


def bounds_of(field: FieldInfo) -> str:
    """Limits of a number, for example ` > 0, ≤ 300`."""
    limits = [
        f"{sign} {getattr(constraint, name)}"
        for constraint in field.metadata
        for name, sign in _BOUNDS.items()
        if hasattr(constraint, name)
    ]
    return f", {', '.join(limits)}" if limits else ""


def default_of(field: FieldInfo) -> str:
    """The default as one would write it; a path inside the tree is shown relative to the tree."""
    if field.is_required():
        return "must be set"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Path) and value.is_relative_to(ROOT):
        return f"`{value.relative_to(ROOT)}` of the source tree"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`" if value or value == 0 else "empty"


def rows(section: str, model: type[Section]) -> Iterator[Row]:
    """One row a setting, in the order of the class."""
    hints = get_type_hints(model, include_extras=True)
    for key, field in model.model_fields.items():
        if not field.description:
            raise ValueError(f"[{section}] {key} has no description")
        kind = kind_of(plain(hints[key])) + bounds_of(field)
        yield Row(f"`MESH_{section}_{key}`".upper(), f"`{key}`", kind, default_of(field), field.description)


def plain(hint: Any) -> Any:
    """The hint without the annotations that only carry a default or a description."""
    named = [known for known, _ in _NAMED_TYPES]
    return hint if hint in named or not hasattr(hint, "__metadata__") else hint.__origin__


def page() -> str:
    """The whole page."""
    parts = [_BEGINNING]
    for section, (title, model) in SECTIONS.items():
        parts.append(
            f"\n## {title}: `[{section}]`\n\n| variable | key | type | default | meaning |\n|---|---|---|---|---|\n"
        )
        parts += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in rows(section, model)]
    return "".join(parts)


def differences() -> str:
    """What is wrong with the page that is there, as a unified difference; empty when it is current."""
    there = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    lines = difflib.unified_diff(
        there.splitlines(keepends=True), page().splitlines(keepends=True), "docs/settings.md", "the settings classes"
    )
    return "".join(lines)


def main() -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description="Writes docs/settings.md from the settings classes.")
    parser.add_argument("--verify", action="store_true", help="change nothing; fail when the page is stale")
    if parser.parse_args().verify:
        found = differences()
        if found:
            print(
                f"{found}\nsettings-page: docs/settings.md is stale. Run scripts/settings-page and commit the result."
            )
            return 1
        print("settings-page: docs/settings.md is current")
        return 0
    PAGE.write_text(page(), encoding="utf-8")
    print(
        f"settings-page: wrote docs/settings.md, {sum(len(model.model_fields) for _, model in SECTIONS.values())} settings"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
