"""The asyncio shell of a Raft driver: its ticks, the wake-ups of the log, and one turn for all that came since the last.

Leaves out: what a turn does (`driver`), and what a failure means: that is the owner's. Source: ADR 0015.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from meshraft import Frame, RaftHost
from meshraft.driver import RaftDriver, Turn


class HostLoop:
    """Drives one host from `start` to `close`. One event loop only."""

    def __init__(
        self,
        host: RaftHost,
        tick_s: float,
        send: Callable[[Frame], None],
        *,
        ticked: Callable[[], None],
        turned: Callable[[Turn], None],
        failed: Callable[[Exception], None],
    ) -> None:
        """Nothing happens before `start`.

        Args:
            host: the host, with or without groups.
            tick_s: length of a tick in seconds.
            send: sends a frame, best effort.
            ticked: called after each tick.
            turned: called after each turn.
            failed: called instead of either with what was raised. It may close the loop; else that goes on.
        """
        self.driver = RaftDriver(host, send, self.wake)
        self.is_ticking = True
        """Whether time goes on: a member that rests holds no elections, and still takes frames."""
        self._host = host
        self._tick_s = tick_s
        self._ticked = ticked
        self._turned = turned
        self._failed = failed
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._descriptor = -1
        self._is_turn_due = False

    @property
    def is_running(self) -> bool:
        """Between `start` and `close`."""
        return self._loop is not None

    def start(self) -> None:
        """Begins to tick and to turn."""
        self._loop = asyncio.get_running_loop()
        # Kept: a host whose log failed no longer tells it, and a forgotten reader would meet the next socket of that number.
        self._descriptor = self._host.fileno()
        if self._descriptor >= 0:
            self._loop.add_reader(self._descriptor, self.wake)
        self._due = self._loop.time() + self._tick_s
        self._timer = self._loop.call_at(self._due, self._tick)
        self.wake()

    def close(self) -> None:
        """Ends ticks and turns, then closes the host. Raises RaftError: the log could not be flushed."""
        if self._timer is not None:
            self._timer.cancel()
        if self._loop is not None and self._descriptor >= 0:
            with suppress(RuntimeError):  # the loop may be closing already
                self._loop.remove_reader(self._descriptor)
        self._loop = self._timer = None
        self._host.close()

    def wake(self) -> None:
        """Asks for one turn, after everything else that this turn of the event loop brings."""
        if not self._is_turn_due and self._loop is not None:
            self._is_turn_due = True
            self._loop.call_soon(self._turn)

    def _tick(self) -> None:
        loop = self._loop
        if loop is None:
            return
        # A late tick is not made up for: time in which this process did not run is nobody's silence.
        self._due = max(self._due + self._tick_s, loop.time())
        self._timer = loop.call_at(self._due, self._tick)
        if not self.is_ticking:
            return
        try:
            self.driver.tick()
            self._ticked()
        except Exception as error:  # noqa: BLE001 - whatever it is, the owner decides what it means
            self._failed(error)
        self.wake()

    def _turn(self) -> None:
        self._is_turn_due = False
        if not self.is_running:
            return
        try:
            self._turned(self.driver.turn())
            if self._has_work():
                self.wake()
        except Exception as error:  # noqa: BLE001 - whatever it is, the owner decides what it means
            self._failed(error)

    def _has_work(self) -> bool:
        # A turn may have ended the loop.
        return self.is_running and self._host.has_work()
