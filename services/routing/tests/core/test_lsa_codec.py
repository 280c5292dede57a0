"""Bytes from neighbours: everything well formed survives, nothing else gets in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh_routing.core.lsa import LINKS_MAX, SEQUENCE_MAX, Lsa, LsaKey, LsaLink, LsaMessage
from mesh_routing.core.lsa_codec import MESSAGE_BYTES_MAX, decode_message, encode_message
from meshapi.routing.v1 import routing_pb2
from meshcommon.ids import NodeId
from meshwire.errors import WireError

ids = st.integers(1, 2**64 - 1).map(NodeId)
u32 = st.integers(0, 2**32 - 1)
sequences = st.integers(1, SEQUENCE_MAX)
keys = st.builds(LsaKey, ids, sequences)


@st.composite
def lsas(draw: st.DrawFn) -> Lsa:
    origin = draw(ids)
    peers = sorted(draw(st.sets(ids.filter(lambda peer: peer != origin), max_size=4)))
    links = tuple(LsaLink(peer, draw(u32), draw(u32), draw(u32), draw(u32)) for peer in peers)
    return Lsa(origin, draw(sequences), links, float(draw(st.integers(0, 10_000))))


messages = st.builds(
    LsaMessage,
    st.lists(lsas(), max_size=3).map(tuple),
    st.lists(keys, max_size=3).map(tuple),
    st.none() | st.lists(keys, max_size=3).map(tuple),
)


@given(messages)
def test_message_survives_the_wire(message: LsaMessage) -> None:
    assert decode_message(encode_message(message)) == message


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_message_or_a_wire_error(payload: bytes) -> None:
    try:
        message = decode_message(payload)
    except WireError:
        return
    assert decode_message(encode_message(message)) == message


def test_age_never_shrinks_on_the_way() -> None:
    message = decode_message(encode_message(LsaMessage((Lsa(NodeId(1), 1, (), 7.2),))))
    assert message.lsas[0].age_s == 8.0


def _lsa(origin: int = 1, sequence: int = 1, peers: tuple[int, ...] = ()) -> routing_pb2.LsaMessage:
    links = [routing_pb2.LsaLink(peer=peer) for peer in peers]
    return routing_pb2.LsaMessage(lsas=[routing_pb2.Lsa(origin=origin, sequence=sequence, links=links)])


@pytest.mark.parametrize(
    "message",
    [
        _lsa(origin=0),
        _lsa(sequence=0),
        _lsa(sequence=SEQUENCE_MAX + 1),
        _lsa(peers=(3, 2)),
        _lsa(peers=(2, 2)),
        _lsa(peers=(0,)),
        _lsa(origin=2, peers=(2,)),
        _lsa(origin=1, peers=tuple(range(2, LINKS_MAX + 3))),
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
