"""The simulator as a test: many seeds without a finding, the same seed with the same trace, and a planted bug that is seen."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import coverage
import pytest

from tests.sim.__main__ import run_seed
from tests.sim.simulation import Outcome, Simulation

SEEDS = range(1, 201)
BATCH = 25
MUTANT_SEEDS = range(1, 41)
pytestmark = pytest.mark.sim


def without_coverage() -> None:
    """In a worker: tracing would triple the time, and the cores have their own tests."""
    if (measuring := coverage.Coverage.current()) is not None:
        measuring.stop()


def run_all(seeds: range, mutant: str | None = None) -> list[Outcome]:
    # Spawned, not forked: the tests before have used gRPC, whose objects do not survive in a forked process.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), context, initializer=without_coverage) as pool:
        return list(pool.map(run_seed, seeds, [mutant] * len(seeds)))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("first", range(SEEDS.start, SEEDS.stop, BATCH))
def test_no_seed_has_a_finding(first: int) -> None:
    outcomes = run_all(range(first, first + BATCH))
    failed = {f"SEED={outcome.seed}": outcome.findings[:3] for outcome in outcomes if outcome.findings}
    assert failed == {}, "repeat one with: .venv/bin/python -m tests.sim --seeds 1 --first SEED"
    # The runs did something: records were acknowledged while nodes crashed.
    assert all(outcome.acknowledged for outcome in outcomes)
    assert sum(outcome.crashes for outcome in outcomes) > BATCH


def test_the_same_seed_gives_the_same_trace() -> None:
    """I10."""
    one, again, other = (Simulation(seed).run() for seed in (7, 7, 8))
    assert (one.trace_hash, one.events) == (again.trace_hash, again.events)
    assert one.trace_hash != other.trace_hash


@pytest.mark.timeout(600)
def test_messages_released_before_the_fsync_are_caught_by_the_checkers() -> None:
    """The mutant: a member says that it holds what a power cut then takes from it."""
    outcomes = run_all(MUTANT_SEEDS, "release_before_fsync")
    caught = [outcome for outcome in outcomes if any(text.startswith(("C1", "C2", "C4")) for text in outcome.findings)]
    assert caught, "none of the checkers saw it"
    print(f"caught first by seed {caught[0].seed}, by {len(caught)} of {len(outcomes)} seeds: {caught[0].findings[0]}")
