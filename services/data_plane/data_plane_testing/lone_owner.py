"""The owner of a replica that no catalogue knows of."""

from __future__ import annotations

from mesh_data.core.view import Stream
from mesh_data.shell.groups.replica import Replica


class LoneOwner:
    """Takes every batch; a replica that fails is a finding."""

    def refusal(self, _stream: Stream) -> None:
        """There is room."""

    def mesh_version(self) -> int:
        """The first one."""
        return 1

    def replica_failed(self, replica: Replica, reason: str, *, is_distrusted: bool = False) -> None:
        """Raises AssertionError."""
        raise AssertionError(f"{replica.stream.name} failed: {reason}, distrusted: {is_distrusted}")

    def replica_reports(self) -> None:
        """Nobody asks."""
