"""Equal seeds and equal inputs give equal outputs (invariant I10); another seed gives another run."""

from __future__ import annotations

import pytest

from libs.meshraft.tests.test_safety import storm


@pytest.mark.sim
@pytest.mark.parametrize("seed", [3, 8, 21])
def test_the_same_seed_gives_the_same_trace(seed: int) -> None:
    traces = [storm(seed, nodes=5).trace for _ in range(3)]
    assert len(traces[0]) > 50
    assert traces[0] == traces[1] == traces[2]


@pytest.mark.sim
def test_another_seed_gives_another_trace() -> None:
    assert storm(1, nodes=3).trace != storm(2, nodes=3).trace
