"""Agreement on packet keys: what installs a key, what does not, and what it may cost."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from data_plane_testing.identities import delegations, entropy, local_node, seed_of, signer_of, view_of
from mesh_data.core import packet_keys
from mesh_data.core.identity import Identity
from mesh_data.core.key_agreement import ExchangeKey
from mesh_data.core.key_message import Answer, Ask, decode_key_message
from mesh_data.core.packet_keys import ANSWERS_BURST, ASK_MAX_S, NEIGHBOUR_BURST, NONCE_S, PREVIOUS_S, PacketKeys
from mesh_data.core.packet_session import SealFault
from mesh_data.core.view import View
from meshcommon.delegation import VALID_AFTER_S, VALID_BEFORE_S, DelegatedSigner, Grantor, Use
from meshcommon.ids import NodeId
from meshcommon.key_signer import KeySigner
from meshtest.delegated import NOW_S
from meshwire.packet import Protocol, SealedPart, TrafficClass, encode_sealed, sealed_part

ONE, TWO, THREE = NodeId(1), NodeId(2), NodeId(3)
CONTROL = TrafficClass.CONTROL
VIEW = view_of(1, 2, 3)
_boots = 0


def boot(node: int, view: View = VIEW, sessions_max: int = packet_keys.SESSIONS_MAX) -> PacketKeys:
    """A node that has just started."""
    global _boots  # noqa: PLW0603 - every boot has other random bytes
    _boots += 1
    keys = PacketKeys(entropy(_boots), delegations(), sessions_max)
    keys.configure(local_node(node), view)
    return keys


def messages(keys: PacketKeys) -> list[bytes]:
    return [packet.payload for packet in keys.take_outgoing()]


def exchange(one: PacketKeys, two: PacketKeys, now: float) -> None:
    """Carries messages between nodes 1 and 2 until there are none."""
    while True:
        there, back = messages(one), messages(two)
        if not there and not back:
            return
        for payload in there:
            two.receive(ONE, (ONE, True), payload, now)
        for payload in back:
            one.receive(TWO, (TWO, True), payload, now)


def agreed(now: float = 0.0) -> tuple[PacketKeys, PacketKeys]:
    one, two = boot(1), boot(2)
    one.want(TWO, now)
    exchange(one, two, now)
    return one, two


def packet(keys: PacketKeys, source: int, destination: int) -> SealedPart:
    session = keys.session(NodeId(destination))
    assert session is not None
    data = encode_sealed(session, CONTROL, Protocol.SWIM, (source, destination), (), b"x", flow=0, message_id=1)
    return sealed_part(data, 0)


def test_three_messages_give_both_a_session() -> None:
    one, two = boot(1), boot(2)
    one.want(TWO, 0.0)
    (ask,) = messages(one)
    assert isinstance(decode_key_message(ask), Ask)
    assert two.receive(ONE, (ONE, True), ask, 0.0)
    (answer,) = messages(two)
    assert one.receive(TWO, (TWO, True), answer, 0.0)
    assert one.take_ready() == [TWO]
    assert two.session(ONE) is None
    (back,) = messages(one)
    assert two.receive(ONE, (ONE, True), back, 0.0)
    assert two.take_ready() == [ONE]
    assert messages(two) == []
    assert two.open(ONE, CONTROL, packet(one, 1, 2), 0.0) == b"x"
    assert one.open(TWO, CONTROL, packet(two, 2, 1), 0.0) == b"x"


def test_asks_that_cross_cost_one_signature_each_way() -> None:
    one, two = boot(1), boot(2)
    one.link_up(TWO, 0.0)
    two.link_up(ONE, 0.0)
    ask_one, ask_two = messages(one)[0], messages(two)[0]
    one.receive(TWO, (TWO, True), ask_two, 0.0)
    two.receive(ONE, (ONE, True), ask_one, 0.0)
    answer_one, answer_two = messages(one)[0], messages(two)[0]
    one.receive(TWO, (TWO, True), answer_two, 0.0)
    two.receive(ONE, (ONE, True), answer_one, 0.0)
    assert messages(one) == messages(two) == []
    assert one.open(TWO, CONTROL, packet(two, 2, 1), 0.0) == b"x"


def test_answer_that_was_recorded_installs_nothing() -> None:
    """A node's former boot key, signed by it for a former nonce, is replayed after its restart."""
    one, two = boot(1), boot(2)
    one.want(TWO, 0.0)
    two.receive(ONE, (ONE, True), messages(one)[0], 0.0)
    (recorded,) = messages(two)
    assert one.receive(TWO, (TWO, True), recorded, 0.0)
    before = one.session(TWO)
    assert not one.receive(TWO, (TWO, True), recorded, 0.1)
    one.link_up(TWO, 10.0)
    assert not one.receive(TWO, (TWO, True), recorded, 10.0)
    assert one.session(TWO) is before
    # Another boot of node 1 has asked with another nonce.
    again = boot(1)
    again.want(TWO, 0.0)
    assert not again.receive(TWO, (TWO, True), recorded, 0.0)
    assert again.session(TWO) is None


