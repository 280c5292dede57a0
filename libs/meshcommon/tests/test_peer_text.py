"""Text of peers, made safe to quote."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meshcommon.peer_text import DETAILS_MAX, PEER_TEXT_MAX, printable, printable_details


def test_plain_text_stays_as_it_is() -> None:
    assert printable("node a: größer") == "node a: größer"


def test_control_characters_are_replaced_one_by_one() -> None:
    assert printable("a\x00b\nc\x1b[31m\u202e") == "a�b�c�[31m�"


@given(st.text(max_size=1000), st.integers(1, 300))
def test_result_is_printable_and_bounded(text: str, characters_max: int) -> None:
    result = printable(text, characters_max)
    assert len(result) <= characters_max
    assert result.isprintable()


def test_long_text_is_cut_and_says_so() -> None:
    result = printable("x" * 1_000_000)
    assert len(result) == PEER_TEXT_MAX
    assert result.endswith("…")


def test_details_are_bounded_in_number_and_length() -> None:
    details = printable_details({f"k{number}\x01": "v" * 70_000 for number in range(200)})
    assert len(details) == DETAILS_MAX
    assert all(len(value) <= PEER_TEXT_MAX and key.isprintable() for key, value in details.items())
