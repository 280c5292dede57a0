"""The driver of a store guard: it owns the files, the clock, and the order in which things become durable and are said.

A record is durable before it is announced, a memory before it is promised. Both planes have one, each for its own log
directory. Leaves out: the judgement (`store_guard`, `store_record`), how messages travel, and what giving a store up means for the
groups in it: that is the owner's. One event loop only. Source: architecture §7; docs/design/stores.md.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Collection, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from typing import Final, Protocol

from meshcommon.ids import NodeId
from meshcommon.logging import get_logger
from meshcommon.store_files import StoreFiles
from meshcommon.store_guard import GuardTiming, Objection, StoreGuard, StoreMemory
from meshcommon.store_record import NewIds, StoreRecord, given_up, number_raised, opened, without
from meshwire.store_message import Refusal, StoreMessage

_RETRY_S: Final = 1.0
_FAREWELL_S: Final = 1.0
_ID_BITS: Final = 64

_log = get_logger(__name__)


class StoreOwner(Protocol):
    """Whose log directory it is."""

    def send_store_message(self, peer: NodeId, message: StoreMessage) -> None:
        """Sends a message, best effort: what is lost is said again."""

    def store_objected(self, objection: Objection) -> tuple[str, Collection[int]]:
        """The store is given up: closes its groups. Returns why, as a sentence, and all groups that are or should be stored."""

    def store_changed(self) -> None:
        """`disowned` is another set than before."""

    def store_files_failed(self, error: OSError | None) -> None:
        """The files cannot be written now; None: they can again."""


class StoreKeeper:
    """The store under one plane's Raft groups. `run` drives it; everything else is called on its event loop."""

    def __init__(self, timing: GuardTiming, boot_raise_s: float, owner: StoreOwner) -> None:
        """While the log is written its boot number rises every `boot_raise_s`."""
        self._timing = timing
        self._boot_raise_s = boot_raise_s
        self._owner = owner
        self._files: StoreFiles
        self._record: StoreRecord
        """There, like the files, whenever `_guard` is."""
        self._guard: StoreGuard | None = None
        self._is_record_new = False
        self._raise_at = math.inf
        self._memory: StoreMemory | None = None
        self._promises: list[tuple[NodeId, StoreMessage]] = []
        self.one_at_a_time = asyncio.Lock()
        """Held while files are written."""
        self._woken = asyncio.Event()

    # Opening and closing

    async def open(self, files: StoreFiles, groups: Collection[int]) -> None:
        """The log, which is locked, is going to be used; `groups` are stored in it or should be.

        Raises:
            OSError: the next boot number cannot be made durable.
        """
        async with self.one_at_a_time:
            record, memory = await asyncio.to_thread(begin_life, files, groups)
            self.start(files, record, memory)

    def start(self, files: StoreFiles, record: StoreRecord, memory: StoreMemory) -> None:
        """Goes on from what `begin_life` returned."""
        self._files, self._record = files, record
        self._guard = StoreGuard(record.lineage, memory, self._timing, _now())
        self._is_record_new, self._raise_at, self._memory, self._promises = False, math.inf, None, []
        if record.disowned:
            _log.error("store_given_up", reason=record.reason, groups=sorted(record.disowned))
        self._owner.store_changed()
        self._woken.set()

    def close(self) -> None:
        """The log is closed: nothing is said in its name any more."""
        self._guard = None
        self._owner.store_changed()

    async def farewell(self) -> None:
        """Before the node stops: peers learn a number that only the disk as it is now has."""
        guard = self._guard
        if guard is not None and self._raise_at != math.inf:
            self._raise_at = -math.inf
            # If it fails the next start is told from this one all the same, only not from its middle.
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(_FAREWELL_S):
                    await self._turn(guard)

    # What is asked

    @property
    def disowned(self) -> AbstractSet[int]:
        """Groups whose membership at this node must not be counted on."""
        return self._record.disowned if self._guard is not None else frozenset()

    @property
    def reason(self) -> str:
        """Why they must not, as a sentence."""
        return self._record.reason if self._guard is not None else ""

    def may_send(self, peer: NodeId) -> bool:
        """Whether Raft frames may go to `peer`."""
        if self._guard is None or self._guard.may_send(peer, _now()):
            return self._guard is not None
        self._woken.set()
        return False

    def may_take(self, peer: NodeId) -> bool:
        """Whether a Raft frame of `peer` may be taken."""
        if self._guard is None or self._guard.may_take(peer, _now()):
            return self._guard is not None
        self._woken.set()
        return False

    @property
    def acquainted(self) -> AbstractSet[NodeId]:
        """Nodes that this one speaks to or has heard."""
        return self._guard.acquainted if self._guard is not None else frozenset()

    # What happens

    def follow(self, peers: AbstractSet[NodeId], members: AbstractSet[NodeId]) -> None:
        """Groups are shared with `peers`; the mesh has `members`, as far as is known here."""
        if self._guard is not None:
            self._guard.follow(peers, members, _now())
            self._woken.set()

    def own_again(self, groups: Collection[int]) -> None:
        """Nothing is left of the data of these groups: the next membership in their place is a good one."""
        if self._guard is None:
            return
        record = without(self._record, groups)
        if record is not self._record:
            self._record, self._is_record_new = record, True
            self._woken.set()
            self._owner.store_changed()

    def written(self) -> None:
        """The log holds more than it did."""
        if self._raise_at == math.inf:
            self._raise_at = _now() + self._boot_raise_s
            self._woken.set()

    def receive(self, source: NodeId, message: StoreMessage) -> None:
        """A message from a node."""
        guard = self._guard
        if guard is None:
            return
        was_silent = guard.objection is not None
        guard.receive(source, message, _now())
        if guard.objection is not None and not was_silent:
            reason, groups = self._owner.store_objected(guard.objection)
            self._record = given_up(self._record, groups, reason, guard.objection.lost, _new_ids())
            self._is_record_new, self._raise_at = True, math.inf
            _log.error("store_given_up", reason=reason, groups=sorted(groups))
            self._owner.store_changed()
        self._woken.set()

    async def run(self) -> None:
        """Says, keeps and repeats what is due, until cancelled."""
        while True:
            self._woken.clear()
            guard, wait_s = self._guard, math.inf
            if guard is not None:
                try:
                    await self._turn(guard)
                    wait_s = min(guard.next_deadline(), self._raise_at) - _now()
                    self._owner.store_files_failed(None)
                except OSError as error:
                    if self._guard is guard:
                        _log.warning("store_not_kept", reason=str(error))
                        self._owner.store_files_failed(error)
                    await asyncio.sleep(_RETRY_S)
                    continue
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, wait_s) if wait_s != math.inf else None):
                    await self._woken.wait()

    # Inside

    async def _turn(self, guard: StoreGuard) -> None:
        async with self.one_at_a_time:
            if self._guard is not guard:
                return
            guard.tick(_now())
            if self._raise_at <= _now() and guard.objection is None:
                self._record, self._is_record_new, self._raise_at = number_raised(self._record), True, math.inf
            await self._keep_record(guard)
            await self._speak(guard)

    async def _keep_record(self, guard: StoreGuard) -> None:
        while self._is_record_new and self._guard is guard:
            record = self._record
            await asyncio.to_thread(self._files.write, record)
            self._is_record_new = self._record is not record
        if self._guard is not guard:
            return
        if guard.objection is not None:
            guard.reborn(self._record.lineage, _now())
        elif guard.own != self._record.lineage:
            guard.raised(self._record.lineage, _now())

    async def _speak(self, guard: StoreGuard) -> None:
        if self._guard is not guard:
            return
        ready = guard.take_ready()
        self._send(ready.to_send_now)
        self._promises += ready.to_send_after_persist
        if ready.to_persist is not None:
            self._memory = ready.to_persist
        if self._memory is not None:
            await asyncio.to_thread(self._files.write_peers, self._memory)
        if self._guard is guard:
            self._send(self._promises)
            self._memory, self._promises = None, []

    def _send(self, messages: Sequence[tuple[NodeId, StoreMessage]]) -> None:
        for peer, message in messages:
            if isinstance(message, Refusal):
                _log.warning("peer_store_refused", node=peer, seen_boot=message.seen.boot)
            self._owner.send_store_message(peer, message)


def begin_life(files: StoreFiles, groups: Collection[int]) -> tuple[StoreRecord, StoreMemory]:
    """The record of this start, durable, and what is remembered of the peers; blocks. Raises OSError."""
    record = opened(files.read(), groups, _new_ids())
    files.write(record)
    return record, files.read_peers()


def _new_ids() -> NewIds:
    return NewIds(secrets.randbits(_ID_BITS), secrets.randbits(_ID_BITS))


def _now() -> float:
    return asyncio.get_running_loop().time()
