"""What a node does about replicas that met an entry of a later version: it says so, and does not lead them.

Such a replica stands still and can be read; `Replica.stop_applying` says why. Leading, it could commit what it cannot apply
and would have to refuse every publish, so it gives the leadership to the other voters in turn: one of them may have the
new software. Leaves out: how it gets there (a software update and a restart). Source: architecture §12.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from mesh_data.shell.groups.replica import Replica
from meshcommon.admin import Readiness
from meshcommon.ids import NodeId
from meshraft.configuration import Transfer

_KEY: Final = "update"
_NAMED_MAX: Final = 3


def step_down(replica: Replica, is_reachable: Callable[[NodeId], bool]) -> None:
    """Asks the next voter in turn to lead, not more often than elections take.

    Raises:
        RaftError: the group cannot be asked.
    """
    if heirs := sorted(replica.heirs(is_reachable)):
        # Which of them can lead is not known here.
        raft = replica.raft
        turn = raft.driver.ticks // (2 * raft.config.election_ticks)
        raft.take(Transfer(heirs[turn % len(heirs)]))


def warn_of_outdated(readiness: Readiness, replicas: Iterable[Replica]) -> None:
    """Sets or clears the warning of `/readyz`."""
    names = sorted(replica.stream.name for replica in replicas if replica.update_required is not None)
    if not names:
        readiness.clear(_KEY)
        return
    more = f" and {len(names) - _NAMED_MAX} more" if len(names) > _NAMED_MAX else ""
    readiness.warn(
        _KEY,
        f"UPDATE_REQUIRED: this node's replicas of {', '.join(names[:_NAMED_MAX])}{more} have stopped at an entry of a later "
        "version: update the node's software and restart it.",
    )
