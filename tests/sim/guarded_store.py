"""The store under a simulated node's Raft log: its record and its memory of the peers on the disk, the rest in the process.

The store is the product's `GuardedStore`; this is its driver without files and asyncio: what is written is durable at once, and
the log is always being written. Source: docs/design/stores.md.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Final

from meshcommon.guarded_store import GuardedStore
from meshcommon.ids import NodeId
from meshcommon.store_guard import GuardTiming, StoreMemory
from meshcommon.store_lineage import Verdict, judge, next_incarnation
from meshcommon.store_record import Found, NewIds, StoreRecord, opened
from meshwire.store_message import StoreMessage

TIMING: Final = GuardTiming(repeat_s=5, patience_s=30)
"""In ticks."""
RAISE_TICKS: Final = 25


@dataclass(frozen=True, slots=True)
class StoredTruth:
    """What lies on the disk beside the log."""

    record: StoreRecord | None = None
    memory: StoreMemory = field(default_factory=StoreMemory)


class SimulatedStore:
    """One node's store. `truth` survives a crash, the rest does not."""

    def __init__(self, rng: random.Random) -> None:
        self.truth = StoredTruth()
        self._rng = rng
        self._store: GuardedStore | None = None

    def start(self, groups: Collection[int], now: int, lost: str = "") -> None:
        """The log is going to be used; `groups` are in it or should be. `lost`: why its memberships are retired."""
        record = opened(Found(self.truth.record), groups, self._new_ids(), lost)
        self.truth = replace(self.truth, record=record)
        self._store = GuardedStore(record, self.truth.memory, TIMING, RAISE_TICKS, now)
        self._store.written(now)

    def crash(self) -> None:
        """The process is gone."""
        self._store = None

    @property
    def record(self) -> StoreRecord:
        """The record of a store that was started."""
        assert self.truth.record is not None
        return self.truth.record

    @property
    def disowned(self) -> AbstractSet[int]:
        """Groups whose membership at this node must not be counted on."""
        return self.record.disowned

    def destroyed(self, group: int, now: int) -> None:
        """Nothing is left of the group's data."""
        if self._store is not None and self._store.own_again([group]):
            self._keep(self._store, now)

    def follow(self, peers: AbstractSet[NodeId], members: AbstractSet[NodeId], now: int) -> None:
        """As the store's."""
        if self._store is not None:
            self._store.follow(peers, members, now)

    def may_send(self, peer: NodeId, now: int) -> bool:
        """As the store's."""
        return self._store is not None and self._store.may_send(peer, now)

    def may_take(self, peer: NodeId, now: int) -> bool:
        """As the store's."""
        return self._store is not None and self._store.may_take(peer, now)

    def receive(self, source: NodeId, message: StoreMessage, groups: Collection[int], now: int) -> bool:
        """Takes a message; true when the store had to be given up, with its `groups`."""
        store = self._store
        if store is None or (objection := store.receive(source, message, now)) is None:
            return False
        store.give_up(objection, groups, f"it {objection.verdict.value}", self._new_ids())
        self._keep(store, now)
        return True

    def act(self, now: int) -> Iterable[tuple[NodeId, StoreMessage]]:
        """Keeps what has to be kept; returns what is to be said then."""
        store = self._store
        if store is None:
            return ()
        store.tick(now)
        store.written(now)
        self._keep(store, now)
        messages = store.take_messages(now)
        if (memory := store.unsaved_memory) is not None:
            self.truth = replace(self.truth, memory=memory)
        return (*messages, *store.take_promises())

    def would_refuse(self, node: NodeId, copy: StoredTruth) -> bool:
        """Whether this node knows enough to refuse another one that started from that copy of its disk."""
        known = (self.truth.memory.seen.get(node), self.truth.memory.heard.get(node))
        if copy.record is None:
            return any(known)
        lineage = next_incarnation(copy.record.lineage, 0)
        return any(judge(seen, lineage) is not Verdict.GOES_ON for seen in known)

    def _keep(self, store: GuardedStore, now: int) -> None:
        if (record := store.unsaved_record) is not None:
            self.truth = replace(self.truth, record=record)
            store.record_saved(record, now)

    def _new_ids(self) -> NewIds:
        return NewIds(self._rng.getrandbits(64), self._rng.getrandbits(64))
