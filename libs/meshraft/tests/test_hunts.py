"""Hunts: random schedules of an adversary that knows where a protocol with damaged disks is weak.

Where a storm (`test_safety.py`) does small things that are all alike, a hunt remembers letters and delivers them again whenever it
likes, to later lives too; keeps back one kind of message, or one direction; damages a disk just so far that it forgets a term;
lets anybody stand at any time; and lets the catalogue of a node be old. One disk at a time is damaged, whichever, and only
when the one before has been repaired. In a hunt that *shrinks*, groups may lose voters down to the last one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import pytest

from libs.meshraft.tests.cluster import GROUP, Cluster, Letter, member_of
from libs.meshraft.tests.messages import Kind
from libs.meshraft.tests.test_safety import Lost, change_membership, has_all, heal, members
from meshraft import Backpressure, NotLeader

STEPS = 150
REMEMBERED = 150
NODES_MAX = 6
BATCHES = [0, 1, 1, 2, 2, 3, 4, 6, 10, 20, 40]
KEPT_BACK: list[tuple[Kind, ...]] = [
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
FROM_LEADERS = {Kind.APPEND, Kind.HEARTBEAT, Kind.SNAPSHOT}


@dataclass(frozen=True)
class Catalogue:
    """Who is in the group or on the way, and the ids that were given out by then."""

    peers: dict[int, int]
    known: int


class Hunt:
    """One schedule."""

    def __init__(self, seed: int, nodes: int, *, shrinks: bool) -> None:
        self.rng = random.Random(seed)
        self.cluster = Cluster(nodes, seed=seed, damages=True)
        self.cluster.loses = self.sees
        self.shrinks = shrinks
        self.suspect: int | None = None
        """The node whose disk was damaged and is not known to be repaired."""
        self.acknowledged: set[str] = set()
        self.proposed = 0
        self._memory: list[Letter] = []
        self._kept_back: tuple[int, int, tuple[Kind, ...]] | None = None
        self._led: set[tuple[int, int]] = set()
        """Who has told anybody that it leads, and in which term."""
        self._catalogues = [Catalogue(dict(self.cluster.peers), max(self.cluster.peers) + 1)]
        self._has_been_in: set[int] = set()
        self._out_since: dict[tuple[int, int], int] = {}

    def run(self) -> Cluster:
        """Hunts, then ends all faults and checks what is left."""
        self.cluster.tick(30)
        actions = dict(ACTIONS) | ({Hunt.change_members: 9} if self.shrinks else {})
        for action in self.rng.choices(list(actions), list(actions.values()), k=STEPS):
            action(self)
            self.watch()
        self._kept_back = None
        self.cluster.loses = lambda _: False
        self.name_all()
        heal(self.cluster)
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
        return cluster.leader() is not None and not any(cluster.status(node).in_doubt for node in members(cluster))

    def sees(self, letter: Letter) -> bool:
        """Looks at a letter, and perhaps keeps it back."""
        kinds = set()
        for message in letter.messages():
            kinds.add(message.kind)
            if message.kind in FROM_LEADERS:
                self._led.add((letter.source, message.term))
        if self.rng.random() < 0.25:
            self.remember(letter)
        if self._kept_back is None:
            return False
        source, target, kept = self._kept_back
        is_kept = source in (0, letter.source) and target in (0, letter.target) and (not kept or kinds & set(kept))
        if is_kept:
            self.remember(letter)
        return bool(is_kept)

    def remember(self, letter: Letter) -> None:
        if len(self._memory) < REMEMBERED:
            self._memory.append(letter)
        else:
            self._memory[self.rng.randrange(REMEMBERED)] = letter

    def watch(self) -> None:
        """Notes what was applied, and what the catalogue may say by now."""
        for app in self.cluster.apps.values():
            self.acknowledged |= {*app.payloads[-12:]}
        last = self._catalogues[-1]
        newest = last.peers | {member: node for member, node in self.cluster.peers.items() if member >= last.known}
        leader = self.cluster.leader()
        if leader is not None:
            status = self.cluster.status(leader)
            inside = {*status.voters, *status.learners}
            for member in self._has_been_in - inside:
                # Behind what its leader holds now, nothing is decided with a vote of this one.
                since = self._out_since.setdefault((status.term, member), status.last_index)
                if status.commit > since:
                    newest.pop(member, None)
            self._has_been_in |= inside
        if newest != last.peers:
            self._catalogues.append(Catalogue(newest, max(last.known, max(newest) + 1)))

    def running(self) -> list[int]:
        return sorted(self.cluster.hosts)

    def steps(self, *counts: int) -> None:
        for _ in range(self.rng.choice(counts)):
            self.cluster.step_once()

    # What the adversary does.

    def tick(self) -> None:
        nodes = self.running()
        if not nodes:
            return
        some = nodes if self.rng.random() < 0.6 else self.rng.sample(nodes, self.rng.randint(1, len(nodes)))
        self.cluster.auto_sync = self.rng.random() < 0.8
        self.cluster.tick(self.rng.choice([1, 1, 2, 3, 5, 12, 25]), nodes=some)
        self.cluster.auto_sync = True

    def propose(self) -> None:
        """At whoever believes that it leads."""
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
        """Old letters arrive, perhaps again."""
        for _ in range(self.rng.choice([1, 1, 2, 5, 20])):
            if not self._memory:
                break
            at = self.rng.randrange(len(self._memory))
            letter = self._memory[at] if self.rng.random() < 0.5 else self._memory.pop(at)
            if letter.target in self.cluster.hosts:
                self.cluster.hosts[letter.target].step(letter.source, letter.data)
                if self.rng.random() < 0.5:
                    self.cluster.pump(letter.target)
        self.steps(0, 1, 2, 5)

    def keep_back(self) -> None:
        if self.rng.random() < 0.4:
            self._kept_back = None
            return
        ends = [0, *self.cluster.nodes]
        self._kept_back = (self.rng.choice(ends), self.rng.choice(ends), self.rng.choice(KEPT_BACK))

    def crash(self) -> None:
        if nodes := self.running():
            self.cluster.crash(self.rng.choice(nodes))
        if self.rng.random() < 0.5:
            self.restart()

    def restart(self) -> None:
        for node in self.cluster.nodes:
            if node not in self.cluster.hosts and self.rng.random() < 0.7:
                self.start(node)

    def start(self, node: int) -> None:
        """It knows the members by its own log, or by a catalogue that may be old; who may be the last voter has a new one."""
        self.cluster.restart(node)
        self.name(node)

    def name(self, node: int) -> None:
        is_new = (self.shrinks and node == self.suspect) or self.rng.random() < 0.5
        self.read(node, self._catalogues[-1] if is_new else self.rng.choice(self._catalogues))

    def read(self, node: int, catalogue: Catalogue) -> None:
        self.cluster.hosts[node].set_peers(GROUP, catalogue.peers, known_members=catalogue.known)

    def name_some(self) -> None:
        for node in self.running():
            if self.rng.random() < 0.5:
                self.name(node)

    def name_all(self) -> None:
        """Everybody runs, and is told the truth."""
        for node in self.cluster.nodes:
            if node not in self.cluster.hosts:
                self.start(node)
            self.read(node, self._catalogues[-1])

    def is_repaired(self) -> bool:
        """Whether no disk is damaged, and none would be again by a crash."""
        node = self.suspect
        if node is not None and node in self.cluster.hosts and not self.cluster.status(node).in_doubt:
            for _ in range(2):
                self.cluster.pump(node)
                self.cluster.disks[node].sync()
            if not self.cluster.status(node).in_doubt:
                self.suspect = None
        return self.suspect is None and not any(self.cluster.status(node).in_doubt for node in self.running())

    def damage(self) -> None:
        if self.is_repaired():
            self.suspect = self.rng.choice(self.cluster.nodes)
        elif self.suspect is None or self.rng.random() < 0.6:
            return
        node = self.suspect
        if not self.is_backed(node):
            return
        self.forgive(node)
        if self.rng.random() < 0.4 and node in self.cluster.hosts:
            term = self.cluster.status(node).term
            for _ in range(60):
                if self.cluster.status(node).term < term:
                    break
                self.cluster.damage(node, 1)
                self.start(node)
        else:
            self.cluster.damage(node, self.rng.choice(BATCHES))
            if self.rng.random() < 0.8:
                self.start(node)

    def is_backed(self, node: int) -> bool:
        """Whether others hold all that was applied: what a lone voter alone has decided is lost with its disk."""
        others = {*self._catalogues[-1].peers.values()} - {node}
        return all(nodes & others for nodes in self.cluster.appliers.values())

    def forgive(self, node: int) -> None:
        """It may lead a term again in which it led alone, and told nobody."""
        led = self.cluster.leaders
        for term in [term for term, leader in led.items() if leader == node and (node, term) not in self._led]:
            del led[term]

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

    def stand(self) -> None:
        if nodes := self.running():
            with suppress(ValueError):  # no voter
                self.cluster.hosts[self.rng.choice(nodes)].campaign(GROUP)
            self.steps(0, 1, 2, 4, 8)

    def hand_over(self) -> None:
        leader = self.cluster.leader()
        if leader is not None:
            with suppress(NotLeader):  # another handover is under way
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
        if self.shrinks:
            self.change_freely()
        else:
            change_membership(self.cluster, self.rng, "")
        self.steps(0, 1, 3, 30)

    def change_freely(self) -> None:
        """Voters are removed, and made learners again, down to the last one."""
        leader = self.cluster.leader()
        if leader is None:
            return
        status = self.cluster.status(leader)
        kind = self.rng.choice(["add_learner", "add_voter", "add_voter", "remove", "demote"])
        if kind in ("remove", "demote"):
            others = [*status.voters, *(status.learners if kind == "remove" else ())]
            others.remove(member_of(leader))
            if not others:
                return
            member = self.rng.choice(others)
        elif kind == "add_voter":
            if not status.learners or not has_all(status, status.learners[0]):
                return
            member = status.learners[0]
        elif len(self.cluster.nodes) < NODES_MAX:
            self.cluster.add_node(max(self.cluster.peers.values()) + 1)
            member = member_of(self.cluster.nodes[-1])
            self.watch()
        else:
            return
        with suppress(NotLeader, Backpressure, ValueError):  # another is under way
            change = "add_learner" if kind == "demote" else kind
            self.cluster.hosts[leader].propose_conf_change(GROUP, change, member, self.cluster.peers[member])

    def destroy(self) -> None:
        """Who is out hears it, and is gone for good; not while only one knows, whose disk may be the next."""
        present = {*self._catalogues[-1].peers.values()}
        statuses = [self.cluster.status(node) for node in self.running() if node in present]
        for node in [node for node in self.cluster.nodes if node not in present]:
            member = member_of(node)
            know = [status for status in statuses if status.applied and not status.in_doubt]
            know = [status for status in know if member not in (*status.voters, *status.learners)]
            if len(know) > 1:
                if node in self.cluster.hosts:
                    self.cluster.crash(node)
                self.cluster.nodes.remove(node)
                self.suspect = None if node == self.suspect else self.suspect

    def calm(self) -> None:
        """All is well for a while."""
        self._kept_back = None
        self.cluster.heal()
        for node in self.cluster.nodes:
            if node not in self.cluster.hosts:
                self.start(node)
        self.cluster.tick(self.rng.choice([5, 30]))


ACTIONS: dict[Callable[[Hunt], None], int] = {
    Hunt.tick: 20,
    Hunt.propose: 16,
    Hunt.replay: 14,
    Hunt.keep_back: 8,
    Hunt.crash: 4,
    Hunt.restart: 6,
    Hunt.damage: 6,
    Hunt.cut: 7,
    Hunt.stand: 5,
    Hunt.hand_over: 2,
    Hunt.name_some: 2,
    Hunt.destroy: 2,
    Hunt.compact: 2,
    Hunt.keep: 2,
    Hunt.change_members: 3,
    Hunt.calm: 3,
}


def hunt(seed: int) -> Cluster:
    """The hunt of a seed."""
    rng = random.Random(f"hunt {seed}")
    shrinks = seed % 2 == 1
    return Hunt(seed, rng.choice([1, 2, 2, 3] if shrinks else [2, 3, 3, 4, 5]), shrinks=shrinks).run()


@pytest.mark.sim
@pytest.mark.parametrize(
    "seeds", [*(range(first, first + 50) for first in range(0, 400, 50)), SEEDS_THAT_FOUND], ids=str
)
def test_hunts_find_nothing(seeds: Sequence[int]) -> None:
    for seed in seeds:
        try:
            hunt(seed)
        except AssertionError as error:
            raise AssertionError(f"hunt {seed}") from error
