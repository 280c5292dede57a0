"""One simulated node: the cores of both planes over the overlay's core, with two disks.

The control plane's and data plane's cores are the real ones; this is their driver instead of the asyncio shells. What it
leaves out: joining (all nodes are members of the MCG from the start) and handshakes.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from data_plane_testing.identities import delegations, local_node, view_of
from mesh_control.core import confirmations
from mesh_control.core.confirmations import due_confirmations
from mesh_control.core.mcg_state import McgState
from mesh_control.core.mcg_state import Result as McgResult
from mesh_data.core.overlay import LaneClosing, LinkChanged, OverlayCore
from mesh_data.core.timing import PRESETS
from mesh_data.core.view import View, view_from_proto
from meshapi.common.v1 import view_pb2
from meshapi.control.v1 import mcg_pb2
from meshapi.data.v1 import data_pb2
from meshcommon.ids import LogIndex, MemberId, NodeId, StreamId
from meshcommon.requests import Incoming, Outgoing, Requests
from meshraft import ENTRY_NORMAL, Committed, Frame, GroupConfig, GroupStatus, RaftError, Role
from meshtest.checkers import Held
from meshwire.packet import Protocol, TrafficClass
from meshwire.request import ErrorResponse, OkResponse, Request, Response
from tests.sim.disks import Disk, damage, damage_earlier
from tests.sim.raft_host import Answer, SimulatedHost
from tests.sim.routing import SimRouting
from tests.sim.streams import SimReplica, Streams, said
from tests.sim.world import World

MCG: Final = 1
TICK_S: Final = 0.05
RAFT: Final = GroupConfig(election_ticks=12, heartbeat_ticks=2)
PROPOSE_MCG: Final = 1
PROPOSE_STREAM: Final = 2
REQUEST_S: Final = 1.5
MCG_ENTRIES_MAX: Final = 40
"""Log of the MCG past which a node compacts it: so few that nodes that were away are sent snapshots."""
EARLIER_DAMAGE: Final = 0.5
"""Share of the damages that take more than the last sync group of the streams' log."""
REPORT_CHANCE: Final = 0.2
"""Of each confirmation that is due, in each tick."""