def test_answer_to_another_node_installs_nothing() -> None:
    one, two, three = boot(1), boot(2), boot(3)
    one.want(TWO, 0.0)
    (ask,) = messages(one)
    # Node 3 lets node 2 answer the nonce of node 1 to itself, and passes the answer on.
    two.receive(THREE, (THREE, True), ask, 0.0)
    (answer,) = messages(two)
    assert not one.receive(TWO, (THREE, True), answer, 0.0)
    # Node 3 claims that a boot key of its own is node 2's.
    message = decode_key_message(ask)
    assert isinstance(message, Ask)
    forged = Answer.signed(
        Identity(local_node(3), VIEW, delegations()), ONE, message.nonce, three.boot_key, b""
    ).encode()
    assert not one.receive(TWO, (THREE, True), forged, 0.0)
    assert one.session(TWO) is None
    # And the genuine answer still counts: what was forged did not use up the nonce.
    two.receive(ONE, (ONE, True), ask, 0.0)
    assert one.receive(TWO, (TWO, True), messages(two)[-1], 0.0)


def test_answer_that_nobody_asked_for_and_one_that_is_late_install_nothing() -> None:
    one, two = boot(1), boot(2)
    unasked = Answer.signed(Identity(local_node(2), VIEW, delegations()), ONE, bytes(32), two.boot_key, b"").encode()
    assert not one.receive(TWO, (TWO, True), unasked, 0.0)
    one.want(TWO, 0.0)
    two.receive(ONE, (ONE, True), messages(one)[0], 0.0)
    assert not one.receive(TWO, (TWO, True), messages(two)[0], NONCE_S)
    assert one.session(TWO) is None


@pytest.mark.parametrize("at", range(1, 274, 9))
def test_changed_byte_of_an_answer_installs_nothing(at: int) -> None:
    one, two = boot(1), boot(2)
    one.want(TWO, 0.0)
    two.receive(ONE, (ONE, True), messages(one)[0], 0.0)
    answer = bytearray(messages(two)[0])
    answer[at] ^= 1
    assert not one.receive(TWO, (TWO, True), bytes(answer), 0.0)
    assert one.session(TWO) is None


@pytest.mark.parametrize(
    "signer",
    [
        signer_of(2, now_s=NOW_S - VALID_AFTER_S),
        signer_of(2, now_s=NOW_S + VALID_BEFORE_S + 1),
        signer_of(2, Use.LINK_STATES),
        signer_of(2, mesh_epoch=1),
        signer_of(2, mesh_id=""),
        signer_of(2, identity=seed_of(3)),
        replace(signer_of(2), delegation=signer_of(3).delegation),
        replace(signer_of(2), signer=KeySigner(seed_of(2))),
    ],
    ids=[
        "over",
        "not-begun",
        "other-use",
        "other-epoch",
        "of-a-joiner",
        "other-identity",
        "other-node",
        "identity-key",
    ],
)
def test_answer_by_a_key_that_was_not_delegated_for_it_installs_nothing(signer: DelegatedSigner) -> None:
    one, two = boot(1), boot(2)
    one.want(TWO, 0.0)
    message = decode_key_message(messages(one)[0])
    assert isinstance(message, Ask)
    identity = Identity(replace(local_node(2), signer=signer), VIEW, delegations())
    answer = Answer.signed(identity, ONE, message.nonce, two.boot_key, b"")
    assert not one.receive(TWO, (TWO, True), answer.encode(), 0.0)
    assert one.session(TWO) is None
    # What is refused did not use up the nonce.
    two.receive(ONE, (ONE, True), message.encode(), 0.0)
    assert one.receive(TWO, (TWO, True), messages(two)[-1], 0.0)


