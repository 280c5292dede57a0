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
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from contextlib import suppress
from pathlib import Path
from typing import Final

from mesh_data.core.disk_room import RoomLimits
from mesh_data.core.stream_snapshot import StreamConfig
from mesh_data.core.stream_state import FIRST_INDEX
from mesh_data.core.stream_state import StreamState as GroupContent
from mesh_data.core.stream_timing import StreamTiming
from mesh_data.core.view import Stream, StreamState, View
from mesh_data.shell.checkpointing import Checkpointing
from mesh_data.shell.disk_watch import DiskWatch
from mesh_data.shell.entry_reader import EntryReader
from mesh_data.shell.group_frames import GroupFrames
from mesh_data.shell.group_members import follow_catalogue, look_after_members, name_members
from mesh_data.shell.group_reports import Failure, ReplicaState, Report, reports_of
from mesh_data.shell.overlay_port import OverlayPort
from mesh_data.shell.replica import Replica
from mesh_data.shell.store_truth import StoreTruth
from mesh_data.shell.stream_errors import storage_failed, stream_gone
from mesh_data.shell.streams_metrics import FRAMES_INVALID, FRAMES_UNKNOWN, GROUPS, HOST_FAILED, export_feeding
from meshcommon.admin import Readiness
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import MemberId, NodeId, StreamId
from meshcommon.logging import get_logger
from meshraft import (
    Entries,
    GroupConfig,
    HostPoisoned,
    Installed,
    InvalidFrame,
    LogCorrupt,
    LogReader,
    Pump,
    RaftError,
    RaftHost,
)
from meshwire.errors import WireError
from meshwire.packet import Protocol

_BIRTH_TICKS: Final = 3
"""Ticks between two attempts of the preferred leader to lead a new group."""
_METRICS_TICKS: Final = 21
"""Ticks between two looks at every group; a multiple of the above."""
_STORAGE: Final = "storage"
_LOST: Final = ("it has lost some", "the log is damaged")
"""What meshraft says when a leader knows more of this member than its disk holds, or a record is not what was written."""

