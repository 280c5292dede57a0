"""Every parser refuses malformed bytes with WireError and nothing else: thoroughly near the samples, then at random."""

from __future__ import annotations

import random
from itertools import islice

import pytest

from meshtest.effort import EFFORT, scaled
from tests.fuzz.mutation import TargetFailedError, mutations, neighbours, run_each
from tests.fuzz.targets import TARGETS

SEED = 20_240_229
INPUTS_PER_TARGET = scaled(1_000)
EXHAUSTIVE_BYTES_MAX = 64
"""In longer samples only some of the 255 changes of each byte are tried; all of them at night."""


@pytest.mark.parametrize("name", TARGETS)
def test_sample_is_accepted(name: str) -> None:
    target = TARGETS[name]
    run_each(name, target.run, iter(target.seeds))


@pytest.mark.parametrize("name", TARGETS)
def test_truncation_or_single_byte_change_is_refused_or_decodes(name: str) -> None:
    target = TARGETS[name]
    for sample in target.seeds:
        is_exhaustive = EFFORT > 1 or target.every > 1 or len(sample) <= EXHAUSTIVE_BYTES_MAX
        near = neighbours(sample, is_exhaustive=is_exhaustive)
        run_each(name, target.run, islice(near, 0, None, target.every))


@pytest.mark.parametrize("name", TARGETS)
def test_random_mutations_are_refused_or_decode(name: str) -> None:
    target = TARGETS[name]
    # A string seeds by its text, not by its hash, so every run and interpreter sees the same inputs.
    rng = random.Random(f"{SEED}-{name}")
    run_each(name, target.run, islice(mutations(target.seeds, rng), INPUTS_PER_TARGET // min(target.every, 10)))


def test_run_reports_a_parser_that_reads_past_its_input() -> None:
    def careless(data: bytes) -> None:
        assert data[0] <= len(data)
        data[data[0]]

    sample = b"\x02ab"
    careless(sample)
    with pytest.raises(TargetFailedError, match=r"target careless failed with IndexError.* on input 0361"):
        run_each("careless", careless, iter([sample, b"\x03ab"]))
    with pytest.raises(TargetFailedError):
        run_each("careless", careless, islice(mutations((sample,), random.Random(SEED)), 100))


def test_same_seed_gives_the_same_inputs() -> None:
    seeds = TARGETS["packet"].seeds
    first, second = (list(islice(mutations(seeds, random.Random(SEED)), 50)) for _ in range(2))
    assert first == second
