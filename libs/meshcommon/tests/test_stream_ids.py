"""Which refused stream ids may be asked for again, and what the sentence says of the others."""

from __future__ import annotations

import pytest

from meshcommon.errors import ErrorCode
from meshcommon.ids import StreamId
from meshcommon.stream_ids import stream_replaced

NAMES = {StreamId(2): "shop/returns", StreamId(4): "shop/orders", StreamId(6): "shop/bills", StreamId(3): "shop/orders"}
"""Stream 3 is a tombstone; 1, 5 and 7 are gone."""


@pytest.mark.parametrize(
    ("expected", "advice"),
    [
        (1, "that one was deleted, begin anew with the present one"),
        (2, "that one is shop/returns, check the name and the id"),
        (3, "that one was deleted, begin anew with the present one"),
        (5, "that id was given to another stream, which is gone, and is not used again; check the id"),
        (6, "that one is shop/bills, check the name and the id"),
        (7, "that id was given to another stream, which is gone, and is not used again; check the id"),
    ],
)
def test_an_id_that_was_given_out_is_refused_for_good(expected: int, advice: str) -> None:
    error = stream_replaced("shop/orders", StreamId(4), StreamId(expected), NAMES, 8)
    assert (error.code, error.retryable) == (ErrorCode.STREAM_REPLACED, False)
    assert error.message == f"shop/orders is stream 4 now, not stream {expected}: {advice}."
    assert error.details == {"stream": "shop/orders", "stream_id": "4"}


@pytest.mark.parametrize(("expected", "next_stream_id"), [(8, 8), (9, 8), (7, 0)])
def test_an_id_above_all_that_is_known_may_come(expected: int, next_stream_id: int) -> None:
    error = stream_replaced("shop/orders", StreamId(4), StreamId(expected), NAMES, next_stream_id)
    assert error.retryable
    assert "this node has not heard of that one yet, try again; or check the id" in error.message


def test_without_the_next_id_the_highest_stream_is_the_bound() -> None:
    assert not stream_replaced("shop/orders", StreamId(4), StreamId(5), NAMES, 0).retryable
    assert stream_replaced("shop/orders", StreamId(4), StreamId(5), {}, 0).retryable
