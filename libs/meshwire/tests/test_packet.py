"""Overlay packets: round trips, the relay's fast path, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshwire import packet
from meshwire.buffers import Buffer
from meshwire.errors import WireCode, WireError
from meshwire.packet import Packet, Protocol, TrafficClass

U16 = st.integers(0, 2**16 - 1)
U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
FLAGS = st.integers(0, 3)
SEALS = st.none() | st.tuples(U32, U64, st.binary(min_size=16, max_size=16)).map(lambda item: packet.Seal(*item))
ROUTES = st.lists(st.integers(1, 2**64 - 1), min_size=1, max_size=packet.MAX_ROUTE_NODES, unique=True).map(tuple)

PACKET = Packet(
    version=packet.VERSION,
    cls=TrafficClass.BULK,
    protocol=Protocol.RAFT_DSG,
    flags=0,
    hop_limit=8,
    source=11,
    destination=44,
    tenant_tag=1,
    flow=2,
    message_id=3,
    route=(11, 22, 33, 44),
    position=1,
    payload=b"payload",
)


@st.composite
def packets(draw: st.DrawFn) -> Packet:
    """Any valid packet."""
    route = draw(st.just(()) | ROUTES)
    fragments = draw(st.integers(1, 2**16 - 1))
    seal = draw(SEALS)
    return Packet(
        version=packet.VERSION,
        cls=draw(st.sampled_from(TrafficClass)),
        protocol=draw(st.sampled_from(Protocol)),
        flags=draw(FLAGS) | (packet.FLAG_SEALED if seal is not None else 0),
        hop_limit=draw(st.integers(0, 255)),
        source=route[0] if route else draw(U64),
        destination=route[-1] if route else draw(U64),
        tenant_tag=draw(U32),
        flow=draw(U64),
        message_id=draw(U64),
        fragment=draw(st.integers(0, fragments - 1)),
        fragments=fragments,
        route=route,
        position=draw(st.integers(0, max(0, len(route) - 1))),
        payload=draw(st.binary(max_size=300)),
        seal=seal,
    )


@given(packets())
def test_decode_gives_back_what_was_encoded(original: Packet) -> None:
    assert packet.decode(packet.encode(original)) == original


@given(packets())
def test_forwarding_view_agrees_with_decode(original: Packet) -> None:
    view = packet.forwarding_view(packet.encode(original))
    assert view._asdict() == {name: getattr(original, name) for name in view._fields}


@given(packets().filter(lambda value: bool(value.route)), st.data())
def test_advance_changes_position_and_hop_limit_only(original: Packet, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(original.route) - 1))
    hop_limit = data.draw(st.integers(0, 255))
    advanced = packet.advance(packet.encode(original), position, hop_limit)
    assert packet.decode(advanced) == replace(original, position=position, hop_limit=hop_limit)


@given(packets(), FLAGS, st.integers(0, 255), st.data())
def test_reroute_changes_the_route_only(original: Packet, flags: int, hop_limit: int, data: st.DataObject) -> None:
    flags |= original.flags & packet.FLAG_SEALED
    between = data.draw(st.lists(st.integers(1, 99), max_size=14, unique=True))
    start = replace(original, source=1_000, destination=2_000, route=(), position=0)
    route = (1_000, *between, 2_000)
    position = data.draw(st.integers(0, len(route) - 1))
    rerouted = packet.reroute(packet.encode(start), route, position, flags, hop_limit)
    expected = replace(start, route=route, position=position, flags=flags, hop_limit=hop_limit)
    assert packet.decode(rerouted) == expected


@pytest.mark.parametrize("container", [bytes, bytearray, memoryview])
def test_any_bytes_container_is_accepted(container: Any) -> None:
    data = container(packet.encode(PACKET))
    assert packet.decode(data) == PACKET
    assert packet.forwarding_view(data).route == PACKET.route
    assert packet.decode(packet.advance(data, 2, 7)).position == 2
    assert packet.decode(packet.reroute(data, (11, 44), 1, packet.FLAG_REPAIRED, 7)).route == (11, 44)


def test_payload_is_not_copied() -> None:
    data = packet.encode(PACKET)
    payload = packet.decode(data).payload
    assert isinstance(payload, memoryview)
    assert payload.obj is data


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"version": 3}, WireCode.BAD_VERSION),
        ({"cls": 3}, WireCode.BAD_FIELD),
        ({"protocol": 0}, WireCode.BAD_FIELD),
        ({"protocol": 11}, WireCode.BAD_FIELD),
        ({"flags": 8}, WireCode.BAD_FIELD),
        ({"flags": packet.FLAG_SEALED}, WireCode.BAD_FIELD),
        ({"seal": packet.Seal(1, 1, bytes(16))}, WireCode.BAD_FIELD),
        ({"flags": packet.FLAG_SEALED, "seal": packet.Seal(1, 1, bytes(15))}, WireCode.BAD_FIELD),
        ({"flags": packet.FLAG_SEALED, "seal": packet.Seal(1, 2**64, bytes(16))}, WireCode.BAD_FIELD),
        ({"flags": packet.FLAG_SEALED, "seal": packet.Seal(1, 1, bytes(16), suite=1)}, WireCode.BAD_FIELD),
        ({"hop_limit": 256}, WireCode.BAD_FIELD),
        ({"hop_limit": -1}, WireCode.BAD_FIELD),
        ({"tenant_tag": 2**32}, WireCode.BAD_FIELD),
        ({"flow": -1}, WireCode.BAD_FIELD),
        ({"message_id": 2**64}, WireCode.BAD_FIELD),
        ({"fragments": 0}, WireCode.BAD_FIELD),
        ({"fragment": 2, "fragments": 2}, WireCode.BAD_FIELD),
        ({"fragment": -1}, WireCode.BAD_FIELD),
        ({"fragments": 2**16}, WireCode.BAD_FIELD),
        ({"position": 4}, WireCode.BAD_FIELD),
        ({"position": -1}, WireCode.BAD_FIELD),
        ({"route": ()}, WireCode.BAD_FIELD),
        ({"route": (11, *range(100, 115), 44)}, WireCode.BAD_FIELD),
        ({"route": (11, 22, 22, 44)}, WireCode.BAD_FIELD),
        ({"route": (11, 0, 44)}, WireCode.BAD_FIELD),
        ({"route": (11, -1, 44)}, WireCode.BAD_FIELD),
        ({"route": (22, 33, 44)}, WireCode.BAD_FIELD),
        ({"route": (11, 22, 33)}, WireCode.BAD_FIELD),
        ({"payload": bytes(packet.MAX_PACKET_BYTES)}, WireCode.TOO_LARGE),
    ],
)
def test_encode_refuses_what_no_decoder_would_accept(changes: dict[str, Any], code: WireCode) -> None:
    with pytest.raises(WireError) as caught:
        packet.encode(replace(PACKET, **changes))
    assert caught.value.code is code


@pytest.mark.parametrize(
    ("at", "value", "code"),
    [
        (45, 17, WireCode.BAD_FIELD),
        (45, 5, WireCode.TRUNCATED),
        (45, 3, WireCode.BAD_FIELD),
        (46, 4, WireCode.BAD_FIELD),
        (12, 99, WireCode.BAD_FIELD),
        (54, 22, WireCode.BAD_FIELD),
    ],
)
def test_decode_and_forwarding_view_refuse_a_bad_routing_field(at: int, value: int, code: WireCode) -> None:
    data = bytearray(packet.encode(replace(PACKET, payload=b"")))
    data[at] = value
    for parse in (packet.decode, packet.forwarding_view):
        with pytest.raises(WireError) as caught:
            parse(data)
        assert caught.value.code is code


@pytest.mark.parametrize(
    ("at", "value", "code"),
    [
        (0, 3, WireCode.BAD_VERSION),
        (1, 3, WireCode.BAD_FIELD),
        (2, 0, WireCode.BAD_FIELD),
        (2, 200, WireCode.BAD_FIELD),
        (3, 0x80, WireCode.BAD_FIELD),
        (44, 0, WireCode.BAD_FIELD),
    ],
)
def test_relay_passes_what_only_the_destination_refuses(at: int, value: int, code: WireCode) -> None:
    """Packets of later versions pass relays of this one unchanged, but for what routing changes."""
    data = bytearray(packet.encode(PACKET))
    data[at] = value
    view = packet.forwarding_view(data)
    assert view.cls is TrafficClass.BULK
    assert view.route == PACKET.route
    advanced = packet.advance(data, 2, 7)
    assert advanced[at] == value
    rerouted = packet.reroute(data, (11, 55, 44), 1, view.flags | packet.FLAG_REPAIRED, 7)
    assert rerouted[at] == (value | packet.FLAG_REPAIRED if at == 3 else value)
    for refuse in (packet.decode, packet.check_arrived):
        with pytest.raises(WireError) as caught:
            refuse(data)
        assert caught.value.code is code


class FixedSealer:
    """Makes no tags that prove anything, but shows what is covered."""

    key_id = 0x01020304

    def __init__(self) -> None:
        self.covered: list[tuple[bytes, bytes]] = []

    def next_counter(self, cls: TrafficClass) -> int:
        return 0x1112131415161718 + cls

    def seal(self, cls: TrafficClass, counter: int, payload: Buffer, associated: bytes) -> bytes:
        self.covered.append((packet.nonce_of(cls, counter), associated))
        return bytes(payload)[::-1] + b"t" * 16


def sealed(route: tuple[int, ...] = (11, 22, 44), payload: bytes = b"payload") -> tuple[bytes, FixedSealer]:
    sealer = FixedSealer()
    data = packet.encode_sealed(
        sealer, TrafficClass.PRIORITY, Protocol.REQUEST, (11, 44), route, payload, flow=5, message_id=6
    )
    return data, sealer


@pytest.mark.parametrize("route", [(11, 22, 44), ()])
def test_sealed_packet_is_what_encode_makes_of_its_fields(route: tuple[int, ...]) -> None:
    data, _ = sealed(route)
    expected = Packet(
        version=packet.VERSION,
        cls=TrafficClass.PRIORITY,
        protocol=Protocol.REQUEST,
        flags=packet.FLAG_SEALED,
        hop_limit=packet.FIRST_HOP_LIMIT,
        source=11,
        destination=44,
        flow=5,
        message_id=6,
        route=route,
        position=1 if route else 0,
        payload=b"daolyap",
        seal=packet.Seal(0x01020304, 0x1112131415161719, b"t" * 16),
    )
    assert packet.decode(data) == expected
    assert packet.encode(expected) == data


def test_destination_finds_what_the_source_covered_whatever_relays_did() -> None:
    data, sealer = sealed()
    rerouted = packet.reroute(data, (11, 22, 33, 44), 2, packet.FLAG_SEALED | packet.FLAG_REPAIRED, 3)
    ((nonce, associated),) = sealer.covered
    for arrived, nodes in ((data, 3), (packet.advance(data, 2, 1), 3), (rerouted, 4)):
        part = packet.sealed_part(arrived, nodes)
        assert (part.associated, bytes(part.sealed)) == (associated, b"daolyap" + b"t" * 16)
        assert packet.nonce_of(arrived[1], part.counter) == nonce


def test_everything_but_route_position_hop_limit_and_repair_is_covered() -> None:
    data, _ = sealed()
    before = packet.sealed_part(data, 3)
    sealed_at = 47 + 24 + packet.SECURITY_HEADER_BYTES
    free = {4, 45, 46, *range(47, 47 + 24), *range(sealed_at, len(data))}
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 0x40
        try:
            part = packet.sealed_part(changed, 3)
        except WireError:
            continue
        assert (part.associated == before.associated) == (at in free)


@pytest.mark.parametrize(("at", "value"), [(0, 0), (0, 1), (0, 3), (1, 1), (3, 1)])
def test_security_header_of_an_unknown_suite_is_refused(at: int, value: int) -> None:
    data = bytearray(sealed()[0])
    data[47 + 24 + at] = value
    with pytest.raises(WireError):
        packet.sealed_part(data, 3)


def test_seal_that_is_cut_short_is_refused() -> None:
    data = bytearray(packet.encode(replace(PACKET, payload=bytes(31))))
    data[3] |= packet.FLAG_SEALED
    with pytest.raises(WireError) as caught:
        packet.decode(data)
    assert caught.value.code is WireCode.TRUNCATED


def test_sealed_packet_has_its_bounds() -> None:
    room = packet.MAX_PACKET_BYTES - packet.PREFIX_BYTES - 24 - packet.SEAL_BYTES
    assert len(sealed(payload=bytes(room))[0]) == packet.MAX_PACKET_BYTES
    with pytest.raises(WireError) as caught:
        sealed(payload=bytes(room + 1))
    assert caught.value.code is WireCode.TOO_LARGE
    with pytest.raises(WireError):
        sealed(route=tuple(range(1, 18)))
    with pytest.raises(WireError):
        sealed(route=(11, 2**64, 44))


def test_route_that_crosses_a_node_twice_is_refused() -> None:
    """Invariant I12."""
    data = bytearray(packet.encode(PACKET))
    third = packet.PREFIX_BYTES + 2 * 8
    data[third : third + 8] = (22).to_bytes(8, "big")
    with pytest.raises(WireError, match="twice"):
        packet.forwarding_view(data)


def test_short_and_oversized_input_is_refused() -> None:
    data = packet.encode(PACKET)
    for length in range(packet.PREFIX_BYTES + 4 * 8):
        with pytest.raises(WireError) as caught:
            packet.decode(data[:length])
        assert caught.value.code is WireCode.TRUNCATED
    largest = packet.encode(replace(PACKET, payload=bytes(packet.MAX_PACKET_BYTES - packet.PREFIX_BYTES - 4 * 8)))
    assert len(largest) == packet.MAX_PACKET_BYTES
    assert packet.encode(packet.decode(largest)) == largest
    with pytest.raises(WireError) as caught:
        packet.forwarding_view(largest + b"\x00")
    assert caught.value.code is WireCode.TOO_LARGE


def test_advance_refuses_a_position_off_the_route() -> None:
    data = packet.encode(PACKET)
    for position, hop_limit in ((4, 1), (-1, 1), (1, 256), (1, -1)):
        with pytest.raises(WireError) as caught:
            packet.advance(data, position, hop_limit)
        assert caught.value.code is WireCode.BAD_FIELD
    with pytest.raises(WireError) as caught:
        packet.advance(data[: packet.PREFIX_BYTES - 1], 0, 0)
    assert caught.value.code is WireCode.TRUNCATED


@pytest.mark.parametrize(
    ("route", "position", "flags", "hop_limit"),
    [
        ((11, 55, 44), 3, 1, 7),
        ((11, 55, 44), 1, 256, 7),
        ((11, 55, 44), 1, 1, 256),
        ((55, 44), 0, 1, 7),
        ((11, 55), 0, 1, 7),
        ((11, 55, 55, 44), 0, 1, 7),
        ((11, 2**64, 44), 0, 1, 7),
        ((), 1, 1, 7),
    ],
)
def test_reroute_refuses_a_bad_route(route: tuple[int, ...], position: int, flags: int, hop_limit: int) -> None:
    with pytest.raises(WireError) as caught:
        packet.reroute(packet.encode(PACKET), route, position, flags, hop_limit)
    assert caught.value.code is WireCode.BAD_FIELD


def test_reroute_refuses_to_outgrow_the_limit() -> None:
    start = replace(PACKET, route=(11, 44))
    full = packet.encode(replace(start, payload=bytes(packet.MAX_PACKET_BYTES - packet.PREFIX_BYTES - 2 * 8)))
    with pytest.raises(WireError) as caught:
        packet.reroute(full, (11, 22, 44), 1, packet.FLAG_REPAIRED, 7)
    assert caught.value.code is WireCode.TOO_LARGE
