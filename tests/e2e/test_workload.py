"""C5 over the batches of a workload finds what it should, and only that."""

from __future__ import annotations

from meshtest.line_stream import Batch
from tests.e2e.workload import PROGRESS_BOUND_S, stalls_after


def _batch(sent_at: float, committed_at: float) -> Batch:
    return Batch(0, [b"x"], sent_at, committed_at, base_offset=0 if committed_at else -1)


def test_a_commit_soon_after_each_healing_is_progress() -> None:
    assert stalls_after([1.5, 5.0], [_batch(1.0, 1.2), _batch(1.3, 2.0), _batch(4.0, 6.0)]) == []


def test_a_batch_that_waits_past_the_bound_is_found() -> None:
    late = 2.0 + PROGRESS_BOUND_S + 0.5
    found = stalls_after([2.0], [_batch(1.0, late)])
    assert len(found) == 1
    assert found[0].startswith("C5 after 2.00 s")


def test_a_batch_that_is_never_answered_is_found() -> None:
    assert len(stalls_after([2.0], [_batch(1.0, 1.5), _batch(1.6, 0.0)])) == 1
