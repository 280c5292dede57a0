"""A meshraft host over a simulated disk, as both planes drive it: pump, sync later, apply, answer who proposed.

Purpose: what the shells of control plane and data plane have in common, without asyncio. Leaves out: what entries mean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from meshraft import Committed, Frame, InvalidFrame, NotLeader, RaftError, RaftHost, SimDisk
from tests.sim.world import World

Answer: TypeAlias = Callable[[object | None], None]
"""Called with the result of an entry, or with None when it is not known whether it took effect."""


class GroupPoisonedError(Exception):
    """A member found that it had lost something; the run ends there, with that as its finding."""


class SimulatedHost:
    """One host on one disk, between two crashes of its node."""

    def __init__(self, world: World, disk: SimDisk, seed: int, settle: Callable[[], None]) -> None:
        self._world = world
        self._disk = disk
        self._settle = settle
        self._is_sync_due = False
        self._is_gone = False
        self._pending: dict[tuple[int, int], tuple[int, Answer]] = {}
        self.roles: dict[int, tuple[str, int]] = {}
        self.raft = RaftHost.simulated(disk, seed=seed)

    def propose(self, group: int, data: bytes, answer: Answer) -> bool:
        """Appends at the leader; False when this member does not lead."""
        try:
            term, index = self.raft.propose(group, data)
        except NotLeader:
            return False
        except RaftError:
            answer(None)
            return True
        overwritten = self._pending.pop((group, index), None)
        self._pending[group, index] = (term, answer)
        if overwritten is not None:
            overwritten[1](None)
        return True

    def step(self, peer: int, frame: bytes) -> None:
        """Feeds a frame; a bad one is dropped, as in life."""
        try:
            self.raft.step(peer, frame)
        except InvalidFrame:
            self._world.note("invalid frame", peer)

    def turn(self, apply: Callable[[Committed], object], restore: Callable[[int, int, bytes], None]) -> list[Frame]:
        """Pumps until nothing is left to do now; returns the frames to send."""
        frames: list[Frame] = []
        while self.raft.has_work():
            pump = self.raft.pump()
            frames += pump.frames
            for installed in pump.installed:
                restore(installed.group, installed.index, installed.data)
            for entry in pump.committed:
                self._answer(entry, apply(entry))
            for role in pump.roles:
                self.roles[role.group] = (role.role, role.leader)
                if role.role != "leader":
                    self._fail_pending(role.group)
            if pump.closed:
                raise GroupPoisonedError(f"a group was poisoned: {pump.closed}")
        self._schedule_sync()
        return frames

    def leader(self, group: int) -> int:
        """Member that leads as known here, 0 if unknown."""
        return self.roles.get(group, ("follower", 0))[1]

    def crash(self) -> None:
        """Power loss: what was not synced is gone, and so is everybody who waits for an answer."""
        self._is_gone = True
        self._disk.crash()
        self._pending.clear()

    def _answer(self, entry: Committed, result: object) -> None:
        waiting = self._pending.pop((entry.group, entry.index), None)
        if waiting is not None:
            term, answer = waiting
            answer(result if term == entry.term else None)

    def _fail_pending(self, group: int) -> None:
        for key in [key for key in self._pending if key[0] == group]:
            self._pending.pop(key)[1](None)

    def _schedule_sync(self) -> None:
        if self._disk.pending() and not self._is_sync_due:
            self._is_sync_due = True
            self._world.after(self._world.rng.uniform(0.0005, 0.015), self._sync)

    def _sync(self) -> None:
        if self._is_gone:
            return
        self._is_sync_due = False
        pending = self._disk.pending()
        if pending:
            self._disk.sync(self._world.rng.randint(1, pending))
        self._settle()
