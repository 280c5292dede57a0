"""One stream's group whose members change again and again, under crashes, partitions, loss, stale catalogues and lost disks.

The cores are the real ones: `McgState` is the catalogue (one copy, as consensus would make it; every node sees it late),
`due_confirmations` says what nodes report to it, `group_steps` what the leader does, `StreamState` what members compute, and
meshraft runs over simulated disks. The rules by which a node opens and destroys its replica are those of the data plane's
`groups`, written down once more without asyncio. One disk at a time is lost, or set back to an older copy while others lag,
are down or cut off: the store guard has to see it. Leaves out: the overlay, the MCG's own consensus, compaction.
"""

from __future__ import annotations

import hashlib
import random
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from mesh_control.core.confirmations import Confirmation, due_confirmations
from mesh_control.core.confirmations import Report as Said
from mesh_control.core.mcg_state import McgState
from mesh_data.core.group_steps import (
    Configuration,
    ConfStep,
    HandOver,
    Witness,
    members_out,
    next_step,
)
from mesh_data.core.stream_snapshot import StreamConfig
from mesh_data.core.stream_state import FIRST_INDEX, StreamState
from mesh_data.core.view import Stream, view_from_proto
from mesh_data.core.view import StreamState as Life
from meshapi.control.v1 import mcg_pb2
from meshcommon.errors import MeshError
from meshcommon.ids import MemberId, NodeId, StreamId
from meshraft import (
    KIND_CONF,
    KIND_NORMAL,
    Backpressure,
    Committed,
    GroupConfig,
    GroupStatus,
    LogCorrupt,
    NotLeader,
    RaftError,
    RaftHost,
)
from meshwire.entry import InitProducerEntry, encode_entry
from meshwire.store_message import StoreMessage
from tests.sim import disks
from tests.sim.disks import Disk, Disks
from tests.sim.guarded_store import GuardedStore, StoredTruth
from tests.sim.set_back import LEADER_AWAY_TICKS, SetBack

NODES: Final = 6
STREAM: Final = StreamId(1)
GROUP: Final = 1
RAFT: Final = GroupConfig(election_ticks=10, heartbeat_ticks=2, sleeps=True)
LOOK_TICKS: Final = 3
HAND_OVER_PAUSE_TICKS: Final = 20
CAUGHT_UP_ENTRIES: Final = 8
"""Fewer than in life, so that short runs meet members that lag."""
FAULTY_TICKS: Final = 1_200
HEALING_TICKS: Final = 2_400


@dataclass(slots=True)
class Outcome:
    """What one run did and found."""

    seed: int
    findings: list[str] = field(default_factory=list)
    steps: int = 0
    wishes: int = 0
    acknowledged: int = 0
    crashes: int = 0
    lost_disks: int = 0
    rolled_back: int = 0
    given_up: int = 0
    given_up_again: int = 0
    events: int = 0
    trace_hash: str = ""


@dataclass(slots=True)
class _Replica:
    member: MemberId
    state: StreamState
    applied_term: int = 0
    term_begins_at: int = 0
    is_formed: bool = False
    hand_over_after: int = 0
    witness: Witness = field(default_factory=Witness)
    out: tuple[MemberId, ...] = ()


class _Node:
    """One node: a disk that survives, with the store's own record, a host and a replica that do not."""

    def __init__(self, number: int, disk: Disk, rng: random.Random) -> None:
        self.number = NodeId(number)
        self.disk = disk
        self.store = GuardedStore(rng)
        self.host: RaftHost | None = None
        self.replica: _Replica | None = None
        self.stream: Stream | None = None
        self.distrusted = MemberId(0)
        self.is_destroyed = False
        self.starts_at = 0
        self.pending: dict[int, tuple[int, bytes]] = {}


