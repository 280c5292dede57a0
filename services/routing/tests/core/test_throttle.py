"""RFC 8405: states, delays and transitions."""

from __future__ import annotations

from mesh_routing.core.config import ThrottleTiming
from mesh_routing.core.throttle import Throttle, ThrottleState

TIMING = ThrottleTiming(initial_s=0.0, short_s=0.02, long_s=0.2, time_to_learn_s=0.5, hold_down_s=2.0)


def due(throttle: Throttle) -> float:
    deadline = throttle.next_deadline()
    assert deadline is not None
    assert not throttle.take_due(deadline - 1e-6)
    assert throttle.take_due(deadline)
    assert throttle.next_deadline() is None
    return deadline


def test_first_change_after_quiet_is_computed_at_once() -> None:
    """§5.1 transition 1."""
    throttle = Throttle(TIMING)
    throttle.structure_changed(10.0)
    assert due(throttle) == 10.0
    assert throttle.state is ThrottleState.SHORT_WAIT


def test_changes_of_one_failure_wait_the_short_delay_together() -> None:
    """Transition 2: a timer that runs is not restarted."""
    throttle = Throttle(TIMING)
    throttle.structure_changed(10.0)
    due(throttle)
    throttle.structure_changed(10.1)
    throttle.structure_changed(10.11)
    assert due(throttle) == 10.1 + TIMING.short_s


def test_churn_waits_the_long_delay() -> None:
    """Transitions 3 and 4."""
    throttle = Throttle(TIMING)
    for step in range(6):
        throttle.structure_changed(10.0 + step * 0.15)
        due(throttle)
    assert throttle.state is ThrottleState.LONG_WAIT
    throttle.structure_changed(11.0)
    assert due(throttle) == 11.0 + TIMING.long_s


def test_silence_for_the_hold_down_makes_it_quiet_again() -> None:
    """Transitions 5 and 6: from either waiting state, counted from the last change."""
    for changes in ([10.0], [10.0, 10.6, 11.2]):
        throttle = Throttle(TIMING)
        for now in changes:
            throttle.structure_changed(now)
            due(throttle)
        states = []
        for now in (changes[-1] + TIMING.hold_down_s - 0.01, changes[-1] + TIMING.hold_down_s):
            throttle.take_due(now)
            states.append(throttle.state)
        assert states == [ThrottleState.LONG_WAIT, ThrottleState.QUIET]
        throttle.structure_changed(changes[-1] + TIMING.hold_down_s)
        assert due(throttle) == changes[-1] + TIMING.hold_down_s


def test_metrics_wait_and_do_not_spend_the_fast_reaction() -> None:
    throttle = Throttle(TIMING)
    for step in range(100):
        throttle.metrics_changed(10.0 + step * 0.1)
        throttle.take_due(10.0 + step * 0.1)
    assert throttle.state is ThrottleState.QUIET
    throttle.take_due(30.0)
    throttle.metrics_changed(30.0)
    throttle.structure_changed(30.01)
    assert due(throttle) == 30.01
