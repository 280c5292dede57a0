"""Records in a body: round trips, limits, compression, and bodies that a header lies about."""

from __future__ import annotations

import tracemalloc

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from meshwire import batch, records
from meshwire.batch import Codec
from meshwire.errors import WireCode, WireError
from meshwire.records import Record

HEADERS = st.dictionaries(st.text(min_size=1, max_size=8), st.binary(max_size=12), max_size=4).map(
    lambda found: tuple(found.items())
)
RECORDS = st.lists(
    st.builds(Record, st.binary(max_size=64), st.none() | st.binary(max_size=16), HEADERS), min_size=1, max_size=40
)


def hostile(body: bytes, count: int, codec: Codec = Codec.NONE, announced_bytes: int | None = None) -> bytes:
    """A batch with any body behind a right checksum."""
    announced_bytes = len(body) if announced_bytes is None else announced_bytes
    return batch.assemble(body, record_count=count, uncompressed_bytes=announced_bytes, codec=codec)


def refusal(data: bytes) -> WireCode:
    """Why a batch is refused, by the way that builds records and by the one that does not."""
    with pytest.raises(WireError) as caught:
        records.decode_records(data)
    with pytest.raises(WireError) as caught_by_values:
        list(records.iter_values(data))
    assert caught.value.code is caught_by_values.value.code
    return caught.value.code


@given(RECORDS, st.sampled_from(Codec))
def test_decode_gives_back_what_was_encoded(given_records: list[Record], codec: Codec) -> None:
    data = records.encode_batch(given_records, 7, 2, 9, timestamps_ms=(5, 6), codec=codec)
    header = batch.decode_header(data, verify=True)
    assert (header.producer_id, header.producer_epoch, header.base_sequence) == (7, 2, 9)
    assert (header.first_timestamp_ms, header.greatest_timestamp_ms) == (5, 6)
    assert header.record_count == len(given_records)
    assert records.decode_records(data) == given_records
    assert list(records.iter_values(memoryview(data))) == [record.value for record in given_records]


def test_a_body_that_shrinks_is_compressed_and_one_that_does_not_stays() -> None:
    small = records.encode_batch([Record(b"again and " * 500)], codec=Codec.ZSTD)
    assert batch.decode_header(small).codec == Codec.ZSTD
    assert batch.decode_header(small).uncompressed_bytes == 5_007
    assert len(small) < 300
    assert records.decode_records(small) == [Record(b"again and " * 500)]
    noise = zstandard.ZstdCompressor().compress(bytes(range(256)) * 3)[:200]
    assert batch.decode_header(records.encode_batch([Record(noise)], codec=Codec.ZSTD)).codec == Codec.NONE


def test_extending_is_appending() -> None:
    values = [bytes(size) for size in (3, 0, 40, 40, 9)]
    one, other = records.BatchBuilder(), records.BatchBuilder()
    assert one.extend(values, 0, 90, 10) == 3
    assert one.extend(values, 3, 1000, 4) == 4
    for value in values[:4]:
        other.append(value)
    assert one.encode() == other.encode()
    assert one.body_bytes == other.body_bytes == 83 + 28


def test_every_flipped_bit_is_found() -> None:
    data = records.encode_batch([Record(b"value", b"key", (("h", b"1"),)), Record(b"")], 1, 2, 3)
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        refusal(bytes(damaged))


NO_KEY = b"\x00\xff\xff"
ONE_HEADER = b"\x01\xff\xff\x00\x00\x00\x00"


@pytest.mark.parametrize(
    ("body", "count", "code"),
    [
        (NO_KEY + b"\x00\x00\x00\x01", 1, WireCode.TRUNCATED),
        (NO_KEY + b"\xff\xff\xff\xff", 1, WireCode.TRUNCATED),
        (b"\x00\xff\xfe\x00\x00\x00\x00", 1, WireCode.TRUNCATED),
        (NO_KEY + b"\x00\x00\x00\x03abc" + NO_KEY + b"\x00", 2, WireCode.TRUNCATED),
        (NO_KEY + b"\x00\x00\x00\x07" + bytes(7), 2, WireCode.TRUNCATED),
        (NO_KEY + b"\x00\x00\x00\x00\x00", 1, WireCode.BAD_FIELD),
        (NO_KEY + b"\x00\x00\x00\x00" + NO_KEY + b"\x00\x00\x00\x00", 1, WireCode.BAD_FIELD),
        (ONE_HEADER, 1, WireCode.TRUNCATED),
        (ONE_HEADER + b"\x01", 1, WireCode.TRUNCATED),
        (ONE_HEADER + b"\x01n\x00", 1, WireCode.TRUNCATED),
        (ONE_HEADER + b"\x01n\x00\x02v", 1, WireCode.TRUNCATED),
        (ONE_HEADER + b"\x00\x00\x00", 1, WireCode.BAD_FIELD),
        (ONE_HEADER + b"\x01\xff\x00\x00", 1, WireCode.BAD_FIELD),
        (b"\x02" + ONE_HEADER[1:] + b"\x01n\x00\x00" * 2, 1, WireCode.BAD_FIELD),
        (b"\x41" + ONE_HEADER[1:] + b"\x01n\x00\x00" * 65, 1, WireCode.TOO_LARGE),
        (ONE_HEADER + b"\x01n\x40\x00" + bytes(0x4000), 1, WireCode.TOO_LARGE),
        (NO_KEY + b"\x00\x10\x00\x01" + bytes(0x100001), 1, WireCode.TOO_LARGE),
    ],
)
def test_records_that_do_not_fill_the_body_are_refused_behind_a_right_checksum(
    body: bytes, count: int, code: WireCode
) -> None:
    assert refusal(hostile(body, count)) is code


