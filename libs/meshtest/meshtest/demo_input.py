"""What the demo publishes when no file is given: the standard library's own source."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Final

LINES_MIN: Final = 50_000


def default_input() -> bytes:
    """The standard library's .py files, sorted and concatenated to at least LINES_MIN lines."""
    parts: list[bytes] = []
    lines = 0
    for path in _sources(Path(sysconfig.get_path("stdlib"))):
        data = path.read_bytes()
        parts.append(data)
        lines += data.count(b"\n")
        if lines >= LINES_MIN:
            break
    return b"".join(parts)


def _sources(directory: Path) -> Iterator[Path]:
    """Lazily, because only the first part of the library is needed; site-packages is no part of it."""
    for path in sorted(directory.iterdir()):
        if path.is_dir() and path.name not in {"site-packages", "__pycache__"}:
            yield from _sources(path)
        elif path.suffix == ".py":
            yield path
