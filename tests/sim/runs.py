"""One seed in whatever process this is, and many seeds on all cores; what they came to, as one report.

A seed is two runs: the mesh under faults (`simulation`) and one group whose members change (`membership`). Leaves out: what
is printed (`__main__`, `mutation`).
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import coverage

from tests.sim.disks import uses_engine
from tests.sim.membership import MembershipRun
from tests.sim.mutants import Mutant, named, planted
from tests.sim.simulation import Simulation

CHECKERS: Final = ("C1", "C2", "C3", "C4", "C5")


@dataclass(frozen=True, slots=True)
class SeedOutcome:
    """What one seed did and found, in both runs together."""

    seed: int
    groups: int
    events: int
    acknowledged: int
    reads: int
    replaced: int
    floors_moved: int
    crashes: int
    damages: int
    retirements: int
    disk_failures: int
    sleeps: int
    topology: str
    steps: int
    trace_hash: str
    findings: tuple[str, ...]


def run_seed(seed: int, mutant_name: str | None = None) -> SeedOutcome:
    """Both runs of a seed. A mutant is planted in the run that can meet it, and only that one runs."""
    mutant = named(mutant_name) if mutant_name is not None else None
    disk = mutant.disk if mutant is not None else None
    on_engine = mutant.on_engine if mutant is not None else uses_engine(seed)
    with planted(mutant):
        mesh = None if mutant is not None and mutant.of_membership else Simulation(seed, disk, on_engine).run()
        members = (
            None if mutant is not None and not mutant.of_membership else MembershipRun(seed, on_engine=on_engine).run()
        )
    traces = [run.trace_hash for run in (mesh, members) if run is not None]
    return SeedOutcome(
        seed=seed,
        groups=(mesh.groups if mesh else 0) + (members is not None),
        events=(mesh.events if mesh else 0) + (members.events if members else 0),
        acknowledged=(mesh.acknowledged if mesh else 0) + (members.acknowledged if members else 0),
        reads=mesh.reads if mesh else 0,
        replaced=mesh.replaced if mesh else 0,
        floors_moved=mesh.floors_moved if mesh else 0,
        crashes=(mesh.crashes if mesh else 0) + (members.crashes if members else 0),
        damages=mesh.damages if mesh else 0,
        retirements=mesh.retirements if mesh else 0,
        disk_failures=mesh.disk_failures if mesh else 0,
        sleeps=mesh.sleeps if mesh else 0,
        topology=mesh.topology if mesh else "",
        steps=members.steps if members else 0,
        trace_hash=joint_hash(traces),
        findings=tuple((mesh.findings if mesh else []) + (members.findings if members else [])),
    )


@contextmanager
def workers() -> Iterator[ProcessPoolExecutor]:
    """A process for each core; what has not begun when the block ends is not begun."""
    # Spawned, not forked: tests before have used gRPC, whose objects do not survive in a forked process.
    pool = ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn"), initializer=_without_coverage)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def run_seeds(seeds: Iterable[int]) -> Iterator[SeedOutcome]:
    """Outcomes as they come."""
    with workers() as pool:
        for future in as_completed([pool.submit(run_seed, seed) for seed in seeds]):
            yield future.result()


def seeds_until_caught(pool: ProcessPoolExecutor, mutant: Mutant, seeds: range) -> tuple[int | None, tuple[str, ...]]:
    """How many seeds it took, from the first of `seeds` on, and what was found; None when none of them saw it."""
    batch = 2 * (os.cpu_count() or 1)
    for start in range(seeds.start, seeds.stop, batch):
        part = range(start, min(start + batch, seeds.stop))
        for outcome in pool.map(run_seed, part, [mutant.name] * len(part)):
            if outcome.findings:
                return outcome.seed - seeds.start + 1, outcome.findings
    return None, ()


def joint_hash(hashes: Iterable[str]) -> str:
    """One hash of several, in their order."""
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def report(outcomes: Iterable[SeedOutcome]) -> dict[str, object]:
    """In the form that every simulation and fault test writes."""
    ordered = sorted(outcomes, key=lambda outcome: outcome.seed)
    return {
        "seeds": len(ordered),
        "events": sum(outcome.events for outcome in ordered),
        "findings": {
            name: sum(text.startswith(name) for outcome in ordered for text in outcome.findings) for name in CHECKERS
        },
        "mutants": [],
        "trace_hash": joint_hash(outcome.trace_hash for outcome in ordered),
        "groups_max": max((outcome.groups for outcome in ordered), default=0),
        "acknowledged": sum(outcome.acknowledged for outcome in ordered),
        "reads": sum(outcome.reads for outcome in ordered),
        "producers_replaced": sum(outcome.replaced for outcome in ordered),
        "floors_moved": sum(outcome.floors_moved for outcome in ordered),
        "crashes": sum(outcome.crashes for outcome in ordered),
        "damages": sum(outcome.damages for outcome in ordered),
        "retirements": sum(outcome.retirements for outcome in ordered),
        "disk_failures": sum(outcome.disk_failures for outcome in ordered),
        "sleeps": sum(outcome.sleeps for outcome in ordered),
        "topologies": dict(sorted(Counter(outcome.topology for outcome in ordered).items())),
        "membership_steps": sum(outcome.steps for outcome in ordered),
    }


def _without_coverage() -> None:
    """In a worker: tracing would triple the time, and the cores have their own tests."""
    if (measuring := coverage.Coverage.current()) is not None:
        measuring.stop()
