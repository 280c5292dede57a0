"""The store under a simulated node's Raft log: its record and its memory of the peers on the disk, the guard in the process.

Guard and record are the real ones; this does what the data plane's `store_truth` does, without files and asyncio: what is
written is durable at once, and is written before it is said. Source: docs/design/stores.md.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Final

from meshcommon.ids import NodeId
from meshcommon.store_guard import GuardTiming, StoreGuard, StoreMemory
from meshcommon.store_lineage import Verdict, judge, next_life
from meshcommon.store_record import Found, NewIds, StoreRecord, given_up, number_raised, opened, without
from meshwire.store_message import StoreMessage

TIMING: Final = GuardTiming(repeat_s=5, patience_s=30)
"""In ticks."""
RAISE_TICKS: Final = 25


@dataclass(frozen=True, slots=True)
class StoredTruth:
    """What lies on the disk beside the log."""

    record: StoreRecord | None = None
    memory: StoreMemory = field(default_factory=StoreMemory)


class GuardedStore:
    """One node's store. `truth` survives a crash, the rest does not."""

    def __init__(self, rng: random.Random) -> None:
        self.truth = StoredTruth()
        self._rng = rng
        self._guard: StoreGuard | None = None
        self._raise_at = 0

    def start(self, groups: Collection[int], now: int) -> None:
        """The log is going to be used; `groups` are in it or should be."""
        record = opened(Found(self.truth.record), groups, self._new_ids())
        self.truth = StoredTruth(record, self.truth.memory)
        self._guard = StoreGuard(record.lineage, self.truth.memory, TIMING, now)
        self._raise_at = now + RAISE_TICKS

    def crash(self) -> None:
        """The process is gone."""
        self._guard = None

    @property
    def record(self) -> StoreRecord:
        """The record of a store that was started."""
        assert self.truth.record is not None
        return self.truth.record

    @property
    def disowned(self) -> AbstractSet[int]:
        """Groups whose membership at this node must not be counted on."""
        return self.record.disowned

    def destroyed(self, group: int) -> None:
        """Nothing is left of the group's data."""
        self.truth = StoredTruth(without(self.record, [group]), self.truth.memory)

    def follow(self, peers: AbstractSet[NodeId], members: AbstractSet[NodeId], now: int) -> None:
        """As the guard's."""
        if self._guard is not None:
            self._guard.follow(peers, members, now)

    def may_send(self, peer: NodeId, now: int) -> bool:
        """As the guard's."""
        return self._guard is not None and self._guard.may_send(peer, now)

    def may_take(self, peer: NodeId, now: int) -> bool:
        """As the guard's."""
        return self._guard is not None and self._guard.may_take(peer, now)

    def receive(self, source: NodeId, message: StoreMessage, groups: Collection[int], now: int) -> bool:
        """Takes a message; true when the store had to be given up, with its `groups`."""
        guard = self._guard
        if guard is None:
            return False
        guard.receive(source, message, now)
        if (objection := guard.objection) is None:
            return False
        reason = f"it {objection.verdict.value}"
        record = given_up(self.record, groups, reason, objection.lost, self._new_ids())
        self.truth = StoredTruth(record, self.truth.memory)
        guard.reborn(record.lineage, now)
        return True

    def act(self, now: int) -> Iterable[tuple[NodeId, StoreMessage]]:
        """Keeps what has to be kept; returns what is to be said then."""
        guard = self._guard
        if guard is None:
            return ()
        if now >= self._raise_at:
            self._raise_at = now + RAISE_TICKS
            self.truth = StoredTruth(number_raised(self.record), self.truth.memory)
            guard.raised(self.record.lineage, now)
        guard.tick(now)
        ready = guard.take_ready()
        if ready.to_persist is not None:
            self.truth = StoredTruth(self.record, ready.to_persist)
        return (*ready.to_send_now, *ready.to_send_after_persist)

    def would_refuse(self, node: NodeId, copy: StoredTruth) -> bool:
        """Whether this node knows enough to refuse another one that started from that copy of its disk."""
        known = (self.truth.memory.seen.get(node), self.truth.memory.heard.get(node))
        if copy.record is None:
            return any(known)
        lineage = next_life(copy.record.lineage, 0)
        return any(judge(seen, lineage) is not Verdict.GOES_ON for seen in known)

    def _new_ids(self) -> NewIds:
        return NewIds(self._rng.getrandbits(64), self._rng.getrandbits(64))
