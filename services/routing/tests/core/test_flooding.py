"""Flooding between one node and its neighbours, step by step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mesh_routing.core.config import preset
from mesh_routing.core.flooding import MESSAGE_LINKS_MAX, Flooding, OwnLsaMet
from mesh_routing.core.lsa import SEQUENCE_MAX, Lsa, LsaKey, LsaLink, LsaMessage
from mesh_routing.core.lsa_signature import LsaSignatures
from mesh_routing.core.lsdb import Lsdb
from meshcommon import delegation
from meshcommon.delegation import VALID_AFTER_S, Delegations, Use
from meshcommon.ids import NodeId
from meshtest.delegated import NOW_S, delegated_signer

CONFIG = preset("test")
A, B, C = NodeId(1), NodeId(2), NodeId(3)
SIGNERS = {
    NodeId(number): delegated_signer(
        number.to_bytes(32, "big"), "mesh", number, Use.LINK_STATES, mesh_epoch=1, now_s=NOW_S
    )
    for number in range(1, 901)
}
SIGNATURES = LsaSignatures("mesh", 1, Delegations(lambda: NOW_S))
SIGNATURES.set_keys({node: signer.identity_key for node, signer in SIGNERS.items()})


def lsa(origin: NodeId, sequence: int, *peers: NodeId, signer: NodeId | None = None) -> Lsa:
    """An advertisement, signed by its origin or by another node."""
    unsigned = Lsa(origin, sequence, tuple(LsaLink(peer, 1_000) for peer in peers))
    return SIGNATURES.sign(unsigned, SIGNERS[signer or origin])


def flooding(*up: NodeId) -> Flooding:
    """Node a, its own advertisement at 10, the given links up and their first exchange answered."""
    lsdb = Lsdb(CONFIG.max_age_s)
    lsdb.set_members(frozenset(SIGNERS))
    made = Flooding(CONFIG, A, lsdb, SIGNATURES)
    made.flood_own(lsa(A, 10, *up), 0.0)
    for peer in up:
        made.link_up(peer, 0.0)
    made.take_outgoing()
    for peer in up:
        made.receive(peer, LsaMessage(database=lsdb.digest(0.0)), 0.0)
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
    made.receive(B, LsaMessage((Lsa(NodeId(9_999), 7, ()),)), 1.0)
    assert made.take_outgoing() == []
    assert made.counters.unknown_origins == 1


def test_own_advertisement_of_an_earlier_life_is_reported() -> None:
    made = flooding(B)
    made.receive(B, LsaMessage((lsa(A, 50, C), lsa(A, 10, C), lsa(A, 10, B))), 1.0)
    assert made.take_events() == [OwnLsaMet(50), OwnLsaMet(10)]
    assert made.take_events() == []


def test_own_number_in_a_digest_is_not_believed_but_asked_for() -> None:
    made = flooding(B)
    made.receive(B, LsaMessage(database=(LsaKey(A, SEQUENCE_MAX), LsaKey(B, 3))), 1.0)
    assert made.take_events() == []
    [(_, answer)] = made.take_outgoing()
    # The neighbour answers this digest with what it says that it holds.
    assert answer.database == ((A, 10),)
    assert made.is_synchronised is False
    made.receive(B, LsaMessage((lsa(B, 3),)), 1.0)
    assert made.is_synchronised


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
    made = flooding(B)
    for origin in range(2, 901):
        made.receive(B, LsaMessage((lsa(NodeId(origin), 1, A),)), 0.0)
    made.take_outgoing()
    made.link_up(C, 1.0)
    made.receive(C, LsaMessage(database=()), 1.0)
    messages = [message for peer, message in made.take_outgoing() if peer == C]
    sizes = [sum(len(sent.links) + 4 for sent in message.lsas) for message in messages]
    assert sum(len(message.lsas) for message in messages) == 900
    assert max(sizes) <= MESSAGE_LINKS_MAX
    assert [message.database is not None for message in messages] == [False] * (len(messages) - 1) + [True]


def test_stream_of_empty_digests_is_not_answered_by_a_stream_of_databases() -> None:
    made = flooding(B)
    made.receive(B, LsaMessage(tuple(lsa(NodeId(origin), 1) for origin in range(3, 103))), 1.0)
    made.take_outgoing()
    sent = 0
    for step in range(1_000):
        made.receive(B, LsaMessage(database=()), 2.0 + step / 10_000)
        sent += sum(len(message.lsas) for _, message in made.take_outgoing())
    # In a tenth of a second, at most twice.
    assert 101 <= sent <= 3 * 101


@pytest.mark.parametrize(
    "forged",
    [
        lsa(C, 7, A, signer=B),
        replace(lsa(C, 7, A), sequence=8),
        replace(lsa(C, 7, A), origin=NodeId(4)),
        replace(lsa(C, 7, A), links=(LsaLink(A, 1_001),)),
        replace(lsa(C, 7, A), links=()),
        replace(lsa(C, 7, A), signature=bytes(64)),
        replace(lsa(C, 7, A), signature=b""),
        lsa(A, 2**62, C, signer=B),
        replace(lsa(A, 11, C), sequence=SEQUENCE_MAX - 1),
    ],
)
def test_forged_advertisement_is_neither_taken_nor_acknowledged_nor_passed_on(forged: Lsa) -> None:
    made = flooding(B, C)
    made.receive(B, LsaMessage((forged,)), 1.0)
    assert (made.take_outgoing(), made.take_events()) == ([], [])
    assert (made.counters.bad_signatures, made.counters.installed) == (1, 0)
    assert made.last_forgery == (B, forged.origin, False)
    # The honest one, sent by the same neighbour.
    made.receive(B, LsaMessage((lsa(C, 7, A),)), 1.0)
    assert [peer for peer, _ in made.take_outgoing()] == [B, C]


def test_replayed_older_version_is_answered_with_the_newer_one() -> None:
    made = flooding(B)
    for sequence in (7, 8):
        made.receive(B, LsaMessage((lsa(C, sequence, A),)), 1.0)
    made.take_outgoing()
    made.receive(B, LsaMessage((lsa(C, 7, A),)), 1.0)
    assert made.take_outgoing() == [(B, LsaMessage((lsa(C, 8, A),)))]


def test_advertisement_by_a_delegation_that_is_over_is_told_from_a_forgery() -> None:
    made = flooding(B, C)
    signer = delegated_signer(
        C.to_bytes(32, "big"), "mesh", C, Use.LINK_STATES, mesh_epoch=1, now_s=NOW_S - VALID_AFTER_S
    )
    made.receive(B, LsaMessage((SIGNATURES.sign(lsa(C, 7), signer),)), 1.0)
    assert made.take_outgoing() == []
    assert made.last_forgery == (B, C, True)


def test_flood_of_ever_new_delegations_costs_no_more_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check of a delegation counts like one of a statement."""
    made, checks = flooding(B, C), 0
    is_signed = delegation._is_signed

    def count(*arguments: Any) -> bool:
        nonlocal checks
        checks += 1
        return is_signed(*arguments)

    monkeypatch.setattr(delegation, "_is_signed", count)
    for step in range(1_500):
        signer = delegated_signer(
            C.to_bytes(32, "big"), "mesh", C, Use.LINK_STATES, mesh_epoch=1, now_s=NOW_S - 1 - step
        )
        unsigned = replace(lsa(C, 7), sequence=7 + step, signature=bytes(64), delegation=signer.delegation)
        made.receive(B, LsaMessage((unsigned,)), 1.0)
    assert (checks, made.counters.bad_signatures, made.counters.over_limit) == (2_000, 1_000, 500)


