"""The tree as the tidy test sees it: the files that git tracks or would track, and the project files, read once.

Leaves out ignored files, so that what a run leaves behind is never looked at.
"""

from __future__ import annotations

import functools
import subprocess
import tomllib
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]

_GENERATED: Final = "libs/meshapi/meshapi/"


@functools.cache
def tracked_files() -> tuple[str, ...]:
    """Paths relative to the root, in order."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return tuple(sorted(name for name in set(listing.stdout.split("\0")) if name and (ROOT / name).is_file()))


@functools.cache
def read(path: str) -> str:
    """The text of a tracked file; bytes that are no UTF-8 are replaced."""
    return (ROOT / path).read_text(encoding="utf-8", errors="replace")


def written_by_hand(*suffixes: str) -> list[str]:
    """Tracked files with one of the suffixes, without generated code."""
    return [path for path in tracked_files() if path.endswith(suffixes) and not path.startswith(_GENERATED)]


def texts() -> list[str]:
    """Tracked files that hold text, generated code included."""
    return [path for path in tracked_files() if "\0" not in read(path)]


def package_projects() -> dict[str, dict[str, Any]]:
    """The [project] table of every pyproject.toml but the root's, by path."""
    return {
        path: tomllib.loads(read(path))["project"]
        for path in tracked_files()
        if path.endswith("/pyproject.toml") and path.startswith(("libs/", "services/"))
    }


def requirements(path: str) -> set[str]:
    """The requirement lines of one requirements/*.in file."""
    lines = (line.split("#")[0].strip() for line in read(path).splitlines())
    return {line for line in lines if line and not line.startswith("-")}


def direct_dependencies() -> set[str]:
    """Names in requirements/*.in and in the [dependencies] of every Cargo.toml."""
    names = requirements("requirements/runtime.in") | requirements("requirements/dev.in")
    for path in tracked_files():
        if path.endswith("Cargo.toml"):
            names |= set(tomllib.loads(read(path)).get("dependencies", {}))
    return names
