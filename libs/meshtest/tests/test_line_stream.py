"""Splitting a file into messages and back loses no byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshtest.line_stream import split_lines


@given(st.lists(st.sampled_from([b"\n", b"\r\n", b"a", b"\x00", b"\xff\xfe", b"\r", "é".encode()])).map(b"".join))
def test_lines_joined_are_the_file_and_each_ends_at_its_first_newline(data: bytes) -> None:
    lines = split_lines(data)
    assert b"".join(lines) == data
    assert all(line.count(b"\n") == 1 and line.endswith(b"\n") for line in lines[:-1])
    assert all(lines)


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"\n", [b"\n"]),
        (b"a\r\n\nb", [b"a\r\n", b"\n", b"b"]),
    ],
)
def test_examples(data: bytes, lines: list[bytes]) -> None:
    assert split_lines(data) == lines
