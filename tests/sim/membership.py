"""One stream's group whose members change again and again, under crashes, partitions, loss, stale catalogues and lost disks.

The cores are the real ones: `McgState` is the catalogue (one copy, as consensus would make it; every node sees it late),
`due_confirmations` says what nodes report to it, `ReplicaLife` when a node opens and destroys its replica, `GroupLeader` what
the leader does, `ReplicaCore` what members hold, and meshraft runs over simulated disks. One disk at a time is lost, or set back to an older copy while others lag,
are down or cut off: the store guard has to see it. Leaves out: the overlay, the MCG's own consensus, compaction.
"""

from __future__ import annotations

import hashlib
import random
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from mesh_control.core import model
from mesh_control.core.confirmations import due_confirmations
from mesh_control.core.mcg_state import McgState
from mesh_data.core.replica_life import (
    Close,
    Create,
    Destroy,
    Distrust,
    Follow,
    Identify,
    LeaveAlone,
    OpenStored,
    ReplicaLife,
    Step,
)
from mesh_data.core.stream_snapshot import StreamConfig
from mesh_data.core.stream_state import FIRST_INDEX
from mesh_data.core.view import Stream, view_from_proto
from meshapi.common.v1 import view_pb2
from meshapi.control.v1 import mcg_pb2
from meshcommon.errors import MeshError
from meshcommon.ids import NodeId, StreamId
from meshraft import (
    Frame,
    LogCorrupt,
    RaftError,
    RaftHost,
)
from meshraft.configuration import ConfChange, is_witnessed
from meshraft.driver import RaftDriver
from meshwire.entry import InitProducerEntry, encode_entry
from meshwire.store_message import StoreMessage
from tests.sim import disks
from tests.sim.disks import Disk, Disks
from tests.sim.group_member import GROUP, RAFT, Acknowledged, Member
from tests.sim.guarded_store import SimulatedStore, StoredTruth
from tests.sim.set_back import LEADER_AWAY_TICKS, SetBack
from tests.sim.streams import first_state, founders, identify, is_needed, said, take

NODES: Final = 6
STREAM: Final = StreamId(1)
LOOK_TICKS: Final = 3
AWAY_TICKS: Final = 100
"""Of a node whose membership ends meanwhile, if the others can do without it."""
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


