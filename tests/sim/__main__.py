"""`make sim SEEDS=N`: runs seeds on all cores with progress, prints failing ones with the command that repeats them."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from tests.sim.simulation import Outcome, Simulation

REPORT = Path("build/sim/sim.json")


def run_seed(seed: int, mutant: str | None = None) -> Outcome:
    """One run, in whatever process this is."""
    return Simulation(seed, mutant).run()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--mutant", help="plants a known bug: release_before_fsync")
    arguments = parser.parse_args()
    started = time.monotonic()
    outcomes: list[Outcome] = []
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        seeds = range(arguments.first, arguments.first + arguments.seeds)
        futures = [pool.submit(run_seed, seed, arguments.mutant) for seed in seeds]
        for done, future in enumerate(as_completed(futures), 1):
            outcome = future.result()
            outcomes.append(outcome)
            for finding in outcome.findings[:5]:
                print(f"SEED={outcome.seed}: {finding}", flush=True)
            if outcome.findings:
                print(f"  repeat: .venv/bin/python -m tests.sim --seeds 1 --first {outcome.seed}", flush=True)
            if done % 10 == 0 or done == len(futures):
                print(f"{done}/{len(futures)} seeds, {time.monotonic() - started:.0f} s", flush=True)
    failed = [outcome for outcome in outcomes if outcome.findings]
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    counts = {
        name: sum(text.startswith(name) for item in outcomes for text in item.findings) for name in ("C1", "C2", "C4")
    }
    report = {
        "seeds": len(outcomes),
        "events": sum(outcome.events for outcome in outcomes),
        "acknowledged": sum(outcome.acknowledged for outcome in outcomes),
        "crashes": sum(outcome.crashes for outcome in outcomes),
        "findings": counts | {"all": sum(len(outcome.findings) for outcome in outcomes)},
    }
    REPORT.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
