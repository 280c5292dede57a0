"""The node's own place in a mesh, on disk before anything else acts on it (`membership.bin`).

Every step of joining, stopping and leaving can be carried on after a crash because of what this file says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError

from meshapi.control.v1.membership_pb2 import Membership
from meshcommon.durable import sync_directory, write_durably
from meshcommon.errors import ErrorCode, MeshError

_FILE: Final = "membership.bin"


class MembershipFile:
    """Reads and replaces `membership.bin`. Blocking; the file is small and seldom written."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / _FILE

    def read(self) -> Membership | None:
        """What the file says, None when the node is in no mesh.

        Raises:
            MeshError: DATA_DIR_INCOMPLETE.
        """
        try:
            membership = Membership.FromString(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except DecodeError:
            membership = Membership()
        if not membership.mesh_id or not membership.node_id or not membership.mcg_member:
            raise MeshError(
                ErrorCode.DATA_DIR_INCOMPLETE,
                f"{self._path} cannot be read: restore it from a backup, or empty the data directory and join again.",
                {"path": str(self._path)},
            )
        return membership

    def write(self, membership: Membership) -> None:
        """Replaces the file durably.

        Raises:
            MeshError: DATA_DIR_UNWRITABLE; the old content stands.
        """
        try:
            write_durably(self._path, membership.SerializeToString())
        except OSError as error:
            raise MeshError(
                ErrorCode.DATA_DIR_UNWRITABLE,
                f"Cannot write {self._path} ({error.strerror}): check owner, mount and free space.",
                {"path": str(self._path)},
            ) from error

    def remove(self) -> None:
        """Removes the file durably; the node is then in no mesh."""
        self._path.unlink(missing_ok=True)
        sync_directory(self._path.parent)
