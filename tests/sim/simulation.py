"""One seeded run: a mesh forms, streams are written under faults, everything heals, and the checkers look.

Findings are sentences that begin with their checker's name; none is a pass. C1, C2 and C4 as in `meshtest.checkers`, C3 and
C5 as in `meshtest.histories`; besides, the catalogue keeps what was acknowledged.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from mesh_control.core.model import StreamPhase
from meshapi.control.v1 import mcg_pb2
from meshcommon.errors import MeshError
from meshcommon.ids import StreamId
from meshraft import GroupStatus, RaftError
from meshtest.checkers import Held, check_acknowledged_readable, check_exactly_once
from meshtest.histories import Publish, Read, check_linearizable, check_progress
from meshwire.errors import WireError
from tests.sim import topology
from tests.sim.clients import CatalogueClient
from tests.sim.disks import Disks
from tests.sim.node import SimNode
from tests.sim.publisher import Publisher
from tests.sim.raft_host import GroupPoisonedError
from tests.sim.reader import Reader
from tests.sim.streams import is_needed
from tests.sim.world import World

FORMING_S: Final = 20.0
FAULTS_S: Final = 12.0
HEALING_S: Final = 90.0
PROGRESS_S: Final = 5.0
"""I9 for `lan`; after the last restart, since a node that is down is a fault too."""
REST_S: Final = 4.0
"""Without calls; a group that slept no sooner than its last one had to wait sleeps by then."""
DAMAGE_CHANCE: Final = 0.5
"""At a crash of the node that has bad disks."""
GROUPS_MAX: Final = 50
BATCHES: Final = 150
"""Of all publishers of a run together, so that one of many groups takes little longer than one of few."""


def has_caught_up(members: list[GroupStatus]) -> bool:
    """Whether a leader has committed its whole log and every member has applied it.

    Equal applied indexes alone say nothing: after a power cut of all members a committed entry may wait for a leader.
    """
    ends = [status.last_index for status in members if status.role == "leader" and status.commit == status.last_index]
    return bool(ends) and all(status.applied == max(ends) for status in members)


@dataclass(slots=True)
class Outcome:
    """Result of one seed."""

    seed: int
    nodes: int
    events: int = 0
    groups: int = 0
    acknowledged: int = 0
    reads: int = 0
    replaced: int = 0
    floors_moved: int = 0
    crashes: int = 0
    damages: int = 0
    retirements: int = 0
    disk_failures: int = 0
    sleeps: int = 0
    topology: str = ""
    trace_hash: str = ""
    findings: list[str] = field(default_factory=list)


class Simulation:
    """One run; `mutant` plants a known bug in the simulated disks, `on_engine` has raft-engine write them."""

    def __init__(self, seed: int, mutant: str | None = None, on_engine: bool = False) -> None:
        self.world = World(seed)
        self._disks = Disks(on_engine=on_engine, mutant=mutant)
        if on_engine:
            self.world.note("engine disks")
        count = self.world.rng.randint(3, 7)
        self.outcome = Outcome(seed, count)
        self._hashes: dict[tuple[int, int], str] = {}
        self._damages = random.Random(f"{seed} damages")
        bad = self._damages.randint(1, count)
        self.nodes = [
            SimNode(
                self.world,
                number,
                count,
                partial(self._disks.blank, is_bad=number == bad),
                self._applied,
                self._check_destroyed,
                self._lose_power,
            )
            for number in range(1, count + 1)
        ]
        self._bad_node = self.nodes[bad - 1]
        self.world.endpoints.update({node.number: node for node in self.nodes})
        self.outcome.topology, self._pairs = topology.draw(random.Random(f"{seed} topology"), count)
        self.world.note(self.outcome.topology)
        self._catalogue = CatalogueClient(self.world, self.nodes)
        self._publishers: list[Publisher] = []
        self._readers: list[Reader] = []
        self._healed_s = 0.0

    def run(self) -> Outcome:
        """Runs to the end and checks."""
        try:
            return self._run()
        finally:
            self._disks.close()

    def _run(self) -> Outcome:
        try:
            self._form()
            if not self.outcome.findings:
                self._disturb()
                self._heal()
                self._check()
            if not self.outcome.findings:
                self._rest()
        except GroupPoisonedError as error:
            self.outcome.findings.append(str(error))
        except (RaftError, WireError, MeshError) as error:
            self.outcome.findings.append(f"C1 a node cannot go on: {error!r}")
        self.outcome.events = self.world.events_done
        self.outcome.retirements = sum(node.retirements for node in self.nodes)
        self.outcome.disk_failures = self.world.disk_failures
        self.outcome.sleeps = sum(node.sleeps for node in self.nodes)
        self.outcome.trace_hash = self.world.trace_hash()
        return self.outcome

    def _applied(self, group: int, index: int, state_hash: str) -> None:
        """C4, at every applied index of every member."""
        if self._hashes.setdefault((group, index), state_hash) != state_hash:
            self.outcome.findings.append(f"C4 state hashes of group {group} differ at index {index}")

    def _check_destroyed(self, group: int, member: int) -> None:
        """C1: by the newest catalogue, the member is out of its group, or the group is sealed."""
        newest = max((node.mcg_state for node in self.nodes if node.is_running), key=lambda state: state.applied_index)
        if is_needed(newest.streams.get(StreamId(group)), member):
            self.outcome.findings.append(f"C1 member {member} of group {group} is destroyed while it is needed")

    def _form(self) -> None:
        for node in self.nodes:
            node.start()
        self.world.connect(self._pairs)
        found = mcg_pb2.Command()
        found.found_mesh.mesh_id = "00000000-0000-4000-8000-000000000001"
        found.found_mesh.node.name = "n1"
        found.found_mesh.node.public_key = bytes([1]) * 32
        self._catalogue.commands.append(found)
        for node in self.nodes[1:]:
            command = mcg_pb2.Command()
            command.add_node.name = f"n{node.number}"
            command.add_node.public_key = bytes([node.number]) * 32
            activate = mcg_pb2.Command(activate_node=mcg_pb2.ActivateNode(node_id=node.number))
            self._catalogue.commands += [command, activate]
        # Late and doomed streams, and the catalogue's own group, come to these.
        streams = self.world.rng.choice((1, 2, 3, 1, 2, 3, 1, 2, 3, self.world.rng.randint(8, GROUPS_MAX - 3)))
        self.outcome.groups = streams + 3
        for number in range(streams):
            self._catalogue.commands.append(self._create(f"sim/s{number}"))
        self._catalogue.go()
        if not self.world.run_until(FORMING_S, lambda: self._catalogue.is_idle):
            self.outcome.findings.append("C5 the mesh did not form without faults")
            return
        for command, result in self._catalogue.acknowledged:
            if result.refusal is not None:
                self.outcome.findings.append(f"C1 refused: {result.refusal}")
            elif command.WhichOneof("kind") == "create_stream":
                self._use(self._members(command), result.allocated_id, max(3, BATCHES // (2 * streams)))

    def _use(self, members: list[SimNode], group: int, batches: int) -> None:
        """Two publishers and a reader of a stream."""
        world = self.world
        for name in ("p", "q"):
            publisher = Publisher(world, members, group, name, batches)
            self._publishers.append(publisher)
            world.after(0.5, publisher.go)
            while world.rng.random() < 0.6:
                world.after(world.rng.uniform(1.0, FAULTS_S), lambda it=publisher: self._replace(it))  # type: ignore[misc]
        reader = Reader(world, members, group)
        self._readers.append(reader)
        world.after(world.rng.uniform(0.5, 1.0), reader.go)

    def _replace(self, publisher: Publisher) -> None:
        self.outcome.replaced += not publisher.is_idle
        publisher.replace()

    def _create(self, name: str) -> mcg_pb2.Command:
        command = mcg_pb2.Command()
        command.create_stream.name = name
        members = self.world.rng.sample(range(1, len(self.nodes) + 1), self.world.rng.randint(3, len(self.nodes)))
        command.create_stream.node_ids.extend(members)
        return command

    def _members(self, command: mcg_pb2.Command) -> list[SimNode]:
        return [self.nodes[number - 1] for number in command.create_stream.node_ids]

    def _disturb(self) -> None:
        """Faults, and catalogue changes in the middle of them."""
        world = self.world
        world.start_faults()
        self._catalogue.commands.append(self._create("sim/late"))
        self._catalogue.commands.append(self._create("sim/doomed"))
        self._catalogue.go()
        world.after(FAULTS_S / 2, self._delete_doomed)
        self._schedule_crash()
        world.run_until(world.now + FAULTS_S)

    def _delete_doomed(self) -> None:
        for command, result in self._catalogue.acknowledged:
            if command.create_stream.name == "sim/doomed" and result.refusal is None:
                delete = mcg_pb2.Command()
                delete.delete_stream.stream_id = result.allocated_id
                was_idle = self._catalogue.is_idle
                self._catalogue.commands.append(delete)
                if was_idle:
                    self._catalogue.go()
                return

    def _schedule_crash(self) -> None:
        rate = self.world.faults.crashes_per_s
        if rate and self.world.is_faulty:
            self.world.after(self.world.rng.expovariate(rate), self._crash)

    def _crash(self) -> None:
        if not self.world.is_faulty:
            return
        # Sometimes one node, sometimes many at once: a power cut of the whole site list must lose nothing either.
        count = self.world.rng.choice((1, 1, 1, 2, len(self.nodes)))
        for node in self.world.rng.sample(self.nodes, count):
            if node.is_running:
                self._stop(node, self.world.rng.uniform(0.05, 2.0))
        self._schedule_crash()

    def _lose_power(self, node: SimNode) -> None:
        self._stop(node, self.world.rng.uniform(0.001, 0.05))

    def _stop(self, node: SimNode, down_s: float) -> None:
        node.crash()
        self.outcome.crashes += 1
        if node is self._bad_node and self._damages.random() < DAMAGE_CHANCE:
            node.damage(self._damages)
            self.outcome.damages += 1
        self._healed_s = max(self._healed_s, self.world.now + down_s)
        self.world.after(down_s, node.start)

    def _heal(self) -> None:
        self.world.stop_faults()
        self._healed_s = max(self._healed_s, self.world.now)
        deadline = self.world.now + HEALING_S
        if not self.world.run_until(deadline, self._is_settled):
            waiting = [f"group {item.group}" for item in self._publishers if not item.is_idle]
            waiting += [f"catalogue {command.WhichOneof('kind')}" for command in self._catalogue.commands]
            self.outcome.findings.append(
                f"C5 not settled {HEALING_S:.0f} s after the last fault: {waiting or 'replicas'}"
            )

    def _is_settled(self) -> bool:
        if not self._catalogue.is_idle or not all(item.is_idle for item in self._publishers):
            return False
        if not all(node.is_running for node in self.nodes):
            return False
        if not has_caught_up([node.mcg_status() for node in self.nodes]):
            return False
        streams = self.nodes[0].mcg_state.streams.values()
        if any(stream.state is not StreamPhase.ACTIVE or stream.retiring for stream in streams):
            return False
        groups = self._groups()
        if not all(group in node.replicas for group, members in groups for node in members):
            return False  # a member has not heard of its stream yet
        return all(has_caught_up([node.stream_status(group) for node in members]) for group, members in groups)

    def _groups(self) -> list[tuple[int, list[SimNode]]]:
        return [
            (int(stream.stream_id), [self.nodes[member.node_id - 1] for member in stream.members])
            for stream in self.nodes[0].mcg_state.streams.values()
        ]

    def _check(self) -> None:
        findings = self.outcome.findings
        waiting: dict[str, list[Publish | Read]] = {}
        for group, members in self._groups():
            publishers = [item for item in self._publishers if item.group == group]
            readers = [item for item in self._readers if item.group == group]
            acknowledged = [item for publisher in publishers for item in publisher.acknowledged]
            held: dict[str, list[Held]] = {}
            for node in members:
                if (replica := node.replicas.get(group)) is not None:
                    floor = replica.core.floor_offset
                    held[f"n{node.number}"] = replica.read(floor)
                    self.outcome.floors_moved += floor > 0
                    kept = [item for item in acknowledged if item.offset >= floor]
                    findings += check_acknowledged_readable(kept, {f"n{node.number}": held[f"n{node.number}"]})
            findings += check_exactly_once(acknowledged, held)
            reads = [read for reader in readers for read in reader.calls]
            publishes = [call for publisher in publishers for call in publisher.calls]
            log = {record.offset: record.value for records in held.values() for record in records}
            findings += check_linearizable(publishes, reads, log)
            self.outcome.acknowledged += len(acknowledged)
            self.outcome.reads += len(reads)
            # Not those of instances that died: nobody waits for them.
            answered = [call for call in publishes if call.responded_s is not None]
            waiting[f"group {group}"] = [*answered, *reads, *(it for one in publishers for it in one.waiting_calls())]
        findings += check_progress(waiting, self._healed_s, self.world.now, PROGRESS_S)
        self._check_catalogue()

    def _rest(self) -> None:
        """Nobody calls: all groups fall asleep, a node dies, and what it led must not sleep on under it."""
        for reader in self._readers:
            reader.stop()
        self.world.run_until(self.world.now + REST_S)
        groups = self._groups()
        awake = [group for group, members in groups for node in members if not node.stream_status(group).quiesced]
        if awake:
            self.outcome.findings.append(f"C5 idle groups do not sleep: {sorted(set(awake))}")
        victim = self.world.rng.choice(self.nodes)
        victim.crash()

        def is_led(group: int, members: list[SimNode]) -> bool:
            running = [node for node in members if node.is_running]
            return any(node.stream_status(group).role == "leader" for node in running)

        bereft = [it for it in groups if self._has_quorum_without(victim.number, *it)]
        if not self.world.run_until(self.world.now + PROGRESS_S, lambda: all(is_led(*it) for it in bereft)):
            leaderless = [group for group, members in bereft if not is_led(group, members)]
            self.outcome.findings.append(f"C5 n{victim.number} died, and no other member leads groups {leaderless}")

    def _has_quorum_without(self, victim: int, group: int, _members: list[SimNode]) -> bool:
        """Whether a majority of a group's voters can still talk to each other when one node is down."""
        voters = [int(it.node_id) for it in self.nodes[0].mcg_state.streams[StreamId(group)].members if it.is_voter]
        parts = (topology.reachable(self._pairs, voter, victim) for voter in voters if voter != victim)
        return any(2 * len(part & set(voters)) > len(voters) for part in parts)

    def _check_catalogue(self) -> None:
        """C1 for the catalogue: what was acknowledged is there, at every node."""
        deleted = {
            command.delete_stream.stream_id
            for command, _ in self._catalogue.acknowledged
            if command.WhichOneof("kind") == "delete_stream"
        }
        for command, result in self._catalogue.acknowledged:
            if command.WhichOneof("kind") != "create_stream" or result.refusal is not None:
                continue
            for node in self.nodes:
                is_there = StreamId(result.allocated_id) in node.mcg_state.streams
                if is_there == (result.allocated_id in deleted):
                    self.outcome.findings.append(
                        f"C1 n{node.number}: stream {result.allocated_id} should be {'gone' if is_there else 'there'}"
                    )
