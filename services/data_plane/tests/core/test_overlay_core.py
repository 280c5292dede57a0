"""Lanes, links and forwarding together: nodes in one thread, joined by wires that can be cut, under a clock of the test."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from data_plane_testing.identities import delegations, entropy, local_node, public_key, view_of
from mesh_data.core.forwarder import Delivery, DropReason
from mesh_data.core.handshake import encode_reject
from mesh_data.core.join_limits import JOIN_LANES_MAX, JOIN_LANES_PER_ADDRESS_MAX, JoinLimits
from mesh_data.core.open_lane import OUTPUT_BYTES_MAX, OpenLane
from mesh_data.core.overlay import LaneClosing, LinkChanged, OverlayCore, OverlayEvent
from mesh_data.core.timing import OverlayTiming
from meshapi.data.v1 import data_pb2
from meshapi.overlay.v1 import lane_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NO_NODE, NodeId
from meshwire.frame import frame_parts
from meshwire.packet import Protocol, TrafficClass

TIMING = OverlayTiming()
CONTROL, BULK = TrafficClass.CONTROL, TrafficClass.BULK
DELAY_S = 0.005


def core_of(number: int) -> OverlayCore:
    """One of two members, on its own."""
    core = OverlayCore(TIMING, number, entropy(number), delegations())
    core.configure(local_node(NodeId(number)), view_of(1, 2), 100.0)
    return core


def open_lane(core: OverlayCore, lane_id: int) -> OpenLane:
    lane = core.lane(lane_id)
    assert lane is not None
    return lane


class World:
    """Cores and wires. A wire carries frames both ways after a delay, unless it is silent."""

    def __init__(self, *ids: int) -> None:
        self.now = 100.0
        self.cores = {NodeId(i): OverlayCore(TIMING, i << 40, entropy(i), delegations()) for i in ids}
        for node, core in self.cores.items():
            core.configure(local_node(node), view_of(*ids), self.now)
        self.ends: dict[tuple[NodeId, int], tuple[NodeId, int]] = {}
        self.silent: set[tuple[NodeId, int]] = set()
        self.flying: list[tuple[float, NodeId, int, bytes]] = []
        self.delivered: dict[NodeId, list[Delivery]] = {node: [] for node in self.cores}
        self.events: dict[NodeId, list[tuple[float, OverlayEvent]]] = {node: [] for node in self.cores}
        self._lanes = 0

    def wire(self, dialler: int, listener: int, *, is_join: bool = False) -> int:
        self._lanes += 1
        lane, one, other = self._lanes, NodeId(dialler), NodeId(listener)
        self.ends[one, lane], self.ends[other, lane] = (other, lane), (one, lane)
        self.cores[one].open_lane(lane, other, True, is_join, self.now, public_key(listener))
        at_listener = NO_NODE if is_join else one
        self.cores[other].open_lane(lane, at_listener, False, is_join, self.now, public_key(dialler))
        return lane

    def silence(self, lane: int) -> None:
        self.silent |= {end for end in self.ends if end[1] == lane}

    def run(self, seconds: float, *, tick: Callable[[NodeId], bool] = lambda _node: True) -> None:
        end = self.now + seconds
        while self.now < end:
            for item in [item for item in self.flying if item[0] <= self.now]:
                self.flying.remove(item)
                _, node, lane, frame = item
                self.delivered[node] += self.cores[node].receive(lane, frame, self.now)
            for node, core in self.cores.items():
                if tick(node) and core.next_deadline() <= self.now:
                    core.tick(self.now, 0.0)
            self._collect()
            self.now += 0.001

    def _collect(self) -> None:
        for node, core in self.cores.items():
            for event in core.take_events():
                self.events[node].append((self.now, event))
            for lane in core.take_ready():
                while (frame := core.next_frame(lane)) is not None:
                    if (node, lane) not in self.silent:
                        peer, peer_lane = self.ends[node, lane]
                        self.flying.append((self.now + DELAY_S, peer, peer_lane, frame))

    def routes(self, node: int, *paths: list[int]) -> None:
        by_destination: dict[int, list[data_pb2.Path]] = {}
        for path in paths:
            by_destination.setdefault(path[-1], []).append(data_pb2.Path(nodes=path))
        changed = [data_pb2.Route(destination=d, paths=p) for d, p in by_destination.items()]
        self.cores[NodeId(node)].forwarder.paths.routes.apply(data_pb2.PushRoutesRequest(version=1, changed=changed))

    def send(self, source: int, destination: int, payload: bytes, cls: TrafficClass = CONTROL) -> bool:
        return self.cores[NodeId(source)].send(Protocol.ECHO, cls, NodeId(destination), payload, 0, self.now)

    def payloads(self, node: int) -> list[bytes]:
        return [bytes(item.payload) for item in self.delivered[NodeId(node)]]

    def link_events(self, node: int) -> list[tuple[float, LinkChanged]]:
        return [(at, event) for at, event in self.events[NodeId(node)] if isinstance(event, LinkChanged)]


def triangle() -> World:
    world = World(1, 2, 3)
    world.wire(2, 1)
    world.wire(3, 2)
    world.wire(3, 1)
    world.routes(1, [1, 3], [1, 2, 3], [1, 2])
    world.routes(2, [2, 1], [2, 3])
    world.routes(3, [3, 1], [3, 2, 1], [3, 2])
    return world


def test_packets_arrive_and_round_trips_are_measured() -> None:
    world = triangle()
    world.send(1, 3, b"x")
    world.run(1.0)
    assert world.payloads(3) == [b"x"]
    lane = world.cores[NodeId(1)].control_lane(NodeId(3))
    assert lane is not None
    assert lane.srtt_s == pytest.approx(2 * DELAY_S, abs=0.005)


def test_node_without_a_link_is_reached_through_a_relay() -> None:
    world = World(1, 2, 3)
    world.wire(2, 1)
    world.wire(3, 2)
    world.routes(1, [1, 2, 3])
    world.send(1, 3, b"through")
    world.run(0.1)
    assert world.payloads(3) == [b"through"]
    # The packet itself, and before it the agreement on keys: an ask, an answer that asks in turn, an answer.
    assert world.cores[NodeId(2)].forwarder.counters.forwarded == 4


def test_silent_link_is_down_within_400_ms_and_traffic_takes_the_backup() -> None:
    world = triangle()
    world.run(2.0)
    cut_at = world.now
    world.silence(3)
    while world.now < cut_at + 1.0:
        world.send(1, 3, f"{world.now:.3f}".encode())
        world.run(0.01)
    downs = [(at, event) for at, event in world.link_events(1) if not event.is_up]
    assert [event.peer for _, event in downs] == [3]
    assert 0.19 < downs[0][0] - cut_at < 0.4
    # Silence counts from the last frame, which came up to a beat before the cut. The last packets before the
    # detection are lost, everything after it arrives through node 2.
    arrived = [float(payload) for payload in world.payloads(3) if float(payload) > cut_at]
    assert min(arrived) - cut_at < 0.4
    assert len(arrived) >= 55


def test_packets_that_waited_for_a_dead_link_take_the_backup() -> None:
    world = triangle()
    world.run(0.2)
    core = world.cores[NodeId(1)]
    world.send(1, 3, b"waiting", BULK)
    core.close_lane(3, "reset", world.now)
    world.run(0.1)
    assert world.payloads(3) == [b"waiting"]


def test_reset_connection_is_down_at_once() -> None:
    world = triangle()
    world.run(0.1)
    world.cores[NodeId(1)].close_lane(3, "connection reset", world.now)
    world.run(0.002)
    assert [event.reason for _, event in world.link_events(1) if not event.is_up] == ["connection reset"]


def test_stall_of_this_process_brings_no_link_down() -> None:
    world = triangle()
    world.run(1.0)
    stalled = NodeId(1)
    world.run(2.0, tick=lambda node: node != stalled)
    # The frames of these two seconds were read; pretend that they had not been.
    core = OverlayCore(TIMING, 1, entropy(1), delegations())
    core.configure(local_node(stalled), view_of(1, 2), 0.0)
    core.open_lane(1, NodeId(2), True, False, 0.0)
    core.tick(5.0, stall_s=4.95)
    assert not any(isinstance(event, LaneClosing) for event in core.take_events())
    core.tick(5.4, stall_s=0.0)
    assert any(isinstance(event, LaneClosing) and event.is_abrupt for event in core.take_events())


def test_bye_takes_the_link_down_at_the_other_side_with_its_reason() -> None:
    world = triangle()
    world.run(0.1)
    world.cores[NodeId(3)].close_all("upgrade", is_node_stopping=True, now=world.now)
    world.run(0.1)
    downs = [event for _, event in world.link_events(1) if not event.is_up]
    assert [event.peer for event in downs] == [3]
    assert downs[0].reason == "the node is stopping: upgrade"


def test_text_of_a_bye_is_made_safe_before_it_is_kept() -> None:
    world = triangle()
    world.run(0.1)
    world.cores[NodeId(3)].close_all("forged\nline" + "x" * 60_000, is_node_stopping=False, now=world.now)
    world.run(0.1)
    link = world.cores[NodeId(1)].link(NodeId(3))
    assert link is not None
    assert link.down_reason.isprintable()
    assert len(link.down_reason) < 250


def test_duplicate_lanes_end_as_one_at_both_sides_without_the_link_going_down() -> None:
    world = World(1, 2)
    first = world.wire(1, 2)
    second = world.wire(2, 1)
    world.run(0.3)
    for node in (1, 2):
        assert all(event.is_up for _, event in world.link_events(node))
        link = world.cores[NodeId(node)].link(NodeId(3 - node))
        assert link is not None
        carrier = link.carrier(CONTROL)
        assert carrier is not None
        assert carrier.lane_id == second
        closing = [event.lane_id for _, event in world.events[NodeId(node)] if isinstance(event, LaneClosing)]
        assert first in closing
    world.send(1, 2, b"still")
    world.run(0.1)
    assert world.payloads(2) == [b"still"]


def test_full_queue_drops_and_tells_the_sender() -> None:
    """I6: nothing is written while the wire stands still, so the queue fills to its bound."""
    world = World(1, 2)
    world.wire(1, 2)
    world.run(0.1)
    core = world.cores[NodeId(1)]
    sent = sum(world.send(1, 2, bytes(1 << 20), BULK) for _ in range(40))
    assert sent == 15
    assert core.forwarder.counters.dropped[DropReason.QUEUE_FULL] == 25
    assert core.queued_bytes(NodeId(2), world.now) > 15 << 20
    assert world.send(1, 2, b"control")


def test_malformed_frame_closes_the_lane() -> None:
    world = World(1, 2)
    lane = world.wire(1, 2)
    core = world.cores[NodeId(2)]
    assert core.receive(lane, b"\x07garbage", world.now) == []
    assert [event for event in core.take_events() if isinstance(event, LaneClosing)]
    assert core.forwarder.counters.dropped[DropReason.MALFORMED] == 1
    assert not core.is_link_up(NodeId(1))


def test_late_reject_closes_the_lane_with_its_reason() -> None:
    world = World(1, 2)
    lane = world.wire(1, 2)
    core = world.cores[NodeId(1)]
    core.receive(lane, encode_reject(MeshError(ErrorCode.HANDSHAKE_FAILED, "too many nodes join")), world.now)
    link = core.link(NodeId(2))
    assert link is not None
    assert "too many nodes join" in link.down_reason


def join_world() -> tuple[World, int]:
    world = World(1, 2)
    world.cores[NodeId(2)] = OverlayCore(TIMING, 7, entropy(7), delegations())
    return world, world.wire(2, 1, is_join=True)


def test_join_lane_carries_join_both_ways_with_source_0_and_its_lane() -> None:
    world, lane = join_world()
    assert world.cores[NodeId(2)].send_join(lane, CONTROL, b"may I?", world.now)
    world.run(0.1)
    question = world.delivered[NodeId(1)][0]
    assert (question.source, question.lane_id, question.protocol) == (NO_NODE, lane, Protocol.JOIN)
    assert question.lane_public_key == public_key(2)
    assert world.cores[NodeId(1)].send_join(question.lane_id, CONTROL, b"yes", world.now)
    world.run(0.1)
    assert (world.delivered[NodeId(2)][0].source, world.payloads(2)) == (NO_NODE, [b"yes"])


def test_join_lane_makes_no_link_and_carries_nothing_else() -> None:
    world, lane = join_world()
    stranger = world.cores[NodeId(2)]
    data = stranger.forwarder.lane_packet(Protocol.ECHO, CONTROL, NO_NODE, b"?", world.now)
    assert data is not None
    open_lane(stranger, lane).put(data)
    stranger._ready.add(lane)
    world.run(0.1)
    assert world.delivered[NodeId(1)] == []
    assert world.cores[NodeId(1)].forwarder.counters.dropped[DropReason.JOIN_ONLY] == 1
    assert list(world.cores[NodeId(1)].links()) == []


def test_join_lane_that_sends_too_many_packets_ends() -> None:
    world, lane = join_world()
    for _ in range(1000):
        world.cores[NodeId(2)].send_join(lane, CONTROL, b"again", world.now)
    world.run(0.1)
    assert len(world.delivered[NodeId(1)]) < 150
    # Not dropped one by one: that costs this node more than the stranger, who can send a frame full of them all the time.
    assert world.cores[NodeId(1)].forwarder.counters.dropped[DropReason.RATE_LIMITED] == 1
    assert world.cores[NodeId(1)].join_lane_count() == 0


def test_join_lane_ends_by_itself() -> None:
    world, lane = join_world()
    world.run(0.1)
    core = world.cores[NodeId(1)]
    world.now += TIMING.join_lane_life_s
    open_lane(core, lane).lane.heard(world.now)
    core.tick(world.now, 0.0)
    assert [event.reason for event in core.take_events() if isinstance(event, LaneClosing)]


def test_join_lanes_are_capped_in_number_and_rate() -> None:
    limits = JoinLimits(0.0)
    assert limits.refusal(JOIN_LANES_MAX) is not None
    admitted = sum(limits.admit(0, 0, 0.0) is None for _ in range(100))
    assert admitted == JOIN_LANES_MAX
    refusal = limits.admit(0, 0, 0.0)
    assert refusal is not None
    assert refusal.retryable
    assert limits.admit(0, JOIN_LANES_PER_ADDRESS_MAX, 1.0) is not None
    assert limits.admit(0, JOIN_LANES_PER_ADDRESS_MAX - 1, 1.0) is None


def test_leaving_the_mesh_closes_everything_and_forgets_routes() -> None:
    world = triangle()
    world.run(0.1)
    core = world.cores[NodeId(1)]
    core.configure(None, None, world.now)
    world.run(0.1)
    assert list(core.links()) == []
    assert core.forwarder.paths.routes.version == 0
    assert {event.peer for _, event in world.link_events(2) if not event.is_up} == {1}
    assert not world.send(1, 2, b"x")


def test_join_lane_whose_neighbour_does_not_read_is_ended() -> None:
    """One large answer may wait for a node that is no member, not one behind the other."""
    core = core_of(1)
    core.open_lane(7, NO_NODE, False, True, 100.0, public_key(2))
    assert core.send_join(7, CONTROL, bytes(1 << 20), 100.0)
    assert not core.send_join(7, CONTROL, b"one more", 100.0)
    assert [event.lane_id for event in core.take_events() if isinstance(event, LaneClosing)] == [7]
    assert core.next_frame(7) is None
    assert not core.send_join(7, CONTROL, b"late", 100.0)


def test_beats_and_echoes_that_wait_are_bounded() -> None:
    """A writer that is stuck: what waits does not grow with the time or with what the peer sends."""
    core, peer = core_of(1), core_of(2)
    core.open_lane(7, NodeId(2), False, False, 100.0, public_key(2))
    peer.open_lane(7, NodeId(1), True, False, 100.0, public_key(1))
    for step in range(2_000):
        now = 100.0 + step * TIMING.beat_s
        peer.tick(now, 0.0)
        frame = peer.next_frame(7)
        if frame is not None:
            core.receive(7, frame, now)
        core.tick(now, 0.0)
        open_lane(peer, 7).lane.heard(now)
    waiting = open_lane(core, 7)
    assert OUTPUT_BYTES_MAX < waiting.output_bytes <= OUTPUT_BYTES_MAX + 1024
    assert core.forwarder.counters.dropped[DropReason.QUEUE_FULL] > 1_000
    frame = core.next_frame(7)
    assert frame is not None
    assert len(frame) > OUTPUT_BYTES_MAX
    assert waiting.output_bytes == 0


def test_what_a_peer_says_at_its_end_is_cut() -> None:
    core, peer = core_of(1), core_of(2)
    for item, number, other in ((core, 1, 2), (peer, 2, 1)):
        item.open_lane(7, NodeId(other), number == 2, False, 100.0, public_key(other))
    bye = lane_pb2.LaneControl(bye=lane_pb2.LaneBye(reason="\n\x1b" * 400)).SerializeToString()
    data = peer.forwarder.lane_packet(Protocol.LANE, CONTROL, NodeId(1), bye, 100.0)
    assert data is not None
    core.receive(7, b"".join(frame_parts([data])), 100.0)
    link = core.link(NodeId(2))
    assert link is not None
    assert not link.is_up
    assert len(link.down_reason) < 250
    assert link.down_reason.isprintable()
