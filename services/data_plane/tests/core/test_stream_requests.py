"""Bodies of requests between data planes, and Raft frames in parts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from mesh_data.core import stream_requests as requests
from mesh_data.core.chain_audit import checked_marks
from mesh_data.core.stream_frames import FrameJoiner, split
from mesh_data.core.stream_snapshot import decode_snapshot
from mesh_data.core.stream_state import ProducerReady
from meshcommon.ids import StreamId
from meshwire.errors import WireCode, WireError
from meshwire.records import Record, encode_batch

u64 = st.integers(0, 2**64 - 1)
u32 = st.integers(0, 2**32 - 1)
stored = st.integers(0, 2**63 - 1)


@given(u64, st.binary(max_size=100))
def test_stream_body_comes_back(stream: int, body: bytes) -> None:
    encoded = requests.encode_stream_body(StreamId(stream), body)
    assert requests.decode_stream_body(encoded) == (stream, body)


@given(st.integers(0, 2**62), st.integers(1, 2**32 - 1), st.booleans())
def test_published_comes_back(offset: int, count: int, is_duplicate: bool) -> None:
    published = requests.Published(offset, count, is_duplicate)
    assert requests.decode_published(requests.encode_published(published)) == published


@given(st.integers(1, 2**64 - 1), st.integers(1, 2**32 - 1), u64, stored)
def test_producer_comes_back(producer_id: int, epoch: int, sequence: int, offset: int) -> None:
    producer = ProducerReady(producer_id, epoch, sequence, offset)
    assert requests.decode_producer(requests.encode_producer(producer)) == producer


@given(u64, u64, u32, u32)
def test_fetch_comes_back(stream: int, offset: int, bytes_max: int, wait_ms: int) -> None:
    fetch = requests.Fetch(StreamId(stream), offset, bytes_max, wait_ms)
    assert requests.decode_fetch(requests.encode_fetch(fetch)) == fetch


@given(
    st.lists(st.tuples(u64, u64, st.binary(max_size=50)), max_size=5),
    st.tuples(stored, stored).map(sorted),
    st.booleans(),
    st.builds(requests.Freshness, stored, st.none() | stored),
)
def test_fetched_comes_back(
    items: list[tuple[int, int, bytes]],
    ends: list[int],
    is_confirmed: bool,
    freshness: requests.Freshness,
) -> None:
    floor_offset, next_offset = ends
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


BIG = 2**63


@pytest.mark.parametrize(
    ("decode", "body"),
    [
        (requests.decode_published, bytes(12) + b"\x00"),
        (requests.decode_published, BIG.to_bytes(8, "big") + b"\x00\x00\x00\x01\x00"),
        (requests.decode_published, bytes(8) + b"\x00\x00\x00\x01\x02"),
        (requests.decode_published, bytes(8) + b"\x00\x00\x00\x01\x01\x00"),
        (requests.decode_producer, bytes(28)),
        (requests.decode_number, bytes(9)),
        (requests.decode_fetch, bytes(25)),
        (requests.decode_fetched, BIG.to_bytes(8, "big") + bytes(26)),
        (requests.decode_fetched, bytes(8) + (1).to_bytes(8, "big") + bytes(18)),
        (requests.decode_fetched, bytes(16) + b"\x02" + bytes(17)),
    ],
    ids=["no records", "large", "flag", "longer", "no producer", "longer", "longer", "end", "floor", "flag"],
)
def test_what_no_honest_node_sends_is_refused(decode: Callable[[bytes], object], body: bytes) -> None:
    with pytest.raises(WireError):
        decode(body)


class TestFetched:
    """Batches of another node have to follow each other from the offset that was asked for."""

    two, three = (encode_batch([Record(b"v")] * count) for count in (2, 3))

    def fetched(self, *batches: tuple[int, bytes], end: int = 100) -> requests.Fetched:
        return requests.Fetched([requests.StoredBatch(offset, 1, data) for offset, data in batches], end, 0)

    def test_consecutive_ones_are_taken(self) -> None:
        found = self.fetched((5, self.two), (7, self.three))
        for offset in (5, 6):
            assert requests.check_fetched(found, offset) is found
        assert requests.check_fetched(self.fetched(), 5).batches == []

    @pytest.mark.parametrize(
        ("batches", "end"),
        [
            ([(0, two)], 100),
            ([(6, two)], 100),
            ([(5, two), (5, two)], 100),
            ([(5, two), (8, two)], 100),
            ([(5, three[:-1])], 100),
            ([(5, three)], 7),
        ],
        ids=["before", "behind", "twice", "a gap", "cut short", "past the end"],
    )
    def test_others_are_refused(self, batches: list[tuple[int, bytes]], end: int) -> None:
        """Taken, the first two would have the reader ask for the same for ever, the others lose or double records."""
        with pytest.raises(WireError) as refused:
            requests.check_fetched(self.fetched(*batches, end=end), 5)
        assert refused.value.code is not WireCode.BAD_VERSION

    def test_they_end_before_a_later_format(self) -> None:
        later = self.three[:2] + b"\x03" + self.three[3:]
        found = requests.check_fetched(self.fetched((5, self.two), (7, later), (10, self.two)), 5)
        assert [item.base_offset for item in found.batches] == [5]
        with pytest.raises(WireError) as refused:
            requests.check_fetched(self.fetched((5, later)), 5)
        assert refused.value.code is WireCode.BAD_VERSION


def test_marks_of_another_member_are_taken_only_as_it_keeps_them() -> None:
    digest = bytes(32)
    assert checked_marks([(0, digest), (64, digest)], 64) == {0: digest, 64: digest}
    for marks in (
        [(64, digest), (64, digest)],
        [(64, digest), (1, digest)],
        [(65, digest)],
        [(1, b"short")],
        [(index, digest) for index in range(64)] + [(64, digest)] * 2,
    ):
        with pytest.raises(ValueError, match="marks"):
            checked_marks(marks, 64)


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