def test_member_that_delegates_the_key_of_another_gains_nothing_that_it_signed() -> None:
    """Nobody proves to have the key that it delegates: so each statement names its signer (ID3)."""
    one, two = boot(1), boot(2)
    one.want(THREE, 0.0)
    message = decode_key_message(messages(one)[0])
    assert isinstance(message, Ask)
    theirs = signer_of(2).signer
    grantor = Grantor(local_node(3).public_key, local_node(3).mesh_id, 0, THREE)
    stolen = DelegatedSigner.signed(KeySigner(seed_of(3)), grantor, Use.LANES, theirs, NOW_S)
    # Node 2 answers a nonce that node 3 passed on; node 3 shows the answer as its own.
    honest = Answer.signed(Identity(local_node(2), VIEW, delegations()), ONE, message.nonce, two.boot_key, b"")
    assert not one.receive(THREE, (THREE, True), replace(honest, delegation=stolen.delegation).encode(), 0.0)
    assert one.session(THREE) is None


def test_renewed_delegation_is_no_other_boot() -> None:
    one, two = agreed()
    session, key = one.session(TWO), one.boot_key
    later = replace(local_node(1), signer=signer_of(1, now_s=NOW_S + 60))
    one.configure(later, VIEW)
    assert one.session(TWO) is session
    assert one.boot_key == key
    assert one.identity is not None
    assert one.identity.delegation == later.signer.delegation
    one.link_up(TWO, 9.0)
    exchange(one, two, 9.0)
    assert one.open(TWO, CONTROL, packet(two, 2, 1), 9.0) == b"x"


@pytest.mark.parametrize("payload", [b"", b"\x00", b"\x01" * 32, b"\x04" * 274, b"\x02" * 274, b"\x03" * 242])
def test_malformed_message_is_refused(payload: bytes) -> None:
    assert not boot(1).receive(TWO, (TWO, True), payload, 0.0)


def test_boot_key_of_low_order_is_refused() -> None:
    one = boot(1)
    one.want(TWO, 0.0)
    message = decode_key_message(messages(one)[0])
    assert isinstance(message, Ask)
    answer = Answer.signed(Identity(local_node(2), VIEW, delegations()), ONE, message.nonce, bytes(32), b"")
    assert not one.receive(TWO, (TWO, True), answer.encode(), 0.0)
    assert one.session(TWO) is None


def test_stranger_gets_neither_answer_nor_session() -> None:
    one = boot(1)
    one.want(NodeId(9), 0.0)
    assert not one.receive(NodeId(9), (TWO, True), Ask(bytes(32)).encode(), 0.0)
    assert messages(one) == []


def test_ask_is_repeated_ever_more_slowly_while_something_is_wanted() -> None:
    one = boot(1)
    asked, now = [], 0.0
    while now < 20.0:
        if now < 10.0:
            one.want(TWO, now)
        one.tick(now)
        asked += [round(now, 2)] * len(messages(one))
        now += 0.05
    gaps = [after - before for before, after in pairwise(asked)]
    assert gaps[:5] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6], abs=0.06)
    assert all(gap == pytest.approx(ASK_MAX_S, abs=0.06) for gap in gaps[5:])
    assert asked[-1] < 10.0 + packet_keys.WANT_S


def test_packet_under_unknown_keys_makes_the_peer_be_asked_but_a_flood_of_them_does_not_make_a_flood() -> None:
    one, two = agreed()
    restarted = boot(1)
    assert restarted.open(TWO, CONTROL, packet(two, 2, 1), 0.0) is SealFault.NO_SESSION
    exchange(restarted, two, 0.0)
    assert restarted.open(TWO, CONTROL, packet(two, 2, 1), 0.0) == b"x"
    forged = packet(two, 2, 1)._replace(key_id=7)
    for number in range(10_000):
        one.open(TWO, CONTROL, forged, number / 1000)
        one.tick(number / 1000)
    # It answers each time, with the same boot key: that changes nothing about the pace.
    assert len(messages(one)) <= 12


