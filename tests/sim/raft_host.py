"""A meshraft host over a simulated disk, as both planes drive it: pump, sync later, apply, answer who proposed.

Purpose: what the shells of control plane and data plane have in common, without asyncio. What a proposal came to is decided
by the data plane's own `ProposalWindow`. Leaves out: what entries mean.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import TypeAlias

from mesh_data.core.publish_window import Outcome, ProposalWindow
from meshraft import Committed, Frame, InvalidFrame, NotLeader, RaftError, RaftHost
from tests.sim import disks
from tests.sim.disks import Disk
from tests.sim.world import World

Answer: TypeAlias = Callable[[object | None], None]
"""Called with the result of an entry, or with None when it is not known whether it took effect."""
ReadAnswer: TypeAlias = Callable[[], None]


class GroupPoisonedError(Exception):
    """A member found that it had lost something; the run ends there, with that as its finding."""


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
        self._windows: defaultdict[int, ProposalWindow[Answer]] = defaultdict(ProposalWindow)
        self._reads: dict[tuple[int, int], ReadAnswer] = {}
        self._tokens = 0
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
        for cut_off in self._windows[group].add(term, index, len(data), answer):
            cut_off(None)
        return True

    def ask_read_index(self, group: int, answer: ReadAnswer) -> None:
        """Calls `answer` when the leader has confirmed a read point and it is applied here; or never."""
        self._tokens += 1
        self.raft.read_index(group, self._tokens)
        self._reads[group, self._tokens] = answer

    def step(self, peer: int, frame: bytes) -> None:
        """Feeds a frame; a bad one is dropped, as in life."""
        try:
            self.raft.step(peer, frame)
        except InvalidFrame:
            self._world.note("invalid frame", peer)

    def turn(
        self,
        apply: Callable[[Committed], object],
        restore: Callable[[int, int, bytes], None],
        role_changed: Callable[[int], None] = lambda _group: None,
    ) -> list[Frame]:
        """Pumps until nothing is left to do now; returns the frames to send."""
        frames: list[Frame] = []
        while self.raft.has_work():
            pump = self.raft.pump()
            frames += pump.frames
            for installed in pump.installed:
                restore(installed.group, installed.index, installed.data)
                for lost in self._windows[installed.group].take_all():
                    lost(None)
            for entry in pump.committed:
                self._answer(entry, apply(entry))
            for role in pump.roles:
                self.roles[role.group] = (role.role, role.leader)
                role_changed(role.group)
                if not role.leader:
                    self._heard_of_election()
            for group, token, _index in pump.reads:
                if read := self._reads.pop((group, token), None):
                    read()
            if pump.closed:
                raise GroupPoisonedError(f"C1 a group was poisoned: {pump.closed}")
        self._schedule_sync()
        return frames

    def leader(self, group: int) -> int:
        """Member that leads as known here, 0 if unknown."""
        return self.roles.get(group, ("follower", 0))[1]

    def is_leading(self, group: int) -> bool:
        """Whether this member leads, as far as it knows."""
        return self.roles.get(group, ("", 0))[0] == "leader"

    def destroy(self, group: int) -> None:
        """Ends a group for good."""
        self.raft.destroy_group(group)
        self.roles.pop(group, None)
        for lost in self._windows.pop(group, ProposalWindow[Answer]()).take_all():
            lost(None)

    def crash(self) -> None:
        """Power loss: what was not synced is gone, and so is everybody who waits for an answer."""
        self._is_gone = True
        disks.crash(self._disk, self._world.rng)
        self._windows.clear()
        self._reads.clear()

    def _answer(self, entry: Committed, result: object) -> None:
        window = self._windows.get(entry.group)
        if not window:
            return
        for answer, outcome in window.committed(entry.index, entry.term):
            answer(result if outcome is Outcome.COMMITTED else None)

    def _heard_of_election(self) -> None:
        """A power cut at the worst time: after a vote, and back in time to be asked for it again."""
        world = self._world
        if world.is_faulty and world.rng.random() < world.faults.vote_crashes:
            world.after(world.rng.uniform(0.0, 0.03), self._cut_power)

    def _schedule_sync(self) -> None:
        if self._disk.pending() and not self._is_sync_due:
            self._is_sync_due = True
            self._world.after(self._world.rng.uniform(0.0005, 0.015), self._sync)

    def _sync(self) -> None:
        if self._is_gone:
            return
        self._is_sync_due = False
        pending = self._disk.pending()
        if pending and not disks.sync(self._disk, self._world.rng.randint(1, pending), self._world.rng):
            raise GroupPoisonedError("C1 old log files cannot be removed")
        self._settle()
