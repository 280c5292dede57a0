"""Several Raft hosts in one thread over simulated disks and a network made of a list.

Node `n` hosts member `10 + n` of group `GROUP`. The application of each node is the list of payloads it applied; its
snapshot is that list. Two checks run at every step: a term has one leader (§5.2), and no index is ever applied with two
different contents (§5.4.3, state machine safety).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from libs.meshraft.tests.messages import Message, unpack
from meshraft import (
    ENTRY_CONF_CHANGE,
    ENTRY_NORMAL,
    AppliedStateRefused,
    Backpressure,
    GroupConfig,
    GroupStatus,
    NotLeader,
    Pump,
    RaftHost,
    SimDisk,
)

GROUP = 7
CONFIG = GroupConfig(election_ticks=10, heartbeat_ticks=1)


def member_of(node: int) -> int:
    return 10 + node


class UnsafeError(AssertionError):
    """An invariant of Raft was seen broken."""


@dataclass(slots=True)
class Envelope:
    """A frame in flight, with its source and target."""

    source: int
    target: int
    cls: int
    data: bytes

    def messages(self) -> list[Message]:
        return [message for _, message in unpack(self.data)]


@dataclass(slots=True)
class Application:
    """What one node applied: payloads of normal entries, in order, and where it is."""

    applied: int = 0
    payloads: list[str] = field(default_factory=list)
    contexts: list[str] = field(default_factory=list)

    def dump(self) -> bytes:
        return json.dumps([self.applied, self.payloads, self.contexts]).encode()

    @classmethod
    def restore(cls, data: bytes) -> Application:
        return cls(*json.loads(data)) if data else cls()


class Cluster:
    """Hosts, disks, applications and the network between them."""

    def __init__(
        self,
        nodes: int = 3,
        *,
        seed: int = 1,
        mutant: str | None = None,
        create: bool = True,
        damages: bool = False,
        config: GroupConfig = CONFIG,
    ) -> None:
        self.seed = seed
        self.damages = damages
        self.mutant = mutant
        self.config = config
        self.starts = 0
        self.nodes = list(range(1, nodes + 1))
        self.peers = {member_of(node): node for node in self.nodes}
        self.disks = {node: SimDisk(mutant=mutant, keeps_history=damages) for node in self.nodes}
        self.hosts: dict[int, RaftHost] = {}
        self.apps: dict[int, Application] = {}
        self.network: list[Envelope] = []
        self.cut: set[tuple[int, int]] = set()
        self.loses: Callable[[Envelope], bool] = lambda _: False
        self.auto_sync = True
        self.paused: set[int] = set()
        self.late: list[Envelope] = []
        self.leaders: dict[int, int] = {}
        self.contents: dict[int, tuple[int, int, bytes]] = {}
        self.has_fixed_members = False
        self.retired: set[int] = set()
        self.successors: set[int] = set()
        self.installs = 0
        self.joined: set[int] = set()
        self.reads: list[tuple[int, int, int]] = []
        self.kept: dict[int, list[tuple[bytes, bytes]]] = {}
        self.resumed = 0
        self.trace: list[tuple[object, ...]] = []
        if create:
            for node in self.nodes:
                self.bootstrap(node)

    def bootstrap(self, node: int, host: RaftHost | None = None) -> None:
        """Creates the group on the node: blank if it joined late, else with the common state at index 1."""
        initial_voters = [] if node in self.joined else sorted(m for m, n in self.peers.items() if n not in self.joined)
        host = host or self.attach(node)
        host.create_group(GROUP, member_of(node), self.peers, voters=initial_voters, config=self.config)
        self.apps[node].applied = 1 if initial_voters else 0

    def attach(self, node: int) -> RaftHost:
        """A host on the node's disk with no group open yet."""
        self.disks.setdefault(node, SimDisk(mutant=self.mutant, keeps_history=self.damages))
        # Quiesced groups know a process by its seed, and no two incarnations draw the same timeouts: every one has its own.
        restarts = max(0, self.starts + 1 - len(self.nodes))
        self.starts += 1
        self.hosts[node] = RaftHost.simulated(self.disks[node], seed=self.seed * 1000 + node + 1_000_000 * restarts)
        self.apps[node] = Application()
        return self.hosts[node]

    def add_node(self, node: int) -> None:
        """A node with a blank member, waiting for its leader's snapshot."""
        self.nodes.append(node)
        self.joined.add(node)
        self.peers[member_of(node)] = node
        self.bootstrap(node)

    def crash(self, node: int) -> None:
        """Loses what the node had not synced, and its memory. What it had sent may still arrive."""
        self.disks[node].crash()
        del self.hosts[node]

    def damage(self, node: int, groups: int = 1, *, as_one: bool = False) -> None:
        """The node dies, and the newest write groups that it had written cannot be read any more. Needs `damages`."""
        if node in self.hosts:
            self.crash(node)
        self.disks[node].cut(groups, as_one=as_one)

    def replace(self, node: int) -> int:
        """The membership at a node is retired: another one takes its place, blank, under another id (here: another node)."""
        if node in self.hosts:
            self.crash(node)
        self.nodes.remove(node)
        self.retired.add(member_of(node))
        successor = max(self.peers.values()) + 1
        self.add_node(successor)
        self.successors = {successor}
        return successor

    def tend(self) -> bool:
        """The leader's next step towards a group without retired members; whether there is one left to make."""
        leader = self.leader()
        if leader is None:
            return bool(self.retired)
        status = self.status(leader)
        inside = {*status.voters, *status.learners}
        out = sorted(self.retired & inside)
        blank = [member_of(node) for node in self.nodes if member_of(node) not in inside and node in self.successors]
        ready = [
            item.member
            for item in status.progress
            if item.member in status.learners
            and self.peers[item.member] in self.successors
            and (item.matched, item.commit) == (status.last_index, status.last_index)
            and not item.on_probation
        ]
        steps = [
            *(("remove", m) for m in out),
            *(("add_learner", m) for m in blank),
            *(("add_voter", m) for m in ready),
        ]
        with suppress(NotLeader, Backpressure, ValueError):  # another change is under way
            for change, member in steps[:1]:
                self.hosts[leader].propose_conf_change(GROUP, change, member, self.peers[member])
        # A disk that is lost while nobody else knows that the change is committed would take its vote with it.
        others = [item for item in status.progress if item.voter and item.member != status.member]
        is_known = all(item.commit >= status.conf_index for item in others)
        return (
            bool(out or blank or not self.successors <= {self.peers[member] for member in status.voters})
            or not is_known
        )

    def restart(self, node: int) -> None:
        host = self.attach(node)
        if GROUP not in host.stored_groups():
            # The crash came before its creation was durable; nothing was promised to anybody.
            self.bootstrap(node, host)
            return
        for kept, state in reversed(self.kept.get(node, [])):
            try:
                host.open_group(GROUP, member_of(node), self.peers, applied_state=kept, config=self.config)
            except AppliedStateRefused:
                continue
            self.apps[node] = Application.restore(state)
            self.resumed += 1
            break
        else:
            installed = host.open_group(GROUP, member_of(node), self.peers, config=self.config)
            self.apps[node] = Application.restore(installed.data)
            self.apps[node].applied = installed.index
        assert host.status(GROUP).applied == self.apps[node].applied

    def restart_everybody(self) -> None:
        """The power of all nodes is cut; what was on its way is lost too."""
        for node in self.nodes:
            self.crash(node)
        self.network.clear()
        for node in self.nodes:
            self.restart(node)
        self.settle()

    def keep(self, node: int) -> None:
        """Keeps the application's state with its applied state where no crash loses it, be the log synced so far or not."""
        applied_state = self.hosts[node].applied_state(GROUP)
        if applied_state is not None:
            self.kept.setdefault(node, []).append((applied_state, self.apps[node].dump()))

    def isolate(self, node: int) -> None:
        self.cut |= {(node, other) for other in self.nodes} | {(other, node) for other in self.nodes}

    def heal(self) -> None:
        self.cut.clear()

    def status(self, node: int) -> GroupStatus:
        return self.hosts[node].status(GROUP)

    def is_on_probation(self, node: int) -> bool:
        return self.status(node).member_state == "probation"

    def pump(self, node: int) -> Pump:
        """One turn of one node: its frames go to the network, its entries to its application."""
        turn = self.hosts[node].pump()
        assert not turn.closed, turn.closed
        for frame in turn.frames:
            self.network.append(Envelope(node, frame.peer, frame.cls, frame.data))
        app = self.apps[node]
        for installed in (it for it in turn.installed if it.group == GROUP):
            app = self.apps[node] = Application.restore(installed.data)
            app.applied = installed.index
            self.installs += 1
        for entry in (entry for entry in turn.committed if entry.group == GROUP):
            self._apply(node, app, entry.index, entry.term, entry.kind, entry.data)
        for role in (role for role in turn.roles if role.group == GROUP):
            self.trace.append((node, role.role, role.term, role.leader))
            if role.role == "leader" and self.leaders.setdefault(role.term, node) != node:
                raise UnsafeError(f"two leaders in term {role.term}: {self.leaders[role.term]} and {node}")
        self.reads += [(node, token, index) for group, token, index in turn.reads if group == GROUP]
        return turn

    def _apply(self, node: int, app: Application, index: int, term: int, kind: int, data: bytes) -> None:
        if index != app.applied + 1:
            raise UnsafeError(f"node {node} applied {index} after {app.applied}")
        if self.contents.setdefault(index, (term, kind, data)) != (term, kind, data):
            raise UnsafeError(f"index {index} was applied as {self.contents[index]} and as {(term, kind, data)}")
        self.trace.append((node, index, term, kind, data))
        app.applied = index
        if kind == ENTRY_NORMAL:
            app.payloads.append(data.decode())
        elif kind == ENTRY_CONF_CHANGE:
            app.contexts.append(data.decode())

    def deliver(self, envelope: Envelope) -> None:
        if (envelope.source, envelope.target) in self.cut or envelope.target not in self.hosts or self.loses(envelope):
            return
        self.hosts[envelope.target].step(envelope.source, envelope.data)

    def settle(self) -> None:
        """Pumps, syncs and delivers until nothing moves; no tick passes."""
        for _ in range(10_000):
            if not self.step_once():
                return
        raise AssertionError("the cluster never came to rest")

    def step_once(self) -> bool:
        """One round of everything that can happen without a tick; whether anything did."""
        moved = False
        for node in [node for node in self.nodes if node in self.hosts]:
            if self.hosts[node].has_work():
                self.pump(node)
                moved = True
            if self.auto_sync and self.disks[node].sync():
                moved = True
        envelopes, self.network = self.network, []
        for envelope in envelopes:
            self.deliver(envelope)
        return moved or bool(envelopes)

    def tick(self, count: int = 1, nodes: Iterable[int] | None = None) -> None:
        """Ticks (all nodes unless told which), settling after each."""
        for _ in range(count):
            for node in self.nodes if nodes is None else nodes:
                if node in self.hosts:
                    self.hosts[node].tick()
            self.settle()

    def until(self, condition: Callable[[], bool], ticks: int = 200) -> None:
        """Ticks until `condition` holds."""
        for _ in range(ticks):
            if condition():
                return
            self.tick()
        raise AssertionError(f"not within {ticks} ticks (seed {self.seed})")

    def leader(self) -> int | None:
        """The leader of the highest term."""
        leading = [(self.status(node).term, node) for node in self.hosts if self.status(node).role == "leader"]
        return max(leading)[1] if leading else None

    def elect(self, node: int = 1) -> int:
        """Makes `node` the leader of a group without one."""
        self.settle()
        self.hosts[node].campaign(GROUP)
        self.until(lambda: self.leader() == node)
        self.settle()
        return node

    def propose(self, payload: str, node: int | None = None) -> tuple[int, int]:
        target = node or self.leader()
        assert target is not None
        return self.hosts[target].propose(GROUP, payload.encode())

    def commit(self, *payloads: str) -> None:
        """Proposes at the leader and waits until every reachable node applied all."""
        for payload in payloads:
            self.propose(payload)
        self.settle()

    def payloads(self, node: int) -> list[str]:
        return self.apps[node].payloads
