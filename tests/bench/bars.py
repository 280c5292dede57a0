"""`make bars`: one table of every figure that was measured, met or short by how much, and of those that were not.

Reads build/**/*.json: the benches' rows, and the findings of the simulator and of the fault tests. Keeps the rows in
`docs/bars.jsonl` (`history`), and names those that fell.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tests.bench import history, report

EXPECTED: Final[dict[str, tuple[str, ...]]] = {
    "publish": (
        "128 B batched",
        "128 B unbatched",
        "128 B batched ten streams",
        "1 KiB batched",
        "16 KiB batched",
        "64 KiB batched",
        "one at a time p50",
        "one at a time p99",
        "full mesh 128 B batched",
        "128 B batched mtls",
        "128 B unbatched mtls",
        "64 KiB batched mtls",
    ),
    "latency": ("maximum", *(f"{share} % {figure}" for share in (10, 50, 80) for figure in ("p50", "p99", "p99.9"))),
    "catchup": tuple(
        f"catch-up 800 MB{groups}{figure}"
        for groups in ("", " hundred groups")
        for figure in ("", " publish ratio", " leader memory", " loop stall")
    ),
    "idle": ("idle 1,000 streams",),
    "identity": ("handshakes/s", "reconnect 50 peers"),
    "paths": ("n=100 cold", "n=1000 cold", "n=1000 cached", "n=1000 after one change"),
    "links": (
        "hop p50",
        "control p99 under bulk",
        "stripes share",
        "bytes per payload byte",
        "reroute silent p50",
        "reroute silent p99",
        "reroute closed p99",
        "reroute reset p99",
        "reroute one-way p99",
    ),
    "membership": (
        "false positives one starved",
        "false positives quarter starved",
        "detection p50",
        "detection p99",
        "messages per node 50 ÷ 5",
    ),
    "streams": ("outbox", "handler", "fan-out 10", "postgres fallback", "chunked 1 GiB", "end to end p99"),
}
"""Benches and the cases that they are to have."""


def main() -> None:
    """Prints everything found under build/."""
    build = report.ROOT / "build"
    benches: dict[str, Mapping[str, Any]] = {}
    checks: list[tuple[Path, Mapping[str, Any]]] = []
    for path in sorted(build.rglob("*.json")):
        found = _load(path)
        if isinstance(found.get("rows"), list) and "name" in found:
            benches[str(found["name"])] = found
        elif "findings" in found:
            checks.append((path, found))
    for name in [*EXPECTED, *sorted(benches.keys() - EXPECTED.keys())]:
        print(f"\n{name}: {_when(benches.get(name))}")
        rows = list(benches[name]["rows"]) if name in benches else []
        if rows:
            print(report.table(rows))
        measured = {row["case"] for row in rows}
        missing = [case for case in EXPECTED.get(name, ()) if case not in measured]
        if missing and rows:
            print("not measured: " + ", ".join(missing))
    for path, found in checks:
        print(f"\n{path.relative_to(build)}: {_findings(found)}")
    kept = history.load()
    new = history.added(kept, benches.values())
    if new:
        history.append(new)
    fallen = list(history.falls([*kept, *new]))
    print(
        f"\nhistory: {len(new)} new rows in {history.FILE.relative_to(report.ROOT)}; worse by more than a tenth: ",
        end="",
    )
    print("none" if not fallen else "")
    for sentence in fallen:
        print(f"  {sentence}")


def _load(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _when(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "not measured"
    load = found["machine"].get("load_1m")
    disk = found.get("raw_disk_mb_per_s")
    return f"taken {found['taken_at']}, load before {load}" + (f", raw disk {disk:g} MB/s" if disk else "")


def _findings(found: Mapping[str, Any]) -> str:
    total = sum(found["findings"].values())
    text = "no finding" if not total else f"FINDINGS {found['findings']}"
    if "seeds" in found:
        text += f" in {found['seeds']} seeds"
    mutants = found.get("mutants", [])
    if mutants:
        caught = sum(1 for mutant in mutants if mutant.get("caught_after_seeds") is not None)
        text += f"; mutants caught: {caught} of {len(mutants)}"
    return text


if __name__ == "__main__":
    main()
