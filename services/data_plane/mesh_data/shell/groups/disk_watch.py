"""Looks at the file system of this node's log, tells the nodes it shares streams with, and keeps a reserve for a full one.

The reserve is a file beside the log. It goes when the file system is almost full, whoever filled it, so that the log can still
take what is small and must be written, such as the move of the floor that makes room; it comes back when there is room again.
Leaves out: when a disk is short of room (`core.disk_room`). Source: docs/design/streams.md "Room on the disks".
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Final

from mesh_data.core.disk_room import DiskRoom, RoomLimits
from mesh_data.core.stream_frames import NO_ROOM
from mesh_data.core.view import Stream
from mesh_data.shell.overlay.overlay_port import OverlayPort
from mesh_data.shell.streams_metrics import DISK_FREE_BYTES, DISK_IS_SHORT
from meshcommon.admin import Readiness
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId
from meshcommon.logging import get_logger
from meshwire.packet import Protocol, TrafficClass

LOOK_S: Final = 0.5
"""Between two looks; less when the disk could fill up in that time."""
_LOOK_S_MIN: Final = 0.05
_FILLS_BYTES_PER_S: Final = 4 << 30
RESERVE_BYTES: Final = 16 << 20
_RESERVE: Final = "reserve"
_KEY: Final = "disk room"
_MIB: Final = 1 << 20

_log = get_logger(__name__)


def measure(directory: Path) -> tuple[int, int]:
    """Bytes of the file system and bytes free for this process. Raises OSError."""
    found = os.statvfs(directory)
    return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize


class DiskWatch:
    """One node's watch. `run` drives it; everything else is called on its event loop."""

    def __init__(
        self,
        overlay: OverlayPort,
        directory: Path,
        limits: RoomLimits,
        readiness: Readiness,
    ) -> None:
        """`directory` is where the log is; while there is none, nothing is measured or kept."""
        self._overlay = overlay
        self._directory = directory
        self._readiness = readiness
        self._room = DiskRoom(limits)
        self._is_failing = False

    async def run(self) -> None:
        """Looks, tells and keeps the reserve until cancelled."""
        while True:
            pause_s = LOOK_S
            try:
                total_bytes, free_bytes = await asyncio.to_thread(self._look)
            except OSError as error:
                # A disk that cannot even be asked fails the log by itself; here it is only not known.
                if not self._is_failing:
                    _log.warning("disk_not_measured", reason=str(error))
                self._is_failing = True
            else:
                self._is_failing = False
                if total_bytes:
                    self._take(total_bytes, free_bytes)
                    pause_s = min(LOOK_S, max(_LOOK_S_MIN, free_bytes / _FILLS_BYTES_PER_S))
            if self._room.is_short:
                self._tell()
            await asyncio.sleep(pause_s)

    def receive(self, source: NodeId) -> None:
        """A node says that its disk is short of room."""
        self._room.heard(source, asyncio.get_running_loop().time())

    def refusal(self, stream: Stream) -> MeshError | None:
        """Why a leader takes no batch of `stream` now; None when every member has room."""
        if self._room.has_no_doubt:
            return None
        members = (member.node_id for member in stream.members)
        node = self._room.short_member(self._overlay.node_id, members, asyncio.get_running_loop().time())
        if node is None:
            return None
        view = self._overlay.view()
        name = view.name_of(node) if view is not None else str(node)
        return MeshError(
            ErrorCode.DISK_PRESSURE,
            f"The disk of {name}, a member of {stream.name}, is short of room: give it more, or delete streams; publishing goes "
            "on by itself then.",
            {"stream": stream.name, "node": name},
        )

    def _look(self) -> tuple[int, int]:
        """On a thread: a file system may be slow to answer."""
        if not self._directory.exists():
            return 0, 0
        total_bytes, free_bytes = measure(self._directory)
        reserve = self._directory / _RESERVE
        if reserve.exists():
            if free_bytes < RESERVE_BYTES // 2:
                reserve.unlink()
                _log.error("disk_reserve_released", free_bytes=free_bytes)
        elif free_bytes > 4 * RESERVE_BYTES:
            _allocate(reserve)
        return total_bytes, free_bytes

    def _take(self, total_bytes: int, free_bytes: int) -> None:
        DISK_FREE_BYTES.set(free_bytes)
        if not self._room.measured(total_bytes, free_bytes):
            return
        DISK_IS_SHORT.set(self._room.is_short)
        if self._room.is_short:
            _log.error("disk_short_of_room", free_bytes=free_bytes, total_bytes=total_bytes)
            self._readiness.warn(
                _KEY,
                f"The disk of this node's streams is short of room ({free_bytes // _MIB} of {total_bytes // _MIB} MiB are "
                "free): its streams take no records until there is room. Give it more, or delete streams.",
            )
        else:
            _log.info("disk_has_room", free_bytes=free_bytes, total_bytes=total_bytes)
            self._readiness.clear(_KEY)

    def _tell(self) -> None:
        view, own = self._overlay.view(), self._overlay.node_id
        if view is None:
            return
        shared = (stream for stream in view.streams.values() if stream.member_at(own) is not None)
        peers = {member.node_id for stream in shared for member in stream.members} - {own}
        for peer in sorted(peers):
            self._overlay.send(Protocol.RAFT_DSG, TrafficClass.CONTROL, peer, NO_ROOM)


def _allocate(path: Path) -> None:
    """Makes the reserve, with its blocks; without room for it there is none."""
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
    except OSError:
        path.unlink()
    finally:
        os.close(descriptor)
