"""Bodies of requests between data planes, and Raft frames in parts."""

from __future__ import annotations

from contextlib import suppress

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from mesh_data.core import stream_requests as requests
from mesh_data.core.stream_frames import FrameJoiner, split
from mesh_data.core.stream_snapshot import decode_snapshot
from mesh_data.core.stream_state import ProducerReady
from meshcommon.ids import StreamId
from meshwire.errors import WireError

u64 = st.integers(0, 2**64 - 1)
u32 = st.integers(0, 2**32 - 1)


@given(u64, st.binary(max_size=100))
def test_stream_body_comes_back(stream: int, body: bytes) -> None:
    encoded = requests.encode_stream_body(StreamId(stream), body)
    assert requests.decode_stream_body(encoded) == (stream, body)


@given(u64, u32, st.booleans())
def test_published_comes_back(offset: int, count: int, is_duplicate: bool) -> None:
    published = requests.Published(offset, count, is_duplicate)
    assert requests.decode_published(requests.encode_published(published)) == published


@given(u64, u32, u64, u64)
def test_producer_comes_back(producer_id: int, epoch: int, sequence: int, offset: int) -> None:
    producer = ProducerReady(producer_id, epoch, sequence, offset)
    assert requests.decode_producer(requests.encode_producer(producer)) == producer


@given(u64, u64, u32, u32)
def test_fetch_comes_back(stream: int, offset: int, bytes_max: int, wait_ms: int) -> None:
    fetch = requests.Fetch(StreamId(stream), offset, bytes_max, wait_ms)
    assert requests.decode_fetch(requests.encode_fetch(fetch)) == fetch


@given(
    st.lists(st.tuples(u64, u64, st.binary(max_size=50)), max_size=5),
    u64,
    u64,
    st.booleans(),
    st.builds(requests.Freshness, u64, st.none() | u64),
)
def test_fetched_comes_back(
    items: list[tuple[int, int, bytes]],
    next_offset: int,
    floor_offset: int,
    is_confirmed: bool,
    freshness: requests.Freshness,
) -> None:
    batches = [requests.StoredBatch(*item) for item in items]
    decoded = requests.decode_fetched(
        requests.encode_fetched(requests.Fetched(batches, next_offset, floor_offset, is_confirmed, freshness))
    )
    assert [(item.base_offset, item.time_ms, bytes(item.batch)) for item in decoded.batches] == items
    assert (decoded.next_offset, decoded.floor_offset, decoded.is_confirmed) == (
        next_offset,
        floor_offset,
        is_confirmed,
    )
    assert decoded.freshness == freshness


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    sealed = b"MS\x01\x00" + crc32c(data).to_bytes(4, "big") + data
    for parse, given_bytes in (
        (requests.decode_stream_body, data),
        (requests.decode_published, data),
        (requests.decode_producer, data),
        (requests.decode_fetch, data),
        (requests.decode_fetched, data),
        (FrameJoiner().receive, data),
        (decode_snapshot, data),
        (decode_snapshot, sealed),
    ):
        with suppress(WireError):
            parse(given_bytes)


def test_short_bodies_are_refused() -> None:
    fetched = requests.encode_fetched(requests.Fetched([requests.StoredBatch(1, 2, b"batch")], 3, 0))
    for decode in (
        requests.decode_stream_body,
        requests.decode_published,
        requests.decode_producer,
        requests.decode_fetch,
        requests.decode_fetched,
    ):
        with pytest.raises(WireError):
            decode(b"\x00\x01")
    for size in range(35, len(fetched)):
        with pytest.raises(WireError):
            requests.decode_fetched(fetched[:size])


@given(st.binary(min_size=1, max_size=200), st.integers(5, 64))
def test_frame_in_parts_comes_back_whole(frame: bytes, part_bytes: int) -> None:
    joiner, frame = FrameJoiner(), b"\x01" + frame
    received = [joiner.receive(payload) for payload in split(frame, 5, part_bytes)]
    assert received == [None] * (len(received) - 1) + [frame]


def test_frame_with_a_lost_part_is_dropped_and_the_next_one_arrives() -> None:
    joiner = FrameJoiner()
    first, second = split(b"a" * 30, 1, 10), split(b"b" * 30, 2, 10)
    for payload in (first[0], first[2], second[1]):
        assert joiner.receive(payload) is None
    assert [joiner.receive(payload) for payload in second] == [None, None, b"b" * 30]
    assert joiner.receive(split(b"\x01whole", 3)[0]) == b"\x01whole"


@pytest.mark.parametrize(
    "payload",
    [b"", b"\x02x", b"\x00\x00", b"\x00" + bytes(8), b"\x00" + bytes(4) + b"\x00\x00" + b"\xff\xff"],
    ids=["empty", "unknown kind", "short", "no parts", "too many parts"],
)
def test_malformed_payload_is_refused(payload: bytes) -> None:
    with pytest.raises(WireError):
        FrameJoiner().receive(payload)
