"""Hunts: random schedules of an adversary that knows the weak points of a protocol with damaged disks.

A storm (`test_safety.py`) makes many small faults of equal kinds. A hunt remembers messages and delivers them again at
any time, to later incarnations too. It holds back one kind of message, or one direction. It damages a disk just enough
to lose a term, and starts elections at any member. One disk at a time is damaged, and only when the one before has been
repaired or its member replaced. A hunt may end with a group that waits for an operator (docs/design/recovery.md).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import suppress

import pytest

from libs.meshraft.tests.cluster import GROUP, Cluster, Envelope
from libs.meshraft.tests.messages import Kind
from libs.meshraft.tests.test_safety import Lost, change_membership, heal, members
from meshraft import Backpressure, NotLeader

STEPS = 150
REMEMBERED = 150
BATCHES = [0, 1, 1, 2, 2, 3, 4, 6, 10, 20, 40]
HELD_BACK: list[tuple[Kind, ...]] = [
    (),
    (Kind.APPEND,),
    (Kind.APPEND_RESPONSE,),
    (Kind.REQUEST_VOTE,),
    (Kind.REQUEST_VOTE_RESPONSE,),
    (Kind.REQUEST_PRE_VOTE,),
    (Kind.REQUEST_PRE_VOTE_RESPONSE,),
    (Kind.SNAPSHOT,),
    (Kind.APPEND, Kind.HEARTBEAT),
    (Kind.APPEND_RESPONSE, Kind.HEARTBEAT_RESPONSE),
]
SEEDS_THAT_FOUND = (935, 1055)


class Hunt:
    """One schedule."""

    def __init__(self, seed: int, nodes: int) -> None:
        self.rng = random.Random(seed)
        self.cluster = Cluster(nodes, seed=seed, damages=True)
        self.cluster.loses = self.sees
        self.suspect: int | None = None
        """The node whose disk was damaged and is not known to be repaired."""
        self.acknowledged: set[str] = set()
        self.proposed = 0
        self._memory: list[Envelope] = []
        self._held_back: tuple[int, int, tuple[Kind, ...]] | None = None

    def run(self) -> Cluster:
        """Hunts, then ends all faults and checks what is left."""
        self.cluster.tick(30)
        for action in self.rng.choices(list(ACTIONS), list(ACTIONS.values()), k=STEPS):
            action(self)
            self.watch()
        self._held_back = None
        self.cluster.loses = lambda _: False
        try:
            heal(self.cluster)
        except AssertionError:
            if not self.waits_for_operator():
                raise
            return self.cluster
        self.cluster.until(self.is_well)
        leader = self.cluster.leader()
        assert leader is not None
        agreed = self.cluster.payloads(leader)
        if missing := self.acknowledged - set(agreed):
            raise Lost(f"lost {sorted(missing)}")
        assert all(self.cluster.payloads(node) == agreed for node in members(self.cluster))
        return self.cluster

    def is_well(self) -> bool:
        cluster = self.cluster
        return cluster.leader() is not None and not any(cluster.is_on_probation(node) for node in members(cluster))

    def waits_for_operator(self) -> bool:
        """Whether the rule says so: a voter is on probation, and a change of members is not known to all others as committed."""
        cluster = self.cluster
        if cluster.leader() is not None or not any(cluster.is_on_probation(node) for node in cluster.nodes):
            return False
        statuses = [cluster.status(node) for node in cluster.nodes if cluster.status(node).member_state != "blank"]
        return len({(*status.voters, 0, *status.learners) for status in statuses}) > 1

    def sees(self, envelope: Envelope) -> bool:
        """Looks at an envelope, and perhaps holds it back."""
        kinds = set()
        for message in envelope.messages():
            kinds.add(message.kind)
        if self.rng.random() < 0.25:
            self.remember(envelope)
        if self._held_back is None:
            return False
        source, target, kept = self._held_back
        is_kept = source in (0, envelope.source) and target in (0, envelope.target) and (not kept or kinds & set(kept))
        if is_kept:
            self.remember(envelope)
        return bool(is_kept)

    def remember(self, envelope: Envelope) -> None:
        if len(self._memory) < REMEMBERED:
            self._memory.append(envelope)
        else:
            self._memory[self.rng.randrange(REMEMBERED)] = envelope

    def watch(self) -> None:
        """Notes what was applied, and what the catalogue may say by now."""
        for app in self.cluster.apps.values():
            self.acknowledged |= {*app.payloads[-12:]}

    def running(self) -> list[int]:
        return sorted(self.cluster.hosts)

    def steps(self, *counts: int) -> None:
        for _ in range(self.rng.choice(counts)):
            self.cluster.step_once()

    # Actions of the adversary.

    def tick(self) -> None:
        nodes = self.running()
        if not nodes:
            return
        some = nodes if self.rng.random() < 0.6 else self.rng.sample(nodes, self.rng.randint(1, len(nodes)))
        self.cluster.auto_sync = self.rng.random() < 0.8
        self.cluster.tick(self.rng.choice([1, 1, 2, 3, 5, 12, 25]), nodes=some)
        self.cluster.auto_sync = True

    def propose(self) -> None:
        """At a node that believes it is the leader."""
        leading = [node for node in self.running() if self.cluster.status(node).role == "leader"]
        if not leading:
            return
        leader = self.rng.choice(leading)
        for _ in range(self.rng.randint(1, 3)):
            self.proposed += 1
            with suppress(NotLeader, Backpressure):
                self.cluster.propose(f"p{self.proposed}", leader)
        self.cluster.auto_sync = self.rng.random() < 0.7
        self.steps(0, 1, 2, 3, 4, 30)
        self.cluster.auto_sync = True

    def replay(self) -> None:
        """Old messages arrive, perhaps again."""
        for _ in range(self.rng.choice([1, 1, 2, 5, 20])):
            if not self._memory:
                break
            at = self.rng.randrange(len(self._memory))
            envelope = self._memory[at] if self.rng.random() < 0.5 else self._memory.pop(at)
            if envelope.target in self.cluster.hosts:
                self.cluster.hosts[envelope.target].step(envelope.source, envelope.data)
                if self.rng.random() < 0.5:
                    self.cluster.pump(envelope.target)
        self.steps(0, 1, 2, 5)

    def hold_back(self) -> None:
        if self.rng.random() < 0.4:
            self._held_back = None
            return
        ends = [0, *self.cluster.nodes]
        self._held_back = (self.rng.choice(ends), self.rng.choice(ends), self.rng.choice(HELD_BACK))

    def crash(self) -> None:
        if nodes := self.running():
            self.cluster.crash(self.rng.choice(nodes))
        if self.rng.random() < 0.5:
            self.restart()

    def restart(self) -> None:
        for node in self.cluster.nodes:
            if node not in self.cluster.hosts and self.rng.random() < 0.7:
                self.cluster.restart(node)

    def is_repaired(self) -> bool:
        """Whether no disk is damaged, and none would be again by a crash."""
        node = self.suspect
        if node is not None and node in self.cluster.hosts and not self.cluster.is_on_probation(node):
            for _ in range(2):
                self.cluster.pump(node)
                self.cluster.disks[node].sync()
            if not self.cluster.is_on_probation(node):
                self.suspect = None
        return self.suspect is None and not any(self.cluster.is_on_probation(node) for node in self.running())

    def damage(self) -> None:
        if self.is_repaired() and not self.cluster.tend():
            self.suspect = self.rng.choice(self.cluster.nodes)
        elif self.suspect is None or self.rng.random() < 0.6:
            return
        node = self.suspect
        if self.rng.random() < 0.4 and node in self.cluster.hosts:
            term = self.cluster.status(node).term
            for _ in range(60):
                if self.cluster.status(node).term < term:
                    break
                self.cluster.damage(node, 1)
                self.cluster.restart(node)
        elif self.rng.random() < 0.3 and not self.cluster.tend() and len(self.cluster.nodes) > 2:
            self.cluster.damage(node, 2)
            self.suspect = self.cluster.replace(node)
        else:
            self.cluster.damage(node, self.rng.choice(BATCHES), as_one=True)
            if self.rng.random() < 0.8:
                self.cluster.restart(node)

    def cut(self) -> None:
        nodes, cluster = self.cluster.nodes, self.cluster
        cluster.heal()
        chance = self.rng.random()
        if chance < 0.35:
            cluster.isolate(self.rng.choice(nodes))
        elif chance < 0.5:
            cluster.cut = {(a, b) for a in nodes for b in nodes if self.rng.random() < 0.3}
        elif chance < 0.65:
            side = {node for node in nodes if self.rng.random() < 0.5}
            cluster.cut = {(a, b) for a in nodes for b in nodes if (a in side) != (b in side)}

    def campaign(self) -> None:
        if nodes := self.running():
            with suppress(ValueError):  # no voter
                self.cluster.hosts[self.rng.choice(nodes)].campaign(GROUP)
            self.steps(0, 1, 2, 4, 8)

    def transfer(self) -> None:
        leader = self.cluster.leader()
        if leader is not None:
            with suppress(NotLeader):  # another transfer is in progress
                to = self.rng.choice(self.cluster.status(leader).voters)
                self.cluster.hosts[leader].transfer_leader(GROUP, to)
            self.steps(0, 2, 6)

    def compact(self) -> None:
        node = self.rng.choice(self.cluster.nodes)
        app = self.cluster.apps[node]
        if node in self.cluster.hosts and app.applied >= self.cluster.status(node).first_index:
            self.cluster.hosts[node].compact(GROUP, app.applied, app.dump())

    def keep(self) -> None:
        if nodes := self.running():
            self.cluster.keep(self.rng.choice(nodes))

    def change_members(self) -> None:
        if self.suspect is None or not self.cluster.retired:
            change_membership(self.cluster, self.rng, "")
        self.cluster.tend()
        self.steps(0, 1, 3, 30)

    def calm(self) -> None:
        """All is well for a while."""
        self._held_back = None
        self.cluster.heal()
        for node in self.cluster.nodes:
            if node not in self.cluster.hosts:
                self.cluster.restart(node)
        self.cluster.tick(self.rng.choice([5, 30]))


ACTIONS: dict[Callable[[Hunt], None], int] = {
    Hunt.tick: 20,
    Hunt.propose: 16,
    Hunt.replay: 14,
    Hunt.hold_back: 8,
    Hunt.crash: 4,
    Hunt.restart: 6,
    Hunt.damage: 6,
    Hunt.cut: 7,
    Hunt.campaign: 5,
    Hunt.transfer: 2,
    Hunt.compact: 2,
    Hunt.keep: 2,
    Hunt.change_members: 5,
    Hunt.calm: 3,
}


def hunt(seed: int) -> Cluster:
    """The hunt of a seed."""
    rng = random.Random(f"hunt {seed}")
    return Hunt(seed, rng.choice([3, 3, 3, 4, 5])).run()


@pytest.mark.sim
@pytest.mark.parametrize(
    "seeds", [*(range(first, first + 50) for first in range(0, 100, 50)), SEEDS_THAT_FOUND], ids=str
)
def test_hunts_find_nothing(seeds: Sequence[int]) -> None:
    for seed in seeds:
        try:
            hunt(seed)
        except AssertionError as error:
            raise AssertionError(f"hunt {seed}") from error
