"""The database: what is newer, ageing by a fake clock, membership, the two-way check, versions."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh_routing.core.cost import link_cost
from mesh_routing.core.lsa import Lsa, LsaLink
from mesh_routing.core.lsdb import Change, Lsdb, Outcome
from meshcommon.cost_weights import CostWeights
from meshcommon.ids import NodeId

A, B, C = NodeId(1), NodeId(2), NodeId(3)
MAX_AGE_S = 100.0


def database() -> Lsdb:
    made = Lsdb(MAX_AGE_S)
    made.set_members(frozenset((A, B)))
    return made


def lsa(origin: NodeId, sequence: int, *peers: NodeId, latency_us: int = 1_000, age_s: float = 0.0) -> Lsa:
    return Lsa(origin, sequence, tuple(LsaLink(peer, latency_us) for peer in peers), age_s)


def test_higher_sequence_replaces_and_lower_does_not() -> None:
    made = database()
    assert made.offer(lsa(A, 5, B), 0) is Outcome.NEWER
    assert made.offer(lsa(A, 5, B), 0) is Outcome.DUPLICATE
    assert made.offer(lsa(A, 4), 0) is Outcome.OLDER
    assert made.offer(lsa(A, 6), 0) is Outcome.NEWER
    assert made.digest(0) == ((A, 6),)


@given(st.permutations([lsa(A, 5, B), lsa(A, 5), lsa(A, 5, B, latency_us=7), lsa(A, 4, B, C)]))
def test_any_order_of_arrival_ends_with_the_same(arrivals: list[Lsa]) -> None:
    """Also with two contents under one number."""
    made = database()
    for arrival in arrivals:
        made.offer(arrival, 0)
    assert made.get(A) == lsa(A, 5, B)


def test_unknown_origins_are_refused_and_removed_members_dropped() -> None:
    made = database()
    assert made.offer(lsa(C, 1, A), 0) is Outcome.UNKNOWN_ORIGIN
    made.offer(lsa(B, 1, A), 0)
    made.set_members(frozenset((A, C)))
    assert made.digest(0) == ()
    assert made.offer(lsa(B, 2, A), 0) is Outcome.UNKNOWN_ORIGIN


def test_age_counts_from_the_origin_and_the_purge_from_when_it_was_taken() -> None:
    made = database()
    made.offer(lsa(A, 1, age_s=30.0), 1_000.0)
    made.offer(lsa(B, 1), 1_040.0)
    told = made.told(A, 1_050.0)
    assert told is not None
    assert told.age_s == 80.0
    # Others would not take it any more, so it is neither sent nor named.
    assert made.told(A, 1_070.0) is None
    assert made.digest(1_070.0) == ((B, 1),)
    assert made.next_deadline() == 1_100.0
    assert made.purge(1_099.9) == []
    assert made.purge(1_100.0) == [A]
    # A refresh starts anew.
    made.offer(lsa(B, 2), 1_139.0)
    assert made.purge(1_140.0) == []


def test_no_age_that_a_sender_claims_drops_what_is_held() -> None:
    """A relay that ages honest advertisements gains nothing: the purge goes by this node's own clock."""
    made = Lsdb(1_200.0)
    made.set_members(frozenset((A, B)))
    made.offer(lsa(A, 1, age_s=1_199.0), 0)
    made.offer(lsa(B, 1), 0)
    assert made.offer(lsa(B, 1, age_s=5_000.0), 1) is Outcome.OVERAGED
    assert made.offer(lsa(B, 2, age_s=5_000.0), 1) is Outcome.EXPIRED
    assert made.purge(1_199.9) == []
    assert made.get(B) == lsa(B, 1)


def test_youngest_age_of_a_version_counts_but_never_less_than_the_time_it_was_held() -> None:
    made = Lsdb(1_200.0)
    made.set_members(frozenset((A, B)))
    made.offer(lsa(A, 1, age_s=1_199.0), 0)
    assert made.told(A, 10) is None
    assert made.offer(lsa(A, 1, age_s=12.0), 10) is Outcome.YOUNGER
    told = made.told(A, 20)
    assert told is not None
    assert told.age_s == 22.0
    assert made.offer(lsa(A, 1), 20) is Outcome.DUPLICATE
    assert made.offer(lsa(A, 1), 300) is Outcome.YOUNGER
    told = made.told(A, 300)
    assert told is not None
    assert told.age_s == 300.0


def test_expired_advertisement_is_not_taken_back() -> None:
    made = database()
    assert made.offer(lsa(A, 1, age_s=MAX_AGE_S), 0) is Outcome.EXPIRED
    assert made.digest(0) == ()


def test_link_counts_only_when_both_ends_advertise_it() -> None:
    made = database()
    made.offer(lsa(A, 1, B), 0)
    assert made.graph() == {A: {}}
    made.offer(lsa(B, 1), 0)
    assert made.graph() == {A: {}, B: {}}
    made.offer(lsa(B, 2, A, C, latency_us=9_000), 0)
    assert made.graph() == {A: {B: 3_000}, B: {A: 11_000}}
    assert [(row.origin, row.link.peer, row.is_two_way) for row in made.link_rows()] == [
        (A, B, True),
        (B, A, True),
        (B, C, False),
    ]


def test_version_and_change_tell_structure_metrics_and_mere_refresh_apart() -> None:
    made = database()
    seen = []
    for offered in (lsa(A, 1, B), lsa(A, 2, B), lsa(A, 3, B, latency_us=5), lsa(A, 4)):
        made.offer(offered, 0)
        seen.append((made.version, made.take_change()))
    assert seen == [(1, Change.STRUCTURE), (1, Change.NONE), (2, Change.METRICS), (3, Change.STRUCTURE)]
    made.purge(1_000)
    assert (made.version, made.take_change()) == (4, Change.STRUCTURE)


def test_cost_adds_latency_half_the_jitter_loss_administration_and_the_hop() -> None:
    weights = CostWeights()
    assert link_cost(LsaLink(B, 1_000, 500, 7, 10), weights) == 1_000 + 250 + 20 + 7 + 2_000
    assert link_cost(LsaLink(B, 0), CostWeights(hop_us=1)) == 1
