"""The worst that one disk can do to a group: it comes back as it once was, and who knows what it confirmed is away.

In three steps: a disk is copied; when the peers have noted a later boot number of it, one of them is cut off, so that what is
written next is confirmed by the others alone; then the copy comes back and the leader goes down for a while. Not in the middle of
a change of members: nobody drops a second copy on purpose before a loss is made good. Leaves out what nobody can see: a number
that only a node knows which is away, and what is confirmed after the last number (docs/design/stores.md).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

from meshcommon.ids import NodeId
from tests.sim.disks import Disk, Disks
from tests.sim.guarded_store import SimulatedStore, StoredTruth

LEADER_AWAY_TICKS: Final = 120
_RARE: Final = 0.05


class Machine(Protocol):
    """What is needed of a simulated node."""

    number: NodeId
    disk: Disk
    store: SimulatedStore
    starts_at: int


MachineT = TypeVar("MachineT", bound=Machine)


@dataclass(frozen=True, slots=True)
class Restored(Generic[MachineT]):
    """What the disk of `machine` becomes."""

    machine: MachineT
    disk: Disk
    truth: StoredTruth


class SetBack(Generic[MachineT]):
    """Plans the fault over one group; the run does what is returned."""

    def __init__(self, rng: random.Random, disks: Disks) -> None:
        self._rng = rng
        self._disks = disks
        self._victim: MachineT | None = None
        self._copy: tuple[Disk, StoredTruth] | None = None
        self._isolated: MachineT | None = None
        self._next_at = 0

    def plan(self, members: Sequence[MachineT], leader: MachineT | None, now: int) -> None:
        """Nothing else is wrong with the group's disks: perhaps begins."""
        followers = [member for member in members if member is not leader]
        if self._victim is None and leader is not None and len(followers) > 1 and self._rng.random() < _RARE:
            self._victim = self._rng.choice(followers)
            self._copy = (self._disks.copy(self._victim.disk), self._victim.store.truth)
            self._isolated = self._rng.choice([member for member in followers if member is not self._victim])
            self._next_at = now + self._rng.randint(30, 60)

    def cut_off(self, members: Sequence[MachineT], now: int) -> MachineT | None:
        """The node to cut off now, if it is time."""
        if self._isolated is None or now < self._next_at:
            return None
        if not self._is_known(members):
            return None
        found, self._isolated = self._isolated, None
        self._next_at = now + self._rng.randint(10, 40)
        return found

    def restore(self, members: Sequence[MachineT], now: int) -> Restored[MachineT] | None:
        """The disk that is set back now, if it is time."""
        if self._victim is None or self._copy is None or self._isolated is not None or now < self._next_at:
            return None
        (disk, truth), victim = self._copy, self._victim
        self._victim = self._copy = None
        if victim not in members or not self._all_know(victim, truth, members):
            return None
        return Restored(victim, disk, truth)

    def give_up(self) -> None:
        """The members change, or another disk forgot something: not now."""
        self._victim = self._copy = self._isolated = None

    def _is_known(self, members: Sequence[MachineT]) -> bool:
        return (
            self._victim is not None and self._copy is not None and self._all_know(self._victim, self._copy[1], members)
        )

    @staticmethod
    def _all_know(victim: MachineT, truth: StoredTruth, members: Sequence[MachineT]) -> bool:
        return all(other.store.would_refuse(victim.number, truth) for other in members if other is not victim)
