"""The asyncio shell of a driver: ticks, one turn per wake-up, failures, the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from meshraft import GroupConfig, HostPoisoned, RaftHost, SimDisk
from meshraft.driver import Turn
from meshraft.host_loop import HostLoop

GROUP = 7
TICK_S = 0.01


class Owner:
    """Notes what the loop calls."""

    def __init__(self) -> None:
        self.disk = SimDisk()
        self.host = RaftHost.simulated(self.disk, seed=1)
        self.host.create_group(GROUP, 1, {1: 1}, voters=[1], config=GroupConfig())
        self.disk.sync()
        self.turns: list[Turn] = []
        self.ticked_at: list[float] = []
        self.failures: list[Exception] = []
        self.error: Exception | None = None
        self.loop = HostLoop(
            self.host,
            TICK_S,
            lambda _frame: None,
            ticked=lambda: self.ticked_at.append(time.monotonic()),
            turned=self.turned,
            failed=self.failures.append,
        )

    def turned(self, turn: Turn) -> None:
        self.turns.append(turn)
        if self.error is not None:
            raise self.error


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1_000):
        if condition():
            return
        await asyncio.sleep(TICK_S)
    raise AssertionError("it does not come to that")


def on_a_loop(check: Callable[[Owner], Awaitable[None]]) -> None:
    async def run() -> None:
        owner = Owner()
        async with asyncio.timeout(10):
            await check(owner)

    asyncio.run(run())


def test_ticks_come_until_the_end_and_rest_when_asked() -> None:
    async def check(owner: Owner) -> None:
        owner.loop.start()
        await until(lambda: owner.loop.driver.ticks >= 5)
        owner.loop.is_ticking = False
        resting_at = owner.loop.driver.ticks
        await asyncio.sleep(5 * TICK_S)
        assert owner.loop.driver.ticks == resting_at
        owner.loop.is_ticking = True
        await until(lambda: owner.loop.driver.ticks != resting_at)
        owner.loop.close()
        ended_at = owner.loop.driver.ticks
        await asyncio.sleep(5 * TICK_S)
        assert owner.loop.driver.ticks == ended_at
        assert owner.failures == []

    on_a_loop(check)


def test_a_late_tick_is_not_made_up_for() -> None:
    """Time in which the process did not run is nobody's silence: two ticks at most come at once after it."""

    async def check(owner: Owner) -> None:
        owner.loop.start()
        await asyncio.sleep(3 * TICK_S)
        woken_at = time.monotonic() + 20 * TICK_S
        while time.monotonic() < woken_at:
            pass  # the event loop stands still
        await asyncio.sleep(3 * TICK_S)
        elapsed_ticks = (time.monotonic() - woken_at) / TICK_S
        after = [at for at in owner.ticked_at if at >= woken_at]
        assert len(after) <= elapsed_ticks + 2
        owner.loop.close()

    on_a_loop(check)


def test_many_calls_between_two_turns_are_one_turn() -> None:
    async def check(owner: Owner) -> None:
        owner.loop.start()
        owner.loop.is_ticking = False
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        before = len(owner.turns)
        for _ in range(10):
            owner.loop.wake()
        await asyncio.sleep(0)
        assert len(owner.turns) == before + 1
        owner.loop.close()
        owner.loop.wake()
        await asyncio.sleep(0)
        assert len(owner.turns) == before + 1

    on_a_loop(check)


def test_the_owner_is_told_what_a_turn_raised() -> None:
    async def check(owner: Owner) -> None:
        owner.error = KeyError("a bug")
        owner.loop.start()
        await until(lambda: bool(owner.failures))
        assert owner.failures[0] is owner.error
        owner.loop.close()

    on_a_loop(check)


def test_a_host_that_failed_is_told_by_the_next_tick_or_turn() -> None:
    async def check(owner: Owner) -> None:
        owner.loop.start()
        owner.disk.crash()
        await until(lambda: bool(owner.failures))
        assert isinstance(owner.failures[0], HostPoisoned)

    on_a_loop(check)


def test_a_real_log_wakes_the_loop(tmp_path: object) -> None:
    """A write that became durable leads to a turn without a tick."""

    async def run() -> None:
        host = RaftHost.open(str(tmp_path), seed=1)
        led = asyncio.Event()

        def turned(_turn: Turn) -> None:
            if host.status(GROUP).role == "leader" and host.status(GROUP).applied > 1:
                led.set()

        failures: list[Exception] = []
        loop = HostLoop(host, 60.0, lambda _frame: None, ticked=lambda: None, turned=turned, failed=failures.append)
        host.create_group(GROUP, 1, {1: 1}, voters=[1], config=GroupConfig())
        host.campaign(GROUP)
        loop.start()
        async with asyncio.timeout(10):
            await led.wait()
        loop.close()
        assert failures == []
        with pytest.raises(HostPoisoned):
            host.pump()

    asyncio.run(run())