class MembershipRun:
    """One seeded run; `on_engine` has raft-engine write the disks."""

    def __init__(self, seed: int, *, on_engine: bool = False) -> None:
        self.rng = random.Random(seed)
        self.outcome = Outcome(seed)
        self.catalogue = McgState()
        self.disks = Disks(on_engine=on_engine)
        self.nodes = {number: _Node(number, self.disks.blank(), self.rng) for number in range(1, NODES + 1)}
        self.ticks = 0
        self.loss = self.rng.choice((0.0, 0.02, 0.1))
        self.crash_rate = self.rng.choice((0.0, 0.005, 0.02))
        self.cut: frozenset[int] = frozenset()
        self._deaf: frozenset[int] = frozenset()
        """Nodes that hear nothing new of the catalogue, although they are in touch with the others."""
        self._is_mending = self._is_noticed = False
        self._forgetful: tuple[_Node, int] | None = None
        """The node whose disk forgot something, and the store that it has to renounce for it."""
        self._set_back: SetBack[_Node] = SetBack(self.rng, self.disks)
        self._letters: list[tuple[int, int, int, bytes | StoreMessage]] = []
        self._contents: dict[int, tuple[int, int, bytes]] = {}
        self._chains: dict[int, bytes] = {}
        self._acknowledged: dict[int, bytes] = {}
        self._seen_members: dict[int, int] = {}
        self._trace = hashlib.sha256()

    def run(self) -> Outcome:
        """Forms, disturbs, heals, checks."""
        try:
            return self._run()
        finally:
            self.disks.close()

    def _run(self) -> Outcome:
        self._found()
        for self.ticks in range(1, FAULTY_TICKS):
            self._disturb()
            self._turn(is_faulty=True)
        self.cut, self.loss = frozenset(), 0.0
        for self.ticks in range(FAULTY_TICKS, FAULTY_TICKS + HEALING_TICKS):
            self._turn(is_faulty=False)
            if self.ticks % 10 == 0 and self._is_settled():
                break
        else:
            self.outcome.findings.append(f"C5 not settled: {self._waiting_for()}")
        self._check_readable()
        self.outcome.trace_hash = self._trace.hexdigest()
        return self.outcome

    # Catalogue

    def _commit(self, command: mcg_pb2.Command) -> MeshError | None:
        return self.catalogue.apply(self.catalogue.applied_index + 1, command).refusal

    def _found(self) -> None:
        found = mcg_pb2.Command()
        found.found_mesh.mesh_id = "00000000-0000-4000-8000-000000000001"
        found.found_mesh.node.name = "n1"
        found.found_mesh.node.public_key = bytes([1]) * 32
        self._commit(found)
        for number in range(2, NODES + 1):
            self._commit(mcg_pb2.Command(add_node=mcg_pb2.AddNode(name=f"n{number}", public_key=bytes([number]) * 32)))
        create = mcg_pb2.CreateStream(name="sim/members", node_ids=self.rng.sample(range(1, NODES + 1), 3))
        self._commit(mcg_pb2.Command(create_stream=create))
        for node in self.nodes.values():
            self._start(node)

    def _wish(self) -> None:
        stream = self.catalogue.streams[STREAM]
        present = [int(member.node_id) for member in stream.members]
        absent = sorted(set(self.nodes) - set(present))
        change = mcg_pb2.ChangeMembers(stream_id=STREAM)
        kind = self.rng.choice(("add", "remove", "replace", "replace", "renew"))
        if kind in ("add", "replace") and absent:
            change.add_nodes.append(self.rng.choice(absent))
        if kind in ("remove", "replace"):
            change.remove_nodes.append(self.rng.choice(present))
        if kind == "renew":
            change.renew_members.append(int(self.rng.choice(stream.members).member_id))
        # Never fewer than three: a quorum of two would not survive the crashes that this run makes.
        if len(present) + len(change.add_nodes) - len(change.remove_nodes) < 3:
            return
        if self._commit(mcg_pb2.Command(change_members=change)) is None:
            self.outcome.wishes += 1

    def _confirm(self, node: _Node) -> None:
        replica = node.replica
        if node.distrusted:
            said = Said("other", NodeId(0), "lost", node.distrusted, is_distrusted=True)
        elif replica is not None:
            state = "open" if replica.is_formed else "other"
            said = Said(state, NodeId(0), "", replica.member, replica.out)
        elif node.is_destroyed:
            said = Said("destroyed", NodeId(0))
        else:
            return
        for item in due_confirmations(self.catalogue.streams.values(), {STREAM: said}, node.number):
            self._commit(_command(item, node.number))

    # Nodes

    def _start(self, node: _Node) -> None:
        node.host = RaftHost.simulated(node.disk, seed=self.rng.getrandbits(32))
        node.store.start(_suspects(node), self.ticks)
        node.is_destroyed = False
        self._reconcile(node)

    def _crash(self, node: _Node, *, loses_disk: bool = False) -> None:
        disks.crash(node.disk, self.rng)
        node.store.crash()
        if loses_disk:
            node.disk, node.store.truth = self.disks.blank(), StoredTruth()
            self.outcome.lost_disks += 1
        node.host = node.replica = None
        node.distrusted = MemberId(0)
        node.pending.clear()
        node.starts_at = self.ticks + self.rng.randint(1, 40)
        self.outcome.crashes += 1

    def _reconcile(self, node: _Node) -> None:
        """The rules of the data plane's `Groups._reconcile_stream`."""
        host, stream = node.host, node.stream
        if host is None or stream is None:
            return
        goes_on, ended = stream.retiring_at(node.number), stream.ended_at(node.number)
        current = goes_on or stream.member_at(node.number)
        homes = {item.node_id for item in stream.members} | {item.node_id for item in stream.retiring}
        peers = homes - {node.number} if node.number in homes else frozenset()
        node.store.follow(peers, {other.number for other in self.nodes.values()}, self.ticks)
        if node.number not in homes:
            return
        is_stored = GROUP in host.stored_groups()
        if ended:
            if is_stored and not (current is not None and self._is_successor(node, host, ended)):
                host.destroy_group(GROUP)
                node.replica, is_stored = None, False
            if not is_stored:
                node.is_destroyed = True
                node.store.destroyed(GROUP)
            if node.distrusted in ended:
                node.distrusted = MemberId(0)
        if current is not None and GROUP in node.store.disowned:
            node.distrusted = current.member_id
        if node.replica is not None and GROUP in host.stored_groups():
            host.set_peers(GROUP, stream.homes())
        if current is None or node.distrusted or node.replica is not None:
            return
        if is_stored or goes_on is None:
            node.is_destroyed = False
            self._open(node, host, stream, current.member_id, is_stored=is_stored)

    def _is_successor(self, node: _Node, host: RaftHost, ended: frozenset[MemberId]) -> bool:
        if node.replica is not None:
            return node.replica.member not in ended
        if node.distrusted:
            return node.distrusted not in ended
        for former in ended:
            with suppress(RaftError):
                host.open_group(GROUP, int(former), {}, config=RAFT)
                return False
        return True

    def _open(self, node: _Node, host: RaftHost, stream: Stream, member: MemberId, *, is_stored: bool) -> None:
        if self._seen_members.setdefault(int(member), int(node.number)) != node.number:
            self.outcome.findings.append(f"C1 member {member} on two nodes")
        peers = stream.homes()
        replica = _Replica(member, StreamState(StreamConfig.of(STREAM, stream.retained_bytes_max)))
        if is_stored:
            try:
                installed = host.open_group(GROUP, int(member), peers, config=RAFT)
            except LogCorrupt:  # a power cut took back that the former membership's data were destroyed
                node.distrusted = member
                return
            if installed.index:
                replica.state = StreamState.restore(installed.data)
        elif stream.state is Life.FORMING:
            voters = [int(item.member_id) for item in stream.members]
            host.create_group(GROUP, int(member), peers, voters=voters, snapshot=replica.state.snapshot(), config=RAFT)
        else:
            host.create_group(GROUP, int(member), peers, voters=[], config=RAFT)
        node.replica = replica

    # Turns

    def _disturb(self) -> None:
        if self.catalogue.streams[STREAM].state.name != "ACTIVE":
            return
        self._is_mending = self._is_mending and not self._is_mended()
        if self.rng.random() < 0.02 and not self._is_mending:
            self._wish()
        if self.rng.random() < 0.01:
            self.cut = frozenset(self.rng.sample(range(1, NODES + 1), self.rng.randint(0, 3)))
        if self.rng.random() < 0.01:
            self._deaf = frozenset(self.rng.sample(range(1, NODES + 1), self.rng.randint(0, 3)))
        for node in self.nodes.values():
            if node.host is not None and self.rng.random() < self.crash_rate / NODES:
                self._crash(node)
        if self.rng.random() < 0.01:
            self._lose_a_disk()
        self._set_a_disk_back()

    def _lose_a_disk(self) -> None:
        """One disk, while all others hold everything: what a group must survive.

        Nobody drops a second copy on purpose before the group has noticed the loss and made it good: of three copies the
        one that is left could not prove that it is complete, and the group would wait for ever, as it should.
        """
        if self._is_settled():
            stream = self.catalogue.streams[STREAM]
            node = self.nodes[int(self.rng.choice(stream.members).node_id)]
            self._forgetful = (node, node.store.record.lineage.store_id)
            self._crash(node, loses_disk=True)
            self._is_mending, self._is_noticed = True, False

    def _set_a_disk_back(self) -> None:
        stream = self.catalogue.streams[STREAM]
        members = [self.nodes[int(member.node_id)] for member in stream.members]
        if self._is_mending or self._is_changing():
            self._set_back.give_up()
            return
        leader = next((node for node in members if self._leads(node)), None)
        self._set_back.plan(members, leader, self.ticks)
        if (lonely := self._set_back.cut_off(members, self.ticks)) is not None:
            self.cut = frozenset({int(lonely.number)})
        restored = self._set_back.restore(members, self.ticks)
        if restored is None:
            return
        node = restored.machine
        self._forgetful = (node, node.store.record.lineage.store_id)
        self._crash(node)
        node.disk, node.store.truth = restored.disk, restored.truth
        if leader is not None and leader is not node:
            self._crash(leader)
            leader.starts_at = self.ticks + LEADER_AWAY_TICKS
        self.cut, self._is_mending, self._is_noticed = frozenset(), True, False
        self.outcome.rolled_back += 1

    def _leads(self, node: _Node) -> bool:
        return node.host is not None and node.replica is not None and node.host.status(GROUP).role == "leader"

    def _is_mended(self) -> bool:
        """Whether the disk that forgot was noticed, and made good."""
        if self._forgetful is not None:
            node, store_id = self._forgetful
            if node.host is None or store_id not in node.store.record.lineage.renounced:
                return False
        return self._is_settled()

    def _is_changing(self) -> bool:
        """Whether some member that is up has another configuration than the one that is wished."""
        stream = self.catalogue.streams[STREAM]
        voters = sorted(int(item.member_id) for item in stream.members if item.is_voter)
        for member in stream.members:
            node = self.nodes[int(member.node_id)]
            if node.host is None:
                continue
            if node.replica is None or node.replica.member != member.member_id:
                return True
            if sorted(node.host.status(GROUP).voters) != voters:
                return True
        return bool(stream.retiring)

    def _turn(self, *, is_faulty: bool) -> None:
        rng = self.rng
        for node in self.nodes.values():
            if node.host is None:
                if self.ticks >= node.starts_at:
                    self._start(node)
                continue
            if not is_faulty or (int(node.number) not in self.cut | self._deaf and rng.random() < 0.2):
                node.stream = view_from_proto(self.catalogue.view()).streams.get(STREAM)
                self._reconcile(node)
                if rng.random() < 0.3:
                    self._confirm(node)
            node.host.tick()
            for target, message in node.store.act(self.ticks):
                self._letters.append((self.ticks + rng.randint(0, 2), int(node.number), int(target), message))
            if self.ticks % LOOK_TICKS == 0:
                self._look(node)
            if is_faulty and rng.random() < 0.1:
                self._publish(node)
            self._pump(node)
        self._deliver()
        for node in self.nodes.values():
            if node.host is not None and (pending := node.disk.pending()):
                if not disks.sync(node.disk, rng.randint(0, pending) if is_faulty else pending, rng):
                    self.outcome.findings.append("C1 old log files cannot be removed")
                self._pump(node)

    def _look(self, node: _Node) -> None:
        host, replica, stream = node.host, node.replica, node.stream
        if host is None or replica is None or stream is None:
            return
        status = host.status(GROUP)
        replica.out = ()
        if stream.state is Life.FORMING and not status.leader and replica.member == stream.members[0].member_id:
            host.campaign(GROUP)
        if status.role != "leader" or replica.applied_term != status.term or stream.state is not Life.ACTIVE:
            return
        others = [item for item in status.progress if item.member != status.member]
        needed_index = max(replica.term_begins_at, status.commit - CAUGHT_UP_ENTRIES)
        raft = Configuration(
            own=replica.member,
            voters=frozenset(map(MemberId, status.voters)),
            learners=frozenset(map(MemberId, status.learners)),
            heard=frozenset(MemberId(it.member) for it in others if it.quiet_ticks <= RAFT.election_ticks),
            caught_up=frozenset(
                MemberId(item.member)
                for item in others
                if item.matched >= needed_index and item.commit >= replica.term_begins_at and not item.in_doubt
            ),
            revision=replica.state.members_revision,
            is_witnessed=_is_witnessed(replica, status),
        )
        replica.out = members_out(stream, raft)
        try:
            if not raft.is_witnessed and not replica.witness.is_for(status.term, status.conf_index):
                replica.witness = Witness(status.term, status.conf_index, host.propose(GROUP, b"")[1])
            match next_step(stream, raft):
                case ConfStep(change, member, home):
                    context = stream.revision.to_bytes(8, "big")
                    host.propose_conf_change(GROUP, change, int(member), int(home), context)
                    self.outcome.steps += 1
                case HandOver(member) if self.ticks >= replica.hand_over_after:
                    replica.hand_over_after = self.ticks + HAND_OVER_PAUSE_TICKS
                    host.transfer_leader(GROUP, int(member))
                case _:
                    pass
        except (Backpressure, NotLeader):
            return

    def _publish(self, node: _Node) -> None:
        if node.host is None or node.replica is None:
            return
        data = encode_entry(InitProducerEntry(self.ticks, f"p{self.rng.getrandbits(40)}"))
        try:
            term, index = node.host.propose(GROUP, data)
        except RaftError:
            return
        node.pending[index] = (term, data)

    def _pump(self, node: _Node) -> None:
        host = node.host
        while host is not None and host.has_work():
            pump = host.pump()
            for frame in pump.frames:
                if not node.store.may_send(NodeId(frame.peer), self.ticks):
                    continue
                delay = self.rng.randint(0, 2)
                self._letters.append((self.ticks + delay, int(node.number), frame.peer, frame.data))
            for installed in pump.installed:
                if node.replica is not None:
                    node.replica.state = StreamState.restore(installed.data)
            for entry in pump.committed:
                self._apply(node, entry)
            for _, reason in pump.closed:
                if "it has lost some" not in reason or node.replica is None:
                    self.outcome.findings.append(f"C1 a group was poisoned: {reason}")
                else:
                    node.distrusted = node.replica.member
                node.replica = None

    def _apply(self, node: _Node, entry: Committed) -> None:
        replica = node.replica
        if replica is None:
            return
        content = (entry.term, entry.kind, bytes(entry.data))
        if self._contents.setdefault(entry.index, content) != content:
            self.outcome.findings.append(f"C4 index {entry.index} has two contents")
        replica.is_formed = True
        if entry.term != replica.applied_term:
            replica.applied_term, replica.term_begins_at = entry.term, entry.index
        if entry.kind == KIND_CONF:
            replica.state.reconfigured(entry.index, int.from_bytes(entry.data, "big"))
        elif entry.kind == KIND_NORMAL and entry.data:
            replica.state.apply(entry.index, entry.data)
        else:
            replica.state.skip(entry.index)
        if self._chains.setdefault(entry.index, replica.state.chain) != replica.state.chain:
            self.outcome.findings.append(f"C4 chains differ at index {entry.index}")
        term, data = node.pending.pop(entry.index, (0, b""))
        if term == entry.term:
            self._acknowledged[entry.index] = data

    def _deliver(self) -> None:
        due = [letter for letter in self._letters if letter[0] <= self.ticks]
        self._letters = [letter for letter in self._letters if letter[0] > self.ticks]
        for _, source, target, letter in due:
            receiver = self.nodes.get(target)
            is_cut = (source in self.cut) != (target in self.cut)
            if receiver is None or receiver.host is None or is_cut or self.rng.random() < self.loss:
                continue
            self.outcome.events += 1
            # What stores tell each other has no bytes of its own here; its repr is as good.
            content = letter if isinstance(letter, bytes) else repr(letter).encode()
            self._trace.update(repr((self.ticks, source, target)).encode() + content)
            if not isinstance(letter, bytes):
                if receiver.store.receive(NodeId(source), letter, _suspects(receiver), self.ticks):
                    self._give_up(receiver)
            elif receiver.store.may_take(NodeId(source), self.ticks):
                with suppress(RaftError):  # a frame for another membership of the same node is dropped, as in life
                    receiver.host.step(source, letter)
            self._pump(receiver)

    def _give_up(self, node: _Node) -> None:
        """A peer objected to the node's store.

        The first to object may remember no more than the store before the one that was lost: then another peer objects too.
        """
        if not self._is_mending or self._forgetful is None or self._forgetful[0] is not node:
            self.outcome.findings.append(f"node {node.number} gave up a store that had forgotten nothing")
        elif self._is_noticed:
            self.outcome.given_up_again += 1
        else:
            self._is_noticed = True
            self.outcome.given_up += 1
        if node.replica is not None and node.host is not None:
            node.host.close_group(GROUP)
            node.replica = None
        self._reconcile(node)

    # Checks

    def _is_settled(self) -> bool:
        return not self._waiting_for()

    def _waiting_for(self) -> str:
        stream = self.catalogue.streams[STREAM]
        if stream.state.name != "ACTIVE" or stream.retiring:
            return f"{stream.state.name}, retiring {[int(item.member_id) for item in stream.retiring]}"
        wished = {int(member.member_id): member for member in stream.members}
        applied, is_witnessed = set(), False
        for member in stream.members:
            node = self.nodes[int(member.node_id)]
            if node.host is None or node.replica is None or node.replica.member != member.member_id:
                return f"no replica of member {member.member_id} on node {node.number}, distrusted {node.distrusted}"
            status = node.host.status(GROUP)
            voters = sorted(number for number, item in wished.items() if item.is_voter)
            if sorted(status.voters) != voters or len(status.voters) + len(status.learners) != len(wished):
                return f"member {member.member_id} has voters {status.voters}, learners {status.learners}, not {voters}"
            applied.add((status.applied, status.last_index))
            is_witnessed |= status.role == "leader" and _is_witnessed(node.replica, status)
        if len(applied) != 1:
            return f"applied {sorted(applied)}"
        return "" if is_witnessed else "the last change has no witness"

    def _check_readable(self) -> None:
        """C1: what was acknowledged is in the log of every member, at its index."""
        self.outcome.acknowledged = len(self._acknowledged)
        for member in self.catalogue.streams[STREAM].members:
            host = self.nodes[int(member.node_id)].host
            if host is None or self.nodes[int(member.node_id)].replica is None:
                continue
            status = host.status(GROUP)
            entries = host.entries(GROUP, status.first_index, status.applied + 1, 1 << 30)
            held = {entry.index: bytes(entry.data) for entry in entries}
            missing = [
                index for index, data in self._acknowledged.items() if index > FIRST_INDEX and held.get(index) != data
            ]
            if missing:
                self.outcome.findings.append(f"C1 member {member.member_id} lacks {len(missing)} acknowledged entries")