class _Node:
    """One node: a disk that survives, with the store's own record, a host and a replica that do not."""

    def __init__(self, number: int, disk: Disk, rng: random.Random) -> None:
        self.number = NodeId(number)
        self.disk = disk
        self.store = SimulatedStore(rng)
        self.driver: RaftDriver | None = None
        self.replica: Member | None = None
        self.stream: Stream | None = None
        self.life = ReplicaLife()
        self.starts_at = 0

    @property
    def host(self) -> RaftHost | None:
        """The host, while the node is up."""
        return self.driver.host if self.driver is not None else None


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
        founder = view_pb2.NodeView(name="n1", public_key=bytes([1]) * 32)
        found = mcg_pb2.FoundMesh(mesh_id="00000000-0000-4000-8000-000000000001", node=founder)
        self._commit(mcg_pb2.Command(found_mesh=found))
        for number in range(2, NODES + 1):
            self._commit(mcg_pb2.Command(add_node=mcg_pb2.AddNode(name=f"n{number}", public_key=bytes([number]) * 32)))
            self._commit(mcg_pb2.Command(activate_node=mcg_pb2.ActivateNode(node_id=number)))
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
            if kind == "renew" and self.rng.random() < 0.5:
                self._miss_the_end(next(it for it in stream.members if int(it.member_id) in change.renew_members))

    def _miss_the_end(self, member: model.Member) -> None:
        """Its node is down while its membership ends: afterwards it has to tell whose data it has."""
        node = self.nodes[int(member.node_id)]
        if node.driver is not None:
            self._crash(node)
            node.starts_at = self.ticks + AWAY_TICKS

    def _confirm(self, node: _Node) -> None:
        told = {} if node.replica is None else {STREAM: node.replica}
        reports = {report.stream_id: said(report) for report in node.life.reports(told)}
        for item in due_confirmations(self.catalogue.streams.values(), reports, node.number):
            self._commit(item.command(node.number))

    # Nodes

    def _start(self, node: _Node) -> None:
        host = RaftHost.simulated(node.disk, seed=self.rng.getrandbits(32))
        node.driver = RaftDriver(host, lambda frame: self._send(node, frame))
        node.store.start(_suspects(node), self.ticks, host.retirement() or "")
        if int(node.number) not in self.cut | self._deaf and self.rng.random() < 0.7:
            self._see_catalogue(node)
        self._reconcile(node)

    def _see_catalogue(self, node: _Node) -> None:
        node.stream = view_from_proto(self.catalogue.view()).streams.get(STREAM)

    def _crash(self, node: _Node, *, loses_disk: bool = False) -> None:
        disks.crash(node.disk, self.rng)
        node.store.crash()
        if loses_disk:
            node.disk, node.store.truth = self.disks.blank(), StoredTruth()
            self.outcome.lost_disks += 1
        node.driver = node.replica = None
        node.life = ReplicaLife()
        node.starts_at = self.ticks + self.rng.randint(1, 40)
        self.outcome.crashes += 1

    def _reconcile(self, node: _Node) -> None:
        driver, stream = node.driver, node.stream
        if driver is None or stream is None:
            return
        homes = {item.node_id for item in stream.members} | {item.node_id for item in stream.retiring}
        peers = homes - {node.number} if node.number in homes else frozenset()
        node.store.follow(peers, {other.number for other in self.nodes.values()}, self.ticks)
        distrust = Distrust(set(node.store.disowned), "the store was given up")
        for step in node.life.follow({STREAM: stream}, node.number, set(driver.host.stored_groups()), distrust):
            self._carry_out(node, driver, step)

    def _carry_out(self, node: _Node, driver: RaftDriver, step: Step) -> None:
        host = driver.host
        match step:
            case Create() | OpenStored():
                self._open(node, driver, step)
            case Identify():
                for following in node.life.identified(step, identify(host, GROUP, step.former)):
                    self._carry_out(node, driver, following)
            case Follow(stream):
                host.set_peers(GROUP, stream.homes())
            case Close():
                host.close_group(GROUP)
                self._drop(node)
            case Destroy():
                if node.replica is not None and is_needed(self.catalogue.streams[STREAM], node.replica.member_id):
                    self.outcome.findings.append(f"C1 member {node.replica.member_id} is destroyed while it is needed")
                if step.is_stored:
                    host.destroy_group(GROUP)
                self._drop(node)
                node.store.destroyed(GROUP, self.ticks)
            case LeaveAlone():
                pass

    def _open(self, node: _Node, driver: RaftDriver, step: Create | OpenStored) -> None:
        stream, member, host = step.stream, step.member_id, driver.host
        if self._seen_members.setdefault(int(member), int(node.number)) != node.number:
            self.outcome.findings.append(f"C1 member {member} on two nodes")
        config, peers = StreamConfig.of(STREAM, stream.retained_bytes_max), stream.homes()
        replica = Member(driver, member, config, self._applied, lambda kind, reason: self._closed(node, kind, reason))
        if isinstance(step, OpenStored):
            try:
                installed = host.open_group(GROUP, int(member), peers, config=RAFT)
            except LogCorrupt as error:  # a power cut took back that the former membership's data were destroyed
                if identify(host, GROUP, stream.ended_at(node.number)) is not None:
                    self.outcome.findings.append(f"C1 member {member} was to run on data of a member that is out")
                node.life.fail(STREAM, str(error), is_distrusted=True)
                return
            if installed.index:
                replica.core.restore(installed.data, installed.index)
        elif step.is_blank:
            host.create_group(GROUP, int(member), peers, voters=[], config=RAFT)
        else:
            first = first_state(config)
            host.create_group(GROUP, int(member), peers, **founders(stream), snapshot=first, config=RAFT)
            replica.core.restore(first, FIRST_INDEX)
        node.replica = replica
        replica.group.join()

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
        if self.rng.random() < 0.02:
            self._move_leadership()
        for node in self.nodes.values():
            if node.host is not None and self.rng.random() < self.crash_rate / NODES:
                self._crash(node)
        if self.rng.random() < 0.01:
            self._lose_a_disk()
        self._set_a_disk_back()

    def _move_leadership(self) -> None:
        """As an operator does; to a member that may have heard less of the catalogue, if there is one."""
        for node in self.nodes.values():
            if self._leads(node) and node.replica is not None:
                voters = node.replica.group.status().voters
                deaf = [it.replica.member_id for it in self.nodes.values() if it.number in self._deaf and it.replica]
                with suppress(RaftError):
                    node.replica.group.transfer(int(self.rng.choice(sorted(set(deaf) & set(voters)) or voters)))

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
            if node.replica is None or node.replica.member_id != member.member_id:
                return True
            if sorted(node.host.status(GROUP).voters) != voters:
                return True
        return bool(stream.retiring)

    def _turn(self, *, is_faulty: bool) -> None:
        rng = self.rng
        for node in self.nodes.values():
            if node.driver is None:
                if self.ticks >= node.starts_at:
                    self._start(node)
                continue
            if not is_faulty or (int(node.number) not in self.cut | self._deaf and rng.random() < 0.2):
                self._see_catalogue(node)
                self._reconcile(node)
                if rng.random() < 0.3:
                    self._confirm(node)
            node.driver.tick()
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
        replica, stream = node.replica, node.stream
        if replica is None or stream is None:
            return
        group, status = replica.group, replica.group.status()
        for duty in replica.leader.look(stream, replica.member_id, replica.state, group, status):
            self.outcome.steps += take(group, status, duty, stream.revision) and isinstance(duty, ConfChange)

    def _publish(self, node: _Node) -> None:
        if node.replica is None:
            return
        data = encode_entry(InitProducerEntry(self.ticks, f"p{self.rng.getrandbits(40)}"))
        with suppress(RaftError):
            node.replica.group.propose(data, Acknowledged(self._acknowledged))

    def _pump(self, node: _Node) -> None:
        while node.driver is not None and node.driver.host.has_work():
            node.driver.turn()

    def _send(self, node: _Node, frame: Frame) -> None:
        if node.store.may_send(NodeId(frame.peer), self.ticks):
            self._letters.append((self.ticks + self.rng.randint(0, 2), int(node.number), frame.peer, frame.data))

    def _closed(self, node: _Node, kind: str, reason: str) -> None:
        """The host dropped the node's group."""
        if kind != "lost_synced_data" or node.replica is None:
            self.outcome.findings.append(f"C1 a group was poisoned: {reason}")
        node.life.fail(STREAM, reason, is_distrusted=True)
        self._drop(node)

    def _drop(self, node: _Node) -> None:
        if node.replica is not None:
            node.replica.group.close(None)
        node.replica = None

    def _applied(self, index: int, content: tuple[int, int, bytes], chain: bytes) -> None:
        """A member applied an entry, which brought its hash chain to `chain`."""
        if self._contents.setdefault(index, content) != content:
            self.outcome.findings.append(f"C4 index {index} has two contents")
        if self._chains.setdefault(index, chain) != chain:
            self.outcome.findings.append(f"C4 chains differ at index {index}")

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
            self._drop(node)
        node.life.close_all()
        self._reconcile(node)

    # Checks

    def _is_settled(self) -> bool:
        return not self._waiting_for()

    def _waiting_for(self) -> str:
        stream = self.catalogue.streams[STREAM]
        if stream.state.name != "ACTIVE" or stream.retiring:
            return f"{stream.state.name}, retiring {[int(item.member_id) for item in stream.retiring]}"
        wished = {int(member.member_id): member for member in stream.members}
        applied, has_witness = set(), False
        for member in stream.members:
            node = self.nodes[int(member.node_id)]
            if node.host is None or node.replica is None or node.replica.member_id != member.member_id:
                return f"no replica of member {member.member_id} on node {node.number}"
            status = node.host.status(GROUP)
            voters = sorted(number for number, item in wished.items() if item.is_voter)
            if sorted(status.voters) != voters or len(status.voters) + len(status.learners) != len(wished):
                return f"member {member.member_id} has voters {status.voters}, learners {status.learners}, not {voters}"
            applied.add((status.applied, status.last_index))
            has_witness |= status.role == "leader" and is_witnessed(status, node.replica.group.witness)
        if len(applied) != 1:
            return f"applied {sorted(applied)}"
        return "" if has_witness else "the last change has no witness"

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


def _suspects(node: _Node) -> set[int]:
    """Groups that the node holds or should hold."""
    is_listed = node.stream is not None and node.stream.is_held_by(node.number)
    stored = set(node.host.stored_groups()) if node.host is not None else set()
    return stored | ({GROUP} if is_listed else set())
