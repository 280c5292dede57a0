"""What the demo publishes when no file is given: the standard library's own source."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import Final

LINES_MIN: Final = 50_000


def default_input() -> bytes:
    """The standard library's .py files, sorted and concatenated to at least LINES_MIN lines."""
    library = Path(sysconfig.get_path("stdlib"))
    parts: list[bytes] = []
    lines = 0
    for path in sorted(library.rglob("*.py")):
        if "site-packages" in path.parts or "test" in path.parts:
            continue
        data = path.read_bytes()
        parts.append(data)
        lines += data.count(b"\n")
        if lines >= LINES_MIN:
            break
    return b"".join(parts)
