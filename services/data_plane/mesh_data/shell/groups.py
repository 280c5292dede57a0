"""The stream groups of this node: one Raft host, its clock, its packets, and replicas as the catalogue wants them.

Replicas come only from the catalogue (MeshView): created or opened when this node is a member, destroyed when the stream
is being deleted, closed while the node is stopped. A stored group that the view does not know is left alone: the view may be
older than the disk. The log lives in a directory per membership (`raft/MESH-NODE`), so that another mesh, or another life of
this node in the same one, can never meet its entries. A failed disk closes every group with the reason; forwarding,
which does not come through here, goes on. Leaves out: publishing and reading. Source: architecture §7.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

from mesh_data.core.stream_frames import FrameJoiner, split
from mesh_data.core.stream_snapshot import StreamConfig
from mesh_data.core.stream_state import FIRST_INDEX
from mesh_data.core.stream_state import StreamState as GroupContent
from mesh_data.core.stream_timing import StreamTiming
from mesh_data.core.view import Member, Stream, StreamState, View
from mesh_data.shell.overlay_port import OverlayPort
from mesh_data.shell.replica import Replica, storage_failed
from mesh_data.shell.streams_metrics import (
    FRAMES_DROPPED,
    FRAMES_INVALID,
    FRAMES_UNKNOWN,
    GROUPS,
    HOST_FAILED,
)
from meshcommon.admin import Readiness
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NO_NODE, NodeId, StreamId
from meshcommon.logging import get_logger
from meshraft import (
    CLASS_CONTROL,
    Committed,
    GroupConfig,
    HostPoisoned,
    Installed,
    InvalidFrame,
    Pump,
    RaftError,
    RaftHost,
)
from meshwire.errors import WireError
from meshwire.packet import Protocol, TrafficClass

_BIRTH_TICKS: Final = 3
"""Ticks between two attempts of the preferred leader to lead a new group."""
_METRICS_TICKS: Final = 21
"""Ticks between two looks at every group; a multiple of the above."""
_STORAGE: Final = "storage"

_log = get_logger(__name__)


class ReplicaState(IntEnum):
    """What a local replica is doing; the numbers of meshapi.data.v1.GroupState."""

    FORMING = 1
    OPEN = 2
    DESTROYED = 3
    FAILED = 4


@dataclass(frozen=True, slots=True)
class Report:
    """One local replica, tombstones included. `leader_node` is 0 when unknown."""

    stream_id: StreamId
    state: ReplicaState
    leader_node: NodeId = NO_NODE
    reason: str = ""


class Groups:
    """All stream groups of this node. `run` drives them; everything else is called on its event loop."""

    def __init__(
        self,
        overlay: OverlayPort,
        directory: Path,
        timing: StreamTiming,
        *,
        seed: int,
        wall_clock_ms: Callable[[], int],
        readiness: Readiness,
    ) -> None:
        """`directory` is made when needed; `seed` feeds the election timeouts; `readiness` gets a failed disk."""
        self.timing = timing
        self._overlay = overlay
        self._directory = directory
        self._seed = seed
        self._wall_clock_ms = wall_clock_ms
        self._readiness = readiness
        self._host: RaftHost | None = None
        self._descriptor = -1
        self._membership = ""
        self._failure = ""
        self._replicas: dict[StreamId, Replica] = {}
        self._failed: dict[StreamId, str] = {}
        self._destroyed: set[StreamId] = set()
        self._joiners: dict[NodeId, FrameJoiner] = {}
        self._messages = 0
        self._wanted: tuple[View | None, bool] = (None, False)
        self._view_came = asyncio.Event()
        self._is_pump_due = False
        self._is_report_due = False
        self._ticks = 0
        self._reports: tuple[Report, ...] = ()
        self._reports_changed = asyncio.Event()

    # For the rest of the data plane

    def replica(self, stream_id: StreamId) -> Replica | None:
        """The open replica of that stream at this node."""
        return self._replicas.get(stream_id)

    def notify_all(self) -> None:
        """Wakes everybody who waits at a replica, so that they look around."""
        for replica in self._replicas.values():
            replica.notify()

    def reports(self) -> tuple[Report, ...]:
        """State of every local replica, by stream id."""
        return self._reports

    @property
    def reports_changed(self) -> asyncio.Event:
        """Set when `reports` changes, then replaced: take it before calling `reports`."""
        return self._reports_changed

    @property
    def is_running(self) -> bool:
        """Whether the node is meant to run (it may have been stopped on purpose)."""
        return self._wanted[1]

    @property
    def failure(self) -> str:
        """Why the Raft host is closed for good, or empty."""
        return self._failure

    async def run(self) -> None:
        """Drives the groups until cancelled, then closes the log."""
        self._overlay.on_packet(Protocol.RAFT_DSG, self._receive)
        self._overlay.on_view(self._on_view)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow_views(), name="stream groups: views")
                tasks.create_task(self._keep_time(), name="stream groups: ticks")
        finally:
            self._close_host()

    async def hand_over(self, limit_s: float) -> None:
        """Gives the leadership of every group away that another voter can take, before the service stops.

        Waits until that is done and what was proposed here is decided, at most `limit_s`.
        """
        asked = [replica for replica in self._replicas.values() if self._hands_over(replica)]
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while waiting := next(
                    (replica for replica in asked if replica.is_leading or replica.has_pending), None
                ):
                    await waiting.changed.wait()

    def _hands_over(self, replica: Replica) -> bool:
        try:
            return replica.hand_over(self._overlay.is_reachable)
        except RaftError:
            return False  # a failed log or group: there is nothing left to give

    # Views

    def _on_view(self, view: View | None, is_running: bool) -> None:
        self._wanted = (view, is_running)
        self._view_came.set()

    async def _follow_views(self) -> None:
        had_view = False
        while True:
            await self._view_came.wait()
            self._view_came.clear()
            view, is_running = self._wanted
            if view is None:
                # Only a node that was a member and left forgets; at start an absent view proves nothing.
                if had_view:
                    await self._forget()
            else:
                await self._use(view, is_running)
            had_view = view is not None
            self._refresh_reports()

    async def _forget(self) -> None:
        self._close_host()
        self._failed.clear()
        self._destroyed.clear()
        self._joiners.clear()
        self._failure = self._membership = ""
        self._readiness.clear(_STORAGE)
        # Gigabytes may go: forwarding must not wait for them.
        await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)

    async def _use(self, view: View, is_running: bool) -> None:
        membership = f"{view.mesh_id}-{self._overlay.node_id}"
        if membership != self._membership:
            self._close_host()
            self._failure = ""
            self._readiness.clear(_STORAGE)
        if not is_running:
            self._close_groups(MeshError(ErrorCode.NODE_STOPPED, "This node was stopped on purpose: start it again."))
            return
        if self._host is None and not self._failure:
            await self._open_host(membership)
        if self._host is not None:
            self._reconcile(self._host, view)

    async def _open_host(self, membership: str) -> None:
        path = self._directory / membership
        try:
            path.mkdir(parents=True, exist_ok=True)
            # Reading a large log back takes seconds; lanes and forwarding must not wait for it.
            host = await asyncio.to_thread(RaftHost.open, str(path), seed=self._seed)
        except (OSError, RaftError) as error:
            self._fail_host(str(error))
            return
        self._host, self._membership = host, membership
        # Kept: a host whose log failed no longer tells it, and a forgotten reader would meet the next socket of that number.
        self._descriptor = host.fileno()
        asyncio.get_running_loop().add_reader(self._descriptor, self.wake)

    def _reconcile(self, host: RaftHost, view: View) -> None:
        # A tombstone that the catalogue no longer has was confirmed; a node that left sends nothing more.
        self._destroyed &= view.streams.keys()
        for node in self._joiners.keys() - view.nodes.keys():
            del self._joiners[node]
        try:
            stored = set(host.stored_groups())
            for stream in view.streams.values():
                member = next((item for item in stream.members if item.node_id == self._overlay.node_id), None)
                if member is None:
                    continue
                if stream.state is StreamState.DELETING:
                    self._destroy(host, stream, is_stored=int(stream.stream_id) in stored)
                elif stream.stream_id in self._replicas:
                    self._replicas[stream.stream_id].stream = stream
                elif stream.stream_id not in self._failed:
                    self._open(host, stream, member, is_stored=int(stream.stream_id) in stored)
        except HostPoisoned as error:
            self._fail_host(str(error))
        self.wake()

    def _open(self, host: RaftHost, stream: Stream, member: Member, *, is_stored: bool) -> None:
        group = int(stream.stream_id)
        peers = {int(item.member_id): int(item.node_id) for item in stream.members}
        replica = Replica(host, stream, member.member_id, self.wake, self._wall_clock_ms)
        config = self._group_config()
        try:
            if is_stored:
                installed = host.open_group(group, int(member.member_id), peers, config=config)
                if installed.index:
                    replica.restore(installed.data, installed.index)
            elif stream.state is StreamState.FORMING:
                snapshot = GroupContent(StreamConfig.of(stream.stream_id, stream.retained_bytes_max)).snapshot()
                voters = [int(item.member_id) for item in stream.members if item.is_voter]
                learners = [int(item.member_id) for item in stream.members if not item.is_voter]
                host.create_group(
                    group,
                    int(member.member_id),
                    peers,
                    voters=voters,
                    learners=learners,
                    snapshot=snapshot,
                    config=config,
                )
                replica.restore(snapshot, FIRST_INDEX)
            else:
                host.create_group(group, int(member.member_id), peers, voters=[], config=config)
        except HostPoisoned:
            raise
        except (RaftError, WireError) as error:
            self._failed[stream.stream_id] = str(error)
            _log.error("stream_group_failed", stream=stream.name, reason=str(error))
            return
        self._replicas[stream.stream_id] = replica
        _log.info("stream_group_opened", stream=stream.name, is_stored=is_stored, index=replica.state.applied_index)

    def _group_config(self) -> GroupConfig:
        return GroupConfig(
            election_ticks=self.timing.election_ticks,
            heartbeat_ticks=self.timing.heartbeat_ticks,
            max_uncommitted_bytes=self.timing.uncommitted_bytes_max,
        )

    def _destroy(self, host: RaftHost, stream: Stream, *, is_stored: bool) -> None:
        replica = self._replicas.pop(stream.stream_id, None)
        if replica is not None:
            replica.fail(MeshError(ErrorCode.STREAM_NOT_FOUND, f"{stream.name} was deleted."))
        if is_stored or replica is not None:
            host.destroy_group(int(stream.stream_id))
            _log.info("stream_group_destroyed", stream=stream.name)
        self._failed.pop(stream.stream_id, None)
        self._destroyed.add(stream.stream_id)

    # Closing

    def _close_groups(self, error: MeshError) -> None:
        for replica in self._replicas.values():
            replica.fail(error)
            if self._host is not None:
                with suppress(RaftError):
                    self._host.close_group(replica.group)
        self._replicas.clear()
        self._failed.clear()

    def _close_host(self) -> None:
        self._close_groups(
            MeshError(
                ErrorCode.UNAVAILABLE, "This node is shutting down; whether the batch was committed is not known."
            )
        )
        host, self._host = self._host, None
        if host is None:
            return
        self._stop_watching()
        try:
            host.close()
        except RaftError as error:
            _log.error("raft_log_close_failed", reason=str(error))

    def _fail_host(self, reason: str) -> None:
        _log.error("raft_host_failed", reason=reason)
        HOST_FAILED.set(1)
        self._failure = reason
        self._readiness.block(
            _STORAGE,
            f"The log of this node's streams cannot be written ({reason}): make room or repair the disk, then restart "
            "the data plane. Packets are forwarded meanwhile.",
        )
        for stream_id, replica in self._replicas.items():
            self._failed[stream_id] = reason
            replica.fail(storage_failed(replica.stream.name, reason))
        host, self._host = self._host, None
        if host is not None:
            self._stop_watching()
            with suppress(RaftError):
                host.close()
        self._refresh_reports()

    def _stop_watching(self) -> None:
        with suppress(RuntimeError):  # the loop may be closing already
            asyncio.get_running_loop().remove_reader(self._descriptor)
        self._descriptor = -1

    # Turns

    async def _keep_time(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + self.timing.tick_s
        while True:
            await asyncio.sleep(max(0.0, due - loop.time()))
            behind = 1 + int((loop.time() - due) / self.timing.tick_s)
            due += behind * self.timing.tick_s
            if self._host is None:
                continue
            try:
                for _ in range(min(behind, self.timing.ticks_behind_max)):
                    self._host.tick()
                self._ticks += 1
                if self._ticks % _BIRTH_TICKS == 0:
                    self._look_after_groups(is_full=self._ticks % _METRICS_TICKS == 0)
            except HostPoisoned as error:
                self._fail_host(str(error))
            self.wake()

    def _look_after_groups(self, *, is_full: bool) -> None:
        for replica in self._replicas.values():
            is_forming = replica.stream.state is StreamState.FORMING
            if replica.failure is not None or not (is_full or is_forming):
                continue
            try:
                status = replica.status()
                if is_forming:
                    replica.maybe_lead_at_birth(status)
            except HostPoisoned:
                raise
            except RaftError as error:
                # A poisoned group is reported by the next pump; here it is only not there.
                _log.warning("stream_group_unavailable", stream=replica.stream.name, reason=str(error))
                continue
            replica.export_metrics(status)

    def wake(self) -> None:
        """Asks for one pump, after everything else that this turn of the loop brings."""
        if not self._is_pump_due and self._host is not None:
            self._is_pump_due = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._is_pump_due = False
        host = self._host
        if host is None:
            return
        try:
            self._act(host.pump())
            if self._host is host and host.has_work():
                self.wake()
        except HostPoisoned as error:
            self._fail_host(str(error))

    def _act(self, pump: Pump) -> None:
        """In the order that meshraft asks for: frames, snapshots, entries, then the rest."""
        for frame in pump.frames:
            self._send(NodeId(frame.peer), frame.cls, frame.data)
        for installed in pump.installed:
            self._install(installed)
        touched = self._apply(pump.committed)
        for role in pump.roles:
            replica = self._replicas.get(StreamId(role.group))
            if replica is not None:
                replica.role_changed(role)
        for replica in touched:
            replica.applied()
        for group, token, index in pump.reads:
            replica = self._replicas.get(StreamId(group))
            if replica is not None:
                replica.read_index_answer(token, index)
        for group, reason in pump.closed:
            replica = self._replicas.get(StreamId(group))
            if replica is not None:
                self._fail_group(replica, reason)
        if pump.roles or pump.closed or pump.installed or self._is_report_due:
            self._refresh_reports()

    def _install(self, installed: Installed) -> None:
        replica = self._replicas.get(StreamId(installed.group))
        if replica is None:
            return
        try:
            replica.restore(installed.data, installed.index)
        except WireError as error:
            self._fail_group(replica, f"the leader's snapshot cannot be read: {error.reason}")

    def _apply(self, committed: Sequence[Committed]) -> list[Replica]:
        """Applies entries in order; returns the replicas that took some."""
        touched: dict[int, Replica] = {}
        for entry in committed:
            replica = touched.get(entry.group) or self._replicas.get(StreamId(entry.group))
            if replica is None or replica.failure is not None:
                continue
            touched[entry.group] = replica
            self._is_report_due = self._is_report_due or not replica.is_formed
            try:
                replica.apply(entry)
            except HostPoisoned:
                raise
            except RaftError as error:
                self._fail_group(replica, str(error))
        return list(touched.values())

    def _fail_group(self, replica: Replica, reason: str) -> None:
        _log.error("stream_group_failed", stream=replica.stream.name, reason=reason)
        self._failed[replica.stream.stream_id] = reason
        replica.fail(storage_failed(replica.stream.name, reason))
        if self._host is not None:
            with suppress(RaftError):
                self._host.close_group(replica.group)

    def _send(self, peer: NodeId, cls: int, frame: bytes) -> None:
        self._messages += 1
        traffic_class = TrafficClass.CONTROL if cls == CLASS_CONTROL else TrafficClass.BULK
        for payload in split(frame, self._messages):
            if not self._overlay.send(Protocol.RAFT_DSG, traffic_class, peer, payload):
                FRAMES_DROPPED.inc()

    def _receive(self, source: NodeId, payload: bytes | memoryview) -> None:
        if self._host is None:
            return
        joiner = self._joiners.setdefault(source, FrameJoiner())
        try:
            frame = joiner.receive(payload)
            if frame is None:
                return
            unknown = self._host.step(int(source), frame)
        except (WireError, InvalidFrame):
            FRAMES_INVALID.inc()
            self.wake()  # the good part of the frame has been taken
            return
        except HostPoisoned as error:
            self._fail_host(str(error))
            return
        if unknown:
            FRAMES_UNKNOWN.inc(len(unknown))
        self.wake()

    def _refresh_reports(self) -> None:
        self._is_report_due = False
        reports = {stream_id: Report(stream_id, ReplicaState.DESTROYED) for stream_id in self._destroyed}
        for stream_id, replica in self._replicas.items():
            state = ReplicaState.OPEN if replica.is_formed else ReplicaState.FORMING
            reports[stream_id] = Report(stream_id, state, replica.leader_node)
        for stream_id, reason in self._failed.items():
            reports[stream_id] = Report(stream_id, ReplicaState.FAILED, reason=reason)
        ordered = tuple(reports[stream_id] for stream_id in sorted(reports))
        if ordered == self._reports:
            return
        self._reports = ordered
        for state in ReplicaState:
            GROUPS.labels(state.name.lower()).set(sum(report.state is state for report in ordered))
        changed, self._reports_changed = self._reports_changed, asyncio.Event()
        changed.set()
