"""Bytes from neighbours: everything well formed survives, nothing else gets in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh_routing.core.lsa import (
    LINKS_MAX,
    LOSS_PPM_MAX,
    NODE_ID_MAX,
    SEQUENCE_MAX,
    SIGNATURE_BYTES,
    UTILISATION_PERMILLE_MAX,
    Lsa,
    LsaKey,
    LsaLink,
    LsaMessage,
)
from mesh_routing.core.lsa_codec import KEYS_MAX, LSAS_MAX, MESSAGE_BYTES_MAX, decode_message, encode_message
from meshapi.routing.v1 import routing_pb2
from meshcommon.delegation import Delegation, Use
from meshcommon.ids import NodeId
from meshwire.errors import WireError

DELEGATION = Delegation(bytes(32), Use.LINK_STATES, 1, 2, bytes(64))
ids = st.integers(1, NODE_ID_MAX).map(NodeId)
u32 = st.integers(0, 2**32 - 1)
losses = st.none() | st.integers(0, LOSS_PPM_MAX)
bandwidths = st.none() | st.integers(1, 2**32 - 2)
uses = st.none() | st.integers(0, UTILISATION_PERMILLE_MAX)
sequences = st.integers(1, SEQUENCE_MAX)
keys = st.builds(LsaKey, ids, sequences)


@st.composite
def lsas(draw: st.DrawFn) -> Lsa:
    origin = draw(ids)
    peers = sorted(draw(st.sets(ids.filter(lambda peer: peer != origin), max_size=4)))
    links = tuple(
        LsaLink(peer, draw(u32), draw(u32), draw(u32), draw(losses), draw(bandwidths), draw(uses)) for peer in peers
    )
    signature = draw(st.binary(min_size=SIGNATURE_BYTES, max_size=SIGNATURE_BYTES))
    return Lsa(origin, draw(sequences), links, float(draw(st.integers(0, 10_000))), signature, DELEGATION)


messages = st.builds(
    LsaMessage,
    st.lists(lsas(), max_size=3).map(tuple),
    st.sets(keys, max_size=3).map(sorted).map(tuple),
    st.none()
    | st.dictionaries(ids, sequences, max_size=3).map(lambda held: tuple(map(LsaKey._make, sorted(held.items())))),
)


@given(messages)
def test_message_survives_the_wire(message: LsaMessage) -> None:
    assert decode_message(encode_message(message)) == message


@pytest.mark.parametrize(
    "measured",
    [
        {"lost_ppm": LOSS_PPM_MAX + 1},
        {"bandwidth_kbit": 0},
        {"bandwidth_kbit": 2**32 - 1},
        {"utilisation_permille": UTILISATION_PERMILLE_MAX + 1},
    ],
)
def test_measurement_that_no_link_has_is_refused(measured: dict[str, int]) -> None:
    link = routing_pb2.LsaLink(peer=2, **measured)
    lsa = routing_pb2.Lsa(origin=1, sequence=1, links=[link], signature=bytes(64), delegation=DELEGATION.to_proto())
    with pytest.raises(WireError):
        decode_message(routing_pb2.LsaMessage(lsas=[lsa]).SerializeToString())


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_message_or_a_wire_error(payload: bytes) -> None:
    try:
        message = decode_message(payload)
    except WireError:
        return
    assert decode_message(encode_message(message)) == message


def test_age_never_shrinks_on_the_way() -> None:
    message = decode_message(encode_message(LsaMessage((Lsa(NodeId(1), 1, (), 7.2, bytes(64), DELEGATION),))))
    assert message.lsas[0].age_s == 8.0


def _lsa(
    origin: int = 1, sequence: int = 1, peers: tuple[int, ...] = (), signature: bytes = bytes(64)
) -> routing_pb2.LsaMessage:
    links = [routing_pb2.LsaLink(peer=peer) for peer in peers]
    lsa = routing_pb2.Lsa(
        origin=origin, sequence=sequence, links=links, signature=signature, delegation=DELEGATION.to_proto()
    )
    return routing_pb2.LsaMessage(lsas=[lsa])


def _keys(*keys: tuple[int, int]) -> list[routing_pb2.LsaKey]:
    return [routing_pb2.LsaKey(origin=origin, sequence=sequence) for origin, sequence in keys]


def test_largest_that_is_allowed_passes() -> None:
    decode_message(_lsa(origin=1, peers=tuple(range(2, LINKS_MAX + 2))).SerializeToString())
    lsas = [_lsa(origin=origin).lsas[0] for origin in range(1, LSAS_MAX + 1)]
    keys = _keys(*((origin, 1) for origin in range(1, KEYS_MAX + 1)))
    message = routing_pb2.LsaMessage(lsas=lsas, acks=keys, database=keys, has_database=True)
    decode_message(message.SerializeToString())


def test_unknown_fields_go_no_further() -> None:
    known = _lsa(peers=(2,)).SerializeToString()
    # Field 99 of the message, and of the advertisement: 2,000 bytes each.
    unknown = b"\x9a\x06\xd0\x0f" + bytes(2_000)
    padded = routing_pb2.LsaMessage.FromString(known)
    padded.lsas[0].MergeFromString(unknown)
    payload = padded.SerializeToString() + unknown
    assert len(payload) > 4_000
    assert encode_message(decode_message(payload)) == known


@pytest.mark.parametrize(
    "message",
    [
        _lsa(origin=0),
        _lsa(origin=NODE_ID_MAX + 1),
        _lsa(peers=(NODE_ID_MAX + 1,)),
        _lsa(signature=b""),
        _lsa(signature=bytes(63)),
        _lsa(signature=bytes(65)),
        _lsa(sequence=0),
        _lsa(sequence=SEQUENCE_MAX + 1),
        _lsa(peers=(3, 2)),
        _lsa(peers=(2, 2)),
        _lsa(peers=(0,)),
        _lsa(origin=2, peers=(2,)),
        _lsa(origin=1, peers=tuple(range(2, LINKS_MAX + 3))),
        routing_pb2.LsaMessage(lsas=[_lsa().lsas[0]] * (LSAS_MAX + 1)),
        routing_pb2.LsaMessage(acks=_keys(*((1, number) for number in range(1, KEYS_MAX + 2)))),
        routing_pb2.LsaMessage(database=_keys(*((number, 1) for number in range(1, KEYS_MAX + 2))), has_database=True),
        routing_pb2.LsaMessage(acks=_keys((1, 1), (1, 1))),
        routing_pb2.LsaMessage(database=_keys((1, 1), (1, 2)), has_database=True),
        routing_pb2.LsaMessage(acks=[routing_pb2.LsaKey(origin=0, sequence=1)]),
        routing_pb2.LsaMessage(acks=[routing_pb2.LsaKey(origin=1, sequence=0)]),
        routing_pb2.LsaMessage(database=[routing_pb2.LsaKey(origin=1, sequence=1)]),
    ],
)
def test_malformed_is_refused(message: routing_pb2.LsaMessage) -> None:
    with pytest.raises(WireError):
        decode_message(message.SerializeToString())


def test_oversized_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(WireError, match="exceeds"):
        decode_message(bytes(MESSAGE_BYTES_MAX + 1))
