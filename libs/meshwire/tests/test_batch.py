"""The batch's clear header: where each field lies, what is refused, and that the body is never opened for it."""

from __future__ import annotations

from struct import Struct

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from meshwire import batch
from meshwire.batch import Codec
from meshwire.errors import WireCode, WireError

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
BODY = bytes(20)
GOOD = batch.assemble(BODY, record_count=2, uncompressed_bytes=20, producer_id=1, producer_epoch=2, base_sequence=3)


def with_checksum(data: bytes | bytearray) -> bytes:
    """The same with a checksum that fits, as a hostile producer would send it."""
    return bytes(data[:4]) + crc32c(bytes(data[8:])).to_bytes(4, "big") + bytes(data[8:])


def changed(at: int, value: bytes) -> bytes:
    return with_checksum(GOOD[:at] + value + GOOD[at + len(value) :])


def refusal(data: bytes) -> WireCode:
    with pytest.raises(WireError) as caught:
        batch.decode_header(data, verify=True)
    return caught.value.code


@given(
    body=st.binary(min_size=70, max_size=200),
    count=st.integers(1, 10),
    times=st.tuples(st.integers(0, batch.TIMESTAMP_MS_MAX), st.integers(0, batch.TIMESTAMP_MS_MAX)).map(sorted),
    more_bytes=st.none() | st.integers(0, batch.MAX_UNCOMPRESSED_BYTES - 200),
    numbers=st.tuples(U64, U32, st.integers(0, 2**64 - 10)),
)
def test_decode_gives_back_what_was_put_together(
    body: bytes, count: int, times: list[int], more_bytes: int | None, numbers: tuple[int, int, int]
) -> None:
    codec = Codec.NONE if more_bytes is None else Codec.ZSTD
    uncompressed_bytes = len(body) + (more_bytes or 0)
    producer_id, epoch, sequence = numbers
    data = batch.assemble(
        body,
        record_count=count,
        uncompressed_bytes=uncompressed_bytes,
        codec=codec,
        timestamps_ms=(times[0], times[1]),
        producer_id=producer_id,
        producer_epoch=epoch,
        base_sequence=sequence,
    )
    header = batch.decode_header(memoryview(data), verify=True)
    assert header[1:] == (count, *times, codec, uncompressed_bytes, producer_id, epoch, sequence)
    assert header.last_sequence == sequence + count - 1
    assert data[batch.HEADER_BYTES :] == body


def test_every_field_lies_where_the_design_says() -> None:
    data = batch.assemble(
        BODY,
        record_count=2,
        uncompressed_bytes=0x010203,
        codec=Codec.ZSTD,
        timestamps_ms=(0x1112131415161718, 0x2122232425262728),
        producer_id=0x3132333435363738,
        producer_epoch=0x41424344,
        base_sequence=0x5152535455565758,
    )
    layout = Struct("!2sBBIIQQBIBI16s12sQIQ")
    assert layout.size == batch.HEADER_BYTES == 86
    assert layout.unpack_from(data) == (
        *(b"MB", 2, 0, crc32c(data[8:]), 2, 0x1112131415161718, 0x2122232425262728, 1, 0x010203),
        *(0, 0, bytes(16), bytes(12), 0x3132333435363738, 0x41424344, 0x5152535455565758),
    )
    assert crc32c(b"123456789") == 0xE3069283  # the check value of RFC 3720, appendix B.4


def test_every_flipped_bit_is_found() -> None:
    for bit in range(8 * len(GOOD)):
        damaged = bytearray(GOOD)
        damaged[bit // 8] ^= 1 << bit % 8
        refusal(bytes(damaged))


def test_header_alone_does_not_read_the_body() -> None:
    data = GOOD[:-1] + b"x"
    assert batch.decode_header(data).record_count == 2
    assert refusal(data) is WireCode.BAD_CHECKSUM


@pytest.mark.parametrize(
    ("at", "value", "code"),
    [
        (0, b"m", WireCode.BAD_MAGIC),
        (2, b"\x01", WireCode.BAD_VERSION),
        (2, b"\x03", WireCode.BAD_VERSION),
        (3, b"\x01", WireCode.BAD_VERSION),
        (3, b"\x80", WireCode.BAD_VERSION),
        (8, bytes(4), WireCode.BAD_FIELD),
        (11, b"\x03", WireCode.BAD_FIELD),
        (8, b"\x00\x01\x00\x01", WireCode.TOO_LARGE),
        (12, b"\x00" * 7 + b"\x01", WireCode.BAD_FIELD),
        (20, b"\x80", WireCode.BAD_FIELD),
        (28, b"\x02", WireCode.BAD_VERSION),
        (29, b"\x00\x00\x00\x13", WireCode.BAD_FIELD),
        (29, b"\x00\x00\x00\x15", WireCode.TRUNCATED),
        (29, b"\x01\x00\x00\x01", WireCode.TOO_LARGE),
        (28, b"\x01\x01\x00\x00\x01", WireCode.TOO_LARGE),
        (28, b"\x01\x00\x00\x00\x0d", WireCode.BAD_FIELD),
        (33, b"\x01", WireCode.BAD_VERSION),
        (37, b"\x01", WireCode.BAD_FIELD),
        (38, b"\x01", WireCode.BAD_FIELD),
        (53, b"\x01", WireCode.BAD_FIELD),
        (54, b"\x01", WireCode.BAD_FIELD),
        (65, b"\x01", WireCode.BAD_FIELD),
        (78, b"\xff" * 8, WireCode.BAD_FIELD),
    ],
)
def test_bad_header_field_is_refused_behind_a_right_checksum(at: int, value: bytes, code: WireCode) -> None:
    assert refusal(changed(at, value)) is code


def test_truncation_and_trailing_bytes_are_refused() -> None:
    for length in range(len(GOOD)):
        assert refusal(GOOD[:length]) is WireCode.TRUNCATED
    assert refusal(GOOD + b"\x00") is WireCode.BAD_FIELD


def test_a_short_batch_of_format_1_is_called_by_its_format() -> None:
    assert refusal(b"MB\x01\x00" + bytes(40)) is WireCode.BAD_VERSION


def test_size_is_bounded_whatever_the_codec() -> None:
    for codec in Codec:
        largest = batch.assemble(
            bytes(batch.MAX_BODY_BYTES), record_count=1, uncompressed_bytes=batch.MAX_BODY_BYTES, codec=codec
        )
        assert len(largest) == batch.MAX_BATCH_BYTES
        batch.decode_header(largest, verify=True)
        assert refusal(with_checksum(largest + b"\x00")) is WireCode.TOO_LARGE


@pytest.mark.parametrize(
    "numbers",
    [
        {"producer_id": 2**64},
        {"producer_id": -1},
        {"producer_epoch": 2**32},
        {"producer_epoch": -1},
        {"base_sequence": -1},
        {"base_sequence": 2**64},
        {"base_sequence": 2**64 - 1},
        {"timestamps_ms": (2, 1)},
        {"timestamps_ms": (-1, 1)},
        {"timestamps_ms": (0, 2**63)},
        {"record_count": 0},
        {"record_count": 3},
        {"uncompressed_bytes": 19},
    ],
)
def test_what_would_be_refused_is_not_put_together(numbers: dict[str, int]) -> None:
    with pytest.raises(WireError) as caught:
        batch.assemble(BODY, **{"record_count": 2, "uncompressed_bytes": 20, **numbers})  # type: ignore[arg-type]
    assert caught.value.code in (WireCode.BAD_FIELD, WireCode.TRUNCATED)
