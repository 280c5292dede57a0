"""One store with its guard: what has to become durable and what is said, in the order that makes words true.

A record is durable before it is announced, a memory before it is promised. Pure: the driver writes what is `unsaved`, says so, and
sends what it is given; time is passed in. Leaves out: the judgement (`store_guard`, `store_record`), and what giving a store up
means for the groups in it. Source: architecture §7; docs/design/stores.md.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from collections.abc import Set as AbstractSet

from meshcommon.ids import NodeId
from meshcommon.store_guard import GuardTiming, Objection, StoreGuard, StoreMemory
from meshcommon.store_record import NewIds, StoreRecord, given_up, number_raised, without
from meshwire.store_message import StoreMessage


class GuardedStore:
    """The store under the Raft groups of one log, from its opening to its closing."""

    def __init__(
        self, record: StoreRecord, memory: StoreMemory, timing: GuardTiming, boot_raise_s: float, now: float
    ) -> None:
        """`record` and `memory` are durable; while the log is written the boot number rises every `boot_raise_s`."""
        self.record = record
        self._guard = StoreGuard(record.lineage, memory, timing, now)
        self._boot_raise_s = boot_raise_s
        self._raise_at = math.inf
        self._is_record_new = False
        self._memory: StoreMemory | None = None
        self._promises: list[tuple[NodeId, StoreMessage]] = []

    # What is asked

    @property
    def acquainted(self) -> AbstractSet[NodeId]:
        """Nodes that this one speaks to or has heard."""
        return self._guard.acquainted

    def may_send(self, peer: NodeId, now: float) -> bool:
        """Whether Raft frames may go to `peer`; if not, `take_messages` has a hello to it."""
        return self._guard.may_send(peer, now)

    def may_take(self, peer: NodeId, now: float) -> bool:
        """Whether a Raft frame of `peer` may be taken; if not, it is asked who it is."""
        return self._guard.may_take(peer, now)

    # What happens

    def follow(self, peers: AbstractSet[NodeId], members: AbstractSet[NodeId], now: float) -> None:
        """Groups are shared with `peers`; the mesh has `members`, as far as is known here."""
        self._guard.follow(peers, members, now)

    def own_again(self, groups: Collection[int]) -> bool:
        """Nothing is left of the data of these groups; returns whether one of them had been disowned."""
        record = without(self.record, groups)
        if record is self.record:
            return False
        self.record, self._is_record_new = record, True
        return True

    def written(self, now: float) -> bool:
        """The log holds more than it did; returns whether `next_deadline` changed."""
        if self._raise_at != math.inf:
            return False
        self._raise_at = now + self._boot_raise_s
        return True

    def receive(self, source: NodeId, message: StoreMessage, now: float) -> Objection | None:
        """A message from a node; returns an objection that is new: then the driver has to `give_up` the store."""
        was_silent = self._guard.objection is not None
        self._guard.receive(source, message, now)
        return None if was_silent else self._guard.objection

    def give_up(self, objection: Objection, groups: Collection[int], reason: str, ids: NewIds) -> None:
        """The store is renounced because of `reason`, a sentence, with all its `groups`."""
        self.record = given_up(self.record, groups, reason, objection.lost, ids)
        self._is_record_new = True

    def farewell(self) -> bool:
        """Before the node stops: peers are to learn a number that only the disk as it is now has; false when they know it."""
        if self._raise_at == math.inf:
            return False
        self._raise_at = -math.inf
        return True

    # What is due: `tick`, then `unsaved_record`, `take_messages`, `unsaved_memory` and `take_promises`, in this order

    def tick(self, now: float) -> None:
        """Raises the boot number when that is due at `now`."""
        if self._raise_at <= now and self._guard.objection is None:
            self.record, self._is_record_new, self._raise_at = number_raised(self.record), True, math.inf

    def next_deadline(self) -> float:
        """When the next of these has something to do; infinity when nothing is due."""
        return min(self._guard.next_deadline(), self._raise_at)

    @property
    def unsaved_record(self) -> StoreRecord | None:
        """The record, when it has to become durable before anything more is said."""
        return self.record if self._is_record_new else None

    def record_saved(self, record: StoreRecord, now: float) -> None:
        """`record` is durable; there may be a newer one by now."""
        self._is_record_new = self.record is not record
        if self._is_record_new:
            return
        if self._guard.objection is not None:
            self._guard.reborn(record.lineage, now)
        elif self._guard.own != record.lineage:
            self._guard.raised(record.lineage, now)

    def take_messages(self, now: float) -> Sequence[tuple[NodeId, StoreMessage]]:
        """What is to be said at `now`; it promises nothing about the memory."""
        self._guard.tick(now)
        ready = self._guard.take_ready()
        self._promises += ready.to_send_after_persist
        if ready.to_persist is not None:
            self._memory = ready.to_persist
        return ready.to_send_now

    @property
    def unsaved_memory(self) -> StoreMemory | None:
        """The memory of the peers, when it has to become durable before `take_promises`."""
        return self._memory

    def take_promises(self) -> Sequence[tuple[NodeId, StoreMessage]]:
        """What can be said once `unsaved_memory` is durable, which it is from now on."""
        promises, self._promises, self._memory = self._promises, [], None
        return promises
