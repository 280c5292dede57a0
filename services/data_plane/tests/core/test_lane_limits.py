"""Lanes of members are counted: a few of each, and not more than a mesh can need."""

from __future__ import annotations

from mesh_data.core.lane_limits import LANES_MAX, LANES_PER_PEER_MAX, LaneLimits
from meshcommon.ids import NodeId


def test_one_member_gets_a_few_lanes_and_others_are_not_concerned() -> None:
    limits = LaneLimits()
    assert [limits.enter(NodeId(2)) for _ in range(LANES_PER_PEER_MAX)] == [None] * LANES_PER_PEER_MAX
    refusal = limits.enter(NodeId(2))
    assert refusal is not None
    assert refusal.retryable
    assert limits.enter(NodeId(3)) is None
    limits.leave(NodeId(2))
    assert limits.enter(NodeId(2)) is None


def test_all_members_together_get_a_number_of_lanes() -> None:
    limits = LaneLimits()
    for number in range(LANES_MAX):
        assert limits.enter(NodeId(number // 2 + 1)) is None
    assert limits.enter(NodeId(LANES_MAX)) is not None
    limits.leave(NodeId(1))
    assert limits.enter(NodeId(LANES_MAX)) is None
