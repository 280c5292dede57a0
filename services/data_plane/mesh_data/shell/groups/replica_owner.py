"""What a replica asks and tells the one that opened it.

Leaves out: what becomes of a failure (`groups`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from mesh_data.core.view import Stream
from meshcommon.errors import MeshError

if TYPE_CHECKING:
    from mesh_data.shell.groups.replica import Replica


class ReplicaOwner(Protocol):
    """Opens replicas and closes them."""

    @property
    def refusal(self) -> Callable[[Stream], MeshError | None]:
        """Tells why a leader takes no batch of a stream now, or None."""

    def mesh_version(self) -> int:
        """The version that all members of the mesh support."""

    def replica_failed(self, replica: Replica, reason: str, *, is_distrusted: bool = False) -> None:
        """The replica cannot go on and has to `fail`; distrusted: its disk lost what the member once confirmed."""

    def replica_reports(self) -> None:
        """There is something new to report of a replica."""
