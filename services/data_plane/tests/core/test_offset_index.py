"""The sparse index against a plain list of batches."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh_data.core.offset_index import MARK_ENTRIES, OffsetIndex, Position

entries = st.lists(
    st.tuples(st.booleans(), st.integers(1, 20), st.integers(1, 40_000), st.integers(0, 3)), min_size=1, max_size=300
)


def build(items: list[tuple[bool, int, int, int]]) -> tuple[OffsetIndex, list[Position], set[int], int]:
    """An index, the position of every accepted batch, the refused log indexes and the next offset."""
    index = OffsetIndex(Position(0, 2, 0))
    positions: list[Position] = []
    refused: set[int] = set()
    offset, at = 0, 2
    for is_accepted, count, size_bytes, gap in items:
        if is_accepted:
            position = Position(offset, at, at * 10)
            index.append(position, size_bytes)
            positions.append(position)
            offset += count
        else:
            index.refuse(at)
            refused.add(at)
        at += 1 + gap
    return index, positions, refused, offset


@given(entries)
def test_a_reader_that_starts_at_the_mark_meets_its_offset(items: list[tuple[bool, int, int, int]]) -> None:
    index, positions, refused, end = build(items)
    for offset in range(0, end, 7):
        mark = index.locate(offset)
        assert mark.offset <= offset
        wanted = max((item for item in positions if item.offset <= offset), key=lambda item: item.offset)
        assert mark.index <= wanted.index
        # No more to step over than two marks are apart.
        assert sum(mark.index <= item.index < wanted.index for item in positions) <= MARK_ENTRIES
    highest = max((item.index for item in positions), default=0)
    assert {at for at in range(highest + 10) if index.is_refused(at)} == {at for at in refused if at < highest + 10}


@given(entries, st.data())
def test_truncated_index_starts_at_the_floor_and_keeps_the_rest(
    items: list[tuple[bool, int, int, int]], data: st.DataObject
) -> None:
    index, positions, refused, end = build(items)
    if not positions:
        return
    floor = data.draw(st.sampled_from(positions))
    index.truncate(floor)
    assert index.first == floor
    for offset in range(floor.offset, end, 5):
        mark = index.locate(offset)
        assert floor.offset <= mark.offset <= offset
        assert mark.index >= floor.index
    assert all(index.is_refused(at) == (at >= floor.index) for at in refused)


def test_marks_are_sparse() -> None:
    index = OffsetIndex(Position(0, 2, 0))
    for number in range(10_000):
        index.append(Position(number, number + 2, 0), 100)
    assert 10_000 / MARK_ENTRIES - 2 <= index.marks <= 10_000 / MARK_ENTRIES + 2
