"""A core that is ticked only at the deadlines that it names does the same as one that is ticked all the time."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from random import Random

from hypothesis import example, given
from hypothesis import strategies as st

from data_plane_testing.identities import delegations, entropy, local_node, public_key, view_of
from mesh_data.core.dial_policy import DialPolicy
from mesh_data.core.overlay import OverlayCore, OverlayEvent
from mesh_data.core.timing import OverlayTiming
from meshcommon.ids import NO_NODE, NodeId
from meshwire.packet import Protocol, TrafficClass

TIMING = OverlayTiming(join_lane_life_s=2.0)
STEP_S = 0.01
PEERS = (NodeId(2), NodeId(3))


@dataclass
class Watched:
    """A core, and all that came out of it."""

    is_always_ticked: bool
    is_heard: bool = False
    """Whether the other ends of its lanes say something at each step."""
    core: OverlayCore = field(default_factory=lambda: OverlayCore(TIMING, 1, entropy(1), delegations()))
    lanes: list[int] = field(default_factory=list)
    output: list[tuple[float, int, bytes] | tuple[float, OverlayEvent] | tuple[float, int]] = field(
        default_factory=list
    )
    dropped: int = 0
    ticks: int = 0

    def __post_init__(self) -> None:
        self.core.configure(local_node(1), view_of(1, 2, 3), 0.0)

    def act(self, action: str, peer: NodeId, now: float) -> None:
        number = len(self.lanes) + 1
        if action == "open":
            self.lanes.append(number)
            self.core.open_lane(number, peer, bool(number % 2), False, now, public_key(peer))
        elif action == "join":
            self.lanes.append(number)
            self.core.open_lane(number, NO_NODE, False, True, now, public_key(9))
        elif action == "close" and self.lanes:
            self.core.close_lane(self.lanes[number // 2 - 1], "reset", now)
        elif action == "send":
            self.core.send(Protocol.ECHO, TrafficClass.CONTROL, peer, b"question", 0, now)

    def step(self, now: float) -> None:
        if self.is_heard:
            for lane_id in self.core.lane_ids():
                found = self.core.lane(lane_id)
                assert found is not None
                found.lane.heard(now)
        if self.is_always_ticked or self.core.next_deadline() <= now:
            self.ticks += 1
            self.core.tick(now, 0.0)
        for lane in sorted(self.core.take_ready()):
            while (frame := self.core.next_frame(lane)) is not None:
                self.output.append((now, lane, frame))
        self.output += [(now, event) for event in self.core.take_events()]
        dropped = self.core.forwarder.counters.dropped.total()
        if dropped != self.dropped:
            self.dropped = dropped
            self.output.append((now, dropped))


ACTIONS = st.lists(
    st.tuples(st.integers(0, 60), st.sampled_from(["open", "join", "close", "send"]), st.sampled_from(PEERS)),
    max_size=12,
)


@given(ACTIONS, st.booleans())
@example([(0, "open", PEERS[0]), (1, "send", PEERS[0]), (2, "close", PEERS[0])], False)
@example([(3, "join", PEERS[0])], True)
def test_ticks_between_deadlines_change_nothing(actions: list[tuple[int, str, NodeId]], is_heard: bool) -> None:
    often, seldom = Watched(True, is_heard), Watched(False, is_heard)
    step = 0
    for pause, action, peer in [*actions, (400, "", PEERS[0])]:
        for _ in range(pause):
            step += 1
            for item in (often, seldom):
                item.step(100.0 + step * STEP_S)
        for item in (often, seldom):
            item.act(action, peer, 100.0 + step * STEP_S)
    assert seldom.output == often.output
    assert seldom.ticks <= often.ticks


def test_core_without_lanes_waits_for_nothing() -> None:
    watched = Watched(False)
    assert watched.core.next_deadline() == math.inf


def test_all_lanes_share_the_wakes_for_their_beats() -> None:
    watched = Watched(False, is_heard=True)
    for number in range(20):
        watched.act("join", NO_NODE, 100.0 + number * 0.0037)
    for step in range(100):
        watched.step(100.1 + step * STEP_S / 2)
    assert watched.ticks <= 1 + math.ceil(100 * STEP_S / 2 / TIMING.beat_s)


def test_policy_that_has_every_lane_waits_for_nothing() -> None:
    policy = DialPolicy({"n2": "ws://b:1", "n3": "ws://c:1"}, TIMING, Random(1))
    policy.configure(view_of(1, 2, 3), NodeId(1), {NodeId(2), NodeId(3)}, 0.0)
    assert policy.next_deadline() is None
    policy.link_down(NodeId(2), 5.0)
    due = policy.next_deadline()
    assert due is not None
    assert [dial.peer for dial in policy.take_due(due)] == [NodeId(2)]
    assert policy.next_deadline() is None
