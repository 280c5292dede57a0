"""Exception barriers."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from meshcommon.barrier import LOG_EVERY_S, UNEXPECTED_ERRORS, barrier


def _count(where: str) -> float:
    return float(UNEXPECTED_ERRORS.labels(where)._value.get())


def test_an_exception_is_swallowed_counted_and_told() -> None:
    with capture_logs() as logs, barrier("test-swallow", peer=3) as contained:
        raise ValueError("from outside")
    assert contained.failed
    assert _count("test-swallow") == 1
    assert [(log["event"], log["where"], log["peer"]) for log in logs] == [("unexpected_error", "test-swallow", 3)]


def test_success_counts_nothing() -> None:
    with barrier("test-success") as contained:
        pass
    assert not contained.failed
    assert _count("test-success") == 0


def test_a_flood_is_logged_once_and_then_with_its_number() -> None:
    now = 100.0
    with capture_logs() as logs:
        for _ in range(50):
            with barrier("test-flood", clock=lambda: now):
                raise ValueError
        now += LOG_EVERY_S
        with barrier("test-flood", clock=lambda: now):
            raise ValueError
    assert [log["suppressed"] for log in logs] == [0, 49]
    assert _count("test-flood") == 51


async def test_cancellation_passes_through() -> None:
    async def wait() -> None:
        with barrier("test-cancel"):
            await asyncio.sleep(3600)

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_failed_task_group_is_contained_as_one() -> None:
    async def fail() -> None:
        raise KeyError("peer")

    with barrier("test-group") as contained:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fail())
    assert contained.failed


def test_a_traceback_is_bounded_whatever_the_exception_says() -> None:
    """It may quote a peer: formatting and writing megabytes of it would cost seconds."""

    def nest(depth: int) -> None:
        if depth:
            nest(depth - 1)
        raise ValueError("from outside " + "\x01" * 1_000_000)

    with capture_logs() as logs, barrier("test-long"):
        try:
            nest(0)
        except ValueError as error:
            raise KeyError("y" * 1_000_000) from error
    assert len(logs[0]["exception"]) < 17_000
    assert "ValueError: from outside" in logs[0]["exception"]
