"""One sample of every wire format, as a value and as the bytes that the codecs make of it.

Purpose: the golden files pin these bytes, and the fuzz targets start from them. Leaves out protobuf messages, whose
compatibility buf watches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from mesh_data.core.frame_seal import REKEY_S, FrameSeal
from mesh_data.core.handshake import Handshake, LocalNode, Role, Terms
from mesh_data.core.identity import Identity
from mesh_data.core.key_agreement import ExchangeKey
from mesh_data.core.key_message import Answer, Ask, KeyMessage, decode_key_message
from mesh_data.core.packet_session import Boot, PacketSession
from mesh_data.core.path_error import PathError
from mesh_data.core.view import View
from meshcommon.delegation import Delegation, Delegations
from meshcommon.ids import NodeId
from meshcommon.key_signer import KeySigner
from meshcommon.membership import Member, Membership, Vouch, decode_membership
from meshtest.delegated import NOW_S, delegated_signer
from meshwire import batch, client, entry, frame, packet, records, request, store_message
from meshwire.packet import Packet, Protocol, TrafficClass


@dataclass(frozen=True, slots=True)
class Sample:
    """A value, its bytes, and the decoder that must lead back from the bytes to the value."""

    value: object
    encoded: bytes
    decode: Callable[[bytes], object]


_TIMES_MS: Final = (1_700_000_000_000, 1_700_000_000_456)


def _decode_batch(data: bytes) -> object:
    header = batch.decode_header(data, verify=True)
    times_ms = (header.first_timestamp_ms, header.greatest_timestamp_ms)
    numbers = (header.producer_id, header.producer_epoch, header.base_sequence)
    return header.codec, times_ms, numbers, records.decode_records(data)


def _batch(found: list[records.Record], producer_id: int, producer_epoch: int, base_sequence: int) -> Sample:
    numbers = (producer_id, producer_epoch, base_sequence)
    encoded = records.encode_batch(found, *numbers, timestamps_ms=_TIMES_MS)
    return Sample((batch.Codec.NONE, _TIMES_MS, numbers, found), encoded, _decode_batch)


def _packet(value: Packet) -> Sample:
    return Sample(value, packet.encode(value), packet.decode)


def _keys(value: KeyMessage) -> Sample:
    return Sample(value, value.encode(), decode_key_message)


def _path_error(value: PathError) -> Sample:
    return Sample(value, value.encode(), PathError.decode)


_MESH: Final = "0b8e1f0a-5c1d-4e0f-9a53-2f6f0e6d9c01"
_IDENTITY: Final = Identity(
    LocalNode(NodeId(1), "n1", delegated_signer(bytes(range(32)), _MESH, 1, mesh_epoch=7, now_s=NOW_S), _MESH, 7),
    View(1, _MESH, 7, {}, {}),
    Delegations(lambda: NOW_S),
)


def _entry(value: entry.Entry) -> Sample:
    return Sample(value, entry.encode_entry(value), entry.decode_entry)


def _sealed() -> bytes:
    """A packet of a real session, so that the golden file pins the keys as well as what the tag covers."""
    keys = ExchangeKey(b"1" * 32), ExchangeKey(b"3" * 32)
    secret = keys[0].secret(keys[1].public)
    assert secret is not None
    own, peer = Boot(NodeId(1), keys[0].public), Boot(NodeId(3), keys[1].public)
    session = PacketSession(secret, _MESH, 7, own, peer, first_counter=0xB1B2B3B4B5B6B7B8)
    return packet.encode_sealed(
        session, TrafficClass.CONTROL, Protocol.RAFT_MCG, (1, 3), (1, 2, 3), b"heartbeat", flow=9, message_id=2**63
    )


_FORWARDED: Final = Packet(
    version=packet.VERSION,
    cls=TrafficClass.BULK,
    protocol=Protocol.RAFT_DSG,
    flags=0,
    hop_limit=8,
    source=0x0102030405060708,
    destination=0x1112131415161718,
    tenant_tag=0x21222324,
    flow=0x3132333435363738,
    message_id=0x4142434445464748,
    fragment=2,
    fragments=3,
    route=(0x0102030405060708, 0x5152535455565758, 0x1112131415161718),
    position=1,
    payload=b"payload",
)
_LINK_LOCAL: Final = Packet(packet.VERSION, TrafficClass.CONTROL, Protocol.JOIN, 0, 1, 0, 7, payload=b"\x00")
_REPAIRED: Final = Packet(
    version=packet.VERSION,
    cls=TrafficClass.PRIORITY,
    protocol=Protocol.REQUEST,
    flags=packet.FLAG_REPAIRED | packet.FLAG_RESPONSE,
    hop_limit=255,
    source=1,
    destination=16,
    message_id=2**64 - 1,
    route=tuple(range(1, 17)),
    position=15,
)
_PLAIN_BATCH: Final = _batch([records.Record(b"first\n"), records.Record(b""), records.Record(b"\xff\x00")], 0, 0, 0)
_KEYED_BATCH: Final = _batch(
    [
        records.Record(b"value", b"key", ((records.CORRELATION_ID, b"3f2a"), ("grüße", b""))),
        records.Record(b"no key"),
        records.Record(b"empty key", b""),
    ],
    2**40 + 1,
    3,
    2**63,
)
_COMPRESSED_BATCH: Final = Sample(
    (batch.Codec.ZSTD, _TIMES_MS, (7, 1, 0), [records.Record(b"value" * 20, b"key")]),
    batch.assemble(
        # A literal: another version of the library may compress to other bytes that mean the same.
        bytes.fromhex("28b52ffd206eb5000078000003000000646b657976616c756501008ca9d401"),
        record_count=1,
        uncompressed_bytes=110,
        codec=batch.Codec.ZSTD,
        timestamps_ms=_TIMES_MS,
        producer_id=7,
        producer_epoch=1,
    ),
    _decode_batch,
)
_ERROR: Final = request.ErrorResponse(
    "NOT_LEADER", "This node does not lead the stream – ask node 7.", True, {"leader": "7", "grüße": ""}
)
_CLIENT_BODIES: Final[list[tuple[client.Kind, bytes]]] = [
    (client.Kind.DESCRIBE, client.encode_describe(client.Describe("demo/lines", 7))),
    (client.Kind.INIT_PRODUCER, client.encode_init_producer(client.InitProducer("demo/lines", "übung-1", 7))),
    (client.Kind.READ, client.encode_read(client.Read("demo/lines", 2**40, 65_536, is_following=True, stream_id=7))),
    (client.Kind.CREDIT, client.encode_credit(4096)),
    (client.Kind.CANCEL, b""),
    (client.Kind.STREAM, client.encode_stream(client.StreamInfo(7, 1, 2**33, "a"))),
    (client.Kind.PRODUCER, client.encode_producer(client.ProducerInfo(7, 42, 3, 1000, 1200))),
    (
        client.Kind.BATCHES,
        client.encode_batches(
            7,
            9,
            [client.ReadBatch(0, 1_700_000_000_123, _PLAIN_BATCH.encoded), client.ReadBatch(3, 1_700_000_000_124, b"")],
        ),
    ),
    (client.Kind.END, client.encode_end(9)),
    (client.Kind.ERROR, request.encode_error(_ERROR.code, _ERROR.message, _ERROR.retryable, _ERROR.details)),
]
_CLIENT_FRAME: Final = [
    *((int(kind), number, body) for number, (kind, body) in enumerate(_CLIENT_BODIES)),
    (
        int(client.Kind.PUBLISH),
        2**32 - 1,
        client.encode_publish(0, 7, _KEYED_BATCH.encoded)[client.MESSAGE_OVERHEAD_BYTES :],
    ),
    (int(client.Kind.PUBLISHED), 1, client.encode_published(1, 2**40, 3, True)[client.MESSAGE_OVERHEAD_BYTES :]),
]
_MEMBERSHIP: Final = Membership.of(
    _MESH,
    7,
    [
        Member(NodeId(1), "n1", KeySigner(bytes(range(32))).public_key, is_voter=True),
        Member(NodeId(2), "n2", b"\x02" * 32, is_voter=False),
    ],
)
_VOUCH: Final = Vouch.signed(KeySigner(bytes(range(32))), NodeId(1), 1000, _MEMBERSHIP)


def _lane_hello() -> bytes:
    """The first message of a lane, so that the golden file pins every field of version 5."""
    terms = Terms(
        Delegations(lambda: NOW_S),
        certificate_shown=b"s" * 32,
        certificate_seen=b"c" * 32,
        membership_revision=1000,
        membership_digest=_MEMBERSHIP.digest,
        seals_frames=True,
    )
    handshake = Handshake(Role.DIALLER, _IDENTITY.local, terms, b"n" * 32, b"e" * 32, 0.0)
    return bytes(frame.decode_handshake(handshake.take_outgoing()[0]))


def _sealed_frame() -> bytes:
    """The second frame of a direction, behind a change of keys: its bytes pin nonce, head and the way to the next key."""
    seal = FrameSeal(b"a" * 32, b"b" * 32)
    seal.seal(b"first", 0.0)
    return seal.seal(_HANDSHAKE, REKEY_S)


def _open_frame(data: bytes) -> object:
    seal = FrameSeal(b"b" * 32, b"a" * 32)
    seal.open(FrameSeal(b"a" * 32, b"b" * 32).seal(b"first", 0.0))
    return seal.open(data)


_HANDSHAKE: Final = b"\x08\x01handshake"


def _store(value: store_message.StoreMessage) -> Sample:
    return Sample(value, store_message.encode_store_message(value), store_message.decode_store_message)


SAMPLES: Final[dict[str, Sample]] = {
    "packet_forwarded": _packet(_FORWARDED),
    "packet_link_local": _packet(_LINK_LOCAL),
    "packet_longest_route": _packet(_REPAIRED),
    "packet_sealed": Sample(packet.decode(_sealed()), _sealed(), packet.decode),
    "keys_ask": _keys(Ask(bytes(range(32)))),
    "keys_answer": _keys(Answer.signed(_IDENTITY, NodeId(2), bytes(range(32)), bytes(range(32, 64)), b"")),
    "keys_answer_and_ask": _keys(
        Answer.signed(_IDENTITY, NodeId(2), bytes(range(32)), bytes(range(32, 64)), bytes(range(64, 96)))
    ),
    "path_error": _path_error(PathError.signed(_IDENTITY, NodeId(2), NodeId(3), NodeId(4), 2**63)),
    "delegation": Sample(_IDENTITY.delegation, _IDENTITY.delegation.pack(), Delegation.unpack),
    "batch_plain": _PLAIN_BATCH,
    "batch_keyed": _KEYED_BATCH,
    "batch_compressed": _COMPRESSED_BATCH,
    "entry_batch": _entry(entry.BatchEntry(1_700_000_000_123, _PLAIN_BATCH.encoded)),
    "entry_init_producer": _entry(entry.InitProducerEntry(1_700_000_000_123, "übung-1")),
    "entry_move_floor": _entry(entry.MoveFloorEntry(0x0102030405060708)),
    "entry_seal": _entry(entry.SealEntry(42)),
    "request": Sample(
        request.Request(9, 2500, b"body"),
        request.encode_request(request.Request(9, 2500, b"body")),
        request.decode_request,
    ),
    "response_ok": Sample(request.OkResponse(b"answer"), request.encode_response(b"answer"), request.decode_response),
    "response_error": Sample(
        _ERROR,
        request.encode_error(_ERROR.code, _ERROR.message, _ERROR.retryable, _ERROR.details),
        request.decode_response,
    ),
    "frame_packets": Sample(
        [packet.encode(_FORWARDED), packet.encode(_LINK_LOCAL)],
        frame.encode_packets([packet.encode(_FORWARDED), packet.encode(_LINK_LOCAL)]),
        frame.decode_packets,
    ),
    "client_frame": Sample(
        _CLIENT_FRAME,
        b"".join(client.encode_message(client.Kind(kind), number, body) for kind, number, body in _CLIENT_FRAME),
        lambda data: [tuple(message) for message in client.decode_messages(data)],
    ),
    "store_hello": _store(
        store_message.Hello(
            store_message.Lineage(
                0x0102030405060708,
                (store_message.Incarnation(0xA1, 3), store_message.Incarnation(0xA2, 9)),
                (0xB1, 0xB2),
            ),
            ((7, store_message.Seen(0xD1, 0xA4, 2, (0xD0,))),),
        )
    ),
    "store_welcome": _store(store_message.Welcome(0xA2)),
    "store_refusal": _store(
        store_message.Refusal(
            store_message.Seen(0xB1, 0xA1, 4, (0xB0,)),
            store_message.Lineage(0xC1, (store_message.Incarnation(0xA3, 1),)),
        )
    ),
    "store_ask": _store(store_message.Ask()),
    "frame_sealed": Sample(_HANDSHAKE, _sealed_frame(), _open_frame),
    "lane_hello": Sample(_lane_hello(), _lane_hello(), bytes),
    "membership": Sample((_MEMBERSHIP, _VOUCH), _MEMBERSHIP.encode(_VOUCH), decode_membership),
    "frame_handshake": Sample(_HANDSHAKE, frame.encode_handshake(_HANDSHAKE), frame.decode_handshake),
}
