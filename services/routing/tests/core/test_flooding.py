"""Flooding between one node and its neighbours, step by step."""

from __future__ import annotations

from mesh_routing.core.config import CostWeights, preset
from mesh_routing.core.flooding import MESSAGE_LINKS_MAX, Flooding, OwnLsaMet
from mesh_routing.core.lsa import Lsa, LsaKey, LsaLink, LsaMessage
from mesh_routing.core.lsdb import Lsdb
from meshcommon.ids import NodeId

CONFIG = preset("test")
A, B, C = NodeId(1), NodeId(2), NodeId(3)
EVERYONE = frozenset(NodeId(number) for number in range(1, 3_000))


def lsa(origin: NodeId, sequence: int, *peers: NodeId) -> Lsa:
    return Lsa(origin, sequence, tuple(LsaLink(peer, 1_000) for peer in peers))


def flooding(*up: NodeId) -> Flooding:
    """Node a, its own advertisement at 10, the given links up and their first exchange answered."""
    lsdb = Lsdb(CONFIG.max_age_s, CostWeights())
    lsdb.set_members(EVERYONE)
    made = Flooding(CONFIG, A, lsdb)
    made.flood_own(lsa(A, 10, *up), 0.0)
    for peer in up:
        made.link_up(peer, 0.0)
    made.take_outgoing()
    for peer in up:
        made.receive(peer, LsaMessage(database=lsdb.digest()), 0.0)
    made.take_outgoing()
    assert made.next_deadline() is None
    return made


def versions(message: LsaMessage) -> list[LsaKey]:
    return [sent.key for sent in message.lsas]


def test_link_up_sends_own_advertisement_and_digest_until_answered() -> None:
    made = flooding()
    made.link_up(B, 1.0)
    [(peer, message)] = made.take_outgoing()
    assert (peer, versions(message), message.database) == (B, [(A, 10)], ((A, 10),))
    sent_at: list[float] = []
    while len(sent_at) < 7:
        deadline = made.next_deadline()
        assert deadline is not None
        made.tick(deadline)
        [(_, again)] = made.take_outgoing()
        assert (versions(again), again.database) == (versions(message), message.database)
        sent_at.append(round(deadline, 3))
    assert sent_at == [1.1, 1.3, 1.7, 2.5, 4.1, 6.1, 8.1]
    made.receive(B, LsaMessage(database=(LsaKey(A, 10),)), 9.0)
    assert made.next_deadline() is None


def test_synchronised_once_every_neighbour_was_heard_in_full() -> None:
    made = flooding()
    made.link_up(B, 1.0)
    before = made.is_synchronised
    made.receive(B, LsaMessage(database=(LsaKey(A, 10), LsaKey(B, 2))), 1.0)
    with_gap = made.is_synchronised
    made.receive(B, LsaMessage((lsa(B, 2),)), 1.0)
    assert (before, with_gap, made.is_synchronised) == (False, False, True)


def test_newer_is_acknowledged_to_its_sender_and_flooded_to_the_others() -> None:
    made = flooding(B, C)
    made.receive(B, LsaMessage((lsa(B, 7, A),)), 1.0)
    outgoing = dict(made.take_outgoing())
    assert outgoing[B] == LsaMessage(acks=(LsaKey(B, 7),))
    assert outgoing[C] == LsaMessage((lsa(B, 7, A),))
    made.tick(1.0 + CONFIG.retransmit_first_s)
    assert [(peer, versions(message)) for peer, message in made.take_outgoing()] == [(C, [(B, 7)])]
    made.receive(C, LsaMessage(acks=(LsaKey(B, 7),)), 1.2)
    assert made.next_deadline() is None


def test_duplicate_is_acknowledged_and_counts_as_an_acknowledgement() -> None:
    made = flooding(B, C)
    made.receive(B, LsaMessage((lsa(B, 7, A),)), 1.0)
    made.take_outgoing()
    made.receive(C, LsaMessage((lsa(B, 7, A),)), 1.0)
    assert made.take_outgoing() == [(C, LsaMessage(acks=(LsaKey(B, 7),)))]
    assert made.next_deadline() is None


