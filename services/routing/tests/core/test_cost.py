"""The cost of a link by terms and class, and that noise in measurements moves no traffic."""

from __future__ import annotations

import random
from dataclasses import asdict, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh_routing.core.config import preset
from mesh_routing.core.cost import CostTerms, cost_terms, link_cost
from mesh_routing.core.lsa import Lsa, LsaLink
from mesh_routing.core.lsdb import Change, Lsdb
from mesh_routing.core.origination import LocalLink, Origination
from mesh_routing.core.route_table import Hysteresis, Path, Route
from mesh_routing.core.route_work import compute_routes
from mesh_routing.core.spf import path_cost
from meshcommon.cost_weights import COST_US_MAX, DEFAULTS, PERMILLE_MAX, CostWeights
from meshcommon.ids import NodeId
from meshwire.packet import TrafficClass

A, B, C = NodeId(1), NodeId(2), NodeId(3)
CONFIG = preset("test")
weights_strategy = st.builds(
    CostWeights,
    st.integers(0, PERMILLE_MAX),
    st.integers(0, PERMILLE_MAX),
    st.integers(0, COST_US_MAX),
    st.integers(0, COST_US_MAX),
    st.integers(0, COST_US_MAX),
    st.integers(1, COST_US_MAX),
)
u32 = st.integers(0, 2**32 - 1)


@st.composite
def link_pairs(draw: st.DrawFn) -> tuple[LsaLink, LsaLink]:
    """A link, and one that is no better in anything. Either both are measured or neither."""
    values, worse = [], []
    for _ in range(3):
        value = draw(u32)
        values.append(value)
        worse.append(draw(st.integers(value, 2**32 - 1)))
    measured: list[int | None] = [None, None, None]
    measured_worse: list[int | None] = [None, None, None]
    if draw(st.booleans()):
        loss, bandwidth, used = (
            draw(st.integers(0, 10**6)),
            draw(st.integers(1, 2**32 - 2)),
            draw(st.integers(0, 1_000)),
        )
        measured = [loss, bandwidth, used]
        measured_worse = [
            draw(st.integers(loss, 10**6)),
            draw(st.integers(1, bandwidth)),
            draw(st.integers(used, 1_000)),
        ]
    return LsaLink(B, *values, *measured), LsaLink(B, *worse, *measured_worse)


def test_each_term_is_what_its_weight_says() -> None:
    link = LsaLink(B, 1_000, 500, 7, loss_ppm=10_000, bandwidth_kbit=20_000, utilisation_permille=250)
    weights = CostWeights(1_500, 500, 1_000_000, 8_000, 20_000, 2_000)
    terms = cost_terms(link, weights)
    assert terms == CostTerms(1_500, 250, 50_000, 2_000, 20_000, 2_000, 7)
    assert terms.total == link_cost(link, weights) == sum(terms)


def test_what_is_not_measured_costs_nothing_and_says_so() -> None:
    terms = cost_terms(LsaLink(B, 1_000), DEFAULTS[TrafficClass.BULK])
    assert terms == CostTerms(latency=1_000, hops=2_000)
    assert LsaLink(B, 1_000) != replace(LsaLink(B, 1_000), loss_ppm=0)


def test_bulk_takes_the_wide_way_and_control_the_fast_one() -> None:
    """One topology, two classes, two best paths."""
    narrow = {"bandwidth_kbit": 2_000}
    wide = {"bandwidth_kbit": 1_000_000}
    lsdb = Lsdb(100.0)
    lsdb.set_members(frozenset((A, B, C)))
    lsdb.offer(Lsa(A, 1, (LsaLink(B, 5_000, **narrow), LsaLink(C, 5_000, **wide))), 0.0)
    lsdb.offer(Lsa(B, 1, (LsaLink(A, 5_000, **narrow), LsaLink(C, 5_000, **wide))), 0.0)
    lsdb.offer(Lsa(C, 1, (LsaLink(A, 5_000, **wide), LsaLink(B, 5_000, **wide))), 0.0)
    best = {
        item: compute_routes(lsdb.graph(item), A, 16)[B].paths[0] for item in (TrafficClass.CONTROL, TrafficClass.BULK)
    }
    assert best[TrafficClass.CONTROL].nodes == (A, B)
    assert best[TrafficClass.BULK].nodes == (A, C, B)
    for item, path in best.items():
        assert lsdb.terms(path.nodes, item).total == path.cost


def test_other_weights_are_another_topology() -> None:
    lsdb = Lsdb(100.0)
    lsdb.set_members(frozenset((A, B)))
    lsdb.offer(Lsa(A, 1, (LsaLink(B, 1_000),)), 0.0)
    lsdb.offer(Lsa(B, 1, (LsaLink(A, 1_000),)), 0.0)
    assert lsdb.graph()[A][B] == 3_000
    lsdb.take_change()
    before = lsdb.version
    lsdb.set_weights(DEFAULTS)
    assert (lsdb.version, lsdb.take_change()) == (before, Change.NONE)
    lsdb.set_weights({**DEFAULTS, TrafficClass.CONTROL: CostWeights(hop_us=5)})
    assert (lsdb.version, lsdb.take_change(), lsdb.graph()[A][B]) == (before + 1, Change.METRICS, 1_005)


