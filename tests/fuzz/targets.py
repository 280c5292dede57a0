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
from google.protobuf.message import DecodeError

from mesh_data.core.key_message import decode_key_message
from mesh_data.core.path_error import PathError
from mesh_routing.core.lsa import Lsa, LsaLink, LsaMessage
from mesh_routing.core.lsa_codec import decode_message, encode_message
from meshapi.common.v1 import delegation_pb2
from meshcommon.delegation import Delegation, Use
from meshcommon.ids import NodeId
from meshraft import publish_runs
from meshtest.delegated import NOW_S, delegated_signer
from meshwire import batch, client, entry, frame, packet, records, request, store_message
from meshwire.errors import WireError
from tests.fuzz.ca_targets import CA_TARGETS
from tests.fuzz.certificate_targets import CERTIFICATE_TARGETS
from tests.fuzz.edge_targets import EDGE_TARGETS
from tests.fuzz.join_targets import JOIN_TARGETS
from tests.fuzz.lane_targets import LANE_TARGETS
from tests.golden.samples import SAMPLES

SIGNED_EVERY: Final = 101
"""A prime: over a sample every place is changed, to other values."""
_U32: Final = Struct("!I")
_CHECKSUM_AT: Final = 4
_COVERED_AT: Final = 8
_CODEC_AT: Final = 28
_SIZE_AT: Final = 29


@dataclass(frozen=True, slots=True)
class Target:
    """A parser under fuzzing: what to call with each input, and the inputs to start from."""

    name: str
    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    every: int = 1
    """Of the neighbours of a sample only each so-manieth is run in tests: a parser that checks signatures takes long."""


def fuzz_packet(data: bytes) -> None:
    """A relay passes on whatever its fast path accepts; the destination reads what relays read, and refuses more."""
    try:
        view = packet.forwarding_view(data)
    except WireError:
        view = None
    if view is not None:
        assert packet.reroute(data, view.route, view.position, view.flags, view.hop_limit) == data
        if view.route:
            last = len(view.route) - 1
            assert packet.forwarding_view(packet.advance(data, last, 0)).position == last
        if view.flags & packet.FLAG_SEALED:
            _fuzz_sealed_part(data, len(view.route))
    try:
        decoded = packet.decode(data)
    except WireError:
        return
    assert view is not None, "the relay would drop what the destination accepts"
    assert view == tuple(getattr(decoded, name) for name in view._fields)
    assert packet.encode(decoded) == data


def _fuzz_sealed_part(data: bytes, route_nodes: int) -> None:
    try:
        part = packet.sealed_part(data, route_nodes)
    except WireError:
        return
    assert len(part.sealed) >= packet.TAG_BYTES
    assert len(data) == packet.PREFIX_BYTES + 8 * route_nodes + packet.SECURITY_HEADER_BYTES + len(part.sealed)


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
    """A batch's header and its records. Few inputs get past the checksum: `fuzz_sealed_batch` covers what lies behind it."""
    try:
        header = batch.decode_header(data, verify=True)
    except WireError:
        assert _runs_of_one(data) is None, "the extension takes a header that the reference refuses"
        return
    # The extension takes runs of producers only.
    assert (_runs_of_one(data) is None) == (header.producer_id == 0), "the extension refuses what the reference takes"
    again = batch.assemble(
        data[batch.HEADER_BYTES :],
        record_count=header.record_count,
        uncompressed_bytes=header.uncompressed_bytes,
        codec=batch.Codec(header.codec),
        timestamps_ms=(header.first_timestamp_ms, header.greatest_timestamp_ms),
        producer_id=header.producer_id,
        producer_epoch=header.producer_epoch,
        base_sequence=header.base_sequence,
    )
    assert again == data, "a batch has two headers"
    try:
        found = records.decode_records(data)
    except WireError:
        return
    assert len(found) == header.record_count
    assert list(records.iter_values(data)) == [record.value for record in found]
    if header.uncompressed_bytes > batch.MAX_BODY_BYTES:
        return  # compressed, a batch may hold more than this library puts into one
    builder = records.BatchBuilder()
    for record in found:
        builder.append(record.value, record.key, record.headers)
    assert builder.body_bytes == header.uncompressed_bytes
    if header.codec == batch.Codec.NONE:
        times = (header.first_timestamp_ms, header.greatest_timestamp_ms)
        numbers = (header.producer_id, header.producer_epoch, header.base_sequence)
        assert builder.encode(*numbers, timestamps_ms=times) == data, "a body has two encodings"