_log = get_logger(__name__)


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
        room: RoomLimits,
    ) -> None:
        """`directory` is made when needed; `seed` feeds the election timeouts; `readiness` gets a failed or a full disk."""
        self.timing = timing
        self._overlay = overlay
        self._directory = directory
        self._seed = seed
        self._wall_clock_ms = wall_clock_ms
        self._readiness = readiness
        self._host: RaftHost | None = None
        self._reader: EntryReader
        """There whenever `_host` is."""
        self._descriptor = -1
        self._membership = ""
        self._failure = ""
        self._replicas: dict[StreamId, Replica] = {}
        self._failed: dict[StreamId, Failure] = {}
        self._destroyed: set[StreamId] = set()
        self._checkpoints = Checkpointing(directory / "checkpoints")
        anchor = directory.with_name(f"{directory.name}.anchor")
        self._truth = StoreTruth(overlay, anchor, timing, readiness, self._disown)
        self._disk = DiskWatch(overlay, directory, room, readiness)
        self._frames = GroupFrames(overlay, self._truth, self._disk)
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

    def replicas(self) -> tuple[Replica, ...]:
        """The open replicas of this node, failed ones included until they are closed, by stream id."""
        return tuple(self._replicas[stream_id] for stream_id in sorted(self._replicas))

    def log_bytes(self) -> int:
        """Bytes that the log of all groups takes on the disk; 0 while it is closed."""
        return self._host.disk_bytes() if self._host is not None else 0

    def reader(self) -> LogReader:
        """Reads the log on other threads. Raises STORAGE_FAILED while it is closed."""
        if self._host is None:
            raise MeshError(ErrorCode.STORAGE_FAILED, f"The log of this node is closed ({self._failure or 'stopped'}).")
        return self._host.reader()

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
                tasks.create_task(self._truth.keeper.run(), name="stream groups: store")
                tasks.create_task(self._disk.run(), name="stream groups: disk")
                checkpoints = self._checkpoints.run(self._replicas, lambda stream_id: stream_id in self._destroyed)
                tasks.create_task(checkpoints, name="stream groups: checkpoints")
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
        await self._truth.keeper.farewell()

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
        self._close_host(is_kept=False)
        self._failed.clear()
        self._destroyed.clear()
        self._frames.keep_only(frozenset())
        self._failure = self._membership = ""
        self._readiness.clear(_STORAGE)
        await self._truth.forget()
        # Gigabytes may go: forwarding must not wait for them.
        await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)

    async def _use(self, view: View, is_running: bool) -> None:
        membership = f"{view.mesh_id}-{self._overlay.node_id}"
        if membership != self._membership:
            self._close_host()
            self._failure = ""
            self._readiness.clear(_STORAGE)
        if not is_running:
            self._checkpoints.save_all(self._replicas.values())
            self._close_groups(MeshError(ErrorCode.NODE_STOPPED, "This node was stopped on purpose: start it again."))
            return
        if self._host is None and not self._failure:
            await self._open_host(membership, view)
        if self._host is not None:
            self._reconcile(self._host, view)

    async def _open_host(self, membership: str, view: View) -> None:
        path = self._directory / membership
        try:
            path.mkdir(parents=True, exist_ok=True)
            # Reading a large log back takes seconds; lanes and forwarding must not wait for it.
            host = await asyncio.to_thread(RaftHost.open, str(path), seed=self._seed)
            try:
                await self._truth.open(path, self._own_groups(host, view), view)
            except BaseException:
                host.close()
                raise
        except (OSError, RaftError) as error:
            self._fail_host(str(error))
            return
        if damage := host.damage():
            _log.error("raft_log_damaged", damage=damage, effect="the groups here are in doubt; see meshctl raft ls")
        self._host, self._membership = host, membership
        self._reader = EntryReader(host)
        self._checkpoints.use(membership)
        # Kept: a host whose log failed no longer tells it, and a forgotten reader would meet the next socket of that number.
        self._descriptor = host.fileno()
        asyncio.get_running_loop().add_reader(self._descriptor, self.wake)

    def _reconcile(self, host: RaftHost, view: View) -> None:
        # A tombstone that the catalogue no longer has was confirmed; a node that left sends nothing more.
        self._destroyed &= view.streams.keys()
        self._frames.keep_only(view.nodes.keys())
        try:
            stored = set(host.stored_groups())
            self._truth.follow(view, stored)
            for stream in view.streams.values():
                self._reconcile_stream(host, stream, is_stored=int(stream.stream_id) in stored)
        except HostPoisoned as error:
            self._fail_host(str(error))
        self.wake()

    def _reconcile_stream(self, host: RaftHost, stream: Stream, *, is_stored: bool) -> None:
        node = self._overlay.node_id
        if not stream.is_held_by(node):
            return
        # Until the group has removed it a former membership goes on: its vote may be needed for just that.
        goes_on, ended = stream.retiring_at(node), stream.ended_at(node)
        current = goes_on or stream.member_at(node)
        is_deleted = stream.state is StreamState.DELETING
        if is_deleted and stream.is_sealed:
            self._destroy(host, stream, is_stored=is_stored)
            return
        if ended:
            is_stored = is_stored and current is not None and self._is_successor(host, stream, ended)
            if not is_stored:
                self._destroy(host, stream, is_stored=int(stream.stream_id) in host.stored_groups())
        if current is not None and int(stream.stream_id) in self._truth.keeper.disowned:
            self._failed[stream.stream_id] = Failure(self._truth.keeper.reason, current.member_id, is_distrusted=True)
        if current is None or stream.stream_id in self._failed:
            return
        if stream.stream_id in self._replicas:
            follow_catalogue(host, self._replicas[stream.stream_id], stream)
        elif is_stored or not (is_deleted or goes_on):
            self._destroyed.discard(stream.stream_id)
            self._open(host, stream, current.member_id, is_stored=is_stored)

    def _is_successor(self, host: RaftHost, stream: Stream, ended: AbstractSet[MemberId]) -> bool:
        """Whether what is stored of a stream belongs to the membership after those that have `ended`."""
        replica, failed = self._replicas.get(stream.stream_id), self._failed.get(stream.stream_id)
        member = replica.member_id if replica is not None else failed and failed.member_id
        if member is not None:
            return member not in ended
        for former in ended:
            try:
                host.open_group(int(stream.stream_id), int(former), {})
            except HostPoisoned:
                raise
            except RaftError:
                continue  # not this one's; if it is unreadable, opening it as the successor's will tell
            return False
        return True

    def _open(self, host: RaftHost, stream: Stream, member_id: MemberId, *, is_stored: bool) -> None:
        group = int(stream.stream_id)
        peers = stream.homes()
        replica = Replica(
            host, self._reader, stream, member_id, self.wake, self._wall_clock_ms, refusal=self._disk.refusal
        )
        config = self._group_config()
        try:
            if is_stored:
                self._checkpoints.open(host, replica, peers, config)
            elif stream.state is StreamState.FORMING:
                snapshot = GroupContent(StreamConfig.of(stream.stream_id, stream.retained_bytes_max)).snapshot()
                voters = [int(item.member_id) for item in stream.members if item.is_voter]
                learners = [int(item.member_id) for item in stream.members if not item.is_voter]
                host.create_group(
                    group,
                    int(member_id),
                    peers,
                    voters=voters,
                    learners=learners,
                    snapshot=snapshot,
                    config=config,
                )
                replica.restore(snapshot, FIRST_INDEX)
            else:
                host.create_group(group, int(member_id), peers, voters=[], config=config)
            name_members(host, stream)
        except HostPoisoned:
            raise
        except (RaftError, WireError) as error:
            self._failed[stream.stream_id] = Failure(str(error), member_id, isinstance(error, LogCorrupt))
            _log.error("stream_group_failed", stream=stream.name, reason=str(error))
            return
        self._replicas[stream.stream_id] = replica
        _log.info("stream_group_opened", stream=stream.name, is_stored=is_stored, index=replica.state.applied_index)

    def _group_config(self) -> GroupConfig:
        return GroupConfig(
            election_ticks=self.timing.election_ticks,
            heartbeat_ticks=self.timing.heartbeat_ticks,
            max_uncommitted_bytes=self.timing.uncommitted_bytes_max,
            sleeps=True,
        )

    def _destroy(self, host: RaftHost, stream: Stream, *, is_stored: bool) -> None:
        replica = self._replicas.pop(stream.stream_id, None)
        if replica is not None:
            replica.fail(stream_gone(stream))
        if is_stored or replica is not None:
            host.destroy_group(int(stream.stream_id))
            self._checkpoints.forget(stream.stream_id)
            _log.info("stream_group_destroyed", stream=stream.name, is_deleted=stream.state is StreamState.DELETING)
        self._failed.pop(stream.stream_id, None)
        self._truth.destroyed(stream.stream_id)
        self._destroyed.add(stream.stream_id)

    # Closing

    def _own_groups(self, host: RaftHost, view: View) -> set[int]:
        """Groups that are stored here or should be."""
        own = self._overlay.node_id
        listed = {int(stream.stream_id) for stream in view.streams.values() if stream.is_held_by(own)}
        return listed | set(host.stored_groups())

    def _disown(self, reason: str) -> set[int]:
        """What the log says cannot be counted on: closes every replica; the view is looked at again."""
        view = self._wanted[0]
        if self._host is None or view is None:
            return set()
        self._close_groups(storage_failed("every stream", reason))
        self._view_came.set()
        try:
            return self._own_groups(self._host, view)
        except HostPoisoned:
            return {int(stream_id) for stream_id in view.streams}  # the pump finds out as well, and closes the host

    def _close_groups(self, error: MeshError) -> None:
        for replica in self._replicas.values():
            replica.fail(error)
            if self._host is not None:
                with suppress(RaftError):
                    self._host.close_group(replica.group)
        self._replicas.clear()
        self._failed.clear()

    def _close_host(self, *, is_kept: bool = True) -> None:
        if self._host is not None and is_kept:
            self._checkpoints.save_all(self._replicas.values())
        self._close_groups(
            MeshError(
                ErrorCode.UNAVAILABLE, "This node is shutting down; whether the batch was committed is not known."
            )
        )
        host, self._host = self._host, None
        if host is None:
            return
        self._stop_watching()
        self._truth.keeper.close()
        try:
            host.close()
        except RaftError as error:
            _log.error("raft_log_close_failed", reason=str(error))
        self._reader.close()

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
            self._failed[stream_id] = Failure(reason, replica.member_id)
            replica.fail(storage_failed(replica.stream.name, reason))
        host, self._host = self._host, None
        self._truth.keeper.close()
        if host is not None:
            self._stop_watching()
            with suppress(RaftError):
                host.close()
            self._reader.close()
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
                    self._look_after_groups(self._host, is_full=self._ticks % _METRICS_TICKS == 0)
                    export_feeding(self._host.feeding())
            except HostPoisoned as error:
                self._fail_host(str(error))
            self.wake()

    def _look_after_groups(self, host: RaftHost, *, is_full: bool) -> None:
        for replica in self._replicas.values():
            is_forming = replica.stream.state is StreamState.FORMING
            is_due = is_full or is_forming or (replica.is_leading and not replica.is_settled)
            if replica.failure is not None or not is_due:
                continue
            try:
                if (status := replica.news()) is None:
                    continue
                if is_forming:
                    replica.maybe_lead_at_birth(status)
                elif not replica.is_settled and look_after_members(host, replica, status, self._ticks, self.timing):
                    self._is_report_due = True
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
            self._frames.send(NodeId(frame.peer), frame.cls, frame.data)
        for installed in pump.installed:
            self._install(installed)
        is_news = bool(pump.roles or pump.installed or pump.entries.index)
        touched = self._apply(pump.entries)
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
        if is_news:
            self._truth.keeper.written()
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

    def _apply(self, entries: Entries) -> list[Replica]:
        """Applies entries in order; returns the replicas that took some."""
        touched: dict[int, Replica] = {}
        while (group := entries.group) is not None:
            replica = touched.get(group) or self._replicas.get(StreamId(group))
            if replica is None or replica.failure is not None:
                entries.skip(1)
                continue
            touched[group] = replica
            is_news = not replica.is_formed or replica.stream.state is StreamState.DELETING
            self._is_report_due = self._is_report_due or is_news
            try:
                replica.apply_next(entries)
            except HostPoisoned:
                raise
            except RaftError as error:
                self._fail_group(replica, str(error))
        return list(touched.values())

    def _fail_group(self, replica: Replica, reason: str) -> None:
        _log.error("stream_group_failed", stream=replica.stream.name, reason=reason)
        self._failed[replica.stream.stream_id] = Failure(
            reason, replica.member_id, any(words in reason for words in _LOST)
        )
        replica.fail(storage_failed(replica.stream.name, reason))
        if self._host is not None:
            with suppress(RaftError):
                self._host.close_group(replica.group)

    def _receive(self, source: NodeId, payload: bytes | memoryview) -> None:
        if self._host is None:
            return
        try:
            frame = self._frames.receive(source, payload)
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
        ordered = reports_of(self._replicas, self._failed, self._destroyed)
        if ordered == self._reports:
            return
        self._reports = ordered
        for state in ReplicaState:
            GROUPS.labels(state.name.lower()).set(sum(report.state is state for report in ordered))
        changed, self._reports_changed = self._reports_changed, asyncio.Event()
        changed.set()
