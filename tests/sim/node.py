"""One simulated node: the cores of both planes over the overlay's core, with two disks.

The control plane's and data plane's cores are the real ones; this is their driver instead of the asyncio shells. What it
leaves out: joining (all nodes are members of the MCG from the start), handshakes, routing (every pair tries to have a lane,
and the route table holds the direct path and the detours over one other node).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from typing import Final

from mesh_control.core.mcg_state import McgState
from mesh_control.core.mcg_state import Result as McgResult
from mesh_control.core.model import Stream
from mesh_control.core.model import StreamState as StreamLife
from mesh_data.core.overlay import LaneClosing, OverlayCore
from mesh_data.core.stream_state import StreamState
from mesh_data.core.timing import PRESETS
from meshapi.control.v1 import mcg_pb2
from meshapi.data.v1 import data_pb2
from meshcommon.ids import LogIndex, NodeId, StreamId
from meshcommon.requests import Incoming, Outgoing, Requests
from meshraft import KIND_NORMAL, Committed, Frame, GroupConfig, GroupStatus, RaftError
from meshtest.checkers import Held
from meshwire.packet import Protocol, TrafficClass
from meshwire.request import ErrorResponse, OkResponse, Request, Response
from tests.sim.disks import Disk, damage
from tests.sim.raft_host import Answer, SimulatedHost
from tests.sim.replica import Replica, config_of
from tests.sim.world import World

MCG: Final = 1
TICK_S: Final = 0.05
RAFT: Final = GroupConfig(election_ticks=12, heartbeat_ticks=2)
STREAM_RAFT: Final = GroupConfig(election_ticks=12, heartbeat_ticks=2, sleeps=True)
PROPOSE_MCG: Final = 1
PROPOSE_STREAM: Final = 2
REQUEST_S: Final = 1.5
MCG_ENTRIES_MAX: Final = 40
"""Log of the MCG past which a node compacts it: so few that nodes that were away are sent snapshots."""


class SimNode:
    """A node of the simulation; satisfies `world.Endpoint`."""

    def __init__(
        self,
        world: World,
        number: int,
        count: int,
        make_disk: Callable[[], Disk],
        on_applied: Callable[[int, int, str], None],
        lose_power: Callable[[SimNode], None],
    ) -> None:
        """`make_disk` gives a new disk with that name; `lose_power` crashes the node and starts it again soon."""
        self.number = number
        self.is_running = False
        self._world = world
        self._count = count
        self._on_applied = on_applied
        self._lose_power = lose_power
        self._mcg_disk = make_disk()
        self._data_disk = make_disk()
        self._is_first_start = True
        self._life = 0
        self.sleeps = 0
        """How often a group here fell asleep, over all lives."""

    # Life

    def start(self) -> None:
        """Starts, or starts again after a crash, from what the disks hold."""
        world = self._world
        self._life += 1
        self.is_running = True
        self.mcg_state = McgState()
        self.replicas: dict[int, Replica] = {}
        self._asleep: set[int] = set()
        self._reported: set[tuple[int, str]] = set()
        self._requests = Requests(first_id=world.rng.getrandbits(60))
        self._waiting: dict[int, Callable[[Response | None], None]] = {}
        self._overlay = OverlayCore(PRESETS["test"], world.rng.getrandbits(60))
        self._overlay.set_node(NodeId(self.number), world.now)
        self._overlay.forwarder.routes.apply(self._routes())
        life = self._life

        def cut_power() -> None:
            if self._life == life and self.is_running and world.is_faulty:
                self._lose_power(self)

        self._mcg = SimulatedHost(world, self._mcg_disk, world.rng.getrandbits(32), self.settle, cut_power)
        self._data = SimulatedHost(world, self._data_disk, world.rng.getrandbits(32), self.settle, cut_power)
        self._open_mcg()
        world.note("start", self.number)
        self._tick(self._life)

    def _open_mcg(self) -> None:
        peers = {member: member for member in range(1, self._count + 1)}
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
        self._world.forget_lanes_of(self.number)

    def damage(self, rng: random.Random) -> None:
        """Between a crash and a start: one of its two logs, or both, cannot be read to the end."""
        logs = rng.choice(((self._mcg_disk,), (self._data_disk,), (self._mcg_disk, self._data_disk)))
        self._world.note("damage", self.number, len(logs))
        for disk in logs:
            damage(disk, rng)

    def _routes(self) -> data_pb2.PushRoutesRequest:
        others = [number for number in range(1, self._count + 1) if number != self.number]
        routes = []
        for destination in others:
            direct = data_pb2.Path(nodes=[self.number, destination], cost=1)
            detours = [
                data_pb2.Path(nodes=[self.number, over, destination], cost=2) for over in others if over != destination
            ]
            routes.append(data_pb2.Route(destination=destination, paths=[direct, *detours]))
        return data_pb2.PushRoutesRequest(base_version=0, version=1, changed=routes)

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
        for delivery in self._overlay.receive(lane_id, frame, self._world.now):
            source, payload = int(delivery.source), bytes(delivery.payload)
            if delivery.protocol is Protocol.RAFT_MCG:
                self._mcg.step(source, payload)
            elif delivery.protocol is Protocol.RAFT_DSG:
                self._data.step(source, payload)
            elif delivery.protocol is Protocol.REQUEST:
                self._receive_request(source, payload)
        self.settle()

    # Turns

    def _tick(self, life: int) -> None:
        if life != self._life or not self.is_running:
            return
        self._overlay.tick(self._world.now, 0.0)
        self._mcg.raft.tick()
        self._data.raft.tick()
        asleep = {group for group in self.replicas if self._data.raft.is_asleep(group)}
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
        self._send_frames(Protocol.RAFT_MCG, self._mcg.turn(self._apply_mcg, self._restore_mcg))
        self._send_frames(
            Protocol.RAFT_DSG, self._data.turn(self._apply_stream, self._restore_stream, self._stream_role_changed)
        )
        for lane_id in sorted(self._overlay.take_ready()):
            while (frame := self._overlay.next_frame(lane_id)) is not None:
                self._world.transmit(self.number, lane_id, frame)
        for event in self._overlay.take_events():
            if isinstance(event, LaneClosing):
                self._overlay.close_lane(event.lane_id, event.reason, self._world.now)
                self._world.closed(self.number, event.lane_id)

    def _send_frames(self, protocol: Protocol, frames: list[Frame]) -> None:
        for frame in frames:
            self._send(protocol, TrafficClass.CONTROL if frame.cls == 0 else TrafficClass.BULK, frame.peer, frame.data)

    def _send(self, protocol: Protocol, cls: TrafficClass, destination: int, payload: bytes) -> None:
        self._overlay.send(protocol, cls, NodeId(destination), payload, 0, self._world.now)

    # Control plane

    def _apply_mcg(self, entry: Committed) -> McgResult | None:
        result = None
        if entry.kind == KIND_NORMAL and entry.data:
            result = self.mcg_state.apply(entry.index, mcg_pb2.Command.FromString(entry.data))
        else:
            self.mcg_state.advance(entry.index)
        self._on_applied(MCG, entry.index, self.mcg_state.digest())
        self._follow_catalogue()
        return result

    def _restore_mcg(self, _group: int, index: int, data: bytes) -> None:
        self.mcg_state.restore(data)
        self.mcg_state.advance(LogIndex(index))
        self._follow_catalogue()

    def _follow_catalogue(self) -> None:
        """Birth and death of replicas by the rules of architecture §7."""
        for stream in self.mcg_state.streams.values():
            if stream.has_member(NodeId(self.number)):
                self._follow_stream(stream)

    def _follow_stream(self, stream: Stream) -> None:
        group = _group(stream.stream_id)
        is_stored = group in self._data.raft.stored_groups()
        if stream.state is StreamLife.DELETING:
            if is_stored:
                self._data.destroy(group)
                self.replicas.pop(group, None)
            return
        if group in self.replicas:
            return
        member = next(int(item.member_id) for item in stream.members if item.node_id == self.number)
        peers = {int(item.member_id): int(item.node_id) for item in stream.members}
        self.replicas[group] = Replica(self._data.raft, stream.stream_id, group)
        if is_stored:
            installed = self._data.raft.open_group(group, member, peers, config=STREAM_RAFT)
            if installed.index:
                self._restore_stream(group, installed.index, installed.data)
            return
        voters = [int(item.member_id) for item in stream.members if item.is_voter]
        learners = [int(item.member_id) for item in stream.members if not item.is_voter]
        if stream.state is StreamLife.FORMING:
            first = StreamState(config_of(stream.stream_id)).snapshot()
            self._data.raft.create_group(
                group, member, peers, voters=voters, learners=learners, snapshot=first, config=STREAM_RAFT
            )
            self._restore_stream(group, 1, first)
        else:
            self._data.raft.create_group(group, member, peers, voters=[], config=STREAM_RAFT)

    def _report_groups(self) -> None:
        """StreamFormed and ReplicaDestroyed, as the control plane proposes them when its data plane reports."""
        for stream in self.mcg_state.streams.values():
            if not stream.has_member(NodeId(self.number)):
                continue
            group = _group(stream.stream_id)
            command = mcg_pb2.Command(proposal_id=self._world.rng.getrandbits(60))
            if stream.state is StreamLife.FORMING and group in self.replicas and self.replicas[group].is_formed:
                command.stream_formed.stream_id = stream.stream_id
            elif stream.state is StreamLife.DELETING and group not in self.replicas:
                command.replica_destroyed.stream_id = stream.stream_id
                command.replica_destroyed.node_id = self.number
            else:
                continue
            if self._world.rng.random() < 0.2:
                self.command(command, lambda _result: None)

    # Data plane

    def _apply_stream(self, entry: Committed) -> object:
        replica = self.replicas.get(entry.group)
        if replica is None:
            return None
        result = replica.apply(entry)
        self._on_applied(entry.group, entry.index, replica.state_hash())
        return result

    def _restore_stream(self, group: int, index: int, data: bytes) -> None:
        replica = self.replicas.get(group)
        if replica is not None:
            replica.restore(index, data)
            if index > 1:
                self._world.note("restored", self.number, group, index)

    def _stream_role_changed(self, group: int) -> None:
        if replica := self.replicas.get(group):
            replica.role_changed()

    def _look_after_logs(self) -> None:
        """Compaction: the catalogue's by each node alone, a stream's by what its leader commits."""
        status = self.mcg_status()
        if status.applied - status.first_index > MCG_ENTRIES_MAX and self.mcg_state.applied_index == status.applied:
            self._mcg.raft.compact(MCG, status.applied, self.mcg_state.snapshot())
        for group, replica in self.replicas.items():
            if self._data.is_leading(group) and (entry := replica.floor_entry()):
                self._data.propose(group, entry, lambda _result: None)

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
                start = min(max(offset, replica.floor_offset), replica.state.next_offset)
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
        stream = self.mcg_state.streams.get(StreamId(group - MCG))
        members = stream.members if stream is not None else ()
        return next((int(item.node_id) for item in members if item.member_id == member), 0)

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


def _group(stream_id: StreamId) -> int:
    """Stream groups have ids of their own, apart from the MCG's."""
    return int(stream_id) + MCG


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
