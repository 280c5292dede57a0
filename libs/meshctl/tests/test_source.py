"""Cutting bytes into lines and lines into batches."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meshctl.publish_command import batched
from meshctl.source import LineSplitter

PIECES = st.lists(st.lists(st.sampled_from([b"a", b"\n", b"\r", b"bc"]), max_size=6).map(b"".join), max_size=12)


@given(PIECES)
def test_lines_joined_are_the_bytes_again_however_they_came(pieces: list[bytes]) -> None:
    splitter = LineSplitter()
    lines = [line for piece in pieces for line in splitter.feed(piece)] + splitter.finish()
    whole = b"".join(pieces)
    assert lines == whole.splitlines(keepends=True) or b"\r" in whole
    assert b"".join(lines) == whole
    assert all(line.endswith(b"\n") for line in lines[:-1])
    assert all(line.count(b"\n") <= 1 and line for line in lines)


@given(PIECES)
def test_pending_bytes_are_what_has_no_end_yet(pieces: list[bytes]) -> None:
    splitter = LineSplitter()
    for position, piece in enumerate(pieces):
        splitter.feed(piece)
        whole = b"".join(pieces[: position + 1])
        assert splitter.pending_bytes == len(whole) - (whole.rfind(b"\n") + 1)


@given(st.lists(st.integers(0, 400_000), max_size=40))
def test_batches_are_the_lines_in_order_within_bounds(sizes: list[int]) -> None:
    lines = [b"x" * size for size in sizes]
    batches = batched(lines)
    assert [line for batch in batches for line in batch] == lines
    assert all(batch for batch in batches)
    assert all(len(batch) == 1 or sum(map(len, batch)) <= 256 * 1024 for batch in batches)


def test_batches_hold_at_most_a_thousand_records() -> None:
    assert [len(batch) for batch in batched([b"x"] * 2_500)] == [1_000, 1_000, 500]