@given(link_pairs(), link_pairs(), weights_strategy)
def test_two_links_slower_than_one_never_beat_it(
    first: tuple[LsaLink, LsaLink], second: tuple[LsaLink, LsaLink], weights: CostWeights
) -> None:
    """Whatever the weights, and also where the two are in use already."""
    better, worse = first
    one, two = link_cost(better, weights), link_cost(worse, weights) + link_cost(second[0], weights)
    assert one < two
    graph = {A: {B: one, C: link_cost(worse, weights)}, C: {B: link_cost(second[0], weights)}, B: {}}
    used = {B: Route(B, (Path((A, C, B), two),))}
    assert compute_routes(graph, A, 16, Hysteresis(used, 0.9, 2**60))[B].paths[0].nodes == (A, B)


def test_path_in_use_gives_way_only_to_a_clearly_better_one() -> None:
    keep = Hysteresis({B: Route(B, (Path((A, B), 10_000),))}, ratio=0.1, least_us=500)
    for relay, expected in ((4_600, (A, B)), (4_400, (A, C, B))):
        graph = {A: {B: 10_000, C: relay}, C: {B: 4_500}, B: {}}
        assert compute_routes(graph, A, 16, keep)[B].paths[0].nodes == expected
        assert compute_routes(graph, A, 16)[B].paths[0].nodes == (A, C, B)


def test_path_in_use_that_is_broken_is_not_kept() -> None:
    keep = Hysteresis({B: Route(B, (Path((A, B), 10_000),))}, ratio=0.9, least_us=10**9)
    graph = {A: {C: 4_600}, C: {B: 4_500}, B: {}}
    assert compute_routes(graph, A, 16, keep)[B].paths[0].nodes == (A, C, B)


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.floats(0.01, 0.15), st.integers(200, 60_000))
def test_noise_changes_neither_advertisements_nor_routes(seed: int, noise: float, base_us: int) -> None:
    """Two ways of about the same cost, every measurement wavering: an hour of it moves nothing."""
    rng = random.Random(seed)
    made = Origination(CONFIG, A, 1)
    used, switches, told = Hysteresis(ratio=CONFIG.hysteresis_ratio, least_us=CONFIG.hysteresis_us), 0, 0
    for second in range(3_600):
        measured = [
            LocalLink(peer, round(base_us * rng.uniform(1 - noise / 2, 1 + noise / 2)), rng.randrange(50))
            for peer in (B, C)
        ]
        made.set_links(measured)
        lsa = made.take_due(float(second))
        if lsa is None:
            continue
        told += 1
        costs = {link.peer: link_cost(link, DEFAULTS[TrafficClass.CONTROL]) for link in lsa.links}
        graph = {A: costs, B: {NodeId(9): 1_000}, C: {NodeId(9): 1_000}, NodeId(9): {}}
        routes = compute_routes(graph, A, 16, used)
        path = routes[NodeId(9)].paths[0]
        assert path_cost(graph, path.nodes) == path.cost
        switches += bool(used.routes) and used.routes[NodeId(9)].paths[0].nodes != path.nodes
        used = replace(used, routes=routes)
    assert switches == 0
    assert told <= 1 + 3_600 / CONFIG.refresh_s


@settings(max_examples=10)
@given(st.integers(0, 2**32))
def test_link_that_wavers_wildly_is_told_of_ever_more_seldom(seed: int) -> None:
    """Damping: the hold-down doubles, and is short again after quiet."""
    rng = random.Random(seed)
    made, times = Origination(CONFIG, A, 1), []
    for tick in range(6_000):
        made.set_links([LocalLink(B, rng.choice([10_000, 100_000]), 0)])
        if made.take_due(tick / 10) is not None:
            times.append(tick / 10)
    undamped = 600 / CONFIG.metric_hold_down_s
    assert len(times) <= 5 + 600 / CONFIG.metric_hold_down_max_s < undamped / 4
    made.take_due(600 + CONFIG.metric_hold_down_max_s)
    quiet_until = 600 + 6 * CONFIG.metric_hold_down_max_s
    made.set_links([LocalLink(B, 1_000_000, 0)])
    assert made.take_due(quiet_until) is not None
    made.set_links([LocalLink(B, 10_000, 0)])
    assert made.next_deadline() == quiet_until + CONFIG.metric_hold_down_s


@pytest.mark.parametrize(
    "measurement", [{"loss_ppm": 50_000}, {"bandwidth_kbit": 10_000}, {"utilisation_permille": 900}]
)
def test_any_measurement_that_costs_some_class_is_advertised(measurement: dict[str, int]) -> None:
    made = Origination(CONFIG, A, 1)
    made.set_links([LocalLink(B, 10_000, 0)])
    assert made.take_due(0.0) is not None
    made.set_links([LocalLink(B, 10_000, 0, **measurement)])
    lsa = made.take_due(CONFIG.metric_hold_down_s)
    assert lsa is not None
    assert asdict(lsa.links[0]).items() >= measurement.items()
