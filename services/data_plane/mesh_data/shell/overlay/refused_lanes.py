"""Counts and logs the lanes that did not come up: dials that failed, and what this node refused.

A stranger that is refused a thousand times, or a node that is away for a night, must not fill the log; each is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from mesh_data.core.dial_policy import Dial
from mesh_data.core.link import Link
from mesh_data.core.view import View
from meshcommon.errors import MeshError
from meshcommon.ids import NodeId
from meshcommon.logging import get_logger
from meshcommon.peer_text import printable
from meshcommon.token_bucket import TokenBucket

_LOGGED_PER_S: Final = 2.0
_LOGGED_BURST: Final = 20.0
_log = get_logger(__name__)


class RefusedLanes:
    """What became of the lanes that did not come up."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` tells monotonic seconds."""
        self._clock = clock
        self._log_budget = TokenBucket(_LOGGED_PER_S, _LOGGED_BURST, clock())
        self._dial_failures: dict[NodeId, MeshError] = {}
        self.counts: dict[str, int] = {}
        """By error code, or another short word."""

    def count(self, reason: str) -> None:
        """Counts one."""
        self.counts[reason] = self.counts.get(reason, 0) + 1

    def dial_failed(self, dial: Dial, error: MeshError) -> None:
        """Counts a dial that failed; logs it once for each new reason."""
        self.count(error.code)
        last = self._dial_failures.get(dial.peer)
        log = _log.debug if last is not None and last.code == error.code else _log.info
        self._dial_failures[dial.peer] = error
        log("dial_failed", peer=dial.peer, address=dial.address, code=error.code, reason=printable(error.message))

    def failed_dials(self, view: View | None, links: Iterable[Link]) -> dict[NodeId, MeshError]:
        """The last failure of each dial to a member to which no link is up; those that are no members are forgotten."""
        for gone in self._dial_failures.keys() - (view.nodes.keys() if view is not None else ()):
            del self._dial_failures[gone]
        up = {link.peer for link in links if link.is_up}
        return {peer: error for peer, error in self._dial_failures.items() if peer not in up}

    def dial_succeeded(self, peer: NodeId) -> None:
        """The next failure is news again."""
        self._dial_failures.pop(peer, None)

    def stranger_refused(self, remote: str, error: MeshError) -> None:
        """Counts a connection that came in and was refused."""
        self.count(error.code)
        log = _log.info if self._log_budget.take(self._clock()) else _log.debug
        log("lane_refused", remote=remote, code=error.code, reason=printable(error.message))

    def lane_not_settled(self, lane_id: int, error: MeshError) -> None:
        """Counts a lane that was closed because its two ends know other members."""
        self.count(error.code)
        log = _log.info if self._log_budget.take(self._clock()) else _log.debug
        log("lane_not_settled", lane=lane_id, code=error.code, reason=printable(error.message))
