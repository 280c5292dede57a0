"""Who says it: what a member, a relay or a recorder can make of packets of others. Nothing that is accepted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from data_plane_testing.identities import delegations, entropy, local_node, seed_of, signer_of, view_of
from data_plane_testing.line import MEMBERS, Line, at_destination
from mesh_data.core.forwarder import Delivery, DropReason, Forwarder, Held, Transmission
from mesh_data.core.held_packets import HELD_BYTES_MAX, HELD_BYTES_TOTAL_MAX, HELD_PACKETS_MAX, HELD_S
from mesh_data.core.identity import Identity
from mesh_data.core.key_message import Ask
from mesh_data.core.message_ids import RECENT_S
from mesh_data.core.path_error import PathError
from mesh_data.core.timing import OverlayTiming
from meshcommon import delegation
from meshcommon.delegation import VALID_AFTER_S, VALID_BEFORE_S, DelegatedSigner, Use
from meshcommon.ids import NodeId
from meshcommon.key_signer import KeySigner
from meshtest.delegated import NOW_S
from meshwire.packet import (
    FLAG_REPAIRED,
    FLAG_RESPONSE,
    FLAG_SEALED,
    PREFIX_BYTES,
    SUITE_AEAD,
    VERSION,
    Packet,
    Protocol,
    TrafficClass,
    decode,
    encode,
    forwarding_view,
    reroute,
)

CONTROL = TrafficClass.CONTROL


def test_first_packets_wait_for_the_keys_and_arrive_in_order() -> None:
    line = Line()
    source = line.nodes[NodeId(1)]
    for number in range(HELD_PACKETS_MAX):
        sent = source.send(Protocol.RAFT_MCG, CONTROL, NodeId(3), bytes((number,)), 0, 0.0)
        assert sent == Held(NodeId(3))
    line.run()
    assert [bytes(item.payload) for _, item in line.delivered] == [bytes((n,)) for n in range(HELD_PACKETS_MAX)]
    assert {(node, item.source, item.protocol) for node, item in line.delivered} == {(3, 1, Protocol.RAFT_MCG)}
    assert isinstance(line.nodes[NodeId(3)].send(Protocol.RAFT_MCG, CONTROL, NodeId(1), b"", 0, 0.0), Transmission)


def test_what_waits_for_keys_is_bounded_and_not_for_long() -> None:
    many = tuple(range(1, 200))
    node = Forwarder(OverlayTiming(), 1, entropy(1), delegations())
    node.configure(local_node(1), view_of(*many))
    for peer in many[1:]:
        node.set_link(NodeId(peer), True, 0.0)
        held = sum(
            isinstance(node.send(Protocol.RAFT_MCG, CONTROL, NodeId(peer), bytes(8192), 0, 0.0), Held)
            for _ in range(100)
        )
        assert held <= HELD_BYTES_MAX // 8192
    assert node._held.total_bytes == HELD_BYTES_TOTAL_MAX
    assert node.send(Protocol.RAFT_MCG, CONTROL, NodeId(2), b"one more", 0, 0.0) is None
    node.tick(HELD_S)
    assert node._held.total_bytes == 0
    assert node.counters.dropped == {DropReason.NO_SESSION: 198 * 100 + 1}


def forge(protocol: Protocol, payload: bytes = b"vote for me", **changes: object) -> bytes:
    """A packet that says it is node 1's, as node 2 can make one for node 3."""
    fields: dict[str, object] = {
        "version": VERSION,
        "cls": CONTROL,
        "protocol": protocol,
        "flags": 0,
        "hop_limit": 9,
        "source": 1,
        "destination": 3,
        "message_id": 1 << 32,
        "route": (1, 2, 3),
        "position": 2,
        "payload": payload,
    }
    return encode(Packet(**(fields | changes)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "protocol", [item for item in Protocol if item not in {Protocol.LANE, Protocol.PATH_ERROR, Protocol.KEYS}]
)
def test_packet_that_a_relay_forges_in_anothers_name_is_dropped(protocol: Protocol) -> None:
    """Heartbeats, store refusals, proposals, requests: all that is acted on is of one of these protocols."""
    line = Line().agreed()
    assert line.carry(3, 2, forge(protocol)) is None
    expected = DropReason.WRONG_HOP if protocol is Protocol.LSA else DropReason.UNSEALED
    assert line.dropped(3) == {expected: 1}


@pytest.mark.parametrize("protocol", [Protocol.LSA, Protocol.JOIN, Protocol.RAFT_DSG])
def test_neighbours_packet_without_a_seal_is_dropped(protocol: Protocol) -> None:
    """Also what has no route: the lane is known to be the neighbour's, but the packet is held to the same rule."""
    line = Line().agreed()
    data = forge(protocol, source=2, route=(), position=0)
    assert line.carry(3, 2, data) is None
    assert line.dropped(3) == {DropReason.UNSEALED: 1}


def test_packet_sealed_with_the_relays_own_key_does_not_pass_for_anothers() -> None:
    line = Line().agreed()
    own = decode(line.send(2, 3, Protocol.RAFT_MCG))
    forged = forge(Protocol.RAFT_MCG, flags=FLAG_SEALED, seal=own.seal)
    assert line.carry(3, 2, forged) is None
    assert line.dropped(3) == {DropReason.NO_SESSION: 1}


def test_recorded_packet_is_accepted_once_whatever_its_way() -> None:
    line = Line().agreed()
    data = at_destination(line, line.send(1, 3))
    assert isinstance(line.carry(3, 2, data), Delivery)
    assert line.carry(3, 2, data) is None
    again = reroute(data, (1, 9, 2, 3), 3, FLAG_SEALED | FLAG_REPAIRED, 3)
    assert line.carry(3, 2, again) is None
    assert line.dropped(3) == {DropReason.REPLAYED: 2}


def test_relay_may_change_route_hop_limit_and_repair_only() -> None:
    line = Line().agreed()
    data = at_destination(line, line.send(1, 3))
    repaired = reroute(data, (1, 9, 2, 3), 3, FLAG_SEALED | FLAG_REPAIRED, 3)
    delivery = line.carry(3, 2, repaired)
    assert isinstance(delivery, Delivery)
    assert bytes(delivery.payload) == b"heartbeat"


def _set(at: int, value: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        data[at] = value

    return change


def _cut_into_the_seal(data: bytearray) -> None:
    del data[AFTER_ROUTE + 31 :]


AFTER_ROUTE = PREFIX_BYTES + 24
TAMPERING: dict[str, Callable[[bytearray], object]] = {
    "version": _set(0, VERSION + 1),
    "class": _set(1, TrafficClass.BULK),
    "unknown class": _set(1, 77),
    "protocol": _set(2, Protocol.RAFT_DSG),
    "protocol to one without a seal": _set(2, Protocol.PATH_ERROR),
    "unknown protocol": _set(2, 99),
    "flag response": _set(3, FLAG_SEALED | FLAG_RESPONSE),
    "flag sealed gone": _set(3, 0),
    "unknown flag": _set(3, FLAG_SEALED | 0x40),
    "tenant": _set(24, 1),
    "flow": _set(32, 1),
    "message id": _set(40, 0xEE),
    "fragment count": _set(44, 2),
    "suite that is gone": _set(AFTER_ROUTE, SUITE_AEAD - 1),
    "later suite": _set(AFTER_ROUTE, SUITE_AEAD + 1),
    "zero byte": _set(AFTER_ROUTE + 1, 1),
    "key id": _set(AFTER_ROUTE + 4, 0x5A),
    "counter": _set(AFTER_ROUTE + 15, 0x77),
    "payload": _set(AFTER_ROUTE + 16, 0),
    "tag": _set(-1, 0),
    "cut short": bytearray.pop,
    "made longer": lambda data: data.append(0),
    "cut to its seal": _cut_into_the_seal,
}


@pytest.mark.parametrize("name", TAMPERING)
def test_packet_that_was_tampered_with_is_dropped_and_the_genuine_one_still_arrives(name: str) -> None:
    line = Line().agreed()
    data = at_destination(line, line.send(1, 3))
    changed = bytearray(data)
    TAMPERING[name](changed)
    assert bytes(changed) != data
    assert line.carry(3, 2, bytes(changed)) is None
    assert sum(line.dropped(3).values()) == 1
    assert isinstance(line.carry(3, 2, data), Delivery)


@pytest.mark.parametrize(("at", "value"), [(0, 9), (1, 77), (2, 200), (3, 0xE4)])
def test_relay_passes_packets_of_later_versions_that_the_destination_counts(at: int, value: int) -> None:
    line = Line().agreed()
    data = bytearray(line.send(1, 3))
    data[at] = value
    passed = line.carry(2, 1, bytes(data))
    assert isinstance(passed, Transmission)
    assert passed.cls is (TrafficClass.BULK if at == 1 else CONTROL)
    assert line.carry(3, 2, passed.data) is None
    assert line.dropped(3) == {DropReason.NOT_UNDERSTOOD: 1}


def test_routed_packet_of_a_protocol_for_neighbours_ends_at_its_destination() -> None:
    line = Line().agreed()
    data = at_destination(line, line.send(1, 3, Protocol.LSA))
    assert line.carry(3, 2, data) is None
    assert line.dropped(3) == {DropReason.WRONG_HOP: 1}


def test_neighbours_lsa_is_sealed_and_arrives() -> None:
    line = Line().agreed()
    sent = line.nodes[NodeId(2)].send_link_local(Protocol.LSA, CONTROL, NodeId(3), b"lsa", 0.0)
    assert isinstance(sent, Transmission)
    assert forwarding_view(sent.data).flags == FLAG_SEALED
    delivery = line.carry(3, 2, sent.data)
    assert isinstance(delivery, Delivery)
    assert (delivery.source, delivery.protocol, bytes(delivery.payload)) == (2, Protocol.LSA, b"lsa")


def test_packet_for_a_neighbour_whose_link_is_down_is_dropped() -> None:
    line = Line().agreed()
    assert line.nodes[NodeId(1)].send_link_local(Protocol.LSA, CONTROL, NodeId(3), b"lsa", 0.0) is None
    assert line.dropped(1) == {DropReason.LINK_DOWN: 1}


def test_restarted_node_takes_nothing_of_its_former_life_and_soon_talks_again() -> None:
    line = Line().agreed()
    recorded = at_destination(line, line.send(1, 3))
    again = Forwarder(OverlayTiming(), 1, entropy(77), delegations())
    again.configure(local_node(3), view_of(*MEMBERS))
    line.nodes[NodeId(3)] = again
    again.set_link(NodeId(2), True, 5.0)
    assert line.carry(3, 2, recorded, 5.0) is None
    assert line.dropped(3) == {DropReason.NO_SESSION: 1}
    # That packet alone made it ask, along the way the packet came.
    line.run(5.0)
    data = at_destination(line, line.send(1, 3, now=5.0))
    assert isinstance(line.carry(3, 2, data, 5.0), Delivery)
    assert line.carry(3, 2, recorded, 5.0) is None


def path_error_packet(error: PathError, source: int = 2) -> bytes:
    return forge(Protocol.PATH_ERROR, error.encode(), source=source, destination=1, route=(source, 1), position=1)


def signed(signer: int, message_id: int, by: DelegatedSigner | None = None, **changes: int) -> PathError:
    """A path error of `signer` to node 1 about a packet for node 3."""
    about = {"source": 1, "destination": 3, "far": 3} | changes
    return PathError.signed(
        Identity(replace(local_node(signer), signer=by or signer_of(signer)), view_of(*MEMBERS), delegations()),
        NodeId(about["source"]),
        NodeId(about["destination"]),
        NodeId(about["far"]),
        message_id,
    )


def test_path_error_of_the_near_end_about_a_packet_just_sent_counts() -> None:
    line = Line().agreed()
    sent = forwarding_view(line.send(1, 3, now=1.0)).message_id
    line.carry(1, 2, path_error_packet(signed(2, sent)), 1.0)
    assert line.nodes[NodeId(1)].counters.path_errors_received == 1


@pytest.mark.parametrize(
    "why",
    [
        *("another signer", "another delegation", "the identity key", "another use", "another epoch"),
        *("another source", "another destination", "another far end", "old", "never sent", "no member"),
    ],
)
def test_forged_path_error_changes_nothing(why: str) -> None:
    line = Line(1, 3) if why == "no member" else Line().agreed()
    node = line.nodes[NodeId(1)]
    node.send(Protocol.SWIM, CONTROL, NodeId(3), b"", 0, 1.0)
    sent, now = node._message_ids._last, 1.0
    error = signed(2, sent)
    if why == "another signer":
        error = replace(signed(3, sent), near=NodeId(2))
    elif why == "another delegation":
        error = replace(error, delegation=signed(3, sent).delegation)
    elif why == "the identity key":
        error = signed(2, sent, by=replace(signer_of(2), signer=KeySigner(seed_of(2))))
    elif why == "another use":
        error = signed(2, sent, by=signer_of(2, Use.LINK_STATES))
    elif why == "another epoch":
        error = signed(2, sent, by=signer_of(2, mesh_epoch=1))
    elif why == "another source":
        error = signed(2, sent, source=3)
    elif why == "another destination":
        error = replace(error, destination=NodeId(2))
    elif why == "another far end":
        error = replace(error, far=NodeId(9))
    elif why == "old":
        now += RECENT_S + 1.0
    elif why == "never sent":
        error = signed(2, sent + 1)
    refused = node.counters.dropped[DropReason.BAD_SIGNATURE]
    line.carry(1, 2, path_error_packet(error), now)
    assert node.counters.path_errors_received == 0
    assert node.counters.dropped[DropReason.BAD_SIGNATURE] == refused + 1


def test_delegations_by_which_path_errors_are_signed_expire() -> None:
    """A thief of the data plane's key can use it for as long as its delegation counts, by the clock of who checks."""
    line = Line().agreed()
    sent = forwarding_view(line.send(1, 3, now=1.0)).message_id
    data = path_error_packet(signed(2, sent))
    taken = []
    for line.clock_s in (NOW_S, NOW_S + VALID_AFTER_S - 1, NOW_S + VALID_AFTER_S, NOW_S - VALID_BEFORE_S - 1):
        line.carry(1, 2, data, 1.0)
        taken.append(line.nodes[NodeId(1)].counters.path_errors_received)
    assert taken == [1, 2, 2, 2]


def test_sessions_outlive_the_delegations_that_they_began_with() -> None:
    """A node whose control plane has been away for a day goes on with those that it knows, and agrees with nobody else."""
    line = Line().agreed()
    line.clock_s = NOW_S + VALID_AFTER_S
    assert line.carry(3, 2, at_destination(line, line.send(1, 3))) is not None
    again = Line()
    again.clock_s = NOW_S + VALID_AFTER_S
    again.agreed()
    assert again.nodes[NodeId(1)].keys.session(NodeId(3)) is None


@pytest.mark.parametrize("is_ever_new", [False, True])
def test_flood_of_path_errors_costs_a_bounded_number_of_checks(
    monkeypatch: pytest.MonkeyPatch, is_ever_new: bool
) -> None:
    """Also when a member signs a new delegation for each: a check of it counts like any other."""
    line = Line().agreed()
    sent = forwarding_view(line.send(1, 3, now=1.0)).message_id
    checks = 0

    def count(key: Ed25519PublicKey, statement: bytes, signature: bytes) -> bool:
        nonlocal checks
        checks += 1
        return is_signed(key, statement, signature)

    is_signed = delegation._is_signed
    monkeypatch.setattr(delegation, "_is_signed", count)
    forged = replace(signed(2, sent), signature=bytes(64))
    for number in range(2_000):
        if is_ever_new and number < 1_000:
            forged = replace(forged, delegation=signer_of(2, now_s=NOW_S - number).delegation)
        line.carry(1, 2, path_error_packet(forged), 1.0 + number / 2_000)
    assert 200 <= checks <= 410


def test_forged_path_errors_through_one_neighbour_do_not_silence_another() -> None:
    line = Line().agreed()
    node = line.nodes[NodeId(1)]
    node.set_link(NodeId(3), True, 1.0)
    sent = forwarding_view(line.send(1, 3, now=1.0)).message_id
    forged = path_error_packet(replace(signed(2, sent), signature=bytes(64)))
    for _ in range(1_000):
        line.carry(1, 2, forged, 1.0)
    line.carry(1, 3, path_error_packet(signed(3, sent, far=2), source=3), 1.0)
    assert node.counters.path_errors_received == 1


def test_forged_asks_through_an_honest_relay_do_not_keep_two_nodes_apart() -> None:
    """Node 4 asks for keys in the names of 1 and 3, through 2: both used up their answers on it and never agreed again."""
    line = Line().agreed()
    line.nodes[NodeId(1)] = Line().nodes[NodeId(1)]
    line.nodes[NodeId(1)].take_outgoing()

    def flood(now: float) -> None:
        for number in range(100):
            for source, destination in ((1, 3), (3, 1)):
                ask = Ask(bytes(31) + bytes((number,))).encode()
                route = (source, 4, 2, destination)
                data = forge(Protocol.KEYS, ask, source=source, destination=destination, route=route)
                passed = line.carry(2, 4, data, now)
                assert isinstance(passed, Transmission)
                line.carry(destination, 2, passed.data, now)

    one, three = line.nodes[NodeId(1)], line.nodes[NodeId(3)]
    for step in range(20):
        now = 10.0 + 0.2 * step
        flood(now)
        one.send(Protocol.SWIM, CONTROL, NodeId(3), b"hello", 0, now)
        line.run(now)
    here, there = one.keys.session(NodeId(3)), three.keys.session(NodeId(1))
    assert here is not None
    assert there is not None
    assert here.key_id == there.key_id


def test_forged_sources_cost_a_relay_a_bounded_number_of_signatures() -> None:
    members = tuple(range(1, 1000))
    relay = Forwarder(OverlayTiming(), 1, entropy(2), delegations())
    relay.configure(local_node(2), view_of(*members))
    relay.set_link(NodeId(1), True, 0.0)
    for source in (*members[3:], *range(5_000, 6_000)):
        data = forge(Protocol.RAFT_MCG, source=source, route=(source, 1, 2, 3), position=2)
        relay.receive(NodeId(1), data, 0.0)
    assert 0 < relay.counters.path_errors_sent <= 200
