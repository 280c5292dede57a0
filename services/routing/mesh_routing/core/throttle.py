"""When to compute routes after a change: the SPF delay of RFC 8405, §§3–5, all three states and six transitions.

One deviation: a change that only moves metrics is computed after the long delay and does not enter the state machine.
Measurements fluctuate all the time; if they counted, the network would never be quiet and a failure would always meet
the long delay.
"""

from __future__ import annotations

from enum import Enum

from mesh_routing.core.config import ThrottleTiming


class ThrottleState(Enum):
    """States of RFC 8405 §5."""

    QUIET = "quiet"
    SHORT_WAIT = "short_wait"
    LONG_WAIT = "long_wait"


class Throttle:
    """Tells when the next computation is due. `now` is monotonic seconds."""

    def __init__(self, timing: ThrottleTiming) -> None:
        self._timing = timing
        self._state = ThrottleState.QUIET
        self._compute_at: float | None = None
        self._learn_until = 0.0
        self._hold_down_until = 0.0

    @property
    def state(self) -> ThrottleState:
        """Present state, as of the last call."""
        return self._state

    def structure_changed(self, now: float) -> None:
        """A link came up or went down, or a node came or went."""
        self._expire(now)
        timing = self._timing
        if self._state is ThrottleState.QUIET:
            self._state = ThrottleState.SHORT_WAIT
            self._learn_until = now + timing.time_to_learn_s
            delay = timing.initial_s
        elif self._state is ThrottleState.SHORT_WAIT:
            delay = timing.short_s
        else:
            delay = timing.long_s
        self._hold_down_until = now + timing.hold_down_s
        self._compute_by(now + delay)

    def metrics_changed(self, now: float) -> None:
        """Only costs changed."""
        self._expire(now)
        self._compute_by(now + self._timing.long_s)

    def take_due(self, now: float) -> bool:
        """Whether to compute now; if so the request is settled."""
        self._expire(now)
        if self._compute_at is None or now < self._compute_at:
            return False
        self._compute_at = None
        return True

    def next_deadline(self) -> float | None:
        """When `take_due` should be asked next; None: not before the next change."""
        return self._compute_at

    def _compute_by(self, deadline: float) -> None:
        if self._compute_at is None or deadline < self._compute_at:
            self._compute_at = deadline

    def _expire(self, now: float) -> None:
        """Transitions by timers; evaluated on demand because nothing happens at them but a change of state."""
        if self._state is not ThrottleState.QUIET and now >= self._hold_down_until:
            self._state = ThrottleState.QUIET
        elif self._state is ThrottleState.SHORT_WAIT and now >= self._learn_until:
            self._state = ThrottleState.LONG_WAIT
