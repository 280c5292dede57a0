"""Every checker passes what is right and reports each planted fault (a test can fail)."""

from __future__ import annotations

from meshtest.checkers import (
    Acknowledged,
    Held,
    StateHash,
    check_acknowledged_readable,
    check_exactly_once,
    check_state_hashes,
)

ACKNOWLEDGED = [Acknowledged(7, n, n, b"7:%d" % n) for n in range(5)]


def held(*numbers: int, first_offset: int = 0) -> list[Held]:
    return [Held(first_offset + at, b"7:%d" % n, (7, n)) for at, n in enumerate(numbers)]


def test_a_complete_history_has_no_findings() -> None:
    members = {"a": held(0, 1, 2, 3, 4), "b": held(2, 3, 4, first_offset=2)}
    assert check_acknowledged_readable(ACKNOWLEDGED, members) == []
    assert check_exactly_once(ACKNOWLEDGED, members) == []


def test_c1_reports_a_lost_tail() -> None:
    findings = check_acknowledged_readable(ACKNOWLEDGED, {"a": held(0, 1, 2, 3)})
    assert findings == ["C1 a lacks offset 4 (7, 4)"]


def test_c1_reports_another_value() -> None:
    assert "another value" in check_acknowledged_readable(ACKNOWLEDGED[:1], {"a": [Held(0, b"x", (7, 0))]})[0]


def test_c2_reports_a_duplicate() -> None:
    assert any("twice" in text for text in check_exactly_once([], {"a": held(0, 1, 1)}))


def test_c2_reports_a_gap_in_offsets() -> None:
    gap = [*held(0), Held(2, b"7:1", (7, 1))]
    assert check_exactly_once([], {"a": gap}) == ["C2 a goes from offset 0 to 2"]


def test_c2_reports_a_reorder() -> None:
    assert any("after" in text for text in check_exactly_once([], {"a": held(1, 0)}))


def test_c2_reports_members_that_disagree() -> None:
    members = {"a": held(0, 1), "b": held(0, 2)}
    assert check_exactly_once([], members) == ["C2 members disagree at offset 1, among them b"]


def test_c2_reports_an_acknowledged_offset_that_moved() -> None:
    moved = [Acknowledged(7, 0, 0, b"x"), Acknowledged(7, 0, 5, b"x")]
    assert check_exactly_once(moved, {}) == ["C2 (7, 0) was acknowledged at 0 and at 5"]


def test_c4_reports_different_hashes_at_one_index_only() -> None:
    same = [StateHash("a", 3, b"x"), StateHash("b", 3, b"x"), StateHash("c", 4, b"y")]
    assert check_state_hashes(same) == []
    assert check_state_hashes([*same, StateHash("d", 4, b"z")]) == ["C4 state hashes differ at index 4: [['c'], ['d']]"]
