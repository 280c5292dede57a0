"""The driver of one Raft host: its groups, and the one order in which what a turn produces is acted upon.

Pure: the caller owns the clock, the network and the event loop (`host_loop` is the one for asyncio). Leaves out: what is
known of one group (`group`), opening groups, what a frame is to the network. Source: architecture §7; meshraft's contract
in `_native.pyi`; ADR 0015.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from meshraft import Entries, Frame, RaftHost

if TYPE_CHECKING:
    from meshraft.group import RaftGroup


class Turn(NamedTuple):
    """What a turn had in it.

    Attributes:
        has_news: something was committed, installed or elected; the log holds more than before.
        has_changes: a group has another role or another snapshot, or was closed.
    """

    has_news: bool
    has_changes: bool


class RaftDriver:
    """One host with its open groups. Where meshraft's calls raise, so do these: HostPoisoned ends the host."""

    def __init__(self, host: RaftHost, send: Callable[[Frame], None], wake: Callable[[], None] = lambda: None) -> None:
        """`send` takes a frame, best effort; `wake` asks for a turn, after a call that leads to one."""
        self.host = host
        self.wake = wake
        self.groups: dict[int, RaftGroup[Any, Any]] = {}
        """Open groups by id (see `RaftGroup.join`); entries of others are passed over."""
        self.ticks = 0
        """Ticks so far."""
        self._send = send

    def tick(self) -> None:
        """One tick for all groups."""
        self.ticks += 1
        self.host.tick()

    def turn(self) -> Turn:
        """One `pump`, acted upon in order: frames, snapshots, entries, roles, ends of turn, read points, closings."""
        pump, groups = self.host.pump(), self.groups
        has_news = bool(pump.roles or pump.installed or pump.entries.group is not None)
        for frame in pump.frames:
            self._send(frame)
        for installed in pump.installed:
            if (group := groups.get(installed.group)) is not None:
                group.installed(installed)
        touched = self._apply(pump.entries)
        for role in pump.roles:
            if (group := groups.get(role.group)) is not None:
                group.role_changed(role)
        for group in touched:
            group.machine.turn_ended()
        for number, token, index in pump.reads:
            if (group := groups.get(number)) is not None:
                group.read_points.answered(token, index, group.machine.applied_index)
        for number, kind, reason in pump.closed:
            if (group := groups.get(number)) is not None:
                group.machine.closed(kind, reason)
        return Turn(has_news, bool(pump.roles or pump.installed or pump.closed))

    def _apply(self, entries: Entries) -> list[RaftGroup[Any, Any]]:
        """Applies entries in order; returns the groups that took some."""
        touched: list[RaftGroup[Any, Any]] = []
        # All of a group comes in one piece.
        while (number := entries.group) is not None:
            group = self.groups.get(number)
            if group is None:
                entries.skip(1)
                continue
            if not touched or touched[-1] is not group:
                touched.append(group)
            group.machine.apply_next(entries)
        return touched
