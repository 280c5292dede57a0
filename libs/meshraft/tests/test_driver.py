"""The order of a turn, and three drivers over simulated disks: proposals, read points, steps, the witness.

Invariants: waiters are told what the log decided; a role is known before the end of the turn; nobody has caught up before
the leader has applied an entry of its own term.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from meshraft import Entries, Frame, GroupConfig, NotLeader, RaftHost, Role, SimDisk
from meshraft.configuration import ConfChange, Configuration, Transfer, Witness, configuration_of
from meshraft.driver import RaftDriver, Turn
from meshraft.group import RaftGroup

GROUP = 7
CONFIG = GroupConfig(election_ticks=10, heartbeat_ticks=1)


class Machine:
    """Applies entries one by one: its state is the list of them."""

    def __init__(self) -> None:
        self.applied_index = 1
        self.state: list[bytes] = []
        self.seen: list[str] = []
        self.group: RaftGroup[bytes, str]

    def install(self, index: int, data: bytes) -> None:
        self.seen.append(f"install {index}")
        self.applied_index, self.state = index, data.split(b",") if data else []

    def apply_next(self, entries: Entries) -> None:
        entry = entries.take()
        self.seen.append(f"apply {entry.index}")
        self.applied_index = entry.index
        self.state += [entry.data] if entry.data else []
        self.group.applied(entry.index, entry.index, entry.term, entry.data)

    def turn_ended(self) -> None:
        self.seen.append(f"end as {self.group.role}")

    def role_changed(self, role: Role) -> None:
        self.seen.append(f"role {role.role}")

    def closed(self, kind: str, reason: str) -> None:
        self.seen.append(f"closed {kind} {reason}")


def driven(driver: RaftDriver, machine: Machine) -> RaftGroup[bytes, str]:
    machine.group = RaftGroup(
        driver, GROUP, machine, CONFIG, overwritten=lambda: "overwritten", unknown=lambda why: why
    )
    machine.group.join()
    return machine.group


class Waiter:
    def __init__(self) -> None:
        self.told: list[object] = []

    def committed(self, index: int, count: int, result: bytes) -> None:
        self.told.append((index, count, result))

    def failed(self, count: int, error: str) -> None:
        self.told.append((count, error))


class Cluster:
    """Nodes 1 to 3; member m lives on node m."""

    def __init__(self, voters: list[int]) -> None:
        self.network: list[tuple[int, Frame]] = []
        self.cut: set[int] = set()
        self.disks = {node: SimDisk() for node in (1, 2, 3)}
        self.drivers: dict[int, RaftDriver] = {}
        self.machines = {node: Machine() for node in self.disks}
        for node, disk in self.disks.items():
            host = RaftHost.simulated(disk, seed=node)
            driver = RaftDriver(host, lambda frame, node=node: self.network.append((node, frame)))  # type: ignore[misc]
            driven(driver, self.machines[node])
            founders = voters if node in voters else []
            host.create_group(GROUP, node, {m: m for m in self.disks}, voters=founders, config=CONFIG)
            self.drivers[node] = driver
        self.group(voters[0]).host.campaign(GROUP)
        self.settle()

    def group(self, node: int) -> RaftGroup[bytes, str]:
        return self.machines[node].group

    def settle(self) -> None:
        """Until nothing more happens without time."""
        for _ in range(1_000):
            for node, driver in self.drivers.items():
                while driver.host.has_work():
                    driver.turn()
                self.disks[node].sync()
            if not self.network and not any(driver.host.has_work() for driver in self.drivers.values()):
                return
            letters, self.network = self.network, []
            for source, frame in letters:
                if not {source, frame.peer} & self.cut:
                    self.drivers[frame.peer].host.step(source, frame.data)
        raise AssertionError("the cluster does not settle")

    def tick(self, count: int) -> None:
        for _ in range(count):
            for driver in self.drivers.values():
                driver.tick()
            self.settle()


class TurnEntries:
    """As `Entries`, of these groups and indexes."""

    def __init__(self, left: list[tuple[int, int]]) -> None:
        self._left = left

    @property
    def group(self) -> int | None:
        return self._left[0][0] if self._left else None

    def take(self) -> SimpleNamespace:
        _, index = self._left.pop(0)
        return SimpleNamespace(index=index, term=2, data=b"x")

    def skip(self, count: int) -> None:
        del self._left[:count]


def test_a_turn_is_acted_upon_in_one_order() -> None:
    """ADR 0015."""
    seen: list[str] = []
    machine = Machine()
    machine.seen = seen
    pump = SimpleNamespace(
        frames=[SimpleNamespace(peer=2, cls=0, data=b"")],
        installed=[SimpleNamespace(group=GROUP, index=4, term=1, data=b""), SimpleNamespace(group=8)],
        entries=TurnEntries([(GROUP, 5), (GROUP, 6), (8, 1)]),
        roles=[SimpleNamespace(group=GROUP, role="leader", term=2, leader=1), SimpleNamespace(group=8)],
        reads=[(GROUP, 1, 6), (GROUP, 99, 6), (8, 1, 1)],
        closed=[(GROUP, "corrupt", "damaged"), (8, "corrupt", "")],
    )
    host = cast("Any", SimpleNamespace(pump=lambda: pump, read_index=lambda _group, _token: None))
    driver = RaftDriver(host, lambda frame: seen.append(f"send to {frame.peer}"))
    group = driven(driver, machine)
    group.ask_read_point(10.0, lambda index: seen.append(f"read {index}"))
    assert driver.turn() == Turn(has_news=True, has_changes=True)
    assert seen == [
        "send to 2",
        "install 4",
        "apply 5",
        "apply 6",
        "role leader",
        "end as leader",
        "read 6",
        "closed corrupt damaged",
    ]
    assert (group.term, group.leader, group.applied_term, group.term_begins_at) == (2, 1, 2, 5)
    assert group.read_points.confirmed_at == 10.0


def test_what_is_proposed_at_the_leader_is_applied_everywhere_and_told() -> None:
    cluster = Cluster([1, 2, 3])
    waiter = Waiter()
    cluster.group(1).propose(b"a", waiter)
    cluster.settle()
    assert waiter.told == [(3, 1, b"a")]  # the leader's own first entry has index 2
    assert [cluster.machines[node].state for node in (1, 2, 3)] == [[b"a"]] * 3
    assert [cluster.group(node).leader for node in (1, 2, 3)] == [1, 1, 1]
    assert cluster.group(1).is_leading
    with pytest.raises(NotLeader):
        cluster.group(2).propose(b"b", waiter)


def test_a_proposal_of_a_leader_that_was_cut_off_is_overwritten() -> None:
    cluster = Cluster([1, 2, 3])
    cluster.cut = {1}
    waiter = Waiter()
    cluster.group(1).propose(b"lost", waiter)
    cluster.tick(60)
    assert not cluster.group(1).is_leading
    assert waiter.told == []  # nobody knows yet
    leader = next(cluster.group(node) for node in (2, 3) if cluster.group(node).is_leading)
    leader.propose(b"kept", Waiter())
    cluster.settle()
    cluster.cut = set()
    cluster.tick(30)
    assert waiter.told == [(1, "overwritten")]
    assert cluster.machines[1].state == [b"kept"]


def test_closing_tells_everybody_who_waits() -> None:
    cluster = Cluster([1, 2, 3])
    cluster.cut = {1}
    waiter, answers = Waiter(), list[int | None]()
    cluster.group(1).propose(b"a", waiter)
    cluster.group(1).ask_read_point(0.0, answers.append)
    forgotten = cluster.group(1).ask_read_point(0.0, answers.append)
    cluster.group(1).read_points.forget(forgotten)
    cluster.group(1).close("closed")
    assert waiter.told == [(1, "closed")]
    assert answers == [None]
    assert not cluster.group(1).is_leading
    assert cluster.drivers[1].groups == {}


def test_a_read_point_is_at_or_behind_all_that_was_acknowledged() -> None:
    cluster = Cluster([1, 2, 3])
    cluster.group(1).propose(b"a", Waiter())
    cluster.settle()
    answers: list[int | None] = []
    cluster.group(2).ask_read_point(5.0, answers.append)
    cluster.settle()
    assert answers == [3]
    assert cluster.group(2).read_points.confirmed_at == 5.0


def test_a_leader_gives_a_vote_then_the_leadership_and_witnesses_the_change() -> None:
    """G7, and a transfer that waits until its heir knows of its vote."""
    cluster = Cluster([1, 2])
    group = cluster.group(1)
    assert group.take(ConfChange("add_learner", 3, 3))
    cluster.tick(3)
    known = group.configuration(group.status())
    assert (known.learners, known.caught_up, known.is_witnessed) == (frozenset({3}), frozenset({1, 2, 3}), False)
    group.propose_witness(group.status())
    group.propose_witness(group.status())  # once is enough
    last = group.status().last_index
    cluster.settle()
    assert group.status().last_index == last == group.witness.index
    assert group.configuration(group.status()).is_witnessed
    assert group.take(ConfChange("add_voter", 3, 3))
    assert not group.take(Transfer(3))
    cluster.tick(3)
    assert group.take(Transfer(3))
    assert not group.take(Transfer(2))
    cluster.tick(3)
    assert cluster.group(3).is_leading
    assert [cluster.group(node).leader for node in (1, 2, 3)] == [3, 3, 3]


def progress(member: int, **changed: object) -> SimpleNamespace:
    known = {"matched": 200, "commit": 200, "on_probation": False, "quiet_ticks": 0} | changed
    return SimpleNamespace(member=member, peer=member, voter=True, state="replicate", **known)


def configuration(begins_at: int | None, *others: SimpleNamespace) -> Configuration:
    status = SimpleNamespace(
        member=1,
        term=3,
        commit=200,
        applied=200,
        first_index=2,
        conf_index=150,
        voters=[1, 2],
        learners=[3],
        progress=[progress(1), *others],
    )
    return configuration_of(cast("Any", status), begins_at, Witness(3, 150, 160), CONFIG.election_ticks)


@pytest.mark.parametrize(
    ("other", "is_heard", "has_caught_up"),
    [
        pytest.param(progress(2), True, True, id="holds all"),
        pytest.param(progress(2, matched=136), True, True, id="64 entries behind"),
        pytest.param(progress(2, matched=135), True, False, id="65 entries behind"),
        pytest.param(progress(2, commit=119), True, False, id="knows no entry of the term to be committed"),
        pytest.param(progress(2, on_probation=True), True, False, id="on probation"),
        pytest.param(progress(2, quiet_ticks=10), True, True, id="heard an election timeout ago"),
        pytest.param(progress(2, quiet_ticks=11), False, False, id="silent"),
    ],
)
def test_caught_up(other: SimpleNamespace, is_heard: bool, has_caught_up: bool) -> None:
    known = configuration(120, other)
    assert known.heard == ({1, 2} if is_heard else {1})
    assert known.caught_up == ({1, 2} if has_caught_up else {1})
    assert known.members == {1, 2, 3}


def test_nobody_but_the_leader_has_caught_up_before_an_entry_of_its_term_is_applied() -> None:
    assert configuration(None, progress(2)).caught_up == {1}


def test_a_witness_counts_in_its_leadership_and_for_its_change_only() -> None:
    """G7."""
    witness = Witness(term=3, change=20, index=25)
    assert witness.is_for(3, 20)
    assert not witness.is_for(4, 20)
    assert not witness.is_for(3, 26)
    assert not witness.is_committed(3, 20, applied=24)
    assert witness.is_committed(3, 20, applied=25)
    assert not witness.is_committed(4, 20, applied=25)
    assert not witness.is_committed(3, 26, applied=26)