def test_largest_record_fits_with_and_without_key_and_headers() -> None:
    headers = (("n", bytes(batch.MAX_RECORD_HEADERS_BYTES - 4)),)
    for record in (
        Record(bytes(batch.MAX_RECORD_BYTES), None, headers),
        Record(bytes(batch.MAX_RECORD_BYTES - records.MAX_KEY_BYTES), bytes(records.MAX_KEY_BYTES), headers),
    ):
        data = records.encode_batch([record])
        assert len(data) == batch.MAX_BATCH_BYTES
        assert records.decode_records(data) == [record]


@pytest.mark.parametrize(
    ("given_records", "reason"),
    [
        ([Record(bytes(batch.MAX_RECORD_BYTES + 1))], "a record of 1048577 bytes"),
        ([Record(bytes(batch.MAX_RECORD_BYTES), b"k")], "a record of 1048577 bytes"),
        ([Record(b"", bytes(records.MAX_KEY_BYTES + 1))], "a key of 65535 bytes"),
        ([Record(bytes(600_000)), Record(bytes(600_000))], "a batch body of 1200014 bytes"),
        ([Record(b"")] * (batch.MAX_RECORDS + 1), "a batch of 65537 records"),
        ([Record(b"", None, (("n", bytes(16_381)),))], "headers of a record take 16385 bytes"),
        ([Record(b"", None, tuple((str(at), b"") for at in range(65)))], "a record of 65 headers"),
        ([Record(b"", None, (("n" * 256, b""),))], "a header's name is 256 bytes"),
    ],
)
def test_encode_names_the_limit_that_is_exceeded(given_records: list[Record], reason: str) -> None:
    with pytest.raises(WireError, match=reason) as caught:
        records.encode_batch(given_records)
    assert caught.value.code is WireCode.TOO_LARGE


@pytest.mark.parametrize("headers", [(("", b""),), (("n", b""), ("n", b"1")), (("\ud800", b""),)])
def test_a_header_needs_a_name_of_its_own(headers: records.Headers) -> None:
    builder = records.BatchBuilder()
    with pytest.raises(WireError) as caught:
        builder.append(b"", None, headers)
    assert caught.value.code is WireCode.BAD_FIELD
    assert (builder.count, builder.body_bytes) == (0, 0)


def test_most_records_fit() -> None:
    most = [Record(b"")] * batch.MAX_RECORDS
    assert records.decode_records(records.encode_batch(most)) == most


def test_empty_batch_is_refused() -> None:
    with pytest.raises(WireError) as caught:
        records.encode_batch([])
    assert caught.value.code is WireCode.BAD_FIELD


def frame(content: bytes, *, write_content_size: bool = True) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=write_content_size).compress(content)


CONTENT = NO_KEY + b"\x00\x00\x00\x05value"


@pytest.mark.parametrize(
    ("body", "announced_bytes"),
    [
        (frame(CONTENT), len(CONTENT) + 1),
        (frame(CONTENT), len(CONTENT) - 1),
        (frame(CONTENT, write_content_size=False), len(CONTENT)),
        (frame(CONTENT) + b"x", len(CONTENT)),
        (frame(CONTENT) + frame(CONTENT), len(CONTENT)),
        (frame(CONTENT)[:-1], len(CONTENT)),
        (CONTENT, len(CONTENT)),
        (b"", len(CONTENT)),
        (frame(bytes(1 << 25)), 1 << 24),
        (b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd", len(CONTENT)),  # a skippable frame
    ],
    ids=["more", "less", "size unknown", "trailing", "two frames", "cut", "no frame", "empty", "bomb", "skippable"],
)
def test_a_frame_that_is_not_what_the_header_announces_is_refused(body: bytes, announced_bytes: int) -> None:
    assert refusal(hostile(body, 1, Codec.ZSTD, announced_bytes)) is WireCode.BAD_FIELD


def test_a_frame_that_lies_about_its_own_size_is_refused() -> None:
    honest = frame(bytes(300))
    size_at = honest.index((300 - 256).to_bytes(2, "little"), 4)
    lying = honest[:size_at] + (200).to_bytes(2, "little") + honest[size_at + 2 :]
    assert zstandard.frame_content_size(lying) == 456
    assert refusal(hostile(lying, 1, Codec.ZSTD, 456)) is WireCode.BAD_FIELD


def test_a_bomb_takes_no_more_memory_than_its_header_announces() -> None:
    bomb = frame(bytes(512 * 1024 * 1024))
    assert len(bomb) < batch.MAX_BODY_BYTES
    data = hostile(bomb, 1, Codec.ZSTD, 64)
    tracemalloc.start()
    try:
        assert refusal(data) is WireCode.BAD_FIELD
        assert tracemalloc.get_traced_memory()[1] < 4 * len(data) + 100_000
    finally:
        tracemalloc.stop()
