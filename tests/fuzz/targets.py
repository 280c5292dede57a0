"""One fuzz target for each parser of bytes from outside.

A target takes any bytes and returns quietly when the parser refuses them with WireError. When the parser accepts them, the
target also checks what must then hold: encoding the value again gives the same bytes (a message has one encoding, so two
nodes cannot read one message differently). Anything else, an assertion or any other exception, is a finding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct
from typing import Final

from crc32c import crc32c

from meshwire import batch, entry, frame, packet, request
from meshwire.errors import WireError
from tests.golden.samples import SAMPLES

_U32: Final = Struct("!I")
_CHECKSUM_AT: Final = 4
_COVERED_AT: Final = 8
_BODY_LENGTH_AT: Final = 32


@dataclass(frozen=True, slots=True)
class Target:
    """A parser under fuzzing: what to call with each input, and the inputs to start from."""

    name: str
    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]


def fuzz_packet(data: bytes) -> None:
    """`decode` and the relay's fast path agree on what is a packet, and on what it says."""
    try:
        view = packet.forwarding_view(data)
    except WireError:
        view = None
    try:
        decoded = packet.decode(data)
    except WireError:
        assert view is None, "the relay would forward what the destination refuses"
        return
    assert view is not None, "the relay would drop what the destination accepts"
    assert view == tuple(getattr(decoded, name) for name in view._fields)
    assert packet.encode(decoded) == data
    assert packet.reroute(data, view.route, view.position, view.flags, view.hop_limit) == data
    if view.route:
        last = len(view.route) - 1
        assert packet.decode(packet.advance(data, last, 0)).position == last


def fuzz_frame(data: bytes) -> None:
    """A frame of packets."""
    try:
        packets = frame.decode_packets(data)
    except WireError:
        return
    assert frame.encode_packets(packets) == data


def fuzz_handshake(data: bytes) -> None:
    """A handshake frame."""
    try:
        message = frame.decode_handshake(data)
    except WireError:
        return
    assert frame.encode_handshake(message) == data


def fuzz_batch(data: bytes) -> None:
    """A record batch. Few inputs get past the checksum: `fuzz_sealed_batch` covers what lies behind it."""
    try:
        records = batch.decode_records(data)
    except WireError:
        return
    header = batch.decode_header(data)
    assert len(records) == header.record_count
    assert list(batch.iter_values(data)) == [record.value for record in records]
    assert batch.encode_batch(records, header.producer_id, header.producer_epoch, header.base_sequence) == data


def fuzz_sealed_batch(data: bytes) -> None:
    """A record batch whose length and checksum are made right, as a hostile producer would."""
    if len(data) >= batch.HEADER_BYTES:
        patched = bytearray(data)
        _U32.pack_into(patched, _BODY_LENGTH_AT, len(data) - batch.HEADER_BYTES)
        _U32.pack_into(patched, _CHECKSUM_AT, crc32c(bytes(patched[_COVERED_AT:])))
        data = bytes(patched)
    fuzz_batch(data)


def fuzz_entry(data: bytes) -> None:
    """An entry of a stream group's log."""
    try:
        decoded = entry.decode_entry(data)
    except WireError:
        return
    assert entry.encode_entry(decoded) == data


def fuzz_request(data: bytes) -> None:
    """The body of an overlay request."""
    try:
        decoded = request.decode_request(data)
    except WireError:
        return
    assert request.encode_request(decoded) == data


def fuzz_response(data: bytes) -> None:
    """The body of an overlay response."""
    try:
        decoded = request.decode_response(data)
    except WireError:
        return
    if isinstance(decoded, request.OkResponse):
        assert request.encode_response(decoded.body) == data
    else:
        assert request.encode_error(decoded.code, decoded.message, decoded.retryable, decoded.details) == data


def _seeds(prefix: str) -> tuple[bytes, ...]:
    return tuple(sample.encoded for name, sample in SAMPLES.items() if name.startswith(prefix))


TARGETS: Final = {
    target.name: target
    for target in (
        Target("packet", fuzz_packet, _seeds("packet_")),
        Target("frame", fuzz_frame, _seeds("frame_packets")),
        Target("handshake", fuzz_handshake, _seeds("frame_handshake")),
        Target("batch", fuzz_batch, _seeds("batch_")),
        Target("sealed_batch", fuzz_sealed_batch, _seeds("batch_")),
        Target("entry", fuzz_entry, _seeds("entry_")),
        Target("request", fuzz_request, _seeds("request")),
        Target("response", fuzz_response, _seeds("response_")),
    )
}
