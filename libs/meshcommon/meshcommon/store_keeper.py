"""The driver of a guarded store: it owns the files, the clock and the wake-ups.

Both planes have one, each for its own log directory. Leaves out: what becomes durable and is said in which order
(`guarded_store`), how messages travel, and what giving a store up means for the groups in it: that is the owner's. One event loop
only. Source: architecture §7; docs/design/stores.md.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Collection, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from typing import Final, Protocol

from meshcommon.guarded_store import GuardedStore
from meshcommon.ids import NodeId
from meshcommon.logging import get_logger
from meshcommon.store_files import StoreFiles
from meshcommon.store_guard import GuardTiming, Objection, StoreMemory
from meshcommon.store_record import NewIds, StoreRecord, opened
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
        """There whenever `_store` is."""
        self._store: GuardedStore | None = None
        self.one_at_a_time = asyncio.Lock()
        """Held while files are written."""
        self._woken = asyncio.Event()

    # Opening and closing

    async def open(self, files: StoreFiles, groups: Collection[int], lost: str = "") -> None:
        """The log, which is locked, is going to be used; `groups` are stored in it or should be.

        `lost`: why the log's memberships are retired, as a sentence; empty when they are not.

        Raises:
            OSError: the next boot number cannot be made durable.
        """
        async with self.one_at_a_time:
            record, memory = await asyncio.to_thread(begin_incarnation, files, groups, lost)
            self.start(files, record, memory)

    def start(self, files: StoreFiles, record: StoreRecord, memory: StoreMemory) -> None:
        """Goes on from what `begin_incarnation` returned."""
        self._files = files
        self._store = GuardedStore(record, memory, self._timing, self._boot_raise_s, _now())
        if record.disowned:
            _log.error("store_given_up", reason=record.reason, groups=sorted(record.disowned))
        self._owner.store_changed()
        self._woken.set()

    def close(self) -> None:
        """The log is closed: nothing is said in its name any more."""
        self._store = None
        self._owner.store_changed()

    async def farewell(self) -> None:
        """Before the node stops: peers learn a number that only the disk as it is now has."""
        store = self._store
        if store is not None and store.farewell():
            # If it fails the next start is told from this one all the same, only not from its middle.
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(_FAREWELL_S):
                    await self._turn(store)

    # What is asked

    @property
    def disowned(self) -> AbstractSet[int]:
        """Groups whose membership at this node must not be counted on."""
        return self._store.record.disowned if self._store is not None else frozenset()

    @property
    def reason(self) -> str:
        """Why they must not, as a sentence."""
        return self._store.record.reason if self._store is not None else ""

    def may_send(self, peer: NodeId) -> bool:
        """Whether Raft frames may go to `peer`."""
        if self._store is None or self._store.may_send(peer, _now()):
            return self._store is not None
        self._woken.set()
        return False

    def may_take(self, peer: NodeId) -> bool:
        """Whether a Raft frame of `peer` may be taken."""
        if self._store is None or self._store.may_take(peer, _now()):
            return self._store is not None
        self._woken.set()
        return False

    @property
    def acquainted(self) -> AbstractSet[NodeId]:
        """Nodes that this one speaks to or has heard."""
        return self._store.acquainted if self._store is not None else frozenset()

    # What happens

    def follow(self, peers: AbstractSet[NodeId], members: AbstractSet[NodeId]) -> None:
        """Groups are shared with `peers`; the mesh has `members`, as far as is known here."""
        if self._store is not None:
            self._store.follow(peers, members, _now())
            self._woken.set()

    def own_again(self, groups: Collection[int]) -> None:
        """Nothing is left of the data of these groups: the next membership in their place is a good one."""
        if self._store is not None and self._store.own_again(groups):
            self._woken.set()
            self._owner.store_changed()

    def written(self) -> None:
        """The log holds more than it did."""
        if self._store is not None and self._store.written(_now()):
            self._woken.set()

    def receive(self, source: NodeId, message: StoreMessage) -> None:
        """A message from a node."""
        store = self._store
        if store is None:
            return
        objection = store.receive(source, message, _now())
        if objection is not None:
            reason, groups = self._owner.store_objected(objection)
            store.give_up(objection, groups, reason, _new_ids())
            _log.error("store_given_up", reason=reason, groups=sorted(groups))
            self._owner.store_changed()
        self._woken.set()

    async def run(self) -> None:
        """Says, keeps and repeats what is due, until cancelled."""
        while True:
            self._woken.clear()
            store, wait_s = self._store, math.inf
            if store is not None:
                try:
                    await self._turn(store)
                    wait_s = store.next_deadline() - _now()
                    self._owner.store_files_failed(None)
                except OSError as error:
                    if self._store is store:
                        _log.warning("store_not_kept", reason=str(error))
                        self._owner.store_files_failed(error)
                    await asyncio.sleep(_RETRY_S)
                    continue
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, wait_s) if wait_s != math.inf else None):
                    await self._woken.wait()

    # Inside

    async def _turn(self, store: GuardedStore) -> None:
        async with self.one_at_a_time:
            if self._store is not store:
                return
            store.tick(_now())
            while self._store is store and (record := store.unsaved_record) is not None:
                await asyncio.to_thread(self._files.write, record)
                store.record_saved(record, _now())
            if self._store is not store:
                return
            self._send(store.take_messages(_now()))
            if (memory := store.unsaved_memory) is not None:
                await asyncio.to_thread(self._files.write_peers, memory)
            if self._store is store:
                self._send(store.take_promises())

    def _send(self, messages: Sequence[tuple[NodeId, StoreMessage]]) -> None:
        for peer, message in messages:
            if isinstance(message, Refusal):
                _log.warning("peer_store_refused", node=peer, seen_boot=message.seen.boot)
            self._owner.send_store_message(peer, message)


def begin_incarnation(files: StoreFiles, groups: Collection[int], lost: str = "") -> tuple[StoreRecord, StoreMemory]:
    """The record of this start, durable, and what is remembered of the peers; blocks. Raises OSError."""
    record = opened(files.read(), groups, _new_ids(), lost)
    files.write(record)
    return record, files.read_peers()


def _new_ids() -> NewIds:
    return NewIds(secrets.randbits(_ID_BITS), secrets.randbits(_ID_BITS))


def _now() -> float:
    return asyncio.get_running_loop().time()
