"""A meshraft host over a simulated disk, driven by the product's `RaftDriver`: turns until nothing is left, syncs later.

Purpose: what the asyncio shell does for both planes, on simulated time. Leaves out: what entries mean (`machine` of `add`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

from meshraft import (
    Committed,
    Entries,
    Frame,
    GroupConfig,
    HostPoisoned,
    InvalidFrame,
    NotLeader,
    RaftError,
    RaftHost,
    Role,
)
from meshraft.driver import RaftDriver
from meshraft.group import RaftGroup
from tests.sim import disks
from tests.sim.disks import Disk
from tests.sim.world import World

Answer: TypeAlias = Callable[[object | None], None]
"""Called with the result of an entry, or with None when it is not known whether it took effect."""
ReadAnswer: TypeAlias = Callable[[], None]
Group: TypeAlias = RaftGroup[object, None]


class Machine(Protocol):
    """A state machine whose entries are applied one by one."""

    @property
    def applied_index(self) -> int:
        """Index of the last entry that it has applied."""

    def restore(self, index: int, data: bytes) -> None:
        """As `install` of `StateMachine`."""

    def apply(self, entry: Committed) -> object:
        """Applies an entry; returns its result."""

    def role_changed(self, role: Role) -> None:
        """As of `StateMachine`."""


class GroupPoisonedError(Exception):
    """A member found that it had lost something; the run ends there, with that as its finding."""


class _Proposer:
    """Passes on what a proposal came to."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def committed(self, _index: int, _count: int, result: object) -> None:
        self._answer(result)

    def failed(self, _count: int, _error: None) -> None:
        self._answer(None)


class _Applied:
    """A `StateMachine` for a `Machine`."""

    def __init__(self, host: SimulatedHost, machine: Machine) -> None:
        self._host = host
        self._machine = machine
        self.group: Group

    @property
    def applied_index(self) -> int:
        return self._machine.applied_index

    def install(self, index: int, data: bytes) -> None:
        self._machine.restore(index, data)

    def apply_next(self, entries: Entries) -> None:
        entry = entries.take()
        result = self._machine.apply(entry)
        self.group.applied(entry.index, entry.index, entry.term, result)

    def turn_ended(self) -> None:
        pass

    def role_changed(self, role: Role) -> None:
        self._machine.role_changed(role)
        if not role.leader:
            self._host.heard_of_election()

    def closed(self, kind: str, reason: str) -> None:
        raise GroupPoisonedError(f"C1 a group was poisoned: {self.group.group}, {kind}, {reason}")


class SimulatedHost:
    """One host on one disk, between two crashes of its node."""

    def __init__(
        self, world: World, disk: Disk, seed: int, settle: Callable[[], None], cut_power: Callable[[], None]
    ) -> None:
        self._world = world
        self._disk = disk
        self._settle = settle
        self._cut_power = cut_power
        self._is_sync_due = False
        self._is_gone = False
        self._frames: list[Frame] = []
        self.raft = RaftHost.simulated(disk, seed=seed)
        self.driver = RaftDriver(self.raft, self._send)

    def add(self, number: int, machine: Machine, config: GroupConfig) -> None:
        """Drives a group, before it is opened; what is proposed and read is answered when it is applied."""
        applied = _Applied(self, machine)
        applied.group = RaftGroup(
            self.driver, number, applied, config, overwritten=lambda: None, unknown=lambda _why: None
        )
        applied.group.join()

    def propose(self, number: int, data: bytes, answer: Answer) -> bool:
        """Appends at the leader; False when this member does not lead. Raises LookupError for a group that is not here."""
        try:
            self.driver.groups[number].propose(data, _Proposer(answer))
        except NotLeader:
            return False
        except RaftError:
            answer(None)
        return True

    def ask_read_index(self, number: int, answer: ReadAnswer) -> None:
        """Calls `answer` when the leader has confirmed a read point and it is applied here; or never."""
        self.driver.groups[number].ask_read_point(
            self._world.now, lambda index: answer() if index is not None else None
        )

    def step(self, peer: int, frame: bytes) -> None:
        """Feeds a frame; a bad one is dropped, as in life."""
        try:
            self.raft.step(peer, frame)
        except InvalidFrame:
            self._world.note("invalid frame", peer)

    def turn(self) -> list[Frame]:
        """Takes turns until nothing is left to do now; returns the frames to send."""
        # An answer may lead to a turn within this one.
        outer, self._frames = self._frames, []
        while self.raft.has_work():
            self.driver.turn()
        frames, self._frames = self._frames, outer
        self._schedule_sync()
        return frames

    def leader(self, number: int) -> int:
        """Member that leads as known here, 0 if unknown."""
        group = self.driver.groups.get(number)
        return group.leader if group is not None else 0

    def is_leading(self, number: int) -> bool:
        """Whether this member leads, as far as it knows."""
        group = self.driver.groups.get(number)
        return group is not None and group.is_leading

    def destroy(self, number: int) -> None:
        """Ends a group for good."""
        self.raft.destroy_group(number)
        if (group := self.driver.groups.get(number)) is not None:
            group.close(None)

    def close(self, number: int) -> None:
        """Lets a group go; its data stay."""
        self.raft.close_group(number)
        if (group := self.driver.groups.get(number)) is not None:
            group.close(None)

    def crash(self) -> None:
        """Power loss: what was not synced is gone, and so is everybody who waits for an answer."""
        self._is_gone = True
        disks.crash(self._disk, self._world.rng)

    def heard_of_election(self) -> None:
        """A power cut at the worst time: after a vote, and back in time to be asked for it again."""
        world = self._world
        if world.is_faulty and world.rng.random() < world.faults.vote_crashes:
            world.after(world.rng.uniform(0.0, 0.03), self._cut_power)

    def _send(self, frame: Frame) -> None:
        self._frames.append(frame)

    def _schedule_sync(self) -> None:
        if self._disk.pending() and not self._is_sync_due:
            self._is_sync_due = True
            self._world.after(self._world.rng.uniform(0.0005, 0.015), self._sync)

    def _sync(self) -> None:
        if self._is_gone:
            return
        self._is_sync_due = False
        pending = self._disk.pending()
        if pending and self._world.is_faulty and disks.fails(self._disk, self._world.rng):
            self._end()
            return
        if pending and not disks.sync(self._disk, self._world.rng.randint(1, pending), self._world.rng):
            raise GroupPoisonedError("C1 old log files cannot be removed")
        self._settle()

    def _end(self) -> None:
        """The disk failed: the host takes no call any more, and its node is started again."""
        self._world.note("disk failed")
        self._world.disk_failures += 1
        try:
            self.raft.pump()
        except HostPoisoned:
            self._cut_power()
            return
        raise GroupPoisonedError("C1 a host went on over a disk that had failed")