def test_flood_of_forgeries_uses_up_only_the_budget_of_its_sender() -> None:
    made = flooding(B, C)
    assert SIGNATURES.is_valid(lsa(C, 7)), "its delegation is remembered"
    rejected = replace(lsa(C, 7), signature=bytes(64))
    for step in range(3_000):
        made.receive(B, LsaMessage((replace(rejected, sequence=7 + step),)), 1.0)
    assert (made.counters.bad_signatures, made.counters.over_limit) == (2_000, 1_000)
    # Unread, so not acknowledged: it comes again.
    made.receive(B, LsaMessage((lsa(C, 9_000),)), 1.0)
    assert made.take_outgoing() == []
    made.receive(C, LsaMessage((lsa(C, 9_000),)), 1.0)
    assert dict(made.take_outgoing())[C].acks == ((C, 9_000),)
    made.receive(B, LsaMessage((lsa(B, 5),)), 2.0)
    assert dict(made.take_outgoing())[B].acks == ((B, 5),)


def test_member_that_signs_without_end_is_slowed_here_and_ends_with_its_newest() -> None:
    made = flooding(B, C)
    for sequence in range(1, 501):
        made.receive(B, LsaMessage((lsa(B, sequence),)), 1.0 + sequence / 1_000)
    assert made.counters.installed == 22
    made.receive(C, LsaMessage((lsa(C, 1),)), 1.5)
    assert made.counters.installed == 23
    made.receive(B, LsaMessage((lsa(B, 500),)), 2.0)
    assert dict(made.take_outgoing())[B].acks[-1] == (B, 500)


def test_aged_copy_is_answered_with_the_young_one_which_then_goes_on() -> None:
    """M has aged what A sends on; B hears it from M first, later from A."""
    aged = replace(lsa(C, 7), age_s=1_199.5)
    honest = flooding(B)
    honest.receive(B, LsaMessage((lsa(C, 7),)), 1.0)
    honest.take_outgoing()
    honest.receive(B, LsaMessage((aged,)), 1.0)
    [(_, answer)] = honest.take_outgoing()
    assert (answer.lsas, answer.acks) == ((lsa(C, 7),), ((C, 7),))
    fooled = flooding(B, C)
    fooled.receive(C, LsaMessage((aged,)), 1.0)
    assert [peer for peer, _ in fooled.take_outgoing()] == [C]
    fooled.receive(B, LsaMessage((lsa(C, 7),)), 2.0)
    assert dict(fooled.take_outgoing())[C].lsas[0].age_s < 3.0


def test_stranger_is_heard_only_as_a_member_and_not_without_end() -> None:
    made = flooding()
    made.receive(NodeId(9_999), LsaMessage(database=()), 1.0)
    assert made.take_outgoing() == []
    for _ in range(1_000):
        made.receive(B, LsaMessage(database=()), 1.0)
        made.take_outgoing()
    assert made.counters.strangers == 1 + 980
