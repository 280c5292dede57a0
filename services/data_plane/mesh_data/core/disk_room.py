"""Whether the disks of a stream's members have room for more records.

A node whose log's file system fills up says so to the nodes that it shares streams with, again and again; leaders take no
further batches of its streams while they hear that. So a log stops growing while there is room left for what must still be
written: votes, memberships, and the move of the floor that makes room. Pure. Leaves out: measuring and sending (`disk_watch`).
The absolute bound is there because a fifth of a large disk is no shortage.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from meshcommon.ids import NodeId


@dataclass(frozen=True, slots=True)
class RoomLimits:
    """When a file system is short of room.

    Attributes:
        used_share: short from this share in use on, 0 to 1.
        plenty_bytes: never short with so many bytes free, whatever the share.
        give_back_share: so much less has to be in use before it is no longer short.
        heard_s: how long a peer's word holds; it says it again several times in that time.
    """

    used_share: float = 0.8
    plenty_bytes: int = 2 << 30
    give_back_share: float = 0.02
    heard_s: float = 3.0


class DiskRoom:
    """What one node knows of its own disk and of its peers'."""

    def __init__(self, limits: RoomLimits) -> None:
        self._limits = limits
        self.is_short = False
        """Whether this node's own disk is short of room."""
        self._heard_s: dict[NodeId, float] = {}

    def measured(self, total_bytes: int, free_bytes: int) -> bool:
        """The file system of this node's log was looked at; returns whether `is_short` changed."""
        limit = self._limits.used_share - (self._limits.give_back_share if self.is_short else 0.0)
        is_short = free_bytes < self._limits.plenty_bytes and total_bytes - free_bytes >= limit * total_bytes
        has_changed, self.is_short = is_short != self.is_short, is_short
        return has_changed

    def heard(self, node: NodeId, now: float) -> None:
        """A peer says that its disk is short of room; `now` in seconds of any clock that does not go back."""
        self._heard_s[node] = now

    @property
    def has_no_doubt(self) -> bool:
        """Whether nobody was heard to be short of room, and this node is not: cheap, for every batch."""
        return not self.is_short and not self._heard_s

    def short_member(self, own: NodeId, members: Iterable[NodeId], now: float) -> NodeId | None:
        """The first of a stream's members whose disk is short of room, or None."""
        self._heard_s = {node: at for node, at in self._heard_s.items() if now - at < self._limits.heard_s}
        for node in members:
            if self.is_short if node == own else node in self._heard_s:
                return node
        return None
