"""The history of figures: every row once, and a fall is named by the figure that can be compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.bench import history
from tests.bench.report import Row


def bench(taken_at: str, commit: str, *rows: Row) -> dict[str, Any]:
    return {"name": "publish", "taken_at": taken_at, "commit": commit, "rows": [row.as_json() for row in rows]}


def test_each_measurement_is_kept_once_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "bars.jsonl"
    later = bench("2026-02-02", "b", Row("one", "1/s", [2]))
    earlier = bench("2026-01-01", "a", Row("one", "1/s", [1]))
    for _ in range(2):
        history.append(history.added(history.load(path), [later, earlier]), path)
    assert [(row["commit"], row["ours"]) for row in history.load(path)] == [("a", 1), ("b", 2)]


def test_a_fall_of_more_than_a_tenth_is_named() -> None:
    rows = history.added(
        [],
        [
            bench("1", "a", Row("rate", "1/s", [100]), Row("p50", "ms", [1.0], better="lower")),
            bench("2", "b", Row("rate", "1/s", [89]), Row("p50", "ms", [1.2], better="lower")),
        ],
    )
    assert list(history.falls(rows)) == [
        "publish, p50: ours 1 (a) → 1.2 (b), 20 % worse",
        "publish, rate: ours 100 (a) → 89 (b), 11 % worse",
    ]


def test_where_there_is_a_peer_its_ratio_counts() -> None:
    fast = bench("1", "a", Row("rate", "1/s", [100], [50]))
    slow_machine = bench("2", "b", Row("rate", "1/s", [20], [10]))
    assert list(history.falls(history.added([], [fast, slow_machine]))) == []


def test_a_small_fall_and_a_first_row_say_nothing() -> None:
    rows = history.added([], [bench("1", "a", Row("rate", "1/s", [100])), bench("2", "b", Row("rate", "1/s", [91]))])
    assert list(history.falls(rows)) == []
    assert list(history.falls(rows[:1])) == []