def _runs_of_one(data: bytes) -> object:
    return publish_runs(client.encode_publish(1, 7, data))


def fuzz_sealed_batch(data: bytes) -> None:
    """A record batch whose length and checksum are made right, as a hostile producer would."""
    if len(data) >= batch.HEADER_BYTES:
        patched = bytearray(data)
        if patched[_CODEC_AT] == batch.Codec.NONE:
            _U32.pack_into(patched, _SIZE_AT, len(data) - batch.HEADER_BYTES)
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


def fuzz_store_message(data: bytes) -> None:
    """What a peer says of its store."""
    try:
        decoded = store_message.decode_store_message(data)
    except WireError:
        return
    assert store_message.encode_store_message(decoded) == data


def fuzz_delegation(data: bytes) -> None:
    """A delegation as packets carry it, and as the messages of gRPC, lanes and link states do."""
    packed = Delegation.unpack(data)
    assert packed is None or packed.pack() == data
    try:
        message = delegation_pb2.Delegation.FromString(data)
    except DecodeError:
        return
    decoded = Delegation.from_proto(message)
    assert decoded is None or Delegation.unpack(decoded.pack()) == decoded, "one reader takes what the other refuses"


def fuzz_keys(data: bytes) -> None:
    """A message of protocol KEYS."""
    decoded = decode_key_message(data)
    assert decoded is None or decoded.encode() == data


def fuzz_path_error(data: bytes) -> None:
    """A path error."""
    decoded = PathError.decode(data)
    assert decoded is None or decoded.encode() == data


def fuzz_link_states(data: bytes) -> None:
    """A message of routing: what is taken is passed on, and taken again."""
    try:
        decoded = decode_message(data)
    except WireError:
        return
    assert decode_message(encode_message(decoded)) == decoded


def _delegation_messages() -> tuple[bytes, ...]:
    signer = delegated_signer(bytes(32), "mesh", 1, now_s=NOW_S)
    return (signer.delegation.to_proto().SerializeToString(),)


def _link_states() -> tuple[bytes, ...]:
    signer = delegated_signer(bytes(32), "mesh", 1, Use.LINK_STATES, now_s=NOW_S)
    lsa = Lsa(NodeId(1), 7, (LsaLink(NodeId(2), 1_000, 2, 3, 4),), 8.0, signer.sign(b"any"), signer.delegation)
    return tuple(encode_message(message) for message in (LsaMessage((lsa,)), LsaMessage((), (lsa.key,), (lsa.key,))))


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


def fuzz_client(data: bytes) -> None:
    """A frame of the client protocol, and the body of each of its messages."""
    try:
        messages = client.decode_messages(data)
    except WireError:
        return
    assert b"".join(client.encode_message(client.Kind(kind), number, body) for kind, number, body in messages) == data
    for kind, _, body in messages:
        _fuzz_client_body(client.Kind(kind), body)


def fuzz_publish_runs(data: bytes) -> None:
    """The extension takes a frame in runs if and only if the reference takes each of its messages as a producer's batch."""
    runs = publish_runs(data)
    expected = _publishes(data)
    if expected is None:
        assert runs is None, "the extension takes what the reference refuses, or takes message by message"
        return
    assert runs is not None, "the extension refuses what the reference takes"
    found = [(number, run.stream, run.batch(at)) for run in runs for at, number in enumerate(run.correlations)]
    assert found == expected
    for run in runs:
        headers = [batch.decode_header(run.batch(at)) for at in range(len(run))]
        assert run.counts == [header.record_count for header in headers]
        sequence = run.base_sequence
        for header in headers:
            assert (header.producer_id, header.producer_epoch) == (run.producer_id, run.producer_epoch)
            assert header.base_sequence == sequence
            sequence += header.record_count
        assert run.records == sequence - run.base_sequence


