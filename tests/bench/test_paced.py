"""Open-loop latency: a stall is seen by every message that was due during it."""

from __future__ import annotations

import pytest

from tests.bench.paced import Answered, Pace, percentiles


def test_messages_fall_due_at_the_rate() -> None:
    pace = Pace(1000.0)
    assert pace.take_due(0.0, 64) == 1
    assert pace.take_due(0.0005, 64) == 0
    assert pace.take_due(0.0105, 64) == 10
    assert pace.sent == 11


def test_what_could_not_be_sent_stays_due() -> None:
    pace = Pace(1000.0)
    assert pace.take_due(1.0, 64) == 64
    assert pace.take_due(1.0, 64) == 64


def test_a_stall_counts_for_every_message_that_was_due_in_it() -> None:
    pace = Pace(1000.0)
    assert pace.take_due(0.999, 10_000) == 1000
    answers = [Answered(0, 500, 0.5), Answered(500, 500, 1.5)]
    found = pace.latencies_ms(answers, after_s=0.0)
    assert len(found) == 1000
    # A closed loop would have waited half a second, once; here a whole second of messages was late.
    assert percentiles(found)["p50"] == pytest.approx(501, abs=2)
    assert percentiles(found)["p99"] == pytest.approx(990, abs=2)


def test_the_warm_up_is_left_out() -> None:
    pace = Pace(100.0)
    pace.take_due(1.99, 1000)
    found = pace.latencies_ms([Answered(0, 200, 2.0)], after_s=1.0)
    assert len(found) == 100
    assert max(found) == pytest.approx(1000)


def test_many_messages_are_thinned_out_evenly() -> None:
    pace = Pace(1e6)
    pace.take_due(1.0, 1_000_000)
    found = pace.latencies_ms([Answered(0, 1_000_000, 1.0)], after_s=0.0)
    assert len(found) == 200_000
    assert found[0] == pytest.approx(0.005, abs=0.001)