def test_previous_boot_of_a_peer_is_accepted_for_a_moment() -> None:
    one, two = agreed()
    late, later = packet(two, 2, 1), packet(two, 2, 1)
    restarted = boot(2)
    one.link_up(TWO, 1.0)
    exchange(one, restarted, 1.0)
    assert one.open(TWO, CONTROL, packet(restarted, 2, 1), 1.0) == b"x"
    assert one.open(TWO, CONTROL, late, 1.0 + PREVIOUS_S / 2) == b"x"
    assert one.open(TWO, CONTROL, late, 1.0 + PREVIOUS_S / 2) is SealFault.REPLAYED
    assert one.open(TWO, CONTROL, later, 1.0 + PREVIOUS_S) is SealFault.NO_SESSION


def test_same_boot_keys_are_the_same_session_with_its_counters() -> None:
    one, two = agreed()
    session = one.session(TWO)
    assert session is not None
    used = packet(one, 1, 2).counter
    one.configure(local_node(1), view_of(1, 3))
    assert one.session(TWO) is None
    one.configure(local_node(1), VIEW)
    one.link_up(TWO, 20.0)
    exchange(one, two, 20.0)
    assert one.session(TWO) is session
    assert packet(one, 1, 2).counter > used


def test_forgotten_session_never_uses_a_counter_again() -> None:
    """A peer that shows ever new boot keys makes old sessions be forgotten; one that came back starts beyond them."""
    one = boot(1, sessions_max=3)
    identity = Identity(local_node(2), VIEW, delegations())
    used: set[tuple[int, int]] = set()
    now = 0.0
    for number in (1, 2, 3, 4, 5, 6, 1, 2, 7, 1):
        now += 10.0
        one.link_up(TWO, now)
        message = decode_key_message(messages(one)[-1])
        assert isinstance(message, Ask)
        key = ExchangeKey(bytes((number,)) * 32)
        assert one.receive(TWO, (TWO, True), Answer.signed(identity, ONE, message.nonce, key.public, b"").encode(), now)
        for _ in range(number):
            part = packet(one, 1, 2)
            assert (part.key_id, part.counter) not in used
            used.add((part.key_id, part.counter))
    assert len(one._sessions) == 3


def test_member_that_shows_ever_new_boot_keys_costs_a_bounded_number_of_sessions() -> None:
    one, now = boot(1), 0.0
    identity = Identity(local_node(2), VIEW, delegations())
    for number in range(300):
        now += 10.0
        one.link_up(TWO, now)
        message = decode_key_message(messages(one)[-1])
        assert isinstance(message, Ask)
        key = ExchangeKey(number.to_bytes(32, "big"))
        assert one.receive(TWO, (TWO, True), Answer.signed(identity, ONE, message.nonce, key.public, b"").encode(), now)
    assert len(one._sessions) == packet_keys.SPARE_SESSIONS_MAX + 2


def test_another_identity_is_another_boot() -> None:
    one, _ = agreed()
    before = one.boot_key
    one.configure(local_node(3), VIEW)
    assert one.boot_key != before
    assert one.session(TWO) is None
    one.configure(None, None)
    one.want(TWO, 0.0)
    assert messages(one) == []


def test_evicted_member_has_no_session_any_more() -> None:
    one, two = agreed()
    late = packet(two, 2, 1)
    one.configure(local_node(1), view_of(1, 3, revision=2))
    assert one.open(TWO, CONTROL, late, 0.0) is SealFault.NO_SESSION
    assert messages(one) == []


def test_answers_are_limited_per_asker_and_per_neighbour_and_a_liar_uses_up_only_its_own() -> None:
    members = tuple(range(1, 300))
    two = boot(2, view_of(*members))
    for _ in range(1000):
        two.receive(ONE, (THREE, True), Ask(bytes(32)).encode(), 0.0)
    assert len(messages(two)) == ANSWERS_BURST
    for node in members:
        two.receive(NodeId(node), (THREE, True), Ask(bytes(32)).encode(), 0.0)
    assert len(messages(two)) <= NEIGHBOUR_BURST
    two.receive(ONE, (ONE, True), Ask(bytes(32)).encode(), 0.0)
    assert len(messages(two)) == 1
    two.receive(ONE, (THREE, True), Ask(bytes(32)).encode(), 1.0)
    assert len(messages(two)) == 1
