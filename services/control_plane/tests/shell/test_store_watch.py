"""A store that does not answer is named within two seconds, since when, and forgotten when it answers again."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import redis.asyncio
from redis.exceptions import TimeoutError as RedisTimeoutError

from mesh_control.shell import store_watch
from mesh_control.shell.store_watch import INTERVAL_S, TIMEOUT_S, StoreWatch, watches
from meshcommon.admin import Readiness
from meshtest.ports import free_ports
from meshtest.stores import EmbeddedPostgres, EmbeddedValkey
from meshtest.waiting import eventually

SINCE = re.compile(r"does not answer since \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ \(")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds one Postgres cluster, which takes a second to make."""
    return tmp_path_factory.mktemp("stores")


@pytest.fixture
def postgres(folder: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(folder / "pg", folder / "postgres.log")
    server.prepare()
    yield server
    server.stop()


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    server = EmbeddedValkey(free_ports(1)[0], tmp_path / "valkey", tmp_path / "valkey.log")
    yield server
    server.stop()


@asynccontextmanager
async def watching(postgres_url: str, redis_url: str) -> AsyncIterator[Readiness]:
    readiness = Readiness()
    async with asyncio.TaskGroup() as tasks:
        running = [
            tasks.create_task(job, name=name) for name, job in watches(postgres_url, redis_url, readiness).items()
        ]
        yield readiness
        for task in running:
            task.cancel()


async def until(readiness: Readiness, *names: str) -> list[str]:
    """The warnings when exactly these stores are named."""

    async def is_told() -> bool:
        return [warning.split()[0] for warning in readiness.warnings()] == [*names]

    await eventually(f"warnings name {names}", is_told)
    return readiness.warnings()


def test_a_dead_store_is_named_in_time() -> None:
    assert INTERVAL_S + TIMEOUT_S <= 1.5


async def test_stores_that_die_are_named_since_when_and_forgotten_when_they_are_back(
    postgres: EmbeddedPostgres, valkey: EmbeddedValkey
) -> None:
    postgres.launch()
    valkey.launch()
    await asyncio.gather(postgres.wait(), valkey.wait())
    async with watching(postgres.url, valkey.url) as readiness:
        await asyncio.sleep(INTERVAL_S)
        assert readiness.warnings() == []
        await asyncio.to_thread(valkey.stop)
        (first,) = await until(readiness, "Redis")
        assert SINCE.search(first)
        await asyncio.to_thread(postgres.stop)
        warnings = await until(readiness, "Redis", "Postgres")
        assert SINCE.search(warnings[1])
        # The time is that of the first silence, however long it lasts.
        await asyncio.sleep(1.1)
        since = SINCE.search(readiness.warnings()[0])
        assert since is not None
        assert since.group(0) in first
        postgres.launch()
        valkey.launch()
        await until(readiness)


async def test_a_store_that_hangs_is_away_too(valkey: EmbeddedValkey, postgres: EmbeddedPostgres) -> None:
    children = [postgres.launch(), valkey.launch()]
    await asyncio.gather(postgres.wait(), valkey.wait())
    async with watching(postgres.url, valkey.url) as readiness:
        await asyncio.sleep(2 * INTERVAL_S)
        # Postgres serves each connection by a process of its own: all of them stop.
        group = [child.pid for child in children] + _children_of(children[0].pid)
        for pid in group:
            os.kill(pid, signal.SIGSTOP)
        try:

            async def are_named() -> bool:
                return len(readiness.warnings()) == 2

            await eventually("both are named", are_named)
            assert all("TimeoutError" in warning for warning in readiness.warnings())
        finally:
            for pid in group:
                os.kill(pid, signal.SIGCONT)
        await until(readiness)


def _children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def test_a_store_holds_one_connection_of_the_watch(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_watch, "INTERVAL_S", 0.01)
    valkey.launch()
    await valkey.wait()
    async with watching("", valkey.url) as readiness:
        client = redis.asyncio.Redis.from_url(valkey.url)

        async def is_connected() -> bool:
            return len(await client.client_list()) == 2

        await eventually("the watch has a connection beside the test's", is_connected)
        await asyncio.sleep(0.3)
        assert await is_connected()
        await client.aclose()
        assert readiness.warnings() == []


async def test_an_address_that_leads_nowhere_is_told_not_raised(tmp_path: Path) -> None:
    port = free_ports(1)[0]
    urls = (f"postgresql+asyncpg://u:secret@127.0.0.1:{port}/db", f"redis://:secret@127.0.0.1:{port}/0")
    async with watching(*urls) as readiness:
        warnings = await until(readiness, "Postgres", "Redis")
        assert "secret" not in " ".join(warnings)
    assert watches("", "", Readiness()) == {}


class _Odd:
    """A store whose driver has a fault, or that takes no goodbye."""

    name = "Redis"

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.answers = False

    async def ask(self) -> None:
        if not self.answers:
            raise self.error

    def explain(self, error: Exception) -> str:
        return type(error).__name__

    async def close(self) -> None:
        raise self.error


@pytest.mark.parametrize(
    "error", [RedisTimeoutError("Timed out closing connection"), RuntimeError("handler is closed")]
)
async def test_fault_of_a_driver_is_a_warning_and_no_end(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_watch, "INTERVAL_S", 0.01)
    readiness, probe = Readiness(), _Odd(error)
    watching = asyncio.create_task(StoreWatch(probe, readiness).run())
    await until(readiness, "Redis")
    probe.answers = True
    await until(readiness)
    watching.cancel()
    await asyncio.wait((watching,))
    assert watching.cancelled()