def _publishes(data: bytes) -> list[tuple[int, int, bytes]] | None:
    found: list[tuple[int, int, bytes]] = []
    try:
        for kind, number, body in client.decode_messages(data):
            if kind != client.Kind.PUBLISH:
                return None
            stream, wait, view = client.decode_publish(body)
            if wait != client.WAIT_COMMITTED or not batch.decode_header(view, verify=True).producer_id:
                return None
            found.append((number, stream, bytes(view)))
    except WireError:
        return None
    return found


def _publish_frames() -> tuple[bytes, ...]:
    parts = [
        client.encode_publish(number, stream, records.encode_batch([records.Record(b"v", key)], producer, 1, sequence))
        for number, (stream, producer, sequence, key) in enumerate(
            [(7, 3, 0, None), (7, 3, 1, b"k"), (7, 3, 9, b""), (8, 3, 10, None), (8, 4, 11, None)]
        )
    ]
    return (*parts, b"".join(parts[:2]), b"".join(parts))


def _fuzz_client_body(kind: client.Kind, body: memoryview) -> None:
    try:
        again = _CLIENT_BODIES[kind](body)
    except WireError:
        return
    assert again == body, f"a {kind.name} has two encodings"


_LEAD: Final = client.MESSAGE_OVERHEAD_BYTES
_CLIENT_BODIES: Final[dict[client.Kind, Callable[[memoryview], bytes]]] = {
    client.Kind.DESCRIBE: lambda body: client.encode_describe(client.decode_describe(body)),
    client.Kind.INIT_PRODUCER: lambda body: client.encode_init_producer(client.decode_init_producer(body)),
    client.Kind.PUBLISH: lambda body: _publish_again(*client.decode_publish(body)),
    client.Kind.READ: lambda body: client.encode_read(client.decode_read(body)),
    client.Kind.CREDIT: lambda body: client.encode_credit(client.decode_credit(body)),
    client.Kind.CANCEL: bytes,
    client.Kind.STREAM: lambda body: client.encode_stream(client.decode_stream(body)),
    client.Kind.PRODUCER: lambda body: client.encode_producer(client.decode_producer(body)),
    client.Kind.PUBLISHED: lambda body: _published_again(client.decode_published(body)),
    client.Kind.BATCHES: lambda body: _batches_again(client.decode_batches(body)),
    client.Kind.END: lambda body: client.encode_end(client.decode_end(body)),
    client.Kind.ERROR: bytes,
}


def _published_again(answer: client.Published) -> bytes:
    return client.encode_published(0, answer.base_offset, answer.count, answer.is_duplicate)[_LEAD:]


def _batches_again(found: client.Batches) -> bytes:
    return client.encode_batches(found.stream_id, found.next_offset, found.batches)


def _publish_again(stream_id: int, wait: int, data: memoryview) -> bytes:
    return client.encode_publish(0, stream_id, data, wait)[_LEAD:]


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
        Target("store_message", fuzz_store_message, _seeds("store_")),
        Target("client", fuzz_client, _seeds("client_")),
        Target("publish_runs", fuzz_publish_runs, (*_publish_frames(), *_seeds("client_"))),
        Target("delegation", fuzz_delegation, (*_seeds("delegation"), *_delegation_messages())),
        Target("keys", fuzz_keys, _seeds("keys_")),
        Target("path_error", fuzz_path_error, _seeds("path_error")),
        Target("link_states", fuzz_link_states, _link_states()),
        Target("request", fuzz_request, _seeds("request")),
        Target("response", fuzz_response, _seeds("response_")),
        *(Target(name, run, seeds) for name, run, seeds in (*JOIN_TARGETS, *CERTIFICATE_TARGETS, *EDGE_TARGETS)),
        *(Target(name, run, seeds, SIGNED_EVERY) for name, run, seeds in (*CA_TARGETS, *LANE_TARGETS)),
    )
}
