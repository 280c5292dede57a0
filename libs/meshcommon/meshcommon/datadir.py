"""A service's data directory: locked, marked, and recognised when it is foreign, of another version or half made.

States: *absent or empty* → made and marked; *marked* → opened; *files without a marker* → DATA_DIR_INCOMPLETE, because
creation writes the marker before anything else. The marker is `store.json`; it holds the role, the format version, a
random store id, the boot number (raised and fsynced at each open: architecture §7) and, once the node belongs to a
mesh, its node and mesh id. The lock is an flock that the kernel drops with the process. The directory is 0700: keys and
logs of streams are in it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from meshcommon.durable import sync_directory, write_durably
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import check_mesh_id

FORMAT_VERSION: Final = 1
DATA_FORMAT_VERSION: Final = 2
"""Of the data plane: 2 is a log of batches of format 2 (ADR 0014)."""
_MARKER: Final = "store.json"
_LOCK: Final = "lock"
_PRIVATE: Final = 0o700


@dataclass(frozen=True, slots=True)
class StoreMarker:
    """What `store.json` says."""

    role: str
    format_version: int
    store_id: str
    boot: int
    node_name: str
    node_id: int = 0
    mesh_id: str = ""
    is_resetting: bool = False


class DataDir:
    """An open, locked data directory of one service. `close` releases the lock."""

    def __init__(self, path: Path, marker: StoreMarker, lock: int, kept: tuple[str, ...] = ()) -> None:
        self.path = path
        self.marker = marker
        self._lock = lock
        self._kept = {_MARKER, _LOCK, *kept}

    @classmethod
    def open(
        cls,
        path: Path,
        role: str,
        node_name: str,
        *,
        format_version: int = FORMAT_VERSION,
        changed: tuple[str, ...] = (),
        kept: tuple[str, ...] = (),
    ) -> DataDir:
        """Opens or makes `path` for the service `role` of the node `node_name`.

        Args:
            path: The directory.
            role: The service.
            node_name: Name of the node.
            format_version: What this version of the service writes. An older directory is taken over when it holds none of
                what has changed since.
            changed: Patterns, relative to the directory, of the files that were written differently before.
            kept: Names of files that belong to the site instead of a membership: `reset` leaves them.

        Raises:
            MeshError: DATA_DIR_LOCKED, DATA_DIR_FOREIGN, DATA_DIR_NEWER, STORE_FORMAT_OLD, DATA_DIR_INCOMPLETE,
                DATA_DIR_UNWRITABLE. Nothing was changed.
        """
        try:
            path.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
            _tighten(path)
            lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unwritable(path, error) from error
        try:
            cls._take_lock(path, lock)
            marker = _read_marker(path, role, node_name, format_version)
            if marker.format_version < format_version:
                _check_old(path, marker, format_version, changed)
            marker = replace(marker, boot=marker.boot + 1, format_version=format_version)
            _write_marker(path, marker)
            directory = cls(path, marker, lock, kept)
            if marker.is_resetting:
                directory.reset()
        except BaseException:
            os.close(lock)
            raise
        return directory

    @staticmethod
    def _take_lock(path: Path, lock: int) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MeshError(
                ErrorCode.DATA_DIR_LOCKED,
                f"Another process is using {path}: stop it, or give this one a directory of its own.",
                {"path": str(path)},
            ) from None
        except OSError as error:
            raise _unwritable(path, error) from error

    def claim(self, node_id: int, mesh_id: str) -> None:
        """Binds the directory to a membership; it can later be opened only for the same one.

        Raises:
            MeshError: DATA_DIR_FOREIGN when it is bound to another membership; INVALID_ARGUMENT when `mesh_id` is no UUID.
        """
        check_mesh_id(mesh_id)
        bound = (self.marker.node_id, self.marker.mesh_id)
        if bound == (node_id, mesh_id):
            return
        if bound != (0, ""):
            raise MeshError(
                ErrorCode.DATA_DIR_FOREIGN,
                f"{self.path} belongs to node {bound[0]} of mesh {bound[1]}, not to node {node_id} of mesh {mesh_id}: "
                "point the service at the right directory, or empty it.",
                {"path": str(self.path), "node_id": str(bound[0]), "mesh_id": bound[1]},
            )
        self.marker = replace(self.marker, node_id=node_id, mesh_id=mesh_id)
        _write_marker(self.path, self.marker)

    def reset(self) -> None:
        """Forgets the membership: removes all content but what was named to be kept, keeps lock and role, takes a new store id.

        A crash in between is made good by the next open, so that the content of a former membership is never met again.
        """
        blank = replace(self.marker, node_id=0, mesh_id="", store_id=str(uuid.uuid4()), is_resetting=False)
        _write_marker(self.path, replace(blank, is_resetting=True))
        for item in self.path.iterdir():
            if item.name in self._kept:
                continue
            if item.is_dir() and not item.is_symlink():
                shutil.rmtree(item)
            else:
                item.unlink()
        sync_directory(self.path)
        self.marker = blank
        _write_marker(self.path, blank)

    def close(self) -> None:
        """Releases the lock."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _tighten(path: Path) -> None:
    """Takes the directory from everybody else: earlier versions made it readable for all users of the machine."""
    if path.stat().st_mode & 0o077:
        path.chmod(_PRIVATE)