def _is_witnessed(replica: _Replica, status: GroupStatus) -> bool:
    return status.conf_index < status.first_index or replica.witness.is_committed(
        status.term, status.conf_index, status.applied
    )


def _suspects(node: _Node) -> set[int]:
    """Groups that the node holds or should hold."""
    is_listed = node.stream is not None and node.stream.is_held_by(node.number)
    stored = set(node.host.stored_groups()) if node.host is not None else set()
    return stored | ({GROUP} if is_listed else set())


def _command(item: Confirmation, node: NodeId) -> mcg_pb2.Command:
    stream_id, member_id = int(item.stream_id), int(item.member_id)
    match item.kind:
        case "formed":
            return mcg_pb2.Command(stream_formed=mcg_pb2.StreamFormed(stream_id=stream_id))
        case "out":
            return mcg_pb2.Command(member_out=mcg_pb2.MemberOut(stream_id=stream_id, member_id=member_id))
        case "renew":
            return mcg_pb2.Command(change_members=mcg_pb2.ChangeMembers(stream_id=stream_id, renew_members=[member_id]))
        case _:
            destroyed = mcg_pb2.ReplicaDestroyed(stream_id=stream_id, node_id=node, member_id=member_id)
            return mcg_pb2.Command(replica_destroyed=destroyed)
