"""Wakes the driver of a core at the deadline that the core names, instead of asking it at every tick of a clock.

Purpose: one timer for a shell that drives a core with `next_deadline`. An idle core costs nothing. Leaves out: what is done
then. Rejected: a task that sleeps until the deadline, which needs an event and a timeout object for each wake.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Final, TypeAlias

from meshcommon.barrier import barrier

ROUNDING_S: Final = 0.001
"""Added to each wait: uvloop counts whole milliseconds and would wake up to one too early, with nothing to do yet."""
AFTER_FAILURE_S: Final = 1.0
"""Pause after a turn that failed unexpectedly."""
Turn: TypeAlias = Callable[[float, float], float | None]
"""(now; seconds by which the loop was late) → the core's next deadline; None when it waits for nothing."""


class DeadlineTimer:
    """Runs a turn whenever a deadline has come. For one event loop; not thread safe."""

    __slots__ = ("_at", "_clock", "_gap_s", "_handle", "_is_started", "_name", "_not_before", "_turn")

    def __init__(self, name: str, turn: Turn, clock: Callable[[], float], gap_s: float) -> None:
        """Does nothing until `start`.

        Args:
            name: Label of the barrier around a turn.
            turn: Runs in the event loop; must not wait.
            clock: Seconds, rising: the clock of the core's deadlines.
            gap_s: Least time between two turns. Cost: a deadline in it comes so much later; what is due in it shares a turn.
        """
        self._name = name
        self._turn = turn
        self._clock = clock
        self._gap_s = gap_s
        self._is_started = False
        self._at = math.inf
        self._not_before = -math.inf
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begins to wake; call it in the running loop. The first turn comes at once and names the first deadline."""
        self._is_started = True
        self._arm(self._clock())

    def stop(self) -> None:
        """Wakes no more."""
        self._is_started = False
        self._at = math.inf
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def no_later_than(self, deadline: float | None) -> None:
        """The core may have a nearer deadline than the one it named last. Costs a comparison when it has none."""
        if deadline is not None and deadline < self._at and self._is_started:
            self._arm(deadline)

    def _arm(self, deadline: float) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        now = self._clock()
        # Never in the past: lateness is the loop's, not that of whoever named the deadline.
        self._at = max(deadline, self._not_before, now)
        if self._at < math.inf:
            self._handle = asyncio.get_running_loop().call_later(self._at - now + ROUNDING_S, self._run)

    def _run(self) -> None:
        self._handle = None
        now = self._clock()
        late_s = now - self._at
        # A deadline that comes up during the turn is in the answer of the turn.
        self._at = -math.inf
        deadline: float | None = None
        with barrier(self._name) as running:
            deadline = self._turn(now, late_s)
        if not self._is_started:
            return
        ended_at = self._clock()
        self._not_before = ended_at + self._gap_s
        if running.failed:
            deadline = ended_at + AFTER_FAILURE_S
        self._arm(math.inf if deadline is None else deadline)