def _unwritable(path: Path, error: OSError) -> MeshError:
    return MeshError(
        ErrorCode.DATA_DIR_UNWRITABLE,
        f"Cannot read or write the data directory {path} ({error.strerror}): check owner, mount and free space.",
        {"path": str(path)},
    )


def _write_marker(path: Path, marker: StoreMarker) -> None:
    try:
        write_durably(path / _MARKER, json.dumps(asdict(marker), indent=1).encode())
    except OSError as error:
        raise _unwritable(path, error) from error


def _read_marker(path: Path, role: str, node_name: str, format_version: int) -> StoreMarker:
    marker_path = path / _MARKER
    try:
        fields = json.loads(marker_path.read_bytes())
    except FileNotFoundError:
        leftovers = {item.name for item in path.iterdir()} - {_LOCK, _MARKER + ".new"}
        if leftovers:
            raise MeshError(
                ErrorCode.DATA_DIR_INCOMPLETE,
                f"{path} holds files but no {_MARKER}: it is half written or not ours. "
                "Restore it from a backup or empty it.",
                {"path": str(path)},
            ) from None
        return StoreMarker(role, format_version, str(uuid.uuid4()), 0, node_name)
    except ValueError:
        raise MeshError(
            ErrorCode.DATA_DIR_INCOMPLETE,
            f"{marker_path} cannot be read: the directory is damaged. Restore it from a backup or empty it.",
            {"path": str(path)},
        ) from None
    except OSError as error:
        raise _unwritable(path, error) from error
    return _check_marker(path, fields, role, node_name, format_version)


def _check_old(path: Path, marker: StoreMarker, format_version: int, changed: tuple[str, ...]) -> None:
    """Refuses a directory that holds what this version would read wrongly."""
    found = next((file for pattern in changed for file in path.glob(pattern)), None)
    if found is None:
        return
    directory = found.parent
    raise MeshError(
        ErrorCode.STORE_FORMAT_OLD,
        f"{directory} was written by an earlier version (format {marker.format_version}, this one writes "
        f"{format_version}) and is left as it is: start the version before, read out what you need and delete the "
        f"streams there, stop it, remove {directory}, and start this version.",
        {"path": str(directory), "format_version": str(marker.format_version)},
    )


def _check_marker(path: Path, fields: object, role: str, node_name: str, format_version: int) -> StoreMarker:
    if (
        isinstance(fields, dict)
        and isinstance(version := fields.get("format_version"), int)
        and version > format_version
    ):
        raise MeshError(
            ErrorCode.DATA_DIR_NEWER,
            f"{path} was written by a newer version (format {version}, this one knows {format_version}): "
            "start that version again.",
            {"path": str(path), "format_version": str(version)},
        )
    marker: StoreMarker | None = None
    with contextlib.suppress(TypeError):
        marker = StoreMarker(**fields) if isinstance(fields, dict) else None
    if marker is None or not _is_well_typed(marker):
        raise MeshError(
            ErrorCode.DATA_DIR_INCOMPLETE,
            f"{path / _MARKER} lacks fields or has wrong ones: the directory is damaged. "
            "Restore it from a backup or empty it.",
            {"path": str(path)},
        )
    if (marker.role, marker.node_name) != (role, node_name):
        raise MeshError(
            ErrorCode.DATA_DIR_FOREIGN,
            f"{path} belongs to the {marker.role} of node {marker.node_name!r}, not to the {role} of {node_name!r}: "
            "point the service at the right directory.",
            {"path": str(path), "role": marker.role, "node_name": marker.node_name},
        )
    return marker


def _is_well_typed(marker: StoreMarker) -> bool:
    """Whether every field read from JSON has the type of a blank marker's."""
    blank = asdict(StoreMarker("", FORMAT_VERSION, "", 0, ""))
    return all(type(value) is type(blank[name]) for name, value in asdict(marker).items())
