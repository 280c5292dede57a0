"""The token bucket."""

from __future__ import annotations

from meshcommon.token_bucket import TokenBucket


def test_a_burst_and_then_the_rate() -> None:
    bucket = TokenBucket(10.0, 3.0, 0.0)
    assert [bucket.take(0.0) for _ in range(4)] == [True, True, True, False]
    assert not bucket.take(0.05)
    assert bucket.take(0.1)
    assert [bucket.take(100.0) for _ in range(4)] == [True, True, True, False]


def test_what_is_spent_without_a_token_is_owed() -> None:
    bucket = TokenBucket(1.0, 1.0, 0.0)
    bucket.spend()
    bucket.spend()
    assert not bucket.has(1.5)
    assert bucket.has(2.0)


def test_a_clock_that_goes_back_takes_nothing_away() -> None:
    bucket = TokenBucket(1.0, 1.0, 10.0)
    assert bucket.has(5.0)