class SimNode:
    """A node of the simulation; satisfies `world.Endpoint`."""

    def __init__(
        self,
        world: World,
        number: int,
        count: int,
        make_disk: Callable[[], Disk],
        on_applied: Callable[[int, int, str], None],
        on_destroy: Callable[[int, int], None],
        lose_power: Callable[[SimNode], None],
    ) -> None:
        """A node that was never started.

        Args:
            world: where it is.
            number: its id.
            count: of all nodes.
            make_disk: gives a new disk.
            on_applied: hears of each entry: group (0: the catalogue's), index, hash of the state.
            on_destroy: hears of each open replica that is going to be destroyed: group, member.
            lose_power: crashes the node and starts it again soon.
        """
        self.number = number
        self.is_running = False
        self._world = world
        self._count = count
        self._on_applied = on_applied
        self._on_destroy = on_destroy
        self._lose_power = lose_power
        self._mcg_disk = make_disk()
        self._data_disk = make_disk()
        self._is_first_start = True
        self._life = 0
        self._kept_routes: data_pb2.PushRoutesRequest | None = None
        self._kept_view: View | None = None
        self._disowned: set[int] = set()
        self.sleeps = 0
        """How often a group here fell asleep, over all lives."""
        self.retirements = 0
        """How often the streams' log was damaged before its last write."""

    # Life

    def start(self) -> None:
        """Starts, or starts again after a crash, from what the disks hold."""
        world = self._world
        self._life += 1
        self.is_running = True
        self.mcg_state = McgState()
        self._asleep: set[int] = set()
        self._compacted_at = 0
        self._due: list[confirmations.Confirmation] = []
        self._seen_revision = -1
        self._requests = Requests(first_id=world.rng.getrandbits(60))
        self._waiting: dict[int, Callable[[Response | None], None]] = {}
        first_message_id = world.rng.getrandbits(60)
        # Keys of a boot: random bytes of their own, so that the world's events do not depend on how many are drawn.
        self._overlay = OverlayCore(
            PRESETS["test"], first_message_id, random.Random(first_message_id).randbytes, delegations()
        )
        self._overlay.configure(local_node(self.number), view_of(*range(1, self._count + 1)), world.now)
        self._routing = SimRouting(self._overlay, self.number, self._count, self._life, world.now, self._kept_routes)
        life = self._life

        def cut_power() -> None:
            if self._life == life and self.is_running and world.is_faulty:
                self._lose_power(self)

        self._mcg = SimulatedHost(world, self._mcg_disk, world.rng.getrandbits(32), self.settle, cut_power)
        self._data = SimulatedHost(world, self._data_disk, world.rng.getrandbits(32), self.settle, cut_power)
        self.streams = Streams(
            self._data,
            self.number,
            self._kept_view,
            self._disowned,
            self._on_applied,
            self._note_restored,
            self._on_destroy,
        )
        self._open_mcg()
        world.note("start", self.number)
        self._tick(self._life)

    def _open_mcg(self) -> None:
        peers = {member: member for member in range(1, self._count + 1)}
        self._mcg.add(MCG, _Catalogue(self), RAFT)
        if MCG in self._mcg.raft.stored_groups():
            installed = self._mcg.raft.open_group(MCG, self.number, peers, config=RAFT)
            self.mcg_state.restore(installed.data)
            # Nothing may follow the snapshot, and what it holds is the catalogue all the same.
            self._follow_catalogue()
            return
        voters_max = min(5, self._count if self._count % 2 else self._count - 1)
        voters = list(range(1, voters_max + 1))
        learners = [member for member in peers if member not in voters]
        self._mcg.raft.create_group(MCG, self.number, peers, voters=voters, learners=learners, config=RAFT)
        if self.number == 1 and self._is_first_start:
            self._mcg.raft.campaign(MCG)
        self._is_first_start = False

    def crash(self) -> None:
        """Power loss."""
        self._world.note("crash", self.number)
        self.is_running = False
        self._mcg.crash()
        self._data.crash()
        self._waiting.clear()
        self._kept_routes, self._kept_view = self._routing.kept(), self.streams.view
        self._world.forget_lanes_of(self.number)

    def damage(self, rng: random.Random) -> None:
        """Between a crash and a start: one of its two logs, or both, cannot be read to the end, or the streams' lost more."""
        if rng.random() < EARLIER_DAMAGE and damage_earlier(self._data_disk, rng):
            self._world.note("earlier damage", self.number)
            self.retirements += 1
            return
        logs = rng.choice(((self._mcg_disk,), (self._data_disk,), (self._mcg_disk, self._data_disk)))
        self._world.note("damage", self.number, len(logs))
        for disk in logs:
            damage(disk, rng)

    def _note_restored(self, group: int, index: int) -> None:
        self._world.note("restored", self.number, group, index)

    # World.Endpoint

    def open_lane(self, lane_id: int, peer: int, *, is_dialled: bool) -> None:
        """A lane came up."""
        self._overlay.open_lane(lane_id, NodeId(peer), is_dialled, False, self._world.now)
        self.settle()

    def close_lane(self, lane_id: int, reason: str) -> None:
        """A lane is gone."""
        self._overlay.close_lane(lane_id, reason, self._world.now)
        self.settle()

    def receive_frame(self, lane_id: int, frame: bytes) -> None:
        """A frame of packets came in."""
        deliveries = self._overlay.receive(lane_id, frame, self._world.now)
        for delivery in deliveries:
            source, payload = int(delivery.source), bytes(delivery.payload)
            if delivery.protocol is Protocol.RAFT_MCG:
                self._mcg.step(source, payload)
            elif delivery.protocol is Protocol.RAFT_DSG:
                self._data.step(source, payload)
            elif delivery.protocol is Protocol.REQUEST:
                self._receive_request(source, payload)
            elif delivery.protocol is Protocol.LSA:
                self._routing.receive(delivery.source, payload, self._world.now)
        if deliveries:
            self.settle()
        else:
            self._settle_overlay()

    # Turns

    def _tick(self, life: int) -> None:
        if life != self._life or not self.is_running:
            return
        self._overlay.tick(self._world.now, 0.0)
        self._routing.tick(self._world.now)
        self._mcg.driver.tick()
        self._data.driver.tick()
        asleep = {group for group in self.replicas if self._data.raft.is_quiesced(group)}
        self.sleeps += len(asleep - self._asleep)
        self._asleep = asleep
        again, expired = self._requests.tick(self._world.now)
        for outgoing in again:
            self._send_request(outgoing)
        for request_id in expired:
            if waiting := self._waiting.pop(request_id, None):
                waiting(None)
        self._report_groups()
        self._look_after_logs()
        self.settle()
        self._world.after(TICK_S, lambda: self._tick(life))

    def settle(self) -> None:
        """Runs both hosts and the overlay until nothing more happens now."""
        if not self.is_running:
            return
        self._send_frames(Protocol.RAFT_MCG, self._mcg.turn())
        self._send_frames(Protocol.RAFT_DSG, self._data.turn())
        self._settle_overlay()

    def _settle_overlay(self) -> None:
        """Carries out what the overlay asks for."""
        events = self._overlay.take_events()
        if any(isinstance(event, LinkChanged) for event in events):
            self._routing.links_changed(self._world.now)
        for lane_id in sorted(self._overlay.take_ready()):
            while (frame := self._overlay.next_frame(lane_id)) is not None:
                self._world.transmit(self.number, lane_id, frame)
        for event in events:
            if isinstance(event, LaneClosing):
                self._overlay.close_lane(event.lane_id, event.reason, self._world.now)
                self._world.closed(self.number, event.lane_id)

    def _send_frames(self, protocol: Protocol, frames: list[Frame]) -> None:
        for frame in frames:
            self._send(protocol, TrafficClass.CONTROL if frame.cls == 0 else TrafficClass.BULK, frame.peer, frame.data)

    def _send(self, protocol: Protocol, cls: TrafficClass, destination: int, payload: bytes) -> None:
        self._overlay.send(protocol, cls, NodeId(destination), payload, 0, self._world.now)

    # Control plane

    def apply_mcg(self, entry: Committed) -> McgResult | None:
        """Applies a command of the catalogue."""
        result = None
        if entry.kind == ENTRY_NORMAL and entry.data:
            result = self.mcg_state.apply(entry.index, mcg_pb2.Command.FromString(entry.data))
        else:
            self.mcg_state.advance(entry.index)
        self._on_applied(0, entry.index, self.mcg_state.digest())
        self._follow_catalogue()
        return result

    def restore_mcg(self, index: int, data: bytes) -> None:
        """Takes the leader's catalogue."""
        self.mcg_state.restore(data)
        self.mcg_state.advance(LogIndex(index))
        self._follow_catalogue()

    def _follow_catalogue(self) -> None:
        """The control plane pushes its view to the data plane."""
        view = self.mcg_state.view()
        if view.mesh_id and view.revision != self._seen_revision:
            self._seen_revision = view.revision
            self.streams.follow(_view(view.SerializeToString(deterministic=True)))

    def _report_groups(self) -> None:
        """What its replicas say, the control plane proposes; what was lost on the way is due again."""
        if self.streams.are_reports_due or self._due:
            self.streams.are_reports_due = False
            reports = {report.stream_id: said(report) for report in self.streams.reports()}
            self._due = due_confirmations(self.mcg_state.streams.values(), reports, NodeId(self.number))
        for item in self._due:
            if self._world.rng.random() < REPORT_CHANCE:
                command = item.command(NodeId(self.number))
                command.proposal_id = self._world.rng.getrandbits(60)
                self.command(command, lambda _result: None)

    # Data plane

    @property
    def replicas(self) -> dict[int, SimReplica]:
        """Open replicas by group."""
        return self.streams.replicas

    def _look_after_logs(self) -> None:
        """Compaction: the catalogue's by each node alone, a stream's by what its leader commits."""
        self.streams.tick()
        applied = self.mcg_state.applied_index
        if applied - self._compacted_at <= MCG_ENTRIES_MAX:
            return
        status = self.mcg_status()
        self._compacted_at = max(self._compacted_at, status.first_index)
        if status.applied - status.first_index > MCG_ENTRIES_MAX and applied == status.applied:
            self._mcg.raft.compact(MCG, applied, self.mcg_state.snapshot())
            self._compacted_at = applied

    # For the checkers

    def mcg_status(self) -> GroupStatus:
        """Raft's view of the MCG here."""
        return self._mcg.raft.status(MCG)

    def stream_status(self, group: int) -> GroupStatus:
        """Raft's view of one stream group here."""
        return self._data.raft.status(group)

    # Clients

    def command(self, command: mcg_pb2.Command, answer: Answer) -> None:
        """Proposes to the MCG, here or at its leader; `answer(None)` means: not known, try again."""
        command.stamp_ms = int(self._world.now * 1000)
        self._propose(PROPOSE_MCG, MCG, command.SerializeToString(), answer)

    def publish(self, group: int, entry: bytes, answer: Answer) -> None:
        """Proposes an entry of a stream, here or at its leader."""
        self._propose(PROPOSE_STREAM, group, entry, answer)

    def read(self, group: int, offset: int, answer: Callable[[int, list[Held]], None]) -> None:
        """A linearizable read from `offset`, or from the floor when that is above it; it may never be answered."""

        def confirmed() -> None:
            if (replica := self.replicas.get(group)) is not None:
                start = min(max(offset, replica.core.floor_offset), replica.state.next_offset)
                answer(start, replica.read(start))

        if group not in self.replicas:
            return
        try:
            self._data.ask_read_index(group, confirmed)
        except RaftError:
            return
        self.settle()

    def _propose(self, method: int, group: int, data: bytes, answer: Answer) -> None:
        host = self._mcg if method == PROPOSE_MCG else self._data
        if method == PROPOSE_STREAM and group not in self.replicas:
            answer(None)
            return
        if host.propose(group, data, answer):
            self.settle()
            return
        leader = self._node_of(method, group, host.leader(group))
        if leader in {0, self.number}:
            answer(None)
            return
        body = group.to_bytes(8, "big") + data
        request = Request(method, int(REQUEST_S * 1000), body)
        deadline = self._world.now + REQUEST_S
        request_id, outgoing = self._requests.start(leader, request, deadline, self._world.now)
        self._waiting[request_id] = lambda response: answer(_unpack(response))
        self._send_request(outgoing)
        self.settle()

    def _node_of(self, method: int, group: int, member: int) -> int:
        if method == PROPOSE_MCG:
            return member
        stream = self.mcg_state.streams.get(StreamId(group))
        if stream is None:
            return 0
        homes = {it.member_id: it.node_id for it in stream.retiring} | {
            it.member_id: it.node_id for it in stream.members
        }
        return int(homes.get(MemberId(member), 0))

    def _receive_request(self, source: int, payload: bytes) -> None:
        received = self._requests.receive(source, 0, payload)
        if isinstance(received, Outgoing):
            self._send_request(received)
        elif isinstance(received, Incoming):
            self._execute(received)
        elif received is not None:
            request_id, response = received
            if waiting := self._waiting.pop(request_id, None):
                waiting(response)

    def _execute(self, incoming: Incoming) -> None:
        body = bytes(incoming.request.body)
        host = self._mcg if incoming.request.method == PROPOSE_MCG else self._data
        life = self._life

        def answer(result: object | None) -> None:
            if life == self._life and self.is_running:
                self._send_request(self._requests.answer(incoming.key, _pack(result)))

        try:
            is_taken = host.propose(int.from_bytes(body[:8], "big"), body[8:], answer)
        except LookupError:
            is_taken = False
        if not is_taken:
            answer(None)

    def _send_request(self, outgoing: Outgoing) -> None:
        self._send(Protocol.REQUEST, TrafficClass.CONTROL, outgoing.peer, outgoing.payload)


class _Catalogue:
    """The MCG of a node, as the `Machine` of its group."""

    def __init__(self, node: SimNode) -> None:
        self._node = node

    @property
    def applied_index(self) -> int:
        return self._node.mcg_state.applied_index

    def restore(self, index: int, data: bytes) -> None:
        self._node.restore_mcg(index, data)

    def apply(self, entry: Committed) -> object:
        return self._node.apply_mcg(entry)

    def role_changed(self, role: Role) -> None:
        pass


@lru_cache(maxsize=64)
def _view(encoded: bytes) -> View:
    """All nodes read the same views."""
    return view_from_proto(view_pb2.MeshView.FromString(encoded))


# Results cross the simulated overlay by name: what a real answer would carry is not what is tested here.
_results: dict[bytes, object] = {}


def _pack(result: object | None) -> Response:
    if result is None:
        return ErrorResponse("OUTCOME_UNKNOWN", "Try again.", retryable=True)
    key = hashlib.sha256(repr(result).encode()).digest()
    _results[key] = result
    return OkResponse(key)


def _unpack(response: Response | None) -> object | None:
    return _results[bytes(response.body)] if isinstance(response, OkResponse) else None
