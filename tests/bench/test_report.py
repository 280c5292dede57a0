"""The form of figures: ratios are medians over rounds, a bar is met or missed by the right comparison."""

from __future__ import annotations

from tests.bench.report import Bar, Row, table, verdict


def test_the_ratio_is_the_median_of_the_rounds() -> None:
    row = Row("rate", "1/s", [100, 300, 200], [100, 100, 100], Bar(ratio=2)).as_json()
    assert row["ratio"] == 2
    assert row["ours"] == 200
    assert row["bar"] == 200
    assert row["met"] is True
    assert row["runs"][1] == {"ours": 300, "peer": 100}


def test_both_parts_of_a_bar_have_to_be_reached() -> None:
    assert Row("rate", "1/s", [600], [10], Bar(ours=500, ratio=10)).is_met
    assert not Row("rate", "1/s", [400], [10], Bar(ours=500, ratio=10)).is_met
    short = Row("rate", "1/s", [600], [100], Bar(ours=500, ratio=10))
    assert short.bar_figure == 1000
    assert verdict(short.as_json()) == "SHORT by 40 %"


def test_lower_is_better_for_latencies() -> None:
    assert Row("p50", "ms", [1.1], [1.0], Bar(ratio=1.2), "lower").is_met
    missed = Row("p50", "ms", [1.8], [1.0], Bar(ratio=1.2), "lower").as_json()
    assert verdict(missed) == "SHORT by 50 %"
    assert "SHORT by 50 %" in table([missed])


def test_without_a_bar_or_a_peer_nothing_is_claimed() -> None:
    assert verdict(Row("plain", "1/s", [1]).as_json()) == "no bar"
    assert Row("alone", "1/s", [1], bar=Bar(ratio=2)).is_met is None
