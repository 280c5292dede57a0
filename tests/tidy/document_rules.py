"""House rules about the documents: decisions have one form, dependencies are explained, links lead somewhere.

Pure like the text rules: documents come in as text, findings go out as sentences.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Final

LINE_MAX: Final = 120
ADR_HEADINGS: Final = ("Context", "Decision", "Consequences", "Alternatives")

_ADR_NAME: Final = re.compile(r"(\d{4})-[a-z0-9]+(?:-[a-z0-9]+)*\.md")
_LINK: Final = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_FENCE: Final = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def adr_form(name: str, text: str) -> list[str]:
    """A decision record has a number, a title line that repeats it, and the standard headings in order."""
    match = _ADR_NAME.fullmatch(name)
    if not match:
        return [f"{name}: name it NNNN-title-in-words.md"]
    found = []
    if not text.startswith(f"# {match.group(1)} "):
        found.append(f"{name}: the first line is '# {match.group(1)} Title'")
    headings = [line[3:].strip() for line in text.splitlines() if line.startswith("## ")]
    if tuple(headings) != ADR_HEADINGS:
        found.append(f"{name}: the headings are {', '.join(ADR_HEADINGS)}; found {', '.join(headings) or 'none'}")
    return found


def adr_numbers(names: Iterable[str], index: str) -> list[str]:
    """Numbers run from 1 without gap or repetition, and the index links every record."""
    ordered = sorted(names)
    found = [
        f"{name}: expected number {expected:04d}"
        for expected, name in enumerate(ordered, 1)
        if not name.startswith(f"{expected:04d}-")
    ]
    return found + [f"README.md: no link to {name}" for name in ordered if f"({name})" not in index]


def unexplained_dependencies(direct: Iterable[str], document: str) -> list[str]:
    """Every direct dependency has a table row: `| [name] ... | what for | why this one | licence |`."""
    rows: dict[str, list[str]] = {}
    for line in document.splitlines():
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            for name in re.findall(r"`([^`]+)`", cells[0]):
                rows[name.lower()] = cells
    found = []
    for name in sorted(set(direct)):
        cells = rows.get(name.lower(), [])
        if not cells:
            found.append(f"docs/dependencies.md: no row for {name}")
        elif len(cells) != 4 or not all(cells):
            found.append(f"docs/dependencies.md: the row of {name} needs: name, what for, why this one, licence")
    return found


def forgotten_dependencies(direct: Iterable[str], document: str) -> list[str]:
    """A row whose dependency is gone misleads."""
    known = {name.lower() for name in direct}
    named = {
        name
        for line in document.splitlines()
        if line.startswith("|")
        for name in re.findall(r"`([^`]+)`", line.strip().strip("|").split("|")[0])
    }
    return [
        f"docs/dependencies.md: {name} is no direct dependency" for name in sorted(named) if name.lower() not in known
    ]


def dead_links(path: str, text: str, tracked: frozenset[str]) -> list[str]:
    """A relative link leads to a tracked file or to a folder that holds one."""
    folders = {str(parent) for name in tracked for parent in PurePosixPath(name).parents}
    found = []
    for target in _LINK.findall(_FENCE.sub("", text)):
        if re.match(r"[a-z]+:|#", target):
            continue
        parts: list[str] = []
        for part in (PurePosixPath(path).parent / target.split("#")[0]).parts:
            if part == "..":
                parts = parts[:-1]
            elif part != ".":
                parts.append(part)
        resolved = "/".join(parts) or "."
        if resolved not in tracked and resolved not in folders:
            found.append(f"{path}: link to {target} leads nowhere")
    return found


def long_lines(path: str, text: str) -> list[str]:
    """Prose of more than 120 columns cannot be reviewed line by line. Tables, drawings and code keep their shape."""
    found: list[str] = []
    is_code = False
    for number, line in enumerate(text.splitlines(), 1):
        start = line.lstrip()
        is_code ^= start.startswith("```")
        if len(line) > LINE_MAX and not is_code and not start.startswith(("|", "<!--")):
            found.append(f"{path}:{number}: {len(line)} columns; wrap it (at most {LINE_MAX})")
    return found
