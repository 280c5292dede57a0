"""Entries of a stream group's log."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshwire.batch import HEADER_BYTES, MAX_BATCH_BYTES, decode_header
from meshwire.entry import (
    MAX_ENTRY_BYTES,
    BatchEntry,
    BatchLine,
    Entry,
    InitProducerEntry,
    MoveFloorEntry,
    SealEntry,
    decode_entry,
    encode_entry,
    peek_batch,
)
from meshwire.errors import WireCode, WireError
from meshwire.records import Record, encode_batch

U64 = st.integers(0, 2**64 - 1)
ENTRIES: st.SearchStrategy[Entry] = st.one_of(
    st.builds(BatchEntry, U64, st.binary(min_size=HEADER_BYTES, max_size=200)),
    st.builds(InitProducerEntry, U64, st.text(max_size=60)),
    st.builds(MoveFloorEntry, U64),
    st.builds(SealEntry, U64),
)


def code_of(data: bytes) -> WireCode:
    """Why these bytes are no entry."""
    with pytest.raises(WireError) as caught:
        decode_entry(data)
    return caught.value.code


@given(ENTRIES)
def test_decode_gives_back_what_was_encoded(entry: Entry) -> None:
    assert decode_entry(encode_entry(entry)) == entry


def test_batch_is_not_copied() -> None:
    data = encode_entry(BatchEntry(1, bytes(HEADER_BYTES)))
    decoded = decode_entry(data)
    assert isinstance(decoded, BatchEntry)
    assert isinstance(decoded.batch, memoryview)
    assert decoded.batch.obj is data


def test_producer_name_may_be_empty_and_is_limited_in_bytes() -> None:
    for name in ("", "a" * 255, "ü" * 127):
        assert decode_entry(encode_entry(InitProducerEntry(1, name))) == InitProducerEntry(1, name)
    with pytest.raises(WireError) as caught:
        encode_entry(InitProducerEntry(1, "ü" * 128))
    assert caught.value.code is WireCode.TOO_LARGE
    with pytest.raises(WireError) as caught:
        encode_entry(InitProducerEntry(1, "\ud800"))
    assert caught.value.code is WireCode.BAD_FIELD


def test_batch_size_is_bounded() -> None:
    largest = encode_entry(BatchEntry(1, bytes(MAX_BATCH_BYTES)))
    assert len(largest) == MAX_ENTRY_BYTES
    decode_entry(largest)
    assert code_of(largest + b"\x00") is WireCode.TOO_LARGE
    assert code_of(largest[: 9 + HEADER_BYTES - 1]) is WireCode.TRUNCATED
    for size, code in ((HEADER_BYTES - 1, WireCode.TRUNCATED), (MAX_BATCH_BYTES + 1, WireCode.TOO_LARGE)):
        with pytest.raises(WireError) as caught:
            encode_entry(BatchEntry(1, bytes(size)))
        assert caught.value.code is code


@pytest.mark.parametrize("entry", [InitProducerEntry(1, "name"), MoveFloorEntry(2), SealEntry(3)])
def test_truncation_and_trailing_bytes_are_refused(entry: Entry) -> None:
    data = encode_entry(entry)
    for length in range(len(data)):
        assert code_of(data[:length]) is WireCode.TRUNCATED
    assert code_of(data + b"\x00") is WireCode.BAD_FIELD


def test_unknown_kind_and_invalid_utf8_are_refused() -> None:
    assert code_of(b"\x00" + bytes(8)) is WireCode.BAD_FIELD
    assert code_of(b"\x05" + bytes(8)) is WireCode.BAD_VERSION
    assert code_of(b"\x02" + bytes(8) + b"\x02\xc3\x28") is WireCode.BAD_FIELD


@pytest.mark.parametrize("number", [-1, 2**64])
def test_encode_refuses_numbers_out_of_range(number: int) -> None:
    for entry in (InitProducerEntry(number, ""), MoveFloorEntry(number), SealEntry(number)):
        with pytest.raises(WireError) as caught:
            encode_entry(entry)
        assert caught.value.code is WireCode.BAD_FIELD


def parsed(data: bytes) -> BatchLine | None:
    """What `peek_batch` is to find, by way of the two decoders."""
    try:
        entry = decode_entry(data)
        if not isinstance(entry, BatchEntry):
            return None
        header = decode_header(entry.batch)
    except WireError:
        return None
    return BatchLine(
        entry.stamp_ms, header.producer_id, header.producer_epoch, header.base_sequence, header.record_count
    )


@given(
    values=st.lists(st.binary(max_size=40), min_size=1, max_size=5),
    numbers=st.tuples(*(st.integers(0, 2**width - 1) for width in (64, 64, 32))),
    base_sequence=st.integers(0, 2**63),
    flips=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=2),
    cut=st.integers(-3, 60),
)
def test_peeking_at_a_batch_agrees_with_decoding_it(
    values: list[bytes],
    numbers: tuple[int, int, int],
    base_sequence: int,
    flips: list[tuple[int, int]],
    cut: int,
) -> None:
    stamp_ms, producer_id, epoch = numbers
    batch = encode_batch([Record(value) for value in values], producer_id, epoch, base_sequence)
    whole = encode_entry(BatchEntry(stamp_ms, batch))
    assert peek_batch(whole) == BatchLine(stamp_ms, producer_id, epoch, base_sequence, len(values))
    damaged = bytearray(whole)
    for at, value in flips:
        damaged[at % len(damaged)] = value
    data = bytes(damaged[:-cut]) if cut > 0 else bytes(damaged) + bytes(-cut)
    assert peek_batch(data) == parsed(data)
