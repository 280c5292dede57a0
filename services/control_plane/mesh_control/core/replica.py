"""One replica of the MCG's state as its log goes through it, up to the first entry that this software cannot apply.

There it stops for good: the state stays at the index before, is still readable, and never skips. Newer software that
opens the same log goes on from there. Leaves out the log itself and who leads. Source: architecture §12.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError

from mesh_control.core.mcg_state import McgState, Result
from mesh_control.core.versions import MESH_VERSION, Beyond, read_command, stated_version
from meshapi.control.v1 import mcg_pb2


class Replica:
    """Entries and snapshots in, in the order of the log. `supported` is the highest mesh version that it can apply."""

    def __init__(self, supported: int = MESH_VERSION) -> None:
        self.state = McgState()
        self.supported = supported
        self._beyond: Beyond | None = None

    @property
    def beyond(self) -> Beyond | None:
        """What stopped it, None while it follows the log."""
        return self._beyond

    def apply(self, index: int, data: bytes) -> Result | None:
        """Applies the command of the entry at `index`; None when it cannot, now or since earlier."""
        if self._beyond is not None:
            return None
        command = read_command(data, self.supported)
        if isinstance(command, Beyond):
            self._beyond = command
            return None
        result = self.state.apply(index, command)
        if self.state.mesh_version > self.supported:
            # The mesh has risen above this software: what comes next may mean what it does not know.
            self._beyond = Beyond(self.state.mesh_version)
        return result

    def advance(self, index: int) -> None:
        """Takes note of an entry that carries no command."""
        if self._beyond is None:
            self.state.advance(index)

    def restore(self, index: int, data: bytes) -> bool:
        """Replaces the state by the snapshot that stands for `index`; False when it needs newer software.

        Raises:
            MeshError: STORAGE_FAILED when the bytes are no snapshot.
        """
        needed = snapshot_version(data)
        if needed > self.supported:
            self._beyond = Beyond(needed)
            return False
        self.state.restore(data)
        self.state.advance(index)
        self._beyond = None
        return True


def snapshot_version(data: bytes) -> int:
    """Least mesh version whose software can read the snapshot; 1 for bytes that are none."""
    try:
        return stated_version(mcg_pb2.McgSnapshot.FromString(data).view.mesh_version)
    except DecodeError:
        return stated_version(0)
