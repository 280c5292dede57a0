"""The driver of this node's replica of the Mesh Control Group: one Raft group in a host of its own.

It owns the clock (ticks), the wake-ups of the log and the order of calls: frames out, snapshots in, entries applied, then
whoever waits is told. Leaves out: what a leader does besides (`leadership`), and finding the leader (`proposals`).
A failed log ends the service with STORAGE_FAILED: a node that cannot remember its vote must not take part.
Source: architecture §7 "MCG"; meshraft's contract in `_native.pyi`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from google.protobuf.message import DecodeError

from mesh_control.core.mcg_state import McgState, Result
from mesh_control.core.model import Place
from mesh_control.core.timing import Timing
from mesh_control.core.voters import Configuration
from mesh_control.shell import metrics
from mesh_control.shell.changes import Changes
from meshapi.control.v1 import mcg_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import MemberId, NodeId
from meshcommon.logging import get_logger
from meshraft import (
    KIND_NORMAL,
    Backpressure,
    Committed,
    GroupConfig,
    GroupStatus,
    InvalidFrame,
    NotLeader,
    Pump,
    RaftError,
    RaftHost,
)

GROUP: Final = 1
SNAPSHOT_EVERY_ENTRIES: Final = 1000
READ_RETRY_S: Final = 0.3
CAUGHT_UP_ENTRIES: Final = 64
"""A member within this many entries of the commit index has caught up."""

_log = get_logger(__name__)


class SendFrame(Protocol):
    """Sends a Raft frame to a node, best effort."""

    def __call__(self, peer: NodeId, frame_class: int, data: bytes) -> None:
        """`frame_class` is a CLASS_ constant of meshraft."""


@dataclass(frozen=True, slots=True)
class Birth:
    """How the replica starts when nothing is stored yet, and what is known beside its log.

    Attributes:
        founding: the mesh's first state at index 1, when this node founds it; empty for a node that joins, which waits
            for the leader's snapshot.
        peers: where each member lives, as far as known.
        acquainted: other nodes that are known to be in the mesh, whatever the log says.
    """

    founding: bytes
    peers: Mapping[int, int]
    acquainted: Collection[NodeId]


@dataclass(frozen=True, slots=True)
class Standing:
    """Where this replica stands.

    Attributes:
        leader: leader's node, 0 if unknown.
        has_quorum: whether it is in touch with a leader that has a quorum.
    """

    is_leader: bool
    leader: NodeId
    term: int
    applied: int
    has_quorum: bool


class Mcg:
    """This node's replica. Made by `open`; lives from seed or join until the node leaves."""

    def __init__(
        self, host: RaftHost, place: Place, timing: Timing, send: SendFrame, now_ms: Callable[[], int]
    ) -> None:
        self.state = McgState()
        self.place = place
        self.changed = Changes()
        self.ticks = 0
        self._host = host
        self._timing = timing
        self._send = send
        self._now_ms = now_ms
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._closed = asyncio.Event()
        self._is_ticking = True
        self._peers: dict[int, int] = {}
        self._known = (0, 0)
        self._acquainted: Collection[NodeId] = ()
        self._forgotten: list[NodeId] = []
        self._pending: dict[int, tuple[int, asyncio.Future[Result]]] = {}
        self._applied_term = self._term_begins_at = 0
        self._reads: dict[int, asyncio.Future[None]] = {}
        self._next_read = 1
        self._snapshot_index = 0

    @classmethod
    def open(
        cls,
        host: RaftHost,
        place: Place,
        birth: Birth,
        timing: Timing,
        send: SendFrame,
        now_ms: Callable[[], int],
    ) -> Mcg:
        """Opens the stored replica, or gives birth to it.

        Raises:
            MeshError: STORAGE_FAILED.
        """
        mcg = cls(host, place, timing, send, now_ms)
        try:
            mcg._start(birth)
        except RaftError as error:
            host.close()
            raise _storage_failed(error) from error
        return mcg

    def _start(self, birth: Birth) -> None:
        config = GroupConfig(election_ticks=self._timing.election_ticks, heartbeat_ticks=self._timing.heartbeat_ticks)
        self._acquainted = birth.acquainted
        if GROUP in self._host.stored_groups():
            # Named is nobody yet: who was there at the birth may have left since.
            stored = self._host.open_group(GROUP, self.place.mcg_member, {}, config=config)
            self._restore(stored.index, stored.data)
        else:
            voters = [self.place.mcg_member] if birth.founding else []
            self._peers = dict(birth.peers.items()) | {self.place.mcg_member: self.place.node_id}
            self._host.create_group(
                GROUP, self.place.mcg_member, self._peers, voters=voters, snapshot=birth.founding, config=config
            )
            self._restore(1 if birth.founding else 0, birth.founding)
        status = self._host.status(GROUP)
        if status.voters == [self.place.mcg_member] and not status.in_doubt:
            self._host.campaign(GROUP)

    async def run(self) -> None:
        """Drives the replica until `stop`.

        Raises:
            MeshError: STORAGE_FAILED when the log can no longer be written.
        """
        loop = asyncio.get_running_loop()
        descriptor = self._host.fileno()
        if descriptor >= 0:
            loop.add_reader(descriptor, self._wake.set)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._ticks(), name="mcg ticks"),
                    group.create_task(self._pumps(), name="mcg pump"),
                ]
                await self._stopping.wait()
                for task in tasks:
                    task.cancel()
        except* RaftError as errors:
            raise _storage_failed(errors) from errors
        finally:
            if descriptor >= 0:
                loop.remove_reader(descriptor)
            self._fail_pending()
            with contextlib.suppress(RaftError):
                self._host.close()
            self._closed.set()

    async def stop(self) -> None:
        """Ends `run` and returns when the log is closed."""
        self._stopping.set()
        await self._closed.wait()

    def set_ticking(self, is_ticking: bool) -> None:
        """A node that was stopped on purpose holds no elections: its ticks rest."""
        self._is_ticking = is_ticking

    def receive(self, peer: NodeId, frame: bytes) -> None:
        """Takes a frame from a node; a malformed one is dropped and counted."""
        try:
            self._host.step(peer, frame)
        except InvalidFrame as error:
            metrics.INVALID_FRAMES.inc()
            _log.warning("mcg_frame_invalid", peer=peer, error=str(error))
        self._wake.set()

    async def propose(self, command: mcg_pb2.Command) -> Result:
        """Commits `command` through this node, which must lead, and returns what applying it here did.

        Cancelling the caller does not take the proposal back.

        Raises:
            MeshError: NOT_LEADER, also when the leadership was lost before the outcome was known (a repeat with the same
                proposal id is safe); BACKPRESSURE.
        """
        stamped = mcg_pb2.Command()
        stamped.CopyFrom(command)
        stamped.stamp_ms = self._now_ms()
        try:
            term, index = self._host.propose(GROUP, stamped.SerializeToString())
        except NotLeader:
            raise self._not_leader() from None
        except Backpressure:
            raise MeshError(ErrorCode.BACKPRESSURE, "Too many changes wait for the voters: try again.") from None
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        if overwritten := self._pending.pop(index, None):
            self._lose(overwritten[1])
        self._pending[index] = (term, future)
        self._wake.set()
        return await future

    async def catch_up(self, timeout_s: float) -> bool:
        """Waits until everything that was committed before this call is applied here; False without a quorum in time."""
        try:
            async with asyncio.timeout(timeout_s):
                # A read point is dropped silently when there is no leader: ask again.
                while not await self._read_point():
                    pass
        except TimeoutError:
            return False
        return True

    def change_configuration(self, change: str, member: MemberId, node_id: NodeId) -> bool:
        """Proposes a single-step change; False when it is not possible right now."""
        try:
            self._host.propose_conf_change(GROUP, change, member, node_id)
        except (NotLeader, Backpressure):
            return False
        self._wake.set()
        return True

    def transfer_leadership(self, member: MemberId) -> None:
        """Asks `member` to take over; it may not."""
        with contextlib.suppress(NotLeader):
            self._host.transfer_leader(GROUP, member)
            self._wake.set()

    def raft_status(self) -> GroupStatus:
        """The group as Raft sees it."""
        return self._host.status(GROUP)

    def configuration(self) -> Configuration:
        """The Raft configuration, with who has caught up (only the leader knows)."""
        status = self._host.status(GROUP)
        begins_at = self._term_begins_at if self._applied_term == status.term else math.inf
        caught_up = {
            item.member
            for item in status.progress
            if item.matched + CAUGHT_UP_ENTRIES >= status.commit
            and item.commit >= begins_at
            and not item.in_doubt
            and item.quiet_ticks <= self._timing.election_ticks
        }
        return Configuration(
            frozenset(MemberId(member) for member in status.voters),
            frozenset(MemberId(member) for member in status.learners),
            MemberId(status.leader),
            frozenset(MemberId(member) for member in caught_up | {self.place.mcg_member}),
        )

    def quiet_ticks(self) -> dict[NodeId, int]:
        """Ticks since each node was heard, at the leader; empty elsewhere."""
        return {NodeId(item.peer): item.quiet_ticks for item in self._host.status(GROUP).progress}

    def standing(self) -> Standing:
        """Where this replica stands now."""
        status = self._host.status(GROUP)
        is_leader = status.role == "leader"
        is_led = status.leader != 0 and status.leader_quiet_ticks <= self._timing.leader_lost_ticks
        leader = NodeId(self._peers.get(status.leader, 0)) if is_leader or is_led else NodeId(0)
        return Standing(is_leader, leader, status.term, self.state.applied_index, is_leader or is_led)

    def compact(self) -> None:
        """Stores the state as the group's snapshot and drops the log before it."""
        index = self.state.applied_index
        self._host.compact(GROUP, index, self.state.snapshot())
        self._snapshot_index = index
        self._wake.set()

    async def _read_point(self) -> bool:
        token, self._next_read = self._next_read, self._next_read + 1
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reads[token] = future
        try:
            self._host.read_index(GROUP, token)
            self._wake.set()
            async with asyncio.timeout(READ_RETRY_S):
                await future
        except (Backpressure, TimeoutError):
            return False
        finally:
            del self._reads[token]
        return True

    async def _ticks(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            # A late tick is not made up for: time in which this process did not run is nobody's silence.
            due = max(due + self._timing.tick_s, loop.time())
            await asyncio.sleep(due - loop.time())
            if self._is_ticking:
                self.ticks += 1
                self._host.tick()
                self._wake.set()

    async def _pumps(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            self._turn(self._host.pump())
            while self._host.has_work():
                self._turn(self._host.pump())

    def _turn(self, pump: Pump) -> None:
        for frame in pump.frames:
            self._send(NodeId(frame.peer), frame.cls, frame.data)
        for installed in pump.installed:
            self._restore(installed.index, installed.data)
        for entry in pump.committed:
            self._apply(entry)
        for _group, token, _index in pump.reads:
            read = self._reads.get(token)
            if read is not None and not read.done():
                read.set_result(None)
        for _group, reason in pump.closed:
            raise MeshError(
                ErrorCode.STORAGE_FAILED,
                f"The replica of the control group was closed ({reason}): restart the service; if that does not help, "
                "empty its data directory and join again.",
            )
        for role in pump.roles:
            _log.info("mcg_role", role=role.role, term=role.term, leader=role.leader)
            metrics.ROLE_CHANGES.inc()
            if role.role != "leader":
                self._fail_pending()
        if self.state.applied_index - self._snapshot_index >= SNAPSHOT_EVERY_ENTRIES:
            self.compact()
        if pump.installed or pump.committed or pump.roles:
            self.changed.notify()

    def _apply(self, entry: Committed) -> None:
        if entry.term != self._applied_term:
            self._applied_term, self._term_begins_at = entry.term, entry.index
        result: Result | None = None
        if entry.kind == KIND_NORMAL:
            try:
                command = mcg_pb2.Command.FromString(entry.data)
            except DecodeError:
                # Every replica sees the same bytes and passes over them alike.
                command = mcg_pb2.Command()
            result = self.state.apply(entry.index, command)
            self._sync_peers()
        else:
            self.state.advance(entry.index)
        term, future = self._pending.pop(entry.index, (0, None))
        if future is None or future.done():
            return
        if term == entry.term and result is not None:
            future.set_result(result)
        else:
            self._lose(future)

    def _restore(self, index: int, data: bytes) -> None:
        self.state.restore(data)
        self.state.advance(index)
        self._snapshot_index = index
        self._sync_peers()

    def _sync_peers(self) -> None:
        """Tells the host where each member lives, when that changed."""
        self._tell_forgotten()
        if not self.state.mesh_id:
            return
        peers: dict[int, int] = {node.mcg_member: node.node_id for node in self.state.nodes.values()}
        known = (int(self.state.next_mcg_member), int(self.state.next_node_id))
        if (peers, known) != (self._peers, self._known):
            self._peers, self._known = peers, known
            self._host.set_peers(GROUP, peers, known_members=known[0], known_nodes=known[1])

    def _tell_forgotten(self) -> None:
        """Tells the host which nodes came after all that the log here tells of: a damaged one may have forgotten them."""
        forgotten = sorted(node for node in self._acquainted if node >= self.state.next_node_id)
        if forgotten != self._forgotten:
            self._forgotten = forgotten
            self._host.know_nodes(GROUP, forgotten)

    def _fail_pending(self) -> None:
        for _term, future in self._pending.values():
            self._lose(future)
        self._pending.clear()

    def _lose(self, future: asyncio.Future[Result]) -> None:
        if not future.done():
            future.set_exception(self._not_leader())

    def _not_leader(self) -> MeshError:
        leader = self.standing().leader
        return MeshError(
            ErrorCode.NOT_LEADER,
            "This node does not lead the control group: ask the leader.",
            {"leader": str(leader)} if leader else {},
        )


def _storage_failed(error: BaseException) -> MeshError:
    return MeshError(
        ErrorCode.STORAGE_FAILED,
        f"The log of the control group failed ({error}): check the disk, then restart the service.",
    )
