"""Records into batches: nothing lost, doubled or reordered, no batch beyond its bounds, none held longer than it should."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshclient.gathering import Batching, Gathered, Gatherer
from meshwire.batch import MAX_RECORD_BYTES, RECORD_OVERHEAD_BYTES
from meshwire.errors import WireCode, WireError
from meshwire.records import Record, decode_records

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("one"), st.binary(max_size=40), st.none() | st.binary(max_size=5)),
        st.tuples(st.just("many"), st.lists(st.binary(max_size=40), max_size=30), st.none()),
        st.tuples(st.just("take"), st.floats(0, 0.02), st.booleans()),
    ),
    max_size=60,
)


@given(STEPS, st.integers(1, 200), st.integers(1, 9))
def test_every_record_comes_out_once_in_order_and_in_bounds(
    steps: list[Any], batch_bytes: int, batch_records: int
) -> None:
    batching = Batching(batch_bytes=batch_bytes, batch_records=batch_records, linger_s=0.01)
    gatherer = Gatherer(batching, Gathered)
    now = 0.0
    expected: list[Record] = []
    places: dict[int, list[int]] = {}
    taken: list[Gathered] = []

    def take(*, is_idle: bool) -> None:
        while (batch := gatherer.take(now, is_idle=is_idle)) is not None:
            taken.append(batch)

    for kind, first, second in steps:
        if kind == "one":
            batch, place = gatherer.append(first, second, now)
            places.setdefault(id(batch), []).append(place)
            expected.append(Record(first, second))
        elif kind == "many":
            at = 0
            while at < len(first):
                batch, place, after = gatherer.extend(first, at, now)
                assert after > at
                places.setdefault(id(batch), []).extend(range(place, place + after - at))
                at = after
            expected += [Record(value) for value in first]
        else:
            now += first
            take(is_idle=second)
            deadline = gatherer.next_deadline()
            assert deadline is None or deadline > now, "a record waits beyond its linger time"
            assert not (second and gatherer), "a record waits although nothing is on its way"
    take(is_idle=True)
    assert not gatherer
    assert gatherer.body_bytes == 0
    found: list[Record] = []
    for batch in taken:
        records = decode_records(batch.records.encode())
        assert len(records) <= batch_records
        assert batch.records.body_bytes <= batch_bytes or len(records) == 1
        assert places[id(batch)] == list(range(len(records)))
        found += records
    assert found == expected


def test_a_full_batch_is_due_at_once() -> None:
    gatherer = Gatherer(Batching(batch_bytes=2 * (RECORD_OVERHEAD_BYTES + 10), linger_s=60), Gathered)
    gatherer.append(bytes(10), None, 0.0)
    assert gatherer.take(0.0, is_idle=False) is None
    gatherer.append(bytes(10), None, 0.0)
    assert gatherer.take(0.0, is_idle=False) is not None


def test_a_record_that_is_too_large_is_refused_and_leaves_the_rest() -> None:
    large = bytes(MAX_RECORD_BYTES + 1)
    gatherer = Gatherer(Batching(), Gathered)
    gatherer.append(b"before", None, 0.0)
    with pytest.raises(WireError) as refused:
        gatherer.append(large, None, 0.0)
    assert refused.value.code is WireCode.TOO_LARGE
    _, _, after = gatherer.extend([b"in", large, b"out"], 0, 0.0)
    assert after == 1
    with pytest.raises(WireError) as refused:
        gatherer.extend([b"in", large, b"out"], after, 0.0)
    assert refused.value.code is WireCode.TOO_LARGE
    taken: list[bytes] = []
    while (batch := gatherer.take(0.0, is_idle=True)) is not None:
        taken += [record.value for record in decode_records(batch.records.encode())]
    assert taken == [b"before", b"in"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_bytes": 0},
        {"batch_bytes": 2 * MAX_RECORD_BYTES},
        {"batch_records": 0},
        {"linger_s": -1},
        {"in_flight_max": 0},
        {"in_flight_max": 5000},
        {"buffer_bytes": 0},
    ],
)
def test_values_out_of_bounds_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Batching(**wrong)  # type: ignore[arg-type]
