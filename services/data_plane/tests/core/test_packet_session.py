"""Sessions: seals that only the other end can make, nonces that are used once, counters that are accepted once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh_data.core.key_agreement import ExchangeKey
from mesh_data.core.packet_session import REPLAY_WINDOW, Boot, PacketSession, ReplayWindow, SealFault
from meshcommon.ids import NodeId
from meshwire.packet import Protocol, SealedPart, TrafficClass, encode_sealed, sealed_part

MESH = "0b8e1f0a-5c1d-4e0f-9a53-2f6f0e6d9c01"
CONTROL, BULK = TrafficClass.CONTROL, TrafficClass.BULK


def pair(epoch: int = 0, mesh: str = MESH, first_counter: int = 0) -> tuple[PacketSession, PacketSession]:
    """Both ends of one session, of nodes 1 and 2."""
    keys = ExchangeKey(b"1" * 32), ExchangeKey(b"2" * 32)
    boots = Boot(NodeId(1), keys[0].public), Boot(NodeId(2), keys[1].public)
    secrets = keys[0].secret(keys[1].public), keys[1].secret(keys[0].public)
    assert secrets[0] is not None
    assert secrets[0] == secrets[1]
    return (
        PacketSession(secrets[0], mesh, epoch, boots[0], boots[1], first_counter),
        PacketSession(secrets[0], mesh, epoch, boots[1], boots[0], first_counter),
    )


def sealed(session: PacketSession, cls: TrafficClass = CONTROL, payload: bytes = b"vote") -> bytes:
    return encode_sealed(session, cls, Protocol.RAFT_MCG, (1, 2), (), payload, flow=0, message_id=1)


def part(session: PacketSession, cls: TrafficClass = CONTROL) -> SealedPart:
    return sealed_part(sealed(session, cls), 0)


def test_both_ends_have_the_same_key_id_and_open_each_other() -> None:
    one, two = pair()
    assert one.key_id == two.key_id
    assert two.open(CONTROL, part(one)) == b"vote"
    assert one.open(CONTROL, part(two)) == b"vote"


def test_own_packet_returned_is_not_accepted() -> None:
    one, _ = pair()
    assert one.open(CONTROL, part(one)) is SealFault.BAD_SEAL


@pytest.mark.parametrize(("epoch", "mesh"), [(1, MESH), (0, MESH[:-1] + "2")])
def test_keys_of_another_mesh_or_epoch_are_others(epoch: int, mesh: str) -> None:
    _, two = pair()
    other, _ = pair(epoch, mesh)
    assert other.key_id != two.key_id
    assert two.open(CONTROL, part(other)) is SealFault.BAD_SEAL


def test_classes_count_by_themselves_and_their_tags_are_not_exchangeable() -> None:
    one, two = pair()
    first = part(one, BULK)
    assert two.open(CONTROL, first) is SealFault.BAD_SEAL
    assert two.open(BULK, first) == b"vote"
    assert two.open(CONTROL, part(one, CONTROL)) == b"vote"


def test_packet_is_accepted_once() -> None:
    one, two = pair()
    packet = part(one)
    assert two.open(CONTROL, packet) == b"vote"
    assert two.open(CONTROL, packet) is SealFault.REPLAYED


def test_forged_packet_does_not_use_up_its_counter() -> None:
    one, two = pair()
    genuine = part(one)
    assert two.open(CONTROL, genuine._replace(sealed=memoryview(bytes(20)))) is SealFault.BAD_SEAL
    assert two.open(CONTROL, genuine) == b"vote"


def test_first_counter_is_beyond_what_was_used_before() -> None:
    one, _ = pair(first_counter=1000)
    assert part(one).counter == 1001
    assert one.highest_counter == 1001


def test_payload_does_not_show_in_the_packet() -> None:
    one, two = pair()
    secret = b"meter reading of plant 7"
    data = sealed(one, payload=secret)
    assert not any(secret[at : at + 4] in data for at in range(len(secret) - 3))
    assert two.open(CONTROL, sealed_part(data, 0)) == secret


@pytest.mark.parametrize("late_by", [1, REPLAY_WINDOW - 1])
def test_keys_change_every_65536_packets_and_stragglers_still_open(late_by: int) -> None:
    one, two = pair(first_counter=2**16 - 1 - late_by)
    straggler, *others = [part(one) for _ in range(late_by + 1)]
    # The key behind the boundary is another one: the same counter under the former key would open nothing.
    assert [two.open(CONTROL, item) for item in others] == [b"vote"] * len(others)
    assert others[-1].counter >> 16 == 1
    assert two.open(CONTROL, straggler) == b"vote"
    assert two.open(CONTROL, part(one)) == b"vote"


def test_forged_counters_far_ahead_do_not_disturb_the_session() -> None:
    one, two = pair()
    assert two.open(CONTROL, part(one)) == b"vote"
    for counter in (2**40, 2**64 - 1):
        forged = SealedPart(one.key_id, counter, b"", memoryview(bytes(20)))
        assert two.open(CONTROL, forged) is SealFault.BAD_SEAL
    assert two.open(CONTROL, part(one)) == b"vote"


def test_ciphertexts_of_two_generations_differ() -> None:
    nothing = b"\0" * 32
    first, _ = pair()
    second, _ = pair(first_counter=2**16)
    ciphertexts = {
        session.seal(CONTROL, counter, nothing, b"") for session, counter in ((first, 5), (second, 2**16 + 5))
    }
    assert len(ciphertexts) == 2


def test_every_nonce_is_used_once() -> None:
    one, _ = pair()
    nonces = {(cls, part(one, cls).counter) for cls in TrafficClass for _ in range(100)}
    assert len(nonces) == 300


@given(st.lists(st.integers(0, 3 * REPLAY_WINDOW) | st.integers(2**64 - 5, 2**64 - 1), max_size=60))
def test_replay_window_agrees_with_a_set_of_all_counters(counters: list[int]) -> None:
    window, accepted, top = ReplayWindow(), set[int](), 0
    for counter in counters:
        expected = counter > 0 and counter not in accepted and top - counter < REPLAY_WINDOW
        assert window.is_new(counter) == expected
        if expected:
            window.accept(counter)
            accepted.add(counter)
            top = max(top, counter)


def test_replay_window_has_room_for_exactly_its_width() -> None:
    window = ReplayWindow()
    window.accept(REPLAY_WINDOW + 1)
    assert window.is_new(2)
    assert not window.is_new(1)
    window.accept(2)
    assert not window.is_new(2)
