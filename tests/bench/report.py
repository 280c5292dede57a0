"""The one form of every measured figure: rows of a bench as JSON under build/bench/, and the table of all of them.

A row compares ours with a peer where there is one; the ratio is ours ÷ peer, the median over rounds in which both were
measured in turn, because absolute figures on a shared machine wander. `bar` is the figure that ours had to reach in
this run; where the bar is a ratio, that is the ratio times the peer's figure.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

ROOT: Final = Path(__file__).resolve().parents[2]
DIRECTORY: Final = ROOT / "build" / "bench"


@dataclass(frozen=True, slots=True)
class Bar:
    """What a figure has to reach: at least (`higher`) or at most (`lower`) `ours`, and the same for the ratio."""

    ours: float | None = None
    ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One case.

    Attributes:
        case: Name; the ones that other tools read are listed in `expected`.
        unit: Of ours, peer and bar.
        ours: One figure a round.
        peer: The same of the peer, in the same rounds; empty when there is none.
        bar: What has to be reached, if anything.
        better: Which direction is better.
        details: What else is to be kept of each round, under names of its own.
        is_ratio_of_peer: Whether the ratio that is written is peer ÷ ours: of times, how many times faster ours is.
    """

    case: str
    unit: str
    ours: Sequence[float]
    peer: Sequence[float] = ()
    bar: Bar = field(default_factory=Bar)
    better: Literal["higher", "lower"] = "higher"
    details: Sequence[Mapping[str, Any]] = ()
    is_ratio_of_peer: bool = False

    @property
    def ratio(self) -> float | None:
        """Median of ours ÷ peer over the rounds."""
        if not self.peer:
            return None
        return statistics.median(ours / peer for ours, peer in zip(self.ours, self.peer, strict=True))

    @property
    def bar_figure(self) -> float | None:
        """The figure that ours has to reach in this run."""
        figures = [] if self.bar.ours is None else [self.bar.ours]
        if self.bar.ratio is not None and self.peer:
            figures.append(self.bar.ratio * statistics.median(self.peer))
        if not figures:
            return None
        return max(figures) if self.better == "higher" else min(figures)

    @property
    def is_met(self) -> bool | None:
        """Whether the bar is reached; None when there is none, or the peer that it speaks of was not measured."""
        checks: list[tuple[float, float]] = []
        if self.bar.ours is not None:
            checks.append((statistics.median(self.ours), self.bar.ours))
        if self.bar.ratio is not None:
            if self.ratio is None:
                return None
            checks.append((self.ratio, self.bar.ratio))
        if not checks:
            return None
        return all(found >= wanted if self.better == "higher" else found <= wanted for found, wanted in checks)

    def as_json(self) -> dict[str, Any]:
        """The row in the form of the file."""
        peers: Sequence[float | None] = self.peer or [None] * len(self.ours)
        details: Sequence[Mapping[str, Any]] = self.details or [{}] * len(self.ours)
        return {
            "case": self.case,
            "unit": self.unit,
            "ours": _rounded(statistics.median(self.ours)),
            "peer": _rounded(statistics.median(self.peer)) if self.peer else None,
            "ratio": _rounded(1 / self.ratio if self.is_ratio_of_peer and self.ratio else self.ratio),
            "bar": _rounded(self.bar_figure),
            "better": self.better,
            "met": self.is_met,
            "runs": [
                {"ours": _rounded(ours), "peer": _rounded(peer), **more}
                for ours, peer, more in zip(self.ours, peers, details, strict=True)
            ],
        }


def write(
    name: str,
    rows: Sequence[Row],
    *,
    versions: Mapping[str, str],
    raw_disk_mb_per_s: float | None,
    taken_on: Mapping[str, Any] | None = None,
) -> Path:
    """Writes `build/bench/NAME.json`; returns where it is. `taken_on`: `machine()` before the run, for its load then."""
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    path = DIRECTORY / f"{name}.json"
    found = {
        "name": name,
        "taken_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": dict(taken_on or machine()),
        "versions": {"python": platform.python_version(), **versions},
        "raw_disk_mb_per_s": _rounded(raw_disk_mb_per_s),
        "rows": [row.as_json() for row in rows],
    }
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    return path


def commit() -> str:
    """The commit that is measured, with `-dirty` when files differ from it; empty outside a repository."""
    command = ("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude", "*")
    try:
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def machine() -> dict[str, Any]:
    """What the figures were taken on, with the load that was there already (one minute's average)."""
    text = Path("/proc/cpuinfo").read_text()
    model = next((line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")), "")
    memory_kib = int(Path("/proc/meminfo").read_text().split()[1])
    return {
        "cpu": model or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory_kib / 1024 / 1024, 1),
        "kernel": platform.release(),
        "load_1m": round(os.getloadavg()[0], 2),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as text for people."""
    lines = [("case", "ours", "peer", "ratio", "bar", "unit", "")]
    lines += [
        (
            str(row["case"]),
            _short(row["ours"]),
            _short(row["peer"]),
            _short(row["ratio"]),
            _short(row["bar"]),
            str(row["unit"]),
            verdict(row),
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at in {0, 5, 6} else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def verdict(row: Mapping[str, Any]) -> str:
    """Met, short by how much, or no bar."""
    if row["met"] is None:
        return "no bar" if row["bar"] is None else "peer not measured"
    if row["met"]:
        return "met"
    ours, bar = float(row["ours"]), float(row["bar"])
    short = (bar - ours) / bar if row["better"] == "higher" else (ours - bar) / bar
    # A ratio's median may miss the bar although the medians' ratio reaches it.
    return f"SHORT by {max(short, 0.0) * 100:.0f} %"


def _rounded(value: float | None) -> float | None:
    """Four digits: more would claim a precision that no run has."""
    return None if value is None else float(f"{value:.4g}")


def _short(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"
