"""Record batches: round trips, limits, and damage found by the checksum and behind it."""

from __future__ import annotations

from struct import Struct

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from meshwire import batch
from meshwire.batch import Record
from meshwire.errors import WireCode, WireError

RECORDS = st.lists(
    st.builds(Record, st.binary(max_size=64), st.none() | st.binary(max_size=16)), min_size=1, max_size=40
)
U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)


def sealed(body: bytes, count: int) -> bytes:
    """A batch with any body behind a right length and checksum, as a hostile producer would send it."""
    covered = Struct("!QIQII").pack(0, 0, 0, count, len(body))
    return b"MB\x01\x00" + crc32c(covered + body).to_bytes(4, "big") + covered + body


def refusal(data: bytes) -> WireCode:
    """Why a batch is refused, by the way that builds records and by the one that does not."""
    with pytest.raises(WireError) as caught:
        batch.decode_records(data)
    with pytest.raises(WireError) as caught_by_values:
        list(batch.iter_values(data))
    assert caught.value.code is caught_by_values.value.code
    return caught.value.code


@given(RECORDS, U64, U32, st.integers(0, 2**64 - 40))
def test_decode_gives_back_what_was_encoded(
    records: list[Record], producer_id: int, producer_epoch: int, base_sequence: int
) -> None:
    data = batch.encode_batch(records, producer_id, producer_epoch, base_sequence)
    header = batch.decode_header(data, verify=True)
    assert (header.producer_id, header.producer_epoch, header.base_sequence) == (
        producer_id,
        producer_epoch,
        base_sequence,
    )
    assert header.record_count == len(records)
    assert header.last_sequence == base_sequence + len(records) - 1
    assert len(data) == batch.HEADER_BYTES + header.body_bytes
    assert batch.decode_records(data) == records
    assert list(batch.iter_values(memoryview(data))) == [record.value for record in records]


def test_checksum_is_castagnoli_over_everything_after_it() -> None:
    data = batch.encode_batch([Record(b"value", b"key")], 1, 2, 3)
    assert batch.decode_header(data).crc32c == crc32c(data[8:])
    assert crc32c(b"123456789") == 0xE3069283  # the check value of RFC 3720, appendix B.4


def test_every_flipped_bit_is_found() -> None:
    data = batch.encode_batch([Record(b"value", b"key"), Record(b"")], 1, 2, 3)
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        refusal(bytes(damaged))


def test_header_alone_does_not_read_the_body() -> None:
    data = bytearray(batch.encode_batch([Record(b"value")]))
    data[-1] ^= 1
    assert batch.decode_header(data).record_count == 1
    with pytest.raises(WireError) as caught:
        batch.decode_header(data, verify=True)
    assert caught.value.code is WireCode.BAD_CHECKSUM


@pytest.mark.parametrize(
    ("at", "value", "code"),
    [
        (0, ord("m"), WireCode.BAD_MAGIC),
        (2, 2, WireCode.BAD_VERSION),
        (3, 1, WireCode.BAD_FIELD),
        (4, 0, WireCode.BAD_CHECKSUM),
        (28, 1, WireCode.TOO_LARGE),
        (31, 0, WireCode.BAD_FIELD),
        (31, 3, WireCode.BAD_FIELD),
        (32, 1, WireCode.TOO_LARGE),
        (35, 12, WireCode.TRUNCATED),
        (35, 10, WireCode.BAD_FIELD),
    ],
)
def test_bad_header_field_is_refused(at: int, value: int, code: WireCode) -> None:
    data = bytearray(batch.encode_batch([Record(b"value")]))
    data[at] = value
    assert refusal(bytes(data)) is code


def test_truncation_and_trailing_bytes_are_refused() -> None:
    data = batch.encode_batch([Record(b"value", b"key")])
    for length in range(len(data)):
        assert refusal(data[:length]) is WireCode.TRUNCATED
    assert refusal(data + b"\x00") is WireCode.BAD_FIELD


@pytest.mark.parametrize(
    ("body", "count", "code"),
    [
        (b"\xff\xff\x00\x00\x00\x01", 1, WireCode.TRUNCATED),
        (b"\xff\xff\xff\xff\xff\xff", 1, WireCode.TRUNCATED),
        (b"\xff\xfe\x00\x00\x00\x00", 1, WireCode.TRUNCATED),
        (b"\x00\x01k\x00\x00\x00", 1, WireCode.TRUNCATED),
        (b"\xff\xff\x00\x00\x00\x03abc\xff\xff\x00", 2, WireCode.TRUNCATED),
        (b"\xff\xff\x00\x00\x00\x00\x00", 1, WireCode.BAD_FIELD),
    ],
)
def test_records_that_do_not_fill_the_body_are_refused_behind_a_right_checksum(
    body: bytes, count: int, code: WireCode
) -> None:
    assert refusal(sealed(body, count)) is code


def test_largest_record_fits_with_and_without_key() -> None:
    for record in (
        Record(bytes(batch.MAX_RECORD_BYTES)),
        Record(bytes(batch.MAX_RECORD_BYTES - batch.MAX_KEY_BYTES), bytes(batch.MAX_KEY_BYTES)),
    ):
        data = batch.encode_batch([record])
        assert len(data) == batch.MAX_BATCH_BYTES
        assert batch.decode_records(data) == [record]


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        ([Record(bytes(batch.MAX_RECORD_BYTES + 1))], "a record of 1048577 bytes"),
        ([Record(bytes(batch.MAX_RECORD_BYTES), b"k")], "a record of 1048577 bytes"),
        ([Record(b"", bytes(batch.MAX_KEY_BYTES + 1))], "a key of 65535 bytes"),
        ([Record(bytes(600_000)), Record(bytes(600_000))], "a batch body of 1200012 bytes"),
        ([Record(b"")] * (batch.MAX_RECORDS + 1), "a batch of 65537 records"),
    ],
)
def test_encode_names_the_limit_that_is_exceeded(records: list[Record], reason: str) -> None:
    with pytest.raises(WireError, match=reason) as caught:
        batch.encode_batch(records)
    assert caught.value.code is WireCode.TOO_LARGE


def test_most_records_fit() -> None:
    records = [Record(b"")] * batch.MAX_RECORDS
    assert batch.decode_records(batch.encode_batch(records)) == records


@pytest.mark.parametrize(
    ("producer_id", "producer_epoch", "base_sequence"),
    [(2**64, 0, 0), (-1, 0, 0), (0, 2**32, 0), (0, -1, 0), (0, 0, -1), (0, 0, 2**64), (0, 0, 2**64 - 1)],
)
def test_encode_refuses_numbers_out_of_range(producer_id: int, producer_epoch: int, base_sequence: int) -> None:
    with pytest.raises(WireError) as caught:
        batch.encode_batch([Record(b""), Record(b"")], producer_id, producer_epoch, base_sequence)
    assert caught.value.code is WireCode.BAD_FIELD


def test_empty_batch_is_refused() -> None:
    with pytest.raises(WireError) as caught:
        batch.encode_batch([])
    assert caught.value.code is WireCode.BAD_FIELD
    assert refusal(sealed(b"", 0)) is WireCode.BAD_FIELD
