"""Each planted bug is seen by a checker. `make sim-mutants` does the same with a larger bound and writes the table."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest

from tests.sim.mutants import ALL, Mutant, named, planted
from tests.sim.runs import run_seed, seeds_until_caught, workers

SEEDS = range(1, 31)
QUICK = [mutant for mutant in ALL if mutant.name not in {"term_not_compared", "fsync_lies", "release_before_fsync"}]
"""The others take tens of seeds: they are left to `make sim-mutants`."""
pytestmark = pytest.mark.sim


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with workers() as started:
        yield started


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mutant", QUICK, ids=lambda mutant: mutant.name)
def test_a_checker_sees_the_mutant(pool: ProcessPoolExecutor, mutant: Mutant) -> None:
    seeds, findings = seeds_until_caught(pool, mutant, SEEDS)
    assert seeds is not None, f"{mutant.name} went unseen: {mutant.what}"
    assert findings[0].startswith(("C1", "C2", "C3", "C4", "C5"))


def test_a_mutant_is_gone_after_its_run() -> None:
    for mutant in ALL:
        before = [getattr(target, name) for target, name, _ in mutant.patches()]
        with planted(mutant):
            inside = [getattr(target, name) for target, name, _ in mutant.patches()]
        assert [getattr(target, name) for target, name, _ in mutant.patches()] == before
        assert all(one is not other for one, other in zip(before, inside, strict=True))


def test_an_unknown_mutant_is_refused_with_the_known_names() -> None:
    with pytest.raises(KeyError, match="release_before_fsync"):
        named("no_such_bug")


def test_without_a_mutant_the_first_seed_has_no_finding() -> None:
    """What the mutants are compared with."""
    assert run_seed(1).findings == ()
