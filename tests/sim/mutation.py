"""`make sim-mutants`: plants each known bug in turn, and counts the seeds until a checker sees it.

A mutant that no seed catches fails the command: then the simulator does not go where that bug would be. Writes
build/sim/mutants.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from tests.sim.mutants import ALL
from tests.sim.runs import CHECKERS, joint_hash, seeds_until_caught, workers

REPORT = Path("build/sim/mutants.json")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.mutation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="bound for each mutant")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    arguments = parser.parse_args()
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    rows: list[dict[str, object]] = []
    began = time.monotonic()
    with workers() as pool:
        for number, mutant in enumerate(ALL, 1):
            count, findings = seeds_until_caught(pool, mutant, seeds)
            seen_by = sorted({text[:2] for text in findings})
            row: dict[str, object] = {"name": mutant.name, "caught_after_seeds": count, "what": mutant.what}
            rows.append(row | {"seen_by": seen_by, "finding": findings[0] if findings else ""})
            verdict = "NOT CAUGHT" if count is None else f"caught after {count} seeds by {', '.join(seen_by)}"
            print(f"{number}/{len(ALL)} {mutant.name}: {verdict}", flush=True)
    missed = [row["name"] for row in rows if row["caught_after_seeds"] is None]
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "seeds": arguments.seeds,
        "events": len(rows),
        "findings": dict.fromkeys(CHECKERS, 0),
        "mutants": rows,
        "trace_hash": joint_hash(f"{row['name']} {row['caught_after_seeds']}" for row in rows),
    }
    REPORT.write_text(json.dumps(report, indent=2) + "\n")
    print(f"{len(rows) - len(missed)} of {len(rows)} mutants caught in {time.monotonic() - began:.0f} s")
    if missed:
        sys.exit(f"not caught within {arguments.seeds} seeds: {', '.join(map(str, missed))}")


if __name__ == "__main__":
    main()
