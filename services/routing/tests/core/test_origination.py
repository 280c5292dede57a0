"""When a node advertises itself, and under which number."""

from __future__ import annotations

from random import Random

import pytest

from mesh_routing.core.config import preset
from mesh_routing.core.lsa import SEQUENCE_MAX
from mesh_routing.core.origination import LocalLink, Origination, first_sequence
from meshcommon.ids import NodeId

CONFIG = preset("test")
A, B, C = NodeId(1), NodeId(2), NodeId(3)


def origination(rtt_us: int = 20_000) -> Origination:
    """One that has advertised a–b at time 0."""
    made = Origination(CONFIG, A, 100)
    made.set_links([LocalLink(B, rtt_us, 0)])
    lsa = made.take_due(0.0)
    assert lsa is not None
    assert lsa.sequence == 101
    assert [link.latency_us for link in lsa.links] == [rtt_us // 2]
    return made


def test_link_changes_are_advertised_at_once_again_and_again() -> None:
    made = origination()
    for step, links in enumerate([[LocalLink(B, 1, 0), LocalLink(C, 1, 0)], [LocalLink(C, 1, 0)], []]):
        made.set_links(links)
        lsa = made.take_due(0.001 * step)
        assert lsa is not None
        assert lsa.sequence == 102 + step
        assert lsa.peers == {link.peer for link in links}
        assert made.take_due(0.001 * step) is None


@pytest.mark.parametrize(
    ("before_us", "after_us", "is_significant"),
    [
        (20_000, 24_000, False),  # exactly a fifth
        (20_000, 24_100, True),
        (20_000, 15_900, True),
        (1_000, 1_900, False),  # 90 %, but less than 0.5 ms one way
        (1_000, 2_100, True),
    ],
)
def test_latency_counts_when_significant_after_the_hold_down(
    before_us: int, after_us: int, is_significant: bool
) -> None:
    made = origination(before_us)
    made.set_links([LocalLink(B, after_us, 0)])
    assert made.take_due(CONFIG.metric_hold_down_s - 0.01) is None
    lsa = made.take_due(CONFIG.metric_hold_down_s)
    assert (lsa is not None) == is_significant
    assert made.next_deadline() == (CONFIG.metric_hold_down_s if is_significant else 0) + CONFIG.refresh_s


def test_fluctuation_that_returned_is_not_advertised() -> None:
    made = origination()
    made.set_links([LocalLink(B, 90_000, 0)])
    made.set_links([LocalLink(B, 20_100, 0)])
    assert made.take_due(CONFIG.metric_hold_down_s) is None


def test_refresh_takes_a_new_number_and_the_latest_metrics() -> None:
    made = origination()
    made.set_links([LocalLink(B, 20_600, 0)])
    assert made.take_due(CONFIG.refresh_s - 0.1) is None
    lsa = made.take_due(CONFIG.refresh_s)
    assert lsa is not None
    assert (lsa.sequence, lsa.links[0].latency_us) == (102, 10_300)


def test_old_advertisement_is_outbid_at_once() -> None:
    made = origination()
    made.jump_past(5_000)
    lsa = made.take_due(0.0)
    assert lsa is not None
    assert lsa.sequence == 5_001
    made.jump_past(4_000)
    assert made.take_due(0.0) is None


def test_other_content_under_the_own_number_is_outbid() -> None:
    made = origination()
    made.jump_past(101)
    lsa = made.take_due(0.0)
    assert lsa is not None
    assert lsa.sequence == 102


def test_numbers_stay_in_range_at_the_end() -> None:
    made = origination()
    made.jump_past(SEQUENCE_MAX)
    lsa = made.take_due(0.0)
    assert lsa is not None
    assert lsa.sequence == SEQUENCE_MAX


@pytest.mark.parametrize("boot", [0, 1, 2, 1_000, 2**29])
def test_next_incarnation_begins_beyond_two_thousand_million_advertisements_of_the_last(boot: int) -> None:
    last = first_sequence(boot, Random(1)) + 2**31
    assert last < first_sequence(boot + 1, Random(2)) <= SEQUENCE_MAX
