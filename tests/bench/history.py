"""What each commit was measured at, in `docs/bars.jsonl`: one row of a bench a line, the oldest first.

`make bars` adds the rows that are new and names those that fell by more than a tenth since the measurement before. Where
a peer was measured in the same rounds the ratio is compared, because absolute figures follow the machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from tests.bench.report import ROOT

FILE: Final = ROOT / "docs" / "bars.jsonl"
FALL_MAX: Final = 0.1
"""A row that is worse than the one before by a larger share is named."""


def load(path: Path = FILE) -> list[dict[str, Any]]:
    """The rows kept so far; none without the file. Raises ValueError for a line that is no JSON object."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def added(kept: Iterable[Mapping[str, Any]], benches: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of benches that are not kept yet."""
    known = {_key(row) for row in kept}
    found = [
        {
            "commit": bench.get("commit", ""),
            "taken_at": bench["taken_at"],
            "bench": bench["name"],
            **{name: row[name] for name in ("case", "unit", "ours", "ratio", "better")},
        }
        for bench in benches
        for row in bench["rows"]
    ]
    return sorted((row for row in found if _key(row) not in known), key=lambda row: row["taken_at"])


def append(rows: Iterable[Mapping[str, Any]], path: Path = FILE) -> None:
    """Writes them behind those that are there."""
    with path.open("a") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def falls(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """A sentence for each case whose newest row is worse than the one before by more than FALL_MAX."""
    by_case: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        by_case.setdefault((row["bench"], row["case"]), []).append(row)
    for (bench, case), history in sorted(by_case.items()):
        if len(history) < 2:
            continue
        before, now = history[-2:]
        figure = "ratio" if before["ratio"] is not None and now["ratio"] is not None else "ours"
        old, new = float(before[figure]), float(now[figure])
        if not old:
            continue
        worse = (old - new) / old if now["better"] == "higher" else (new - old) / old
        if worse > FALL_MAX:
            yield (
                f"{bench}, {case}: {figure} {old:g} ({before['commit'] or 'unknown'}) → {new:g} "
                f"({now['commit'] or 'unknown'}), {worse * 100:.0f} % worse"
            )


def _key(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["taken_at"], row["bench"], row["case"]