def test_acknowledgement_of_an_older_version_does_not_end_the_repetition() -> None:
    made = flooding(B)
    made.flood_own(lsa(A, 11, B), 1.0)
    made.receive(B, LsaMessage(acks=(LsaKey(A, 10),)), 1.0)
    assert made.next_deadline() == 1.0 + CONFIG.retransmit_first_s


def test_older_is_answered_with_the_newer_one() -> None:
    made = flooding(B)
    made.receive(B, LsaMessage((lsa(C, 7),)), 1.0)
    made.take_outgoing()
    made.receive(B, LsaMessage((lsa(C, 6, A),)), 1.0)
    assert made.take_outgoing() == [(B, LsaMessage((lsa(C, 7),)))]


def test_unknown_origin_is_not_acknowledged() -> None:
    made = flooding(B)
    made.receive(B, LsaMessage((lsa(NodeId(9_999), 7),)), 1.0)
    assert made.take_outgoing() == []
    assert made.counters.unknown_origins == 1


def test_own_advertisement_of_an_earlier_life_is_reported() -> None:
    made = flooding(B)
    made.receive(B, LsaMessage((lsa(A, 50, C), lsa(A, 10, C), lsa(A, 10, B))), 1.0)
    made.receive(B, LsaMessage(database=(LsaKey(A, 60),)), 1.0)
    assert made.take_events() == [OwnLsaMet(50), OwnLsaMet(10), OwnLsaMet(60)]
    assert made.take_events() == []


def test_digest_brings_what_its_sender_lacks_and_a_digest_back() -> None:
    made = flooding(B)
    made.receive(B, LsaMessage((lsa(C, 7),)), 1.0)
    made.take_outgoing()
    made.receive(B, LsaMessage(database=(LsaKey(A, 9), LsaKey(B, 4))), 2.0)
    [(_, message)] = made.take_outgoing()
    assert versions(message) == [(A, 10), (C, 7)]
    assert message.database == ((A, 10), (C, 7))


def test_equal_digests_fall_silent() -> None:
    made = flooding(B)
    made.receive(B, LsaMessage(database=(LsaKey(A, 10),)), 100.0)
    [(_, answer)] = made.take_outgoing()
    assert answer.database == ((A, 10),)
    made.receive(B, LsaMessage(database=(LsaKey(A, 10),)), 100.5)
    assert made.take_outgoing() == []


def test_neighbour_that_speaks_before_its_link_is_reported_is_answered_once() -> None:
    made = flooding()
    made.receive(B, LsaMessage((lsa(B, 7, A),), (), (LsaKey(B, 7),)), 1.0)
    [(peer, message)] = made.take_outgoing()
    assert (peer, versions(message), message.acks) == (B, [(A, 10)], ((B, 7),))
    assert made.next_deadline() is None
    assert made.neighbours == frozenset()


def test_link_down_and_removed_members_end_the_repetition() -> None:
    made = flooding(B, C)
    made.receive(B, LsaMessage((lsa(NodeId(4), 1),)), 1.0)
    made.forget([NodeId(4)])
    assert made.next_deadline() is None
    made.flood_own(lsa(A, 11, B), 2.0)
    made.link_down(B)
    made.receive(C, LsaMessage(acks=(LsaKey(A, 11),)), 2.0)
    assert made.next_deadline() is None


def test_large_database_is_split_into_bounded_messages() -> None:
    made = flooding()
    for origin in range(2, 3_000):
        made.receive(B, LsaMessage((lsa(NodeId(origin), 1, A),)), 0.0)
    made.take_outgoing()
    made.link_up(C, 1.0)
    made.receive(C, LsaMessage(database=()), 1.0)
    messages = [message for peer, message in made.take_outgoing() if peer == C]
    sizes = [sum(len(sent.links) + 1 for sent in message.lsas) for message in messages]
    assert sum(len(message.lsas) for message in messages) == 2_999
    assert max(sizes) <= MESSAGE_LINKS_MAX
    assert [message.database is not None for message in messages] == [False] * (len(messages) - 1) + [True]
