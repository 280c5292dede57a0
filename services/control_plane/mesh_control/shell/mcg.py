"""This node's replica of the Mesh Control Group: one Raft group in a host of its own, as a state machine for its driver.

Leaves out: the order of a turn (`meshraft.driver`), what a leader does besides (`leadership`), finding the leader (`proposer`).
A failed log ends the service with STORAGE_FAILED: a node that cannot remember its vote must not take part.
An entry that needs newer software stops the applying, nothing else: the replica still stores, acknowledges and votes, keeps
the log from there on, and gives the leadership away.
Source: architecture §7 "MCG"; ADR 0015.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from mesh_control.core.mcg_state import Result
from mesh_control.core.model import Place
from mesh_control.core.replica import Replica
from mesh_control.core.timing import Timing
from mesh_control.core.versions import Beyond, check_proposable, version_of
from mesh_control.shell import metrics
from mesh_control.shell.changes import Changes
from meshapi.control.v1 import mcg_pb2
from meshcommon.barrier import LOG_EVERY_S
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NO_NODE, NodeId
from meshcommon.logging import get_logger
from meshcommon.peer_text import printable
from meshraft import (
    ENTRY_NORMAL,
    Backpressure,
    Entries,
    Frame,
    GroupConfig,
    GroupStatus,
    InvalidFrame,
    NotLeader,
    RaftError,
    RaftHost,
    Role,
)
from meshraft.configuration import ConfChange, Configuration, Transfer
from meshraft.driver import Turn
from meshraft.group import RaftGroup
from meshraft.host_loop import HostLoop

GROUP: Final = 1
SNAPSHOT_EVERY_ENTRIES: Final = 1000
READ_RETRY_S: Final = 0.3

Applied: TypeAlias = Result | None
"""What an entry came to; None for one that carries no command, or that this software cannot apply."""

_log = get_logger(__name__)


class SendFrame(Protocol):
    """Sends a Raft frame to a node, best effort."""

    def __call__(self, peer: NodeId, frame_class: int, data: bytes) -> None:
        """`frame_class` is a CLASS_ constant of meshraft."""


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """How the replica starts when nothing is stored yet, and what is known beside its log.

    Attributes:
        founding: the mesh's first state at index 1, when this node founds it; empty for a node that joins, which waits
            for the leader's snapshot.
        peers: where each member lives, as far as known.
    """

    founding: bytes
    peers: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class LeaderView:
    """Who leads, as far as this replica knows.

    Attributes:
        leader: leader's node, 0 if unknown.
        term: the newest that it knows.
        applied: index that is applied here.
        has_quorum: whether it is in touch with a leader that has a quorum.
    """

    is_leader: bool
    leader: NodeId
    term: int
    applied: int
    has_quorum: bool


class _Waiter:
    """Waits for one command that was proposed here."""

    def __init__(self) -> None:
        self.future: asyncio.Future[Applied | MeshError] = asyncio.get_running_loop().create_future()

    def committed(self, _index: int, _count: int, result: Applied) -> None:
        """It was applied."""
        self._settle(result)

    def failed(self, _count: int, error: MeshError) -> None:
        """It was not, or nobody knows."""
        self._settle(error)

    def _settle(self, answer: Applied | MeshError) -> None:
        if not self.future.done():
            self.future.set_result(answer)


class Mcg:
    """This node's replica. Made by `open`; lives from seed or join until the node leaves."""

    def __init__(
        self,
        host: RaftHost,
        place: Place,
        timing: Timing,
        send: SendFrame,
        now_ms: Callable[[], int],
        supported: int,
    ) -> None:
        self._replica = Replica(supported)
        self.state = self._replica.state
        self.place = place
        self.changed = Changes()
        self._host = host
        self._timing = timing
        self._send = send
        self.now_ms = now_ms
        self._loop = HostLoop(
            host, timing.tick_s, self._send_frame, ticked=lambda: None, turned=self._turned, failed=self._failed
        )
        self._group: RaftGroup[Applied, MeshError] = RaftGroup(
            self._loop.driver,
            GROUP,
            self,
            GroupConfig(election_ticks=timing.election_ticks, heartbeat_ticks=timing.heartbeat_ticks),
            overwritten=self._not_leader,
            # A repeat is safe, since it carries the same proposal id.
            unknown=lambda _why: self._not_leader(),
        )
        self._group.join()
        self._stopping = asyncio.Event()
        self._closed = asyncio.Event()
        self._failure: Exception | None = None
        self._peers: dict[int, int] = {}
        self._snapshot_index = 0
        self._next_warning_at = 0.0

    @classmethod
    def open(
        cls,
        host: RaftHost,
        place: Place,
        bootstrap: Bootstrap,
        timing: Timing,
        send: SendFrame,
        now_ms: Callable[[], int],
        *,
        supported: int,
    ) -> Mcg:
        """Opens the stored replica, or bootstraps it. `supported` is the highest mesh version that it can apply.

        Raises:
            MeshError: STORAGE_FAILED.
        """
        mcg = cls(host, place, timing, send, now_ms, supported)
        try:
            mcg._start(bootstrap)
        except RaftError as error:
            host.close()
            raise _storage_failed(error) from error
        return mcg

    def _start(self, bootstrap: Bootstrap) -> None:
        config = self._group.config
        if GROUP in self._host.stored_groups():
            stored = self._host.open_group(GROUP, self.place.mcg_member, {}, config=config)
            self.install(stored.index, stored.data)
        else:
            voters = [self.place.mcg_member] if bootstrap.founding else []
            self._peers = dict(bootstrap.peers.items()) | {self.place.mcg_member: self.place.node_id}
            self._host.create_group(
                GROUP, self.place.mcg_member, self._peers, voters=voters, snapshot=bootstrap.founding, config=config
            )
            self.install(1 if bootstrap.founding else 0, bootstrap.founding)
        status = self._host.status(GROUP)
        if status.voters == [self.place.mcg_member] and status.member_state == "full":
            self._host.campaign(GROUP)

    async def run(self) -> None:
        """Drives the replica until `stop`.

        Raises:
            MeshError: STORAGE_FAILED when the log can no longer be written.
        """
        try:
            self._loop.start()
            await self._stopping.wait()
        finally:
            self._group.close(_not_leader(NO_NODE))
            with contextlib.suppress(RaftError):
                self._loop.close()
            self._closed.set()
        if isinstance(self._failure, RaftError):
            raise _storage_failed(self._failure) from self._failure
        if self._failure is not None:
            raise self._failure

    async def stop(self) -> None:
        """Ends `run` and returns when the log is closed."""
        self._stopping.set()
        await self._closed.wait()

    def set_ticking(self, is_ticking: bool) -> None:
        """A node that was stopped on purpose holds no elections: its ticks rest."""
        self._loop.is_ticking = is_ticking

    def receive(self, peer: NodeId, frame: bytes) -> None:
        """Takes a frame from a node; a malformed one is dropped and counted."""
        try:
            self._host.step(peer, frame)
        except InvalidFrame as error:
            metrics.INVALID_FRAMES.inc()
            now = asyncio.get_running_loop().time()
            if now >= self._next_warning_at:
                self._next_warning_at = now + LOG_EVERY_S
                _log.warning("mcg_frame_invalid", peer=peer, error=printable(str(error)))
        self._loop.wake()

    @property
    def ticks(self) -> int:
        """Raft ticks since this replica was opened; they rest while the node is stopped on purpose."""
        return self._loop.driver.ticks

    @property
    def beyond(self) -> Beyond | None:
        """What this node's software cannot apply, None while it follows the log."""
        return self._replica.beyond

    @property
    def supported(self) -> int:
        """Highest mesh version that this node's software supports."""
        return self._replica.supported

    def check_proposable(self, command: mcg_pb2.Command) -> None:
        """Refuses what may not be proposed here now.

        Raises:
            MeshError: UPDATE_REQUIRED, MESH_VERSION_TOO_LOW.
        """
        if self.beyond is not None:
            raise self.beyond.refusal(self.supported)
        if self.state.mesh_id:
            check_proposable(command, self.state.mesh_version, self.supported)

    async def propose(self, command: mcg_pb2.Command) -> Result:
        """Commits `command` through this node, which must lead, and returns what applying it here did.

        Cancelling the caller does not take the proposal back.

        Raises:
            MeshError: NOT_LEADER, also when the leadership was lost before the outcome was known (a repeat with the same
                proposal id is safe); BACKPRESSURE; MESH_VERSION_TOO_LOW, UPDATE_REQUIRED.
        """
        if self.beyond is not None:
            # The leadership goes to another node: who asks again finds that one.
            raise self._not_leader()
        self.check_proposable(command)
        stamped = mcg_pb2.Command()
        stamped.CopyFrom(command)
        stamped.stamp_ms, stamped.min_version = self.now_ms(), version_of(command)
        waiter = _Waiter()
        try:
            self._group.propose(stamped.SerializeToString(), waiter)
        except NotLeader:
            raise self._not_leader() from None
        except Backpressure:
            raise MeshError(ErrorCode.BACKPRESSURE, "Too many changes wait for the voters: try again.") from None
        answer = await waiter.future
        if isinstance(answer, MeshError):
            raise answer
        if answer is None:
            raise self._not_leader()
        return answer

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

    def take(self, step: ConfChange | Transfer) -> bool:
        """Proposes a change, or asks a voter to lead; false when that is not possible right now."""
        try:
            return self._group.take(step)
        except (NotLeader, Backpressure):
            return False

    def transfer_leadership(self, member: int) -> None:
        """Asks `member` to take over at once; it may not."""
        with contextlib.suppress(NotLeader):
            self._group.transfer(member)

    def recover(self, survivors: Mapping[int, int]) -> GroupStatus:
        """Takes these members, with their nodes, for all that are left; returns how the group was before.

        Raises:
            MeshError: INVALID_ARGUMENT: they cannot be.
        """
        before = self._host.status(GROUP)
        try:
            self._host.recover(GROUP, dict(survivors))
        except ValueError as error:
            raise MeshError(
                ErrorCode.INVALID_ARGUMENT, f"The control group cannot be recovered here: {error}."
            ) from error
        self._loop.wake()
        return before

    def raft_status(self) -> GroupStatus:
        """The group as Raft sees it."""
        return self._host.status(GROUP)

    def configuration(self) -> Configuration:
        """The Raft configuration; only the leader knows who is heard and has caught up."""
        return self._group.configuration(self._group.status())

    def quiet_ticks(self) -> dict[NodeId, int]:
        """Ticks since each node was heard, at the leader; empty elsewhere."""
        return {NodeId(item.peer): item.quiet_ticks for item in self._host.status(GROUP).progress}

    def leader_view(self) -> LeaderView:
        """Who leads now."""
        status = self._host.status(GROUP)
        is_leader = status.role == "leader"
        is_led = status.leader != 0 and status.leader_quiet_ticks <= self._timing.leader_lost_ticks
        leader = NodeId(self._peers.get(status.leader, 0)) if is_leader or is_led else NodeId(0)
        return LeaderView(is_leader, leader, status.term, self.state.applied_index, is_leader or is_led)

    def compact(self) -> None:
        """Stores the state as the group's snapshot and drops the log before it; nothing that is not applied is dropped."""
        if self.beyond is not None:
            return
        index = self.state.applied_index
        self._host.compact(GROUP, index, self.state.snapshot())
        self._snapshot_index = index
        self._loop.wake()

    async def _read_point(self) -> bool:
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[bool] = loop.create_future()

        def answer(index: int | None) -> None:
            if not answered.done():
                answered.set_result(index is not None)

        try:
            token = self._group.ask_read_point(loop.time(), answer)
        except RaftError:
            await asyncio.sleep(READ_RETRY_S)
            return False
        try:
            async with asyncio.timeout(READ_RETRY_S):
                return await answered
        except TimeoutError:
            return False
        finally:
            self._group.read_points.forget(token)

    def _send_frame(self, frame: Frame) -> None:
        self._send(NodeId(frame.peer), frame.cls, frame.data)

    def _turned(self, turn: Turn) -> None:
        if turn.has_news:
            self.changed.notify()

    def _failed(self, error: Exception) -> None:
        self._failure = self._failure or error
        self._stopping.set()

    # As the state machine of its group

    @property
    def applied_index(self) -> int:
        """As of `StateMachine`, like all that follows."""
        return self.state.applied_index

    def install(self, index: int, data: bytes) -> None:
        """Also for the stored snapshot, and for the one that founds a mesh."""
        # The host keeps the snapshot whatever becomes of it here: newer software opens it.
        self._snapshot_index = index
        if self._replica.restore(index, data):
            self._sync_peers()
        else:
            self._say_beyond(index)

    def apply_next(self, entries: Entries) -> None:
        """One entry."""
        entry = entries.take()
        result: Applied = None
        was_beyond = self.beyond
        if entry.kind == ENTRY_NORMAL:
            result = self._replica.apply(entry.index, entry.data)
            self._sync_peers()
        else:
            self._replica.advance(entry.index)
        if self.beyond is not was_beyond:
            self._say_beyond(entry.index)
        self._group.applied(entry.index, entry.index, entry.term, result)

    def role_changed(self, role: Role) -> None:
        """What was proposed here is asked again of the new leader, rather than waited for."""
        _log.info("mcg_role", role=role.role, term=role.term, leader=role.leader)
        metrics.ROLE_CHANGES.inc()
        if role.role != "leader":
            self._group.proposals.fail(self._not_leader())

    def turn_ended(self) -> None:
        """A snapshot now and then."""
        if self.state.applied_index - self._snapshot_index >= SNAPSHOT_EVERY_ENTRIES:
            self.compact()

    def closed(self, _kind: str, reason: str) -> None:
        """Ends the service."""
        raise MeshError(
            ErrorCode.STORAGE_FAILED,
            f"The replica of the control group was closed ({reason}): restart the service; if that does not help, "
            "empty its data directory and join again.",
        )

    # Inside

    def _say_beyond(self, index: int) -> None:
        if self.beyond is not None:
            _log.error(
                "update_required",
                index=index,
                applied=self.state.applied_index,
                needed=self.beyond.version or "unknown",
            )

    def _sync_peers(self) -> None:
        """Tells the host where each member lives, when that changed."""
        if not self.state.mesh_id:
            return
        peers: dict[int, int] = {node.mcg_member: node.node_id for node in self.state.nodes.values()}
        if peers != self._peers:
            self._peers = peers
            self._host.set_peers(GROUP, peers)

    def _not_leader(self) -> MeshError:
        return _not_leader(self.leader_view().leader)


def _not_leader(leader: NodeId) -> MeshError:
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
