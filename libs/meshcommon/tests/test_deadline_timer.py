"""The timer wakes at the deadline, at an earlier one that comes up, and not at all while there is none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from meshcommon import deadline_timer
from meshcommon.deadline_timer import DeadlineTimer
from meshtest.waiting import eventually

GAP_S = 0.005


class Core:
    """Deadlines as a list; each turn takes those that have come."""

    def __init__(self, *deadlines: float) -> None:
        self.deadlines = sorted(deadlines)
        self.turns: list[tuple[float, float]] = []
        self.failures = 0
        self.is_stuck = False

    def turn(self, now: float, late_s: float) -> float | None:
        self.turns.append((now, late_s))
        if self.failures:
            self.failures -= 1
            raise ZeroDivisionError
        if self.is_stuck:
            return 0.0
        self.deadlines = [item for item in self.deadlines if item > now]
        return self.deadlines[0] if self.deadlines else None


async def until(what: str, holds: Callable[[], object]) -> None:
    async def look() -> bool:
        return bool(holds())

    await eventually(what, look, timeout_s=10, poll_s=0.002)


@contextmanager
def running(core: Core, gap_s: float = GAP_S) -> Iterator[DeadlineTimer]:
    timer = DeadlineTimer("test_timer", core.turn, time.monotonic, gap_s)
    timer.start()
    try:
        yield timer
    finally:
        timer.stop()


async def test_first_turn_comes_at_once_then_nothing_without_a_deadline() -> None:
    core = Core()
    with running(core):
        await asyncio.sleep(0.1)
        assert len(core.turns) == 1


async def test_each_deadline_has_a_turn_that_is_not_early() -> None:
    start = time.monotonic()
    deadlines = [start + 0.03, start + 0.06, start + 0.09]
    core = Core(*deadlines)
    with running(core):
        await until("all deadlines are gone", lambda: not core.deadlines)
    assert len(core.turns) <= 1 + len(deadlines)
    assert all(now >= due for (now, _), due in zip(core.turns[-1:], deadlines[-1:], strict=True))


async def test_nearer_deadline_brings_the_turn_forward() -> None:
    core = Core(time.monotonic() + 3600)
    with running(core) as timer:
        await until("the first turn", lambda: core.turns)
        nearer = time.monotonic() + 0.02
        core.deadlines.insert(0, nearer)
        timer.no_later_than(nearer)
        timer.no_later_than(nearer + 10)
        timer.no_later_than(None)
        await until("the second turn", lambda: len(core.turns) == 2)
        assert core.turns[1][0] >= nearer


async def test_own_stall_is_the_lateness_of_the_next_turn() -> None:
    core = Core(time.monotonic() + 0.02)
    with running(core):
        await until("the first turn", lambda: core.turns)
        stall_ends_at = time.monotonic() + 0.15
        while time.monotonic() < stall_ends_at:
            pass
        await until("the second turn", lambda: len(core.turns) == 2)
    assert core.turns[1][1] > 0.1


async def test_deadlines_that_lie_in_the_past_do_not_spin() -> None:
    core = Core()
    core.is_stuck = True
    with running(core, gap_s=0.05) as timer:
        for _ in range(20):
            timer.no_later_than(0.0)
            await asyncio.sleep(0.01)
    assert 2 <= len(core.turns) <= 6


async def test_failed_turn_is_followed_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadline_timer, "AFTER_FAILURE_S", 0.01)
    core = Core()
    core.failures = 2
    with running(core):
        await until("a turn that does not fail", lambda: len(core.turns) == 3)


async def test_nothing_runs_before_the_start_or_after_the_stop() -> None:
    core = Core()
    timer = DeadlineTimer("test_timer", core.turn, time.monotonic, GAP_S)
    timer.no_later_than(0.0)
    await asyncio.sleep(0.02)
    assert not core.turns
    timer.start()
    timer.stop()
    timer.no_later_than(0.0)
    await asyncio.sleep(0.02)
    assert not core.turns
