"""The stream groups of this node: one Raft host, its packets, and replicas as the catalogue wants them.

Which replicas there are is decided by `core.replica_life`; here its steps are carried out, and all replicas are closed while
the node is stopped. The log lives in a directory per membership (`raft/MESH-NODE`), so that another mesh, or another life of
this node in the same one, can never meet its entries. A failed disk closes every group with the reason; forwarding,
which does not come through here, goes on. Leaves out: the order of a turn (`meshraft.driver`), its clock and wake-ups
(`meshraft.host_loop`), publishing and reading. Source: architecture §7; ADR 0015.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from mesh_data.core.disk_room import RoomLimits
from mesh_data.core.replica_life import (
    Close,
    Create,
    Destroy,
    Distrust,
    Follow,
    Identify,
    LeaveAlone,
    OpenStored,
    ReplicaLife,
    Step,
)
from mesh_data.core.replica_report import ReplicaState, Report
from mesh_data.core.stream_timing import StreamTiming
from mesh_data.core.view import StreamPhase, View
from mesh_data.shell.groups.checkpointing import Checkpointing
from mesh_data.shell.groups.disk_watch import DiskWatch
from mesh_data.shell.groups.entry_reader import EntryReader
from mesh_data.shell.groups.group_frames import GroupFrames
from mesh_data.shell.groups.group_members import follow_catalogue, look_after_members
from mesh_data.shell.groups.group_opening import create_group, group_config, identify
from mesh_data.shell.groups.outdated import step_down, warn_of_outdated
from mesh_data.shell.groups.replica import Replica
from mesh_data.shell.groups.store_truth import StoreTruth
from mesh_data.shell.overlay.overlay_port import OverlayPort
from mesh_data.shell.stream_errors import storage_failed, stream_gone
from mesh_data.shell.streams_metrics import FRAMES_INVALID, FRAMES_UNKNOWN, GROUPS, HOST_FAILED, export_feeding
from meshcommon.admin import Readiness
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId, StreamId
from meshcommon.logging import get_logger
from meshraft import HostPoisoned, InvalidFrame, LogCorrupt, LogReader, RaftError, RaftHost
from meshraft.driver import RaftDriver, Turn
from meshraft.host_loop import HostLoop
from meshwire.errors import WireError
from meshwire.packet import Protocol

_BOOTSTRAP_TICKS: Final = 3
"""Ticks between two attempts of the preferred leader to lead a new group."""
_METRICS_TICKS: Final = 21
"""Ticks between two looks at every group; a multiple of the above."""
_STORAGE: Final = "storage"

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
        self._loop: HostLoop | None = None
        """Drives the host; there whenever the log is open."""
        self._driver: RaftDriver
        """There, like the reader, whenever `_loop` is."""
        self._reader: EntryReader
        self._membership = ""
        self._failure = ""
        self._replicas: dict[StreamId, Replica] = {}
        self._life = ReplicaLife()
        self._checkpoints = Checkpointing(directory / "checkpoints")
        anchor = directory.with_name(f"{directory.name}.anchor")
        self._truth = StoreTruth(overlay, anchor, timing, readiness, self._disown)
        self._disk = DiskWatch(overlay, directory, room, readiness)
        self.refusal = self._disk.refusal
        self._frames = GroupFrames(overlay, self._truth, self._disk)
        self._wanted: tuple[View | None, bool] = (None, False)
        self._view_came = asyncio.Event()
        self._is_report_due = False
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
        return self._driver.host.disk_bytes() if self._loop is not None else 0

    def reader(self) -> LogReader:
        """Reads the log on other threads. Raises STORAGE_FAILED while it is closed."""
        return self.host().reader()

    def host(self) -> RaftHost:
        """The Raft host. Raises STORAGE_FAILED while it is closed."""
        if self._loop is None:
            raise MeshError(ErrorCode.STORAGE_FAILED, f"The log of this node is closed ({self._failure or 'stopped'}).")
        return self._driver.host

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
                tasks.create_task(self._truth.keeper.run(), name="stream groups: store")
                tasks.create_task(self._disk.run(), name="stream groups: disk")
                checkpoints = self._checkpoints.run(self._replicas, lambda stream_id: stream_id in self._life.destroyed)
                tasks.create_task(checkpoints, name="stream groups: checkpoints")
        finally:
            self._close_host()

    async def transfer_leaderships(self, limit_s: float) -> None:
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
            heirs = replica.heirs(self._overlay.is_reachable)
            if heirs:
                replica.raft.transfer(heirs[0])
        except RaftError:
            return False  # a failed log or group: there is nothing left to give
        return bool(heirs)

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
        self._life = ReplicaLife()
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
        if self._loop is None and not self._failure:
            await self._open_host(membership, view)
        if self._loop is not None:
            self._reconcile(self._driver.host, view)

    async def _open_host(self, membership: str, view: View) -> None:
        path = self._directory / membership
        try:
            path.mkdir(parents=True, exist_ok=True)
            # Reading a large log back takes seconds; lanes and forwarding must not wait for it.
            host = await asyncio.to_thread(RaftHost.open, str(path), seed=self._seed)
            try:
                await self._truth.open(path, self._own_groups(host, view), view, host.retirement() or "")
                host.forget_retirement()
            except BaseException:
                host.close()
                raise
        except (OSError, RaftError) as error:
            self._fail_host(str(error))
            return
        if damage := host.damage():
            _log.error("raft_log_damaged", damage=damage, effect="see meshctl raft ls and docs/design/recovery.md")
        self._membership = membership
        self._reader = EntryReader(host)
        self._checkpoints.use(membership)
        tick_s = self.timing.tick_s
        self._loop = HostLoop(
            host, tick_s, self._frames.send, ticked=self._ticked, turned=self._turned, failed=self._turn_failed
        )
        self._driver = self._loop.driver
        self._loop.start()

    def _reconcile(self, host: RaftHost, view: View) -> None:
        # A node that left sends nothing more.
        self._frames.keep_only(view.nodes.keys())
        keeper = self._truth.keeper
        try:
            stored = set(host.stored_groups())
            self._truth.follow(view, stored)
            distrust = Distrust(keeper.disowned, keeper.reason)
            for step in self._life.follow(view.streams, self._overlay.node_id, stored, distrust):
                self._carry_out(host, step)
        except HostPoisoned as error:
            self._fail_host(str(error))
        self.wake()

    def _carry_out(self, host: RaftHost, step: Step) -> None:
        match step:
            case Follow(stream):
                follow_catalogue(host, self._replicas[stream.stream_id], stream)
            case Create() | OpenStored():
                self._open(host, step)
            case Identify():
                for following in self._life.identified(step, identify(host, step)):
                    self._carry_out(host, following)
            case Close(stream, reason):
                _close_group(self._replicas.pop(stream.stream_id), storage_failed(stream.name, reason))
            case Destroy():
                self._destroy(host, step)
            case LeaveAlone(stream_id, reason):
                _log.debug("stream_group_left_alone", stream_id=stream_id, reason=reason)

    def _open(self, host: RaftHost, step: Create | OpenStored) -> None:
        stream, config = step.stream, group_config(self.timing)
        replica = Replica(self._driver, self._reader, stream, step.member_id, self._wall_clock_ms, config, owner=self)
        try:
            if isinstance(step, Create):
                create_group(host, replica, step, config)
            else:
                self._checkpoints.open(host, replica, stream.homes(), config)
        except HostPoisoned:
            raise
        except (RaftError, WireError) as error:
            self._life.fail(stream.stream_id, str(error), is_distrusted=isinstance(error, LogCorrupt))
            _log.error("stream_group_failed", stream=stream.name, reason=str(error))
            return
        self._replicas[stream.stream_id] = replica
        replica.raft.join()
        index, is_stored = replica.state.applied_index, isinstance(step, OpenStored)
        _log.info("stream_group_opened", stream=stream.name, is_stored=is_stored, index=index)

    def mesh_version(self) -> int:
        """The version that all members of the mesh support."""
        view = self._wanted[0]
        return view.mesh_version if view is not None else 1

    def _destroy(self, host: RaftHost, step: Destroy) -> None:
        stream = step.stream
        replica = self._replicas.pop(stream.stream_id, None)
        if replica is not None:
            replica.fail(stream_gone(stream))
        if step.is_stored or replica is not None:
            host.destroy_group(int(stream.stream_id))
            self._checkpoints.forget(stream.stream_id)
            _log.info("stream_group_destroyed", stream=stream.name, is_deleted=stream.state is StreamPhase.DELETING)
        self._truth.destroyed(stream.stream_id)

    # Closing

    def _own_groups(self, host: RaftHost, view: View) -> set[int]:
        """Groups that are stored here or should be."""
        own = self._overlay.node_id
        listed = {int(stream.stream_id) for stream in view.streams.values() if stream.is_held_by(own)}
        return listed | set(host.stored_groups())

    def _disown(self, reason: str) -> set[int]:
        """What the log says cannot be counted on: closes every replica; the view is looked at again."""
        view = self._wanted[0]
        if self._loop is None or view is None:
            return set()
        self._close_groups(storage_failed("every stream", reason))
        self._view_came.set()
        try:
            return self._own_groups(self._driver.host, view)
        except HostPoisoned:
            return {int(stream_id) for stream_id in view.streams}  # the pump finds out as well, and closes the host

    def _close_groups(self, error: MeshError) -> None:
        for replica in self._replicas.values():
            _close_group(replica, error)
        self._replicas.clear()
        self._life.close_all()

    def _close_host(self, *, is_kept: bool = True) -> None:
        if self._loop is not None and is_kept:
            self._checkpoints.save_all(self._replicas.values())
        self._close_groups(
            MeshError(
                ErrorCode.UNAVAILABLE, "This node is shutting down; whether the batch was committed is not known."
            )
        )
        self._close_loop()

    def _close_loop(self) -> None:
        loop, self._loop = self._loop, None
        self._truth.keeper.close()
        if loop is None:
            return
        try:
            loop.close()
        except RaftError as error:
            # Of a log that has failed this is no news.
            if not self._failure:
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
        self._life.fail_all(reason)
        for replica in self._replicas.values():
            replica.fail(storage_failed(replica.stream.name, reason))
        self._close_loop()
        self._refresh_reports()

    # Turns

    def _ticked(self) -> None:
        driver = self._driver
        if driver.ticks % _BOOTSTRAP_TICKS == 0:
            self._look_after_groups(is_full=driver.ticks % _METRICS_TICKS == 0)
            export_feeding(driver.host.log_transfers())

    def _look_after_groups(self, *, is_full: bool) -> None:
        for replica in self._replicas.values():
            is_forming = replica.stream.state is StreamPhase.FORMING
            is_outdated = replica.update_required is not None
            is_due = is_full or is_forming or (replica.is_leading and (is_outdated or not replica.leader.is_settled))
            if replica.failure is not None or not is_due:
                continue
            try:
                if is_outdated:
                    step_down(replica, self._overlay.is_reachable)
                    continue
                if (status := replica.news()) is None:
                    continue
                if not replica.leader.is_settled and look_after_members(replica, status):
                    self._is_report_due = True
            except HostPoisoned:
                raise
            except RaftError as error:
                # A poisoned group is reported by the next pump; here it is only not there.
                _log.warning("stream_group_unavailable", stream=replica.stream.name, reason=str(error))
                continue
            replica.export_metrics(status)

    def wake(self) -> None:
        """Asks for a turn, after everything else that this turn of the event loop brings."""
        if self._loop is not None:
            self._loop.wake()

    def _turned(self, turn: Turn) -> None:
        if turn.has_news:
            self._truth.keeper.written()
        if turn.has_changes or self._is_report_due:
            self._refresh_reports()

    def _turn_failed(self, error: Exception) -> None:
        if not isinstance(error, HostPoisoned):
            raise error
        self._fail_host(str(error))

    def replica_reports(self) -> None:
        """A replica has something new to report."""
        self._is_report_due = True

    def replica_failed(self, replica: Replica, reason: str, *, is_distrusted: bool = False) -> None:
        """A replica cannot go on: its group is closed, the others go on."""
        _log.error("stream_group_failed", stream=replica.stream.name, reason=reason)
        self._life.fail(replica.stream.stream_id, reason, is_distrusted=is_distrusted)
        _close_group(replica, storage_failed(replica.stream.name, reason))
        self._is_report_due = True

    def _receive(self, source: NodeId, payload: bytes | memoryview) -> None:
        if self._loop is None:
            return
        try:
            frame = self._frames.receive(source, payload)
            if frame is None:
                return
            unknown = self._driver.host.step(int(source), frame)
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
        ordered = self._life.reports(self._replicas)
        if ordered == self._reports:
            return
        self._reports = ordered
        warn_of_outdated(self._readiness, self._replicas.values())
        for state in ReplicaState:
            GROUPS.labels(state.name.lower()).set(sum(report.state is state for report in ordered))
        changed, self._reports_changed = self._reports_changed, asyncio.Event()
        changed.set()


def _close_group(replica: Replica, error: MeshError) -> None:
    replica.fail(error)
    with suppress(RaftError):
        replica.raft.host.close_group(replica.group)
