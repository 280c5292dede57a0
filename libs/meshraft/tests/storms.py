"""Storms and hunts of fresh seeds on all cores: `python -m libs.meshraft.tests.storms --first N --storms 3000 --hunts 1000`.

What `test_safety` and `test_hunts` run with a few fixed seeds. Prints each seed that fails with its error; exit status 1
then.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed

from libs.meshraft.tests.test_hunts import hunt
from libs.meshraft.tests.test_safety import storm


def plain_storm(seed: int) -> None:
    """Crashes, cuts and changes of members."""
    storm(seed, nodes=3 if seed % 3 else 5)


def damaging_storm(seed: int) -> None:
    """One disk loses what it synced, again and again."""
    storm(seed, nodes=3 if seed % 3 else 5, damages=True)


def tearing_storm(seed: int) -> None:
    """The power of all nodes is cut."""
    storm(seed, nodes=2 + seed % 3, tears=True)


def hunting(seed: int) -> None:
    """An adversary that keeps messages and knows when to damage a disk."""
    hunt(seed)


KINDS: tuple[Callable[[int], None], ...] = (plain_storm, damaging_storm, tearing_storm)


def attempt(run: Callable[[int], None], seed: int) -> str:
    """Runs one; the failure as text, or nothing."""
    try:
        run(seed)
    except Exception as error:  # noqa: BLE001 - whatever a schedule ends with is its finding
        return f"{run.__name__} {seed}: {type(error).__name__}: {error}"
    return ""


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description="Random schedules of Raft groups on disks that fail.")
    parser.add_argument("--first", type=int, default=10_000, help="the first seed (default 10000)")
    parser.add_argument("--storms", type=int, default=300, help="storms, a third of each kind (default 300)")
    parser.add_argument("--hunts", type=int, default=100, help="hunts (default 100)")
    asked = parser.parse_args()
    jobs = [(KINDS[at % len(KINDS)], asked.first + at) for at in range(asked.storms)]
    jobs += [(hunting, asked.first + at) for at in range(asked.hunts)]
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        findings = [
            text
            for done in as_completed(pool.submit(attempt, run, seed) for run, seed in jobs)
            if (text := done.result())
        ]
    print("\n".join(sorted(findings)))
    print(f"storms: {asked.storms} storms and {asked.hunts} hunts from seed {asked.first}, {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
