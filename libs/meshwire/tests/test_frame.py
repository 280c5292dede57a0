"""Frames on a lane."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshwire import frame
from meshwire.errors import WireCode, WireError
from meshwire.packet import MAX_PACKET_BYTES, PREFIX_BYTES

PACKETS = st.lists(st.binary(min_size=PREFIX_BYTES, max_size=200), max_size=20)


def code_of(data: bytes) -> WireCode:
    """Why these bytes are no frame of packets."""
    with pytest.raises(WireError) as caught:
        frame.decode_packets(data)
    return caught.value.code


@given(PACKETS)
def test_packets_come_back_in_order(packets: list[bytes]) -> None:
    data = frame.encode_packets(packets)
    assert frame.frame_type(data) == frame.FRAME_PACKETS
    assert len(data) == frame.FRAME_OVERHEAD_BYTES + sum(frame.PACKET_OVERHEAD_BYTES + len(each) for each in packets)
    assert frame.decode_packets(data) == packets


@given(st.binary(max_size=200))
def test_handshake_comes_back(message: bytes) -> None:
    data = frame.encode_handshake(message)
    assert frame.frame_type(data) == frame.FRAME_HANDSHAKE
    assert frame.decode_handshake(data) == message


def test_packets_are_not_copied() -> None:
    data = frame.encode_packets([bytes(PREFIX_BYTES)])
    assert frame.decode_packets(data)[0].obj is data


def test_frames_of_another_type_are_refused() -> None:
    with pytest.raises(WireError) as caught:
        frame.decode_handshake(frame.encode_packets([]))
    assert caught.value.code is WireCode.BAD_FIELD
    assert code_of(frame.encode_handshake(b"")) is WireCode.BAD_FIELD
    assert code_of(b"\x00") is WireCode.BAD_FIELD
    assert code_of(b"GET / HTTP/1.1\r\n\r\n") is WireCode.BAD_FIELD
    assert code_of(b"") is WireCode.TRUNCATED


def test_truncation_is_refused_except_between_packets() -> None:
    first = frame.encode_packets([bytes(PREFIX_BYTES)])
    data = frame.encode_packets([bytes(PREFIX_BYTES), bytes(PREFIX_BYTES + 1)])
    for length in range(1, len(data)):
        if length in (1, len(first)):
            frame.decode_packets(data[:length])
        else:
            assert code_of(data[:length]) is WireCode.TRUNCATED


def test_packet_sizes_are_bounded() -> None:
    for size, code in ((0, WireCode.BAD_FIELD), (PREFIX_BYTES - 1, WireCode.BAD_FIELD)):
        assert code_of(b"\x02" + size.to_bytes(4, "big") + bytes(size)) is code
        with pytest.raises(WireError) as caught:
            frame.encode_packets([bytes(size)])
        assert caught.value.code is code
    assert code_of(b"\x02" + (MAX_PACKET_BYTES + 1).to_bytes(4, "big")) is WireCode.TOO_LARGE
    assert code_of(b"\x02\xff\xff\xff\xff") is WireCode.TOO_LARGE
    with pytest.raises(WireError) as caught:
        frame.encode_packets([bytes(MAX_PACKET_BYTES + 1)])
    assert caught.value.code is WireCode.TOO_LARGE


def test_frame_sizes_are_bounded() -> None:
    half = bytes((frame.MAX_FRAME_BYTES - frame.FRAME_OVERHEAD_BYTES) // 2 - frame.PACKET_OVERHEAD_BYTES)
    full = frame.encode_packets([half, half])
    assert len(full) in (frame.MAX_FRAME_BYTES - 1, frame.MAX_FRAME_BYTES)
    assert len(frame.decode_packets(full)) == 2
    with pytest.raises(WireError) as caught:
        frame.encode_packets([half, half, bytes(PREFIX_BYTES)])
    assert caught.value.code is WireCode.TOO_LARGE
    assert code_of(b"\x02" + bytes(frame.MAX_FRAME_BYTES)) is WireCode.TOO_LARGE
    with pytest.raises(WireError) as caught:
        frame.encode_handshake(bytes(frame.MAX_HANDSHAKE_BYTES))
    assert caught.value.code is WireCode.TOO_LARGE
    with pytest.raises(WireError) as caught:
        frame.decode_handshake(b"\x01" + bytes(frame.MAX_HANDSHAKE_BYTES))
    assert caught.value.code is WireCode.TOO_LARGE


def test_number_of_packets_is_bounded() -> None:
    """A frame of 4 MiB held 82,000 of the smallest, which its receiver handles in one go: half a second."""
    smallest = bytes(PREFIX_BYTES)
    whole = frame.encode_packets([smallest] * frame.MAX_FRAME_PACKETS)
    assert len(frame.decode_packets(whole)) == frame.MAX_FRAME_PACKETS
    with pytest.raises(WireError) as refused:
        frame.encode_packets([smallest] * (frame.MAX_FRAME_PACKETS + 1))
    assert refused.value.code is WireCode.TOO_LARGE
    with pytest.raises(WireError) as refused:
        frame.decode_packets(whole + len(smallest).to_bytes(4, "big") + smallest)
    assert refused.value.code is WireCode.TOO_LARGE
