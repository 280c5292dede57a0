"""One seeded run: a mesh forms, streams are written under faults, everything heals, and the checkers look.

Findings are sentences; none is a pass. C1, C2 and C4 as in `meshtest.checkers`; besides, the catalogue keeps what was
acknowledged, and after the last fault everything finishes within a bound.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from mesh_control.core.model import StreamState
from meshapi.control.v1 import mcg_pb2
from meshcommon.ids import StreamId
from meshraft import GroupStatus
from meshtest.checkers import check_acknowledged_readable, check_exactly_once
from tests.sim.clients import CatalogueClient, Publisher
from tests.sim.node import MCG, SimNode
from tests.sim.raft_host import GroupPoisonedError
from tests.sim.world import World

FORMING_S: Final = 20.0
FAULTS_S: Final = 12.0
HEALING_S: Final = 90.0


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
    acknowledged: int = 0
    crashes: int = 0
    trace_hash: str = ""
    findings: list[str] = field(default_factory=list)


class Simulation:
    """One run; `mutant` plants a known bug in the simulated disks."""

    def __init__(self, seed: int, mutant: str | None = None) -> None:
        self.world = World(seed)
        count = self.world.rng.randint(3, 7)
        self.outcome = Outcome(seed, count)
        self._hashes: dict[tuple[int, int], str] = {}
        self.nodes = [SimNode(self.world, number, count, mutant, self._applied) for number in range(1, count + 1)]
        self.world.endpoints.update({node.number: node for node in self.nodes})
        self._catalogue = CatalogueClient(self.world, self.nodes)
        self._publishers: list[Publisher] = []

    def run(self) -> Outcome:
        """Runs to the end and checks."""
        try:
            self._form()
            if not self.outcome.findings:
                self._disturb()
                self._heal()
                self._check()
        except GroupPoisonedError as error:
            self.outcome.findings.append(str(error))
        self.outcome.events = self.world.events_done
        self.outcome.trace_hash = self.world.trace_hash()
        return self.outcome

    def _applied(self, group: int, index: int, state_hash: str) -> None:
        """C4, at every applied index of every member."""
        if self._hashes.setdefault((group, index), state_hash) != state_hash:
            self.outcome.findings.append(f"C4 state hashes of group {group} differ at index {index}")

    def _form(self) -> None:
        for node in self.nodes:
            node.start()
        self.world.connect_all()
        found = mcg_pb2.Command()
        found.found_mesh.mesh_id = "00000000-0000-4000-8000-000000000001"
        found.found_mesh.node.name = "n1"
        found.found_mesh.node.public_key = bytes([1]) * 32
        self._catalogue.commands.append(found)
        for node in self.nodes[1:]:
            command = mcg_pb2.Command()
            command.add_node.name = f"n{node.number}"
            command.add_node.public_key = bytes([node.number]) * 32
            self._catalogue.commands.append(command)
        streams = self.world.rng.randint(1, 3)
        for number in range(streams):
            self._catalogue.commands.append(self._create(f"sim/s{number}"))
        self._catalogue.go()
        if not self.world.run_until(FORMING_S, lambda: self._catalogue.is_idle):
            self.outcome.findings.append("the mesh did not form without faults")
            return
        for command, result in self._catalogue.acknowledged:
            if result.refusal is not None:
                self.outcome.findings.append(f"refused: {result.refusal}")
            elif command.WhichOneof("kind") == "create_stream":
                for name in ("p", "q"):
                    publisher = Publisher(self.world, self._members(command), result.allocated_id, name, 25)
                    self._publishers.append(publisher)
                    self.world.after(0.5, publisher.go)

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
                node.crash()
                self.outcome.crashes += 1
                self.world.after(self.world.rng.uniform(0.05, 2.0), node.start)
        self._schedule_crash()

    def _heal(self) -> None:
        self.world.stop_faults()
        deadline = self.world.now + HEALING_S
        if not self.world.run_until(deadline, self._is_settled):
            waiting = [f"group {item.group}" for item in self._publishers if not item.is_idle]
            waiting += [f"catalogue {command.WhichOneof('kind')}" for command in self._catalogue.commands]
            self.outcome.findings.append(f"not settled {HEALING_S:.0f} s after the last fault: {waiting or 'replicas'}")

    def _is_settled(self) -> bool:
        if not self._catalogue.is_idle or not all(item.is_idle for item in self._publishers):
            return False
        if not all(node.is_running for node in self.nodes):
            return False
        if not has_caught_up([node.mcg_status() for node in self.nodes]):
            return False
        if any(stream.state is not StreamState.ACTIVE for stream in self.nodes[0].mcg_state.streams.values()):
            return False
        return all(has_caught_up([node.stream_status(group) for node in members]) for group, members in self._groups())

    def _groups(self) -> list[tuple[int, list[SimNode]]]:
        return [
            (int(stream.stream_id) + MCG, [self.nodes[member.node_id - 1] for member in stream.members])
            for stream in self.nodes[0].mcg_state.streams.values()
        ]

    def _check(self) -> None:
        findings = self.outcome.findings
        for group, members in self._groups():
            acknowledged = [
                item for publisher in self._publishers if publisher.group == group for item in publisher.acknowledged
            ]
            self.outcome.acknowledged += len(acknowledged)
            held = {f"n{node.number}": node.replicas[group].held for node in members if group in node.replicas}
            findings += check_acknowledged_readable(acknowledged, held)
            findings += check_exactly_once(acknowledged, held)
        self._check_catalogue()

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
