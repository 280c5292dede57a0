"""`make sim SEEDS=N`: runs seeds on all cores with progress, prints failing ones with the command that repeats them."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from tests.sim.disks import uses_engine
from tests.sim.mutants import ALL
from tests.sim.runs import SeedOutcome, report, run_seed, run_seeds

REPORT = Path("build/sim/sim.json")
_BAR_CELLS = 30
_PROGRESS_S = 5.0


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--mutant", choices=[mutant.name for mutant in ALL], help="plants a known bug")
    arguments = parser.parse_args()
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    if arguments.mutant or len(seeds) == 1:
        _finish(list(_watched((run_seed(seed, arguments.mutant) for seed in seeds), len(seeds))), arguments.mutant)
    else:
        _finish(list(_watched(run_seeds(seeds), len(seeds))), None)


def _watched(outcomes: Iterable[SeedOutcome], count: int) -> Iterable[SeedOutcome]:
    """Passes outcomes on, and shows the bar and what failed."""
    started = shown = time.monotonic()
    failed = 0
    for done, outcome in enumerate(outcomes, 1):
        failed += bool(outcome.findings)
        for finding in outcome.findings[:5]:
            print(f"SEED={outcome.seed}: {finding}", flush=True)
        if outcome.findings:
            disks = "raft-engine" if uses_engine(outcome.seed) else "the model of the log"
            print(f"  repeat: .venv/bin/python -m tests.sim --seeds 1 --first {outcome.seed} # on {disks}", flush=True)
        if sys.stdout.isatty() or time.monotonic() - shown >= _PROGRESS_S or done == count:
            shown = time.monotonic()
            cells = _BAR_CELLS * done // count
            end = "\n" if not sys.stdout.isatty() or done == count else "\r"
            bar = "#" * cells + "." * (_BAR_CELLS - cells)
            print(f"[{bar}] {done}/{count} seeds, {failed} failed, {shown - started:.0f} s", end=end, flush=True)
        yield outcome


def _finish(outcomes: list[SeedOutcome], mutant: str | None) -> None:
    made = report(outcomes)
    if mutant is None:
        REPORT.parent.mkdir(parents=True, exist_ok=True)
        REPORT.write_text(json.dumps(made, indent=2) + "\n")
    print(json.dumps(made))
    sys.exit(1 if any(outcome.findings for outcome in outcomes) else 0)


if __name__ == "__main__":
    main()
