"""The database: what is newer, ageing by a fake clock, membership, the two-way check, versions."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh_routing.core.config import CostWeights
from mesh_routing.core.cost import link_cost
from mesh_routing.core.lsa import Lsa, LsaLink
from mesh_routing.core.lsdb import Change, Lsdb, Outcome
from meshcommon.ids import NodeId

A, B, C = NodeId(1), NodeId(2), NodeId(3)
MAX_AGE_S = 100.0


def database() -> Lsdb:
    made = Lsdb(MAX_AGE_S, CostWeights())
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
    assert made.digest() == ((A, 6),)


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
    assert made.digest() == ()
    assert made.offer(lsa(B, 2, A), 0) is Outcome.UNKNOWN_ORIGIN


def test_age_counts_from_the_origin_and_ends_in_a_purge() -> None:
    made = database()
    made.offer(lsa(A, 1, age_s=30.0), 1_000.0)
    made.offer(lsa(B, 1), 1_000.0)
    aged = made.aged(A, 1_050.0)
    assert aged is not None
    assert aged.age_s == 80.0
    assert made.next_deadline() == 1_070.0
    assert made.purge(1_069.9) == []
    assert made.purge(1_070.0) == [A]
    assert made.digest() == ((B, 1),)
    # A refresh starts anew.
    made.offer(lsa(B, 2), 1_099.0)
    assert made.purge(1_100.0) == []


def test_expired_advertisement_is_not_taken_back() -> None:
    made = database()
    assert made.offer(lsa(A, 1, age_s=MAX_AGE_S), 0) is Outcome.EXPIRED
    assert made.digest() == ()


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
    assert link_cost(LsaLink(B, 1_000, 500, 10, 7), weights) == 1_000 + 250 + 20 + 7 + 2_000
    assert link_cost(LsaLink(B, 0), CostWeights(hop_us=0)) == 1
