"""Whether this site's Postgres and Redis answer, told as warnings of the node's status.

Each store has a connection of its own here, so that a store that hangs costs nothing but this task, and the pools of what
works with the store stay free. A store that dies is named within INTERVAL_S + TIMEOUT_S; one answer takes the warning
back. Nothing is decided by it: what needs a store finds out by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import asyncpg
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from sqlalchemy.dialects.postgresql.asyncpg import dialect

from meshcommon.admin import Readiness
from meshcommon.barrier import barrier, report
from meshcommon.cancellation import raise_if_cancelled
from meshcommon.logging import get_logger
from meshcommon.postgres import explain, target_of
from meshcommon.redis_store import open_redis
from meshcommon.store_urls import fault_in

INTERVAL_S: Final = 0.5
TIMEOUT_S: Final = 1.0
_OPTIONS_OF_SQLALCHEMY: Final = (
    "prepared_statement_cache_size",
    "prepared_statement_name_func",
    "async_fallback",
    "async_creator_fn",
)

_log = get_logger(__name__)
Jobs = dict[str, Coroutine[Any, Any, None]]
"""What is to run, by name."""


class Probe(Protocol):
    """One store, asked whether it answers."""

    name: str

    async def ask(self) -> None:
        """Returns when it has answered; raises whatever goes wrong. May be cancelled at any time."""

    def explain(self, error: Exception) -> str:
        """What is wrong and what to do, as the end of a sentence."""

    async def close(self) -> None:
        """Gives the connection up at once."""


class PostgresProbe:
    """Postgres at a SQLAlchemy address, `postgresql+asyncpg://…`."""

    name = "Postgres"

    def __init__(self, url: str) -> None:
        # SQLAlchemy ships no types for its dialects.
        makes_options: Any = dialect
        plain, tls = target_of(url)
        self._options: dict[str, Any] = makes_options().create_connect_args(plain)[1] | tls
        for option in _OPTIONS_OF_SQLALCHEMY:
            self._options.pop(option, None)
        self._connection: asyncpg.Connection | None = None

    async def ask(self) -> None:
        """Runs the smallest query."""
        if self._connection is None:
            self._connection = await asyncpg.connect(**self._options, timeout=TIMEOUT_S)
        await self._connection.execute("SELECT 1")

    def explain(self, error: Exception) -> str:
        """Tells a refused password from a server that is away."""
        return explain(error)

    async def close(self) -> None:
        """Does not wait for the server, which may hang."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None


class RedisProbe:
    """Redis or Valkey at `redis://…`."""

    name = "Redis"

    def __init__(self, url: str) -> None:
        self._client = open_redis(
            url,
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            max_connections=1,
            # Each try is one: the next comes soon anyway.
            retry=Retry(NoBackoff(), 0),
        )

    async def ask(self) -> None:
        """Pings."""
        await self._client.ping()

    def explain(self, error: Exception) -> str:
        """What is wrong with TLS, else the kind of failure."""
        if (fault := fault_in(error)) is not None:
            return f"{fault}; see ssl_ca_certs in MESH_NODE_REDIS_URL"
        return f"{type(error).__name__}: check that it runs, and MESH_NODE_REDIS_URL"

    async def close(self) -> None:
        """Drops the connection."""
        await self._client.aclose()


class StoreWatch:
    """Asks one store again and again."""

    def __init__(
        self, probe: Probe, readiness: Readiness, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._probe = probe
        self._readiness = readiness
        self._now = now

    async def run(self) -> None:
        """Until cancelled."""
        since: datetime | None = None
        try:
            while True:
                asked_at = self._now()
                error = await self._failure()
                raise_if_cancelled()
                if error is None:
                    self._clear(since)
                    since = None
                else:
                    since = since or asked_at
                    self._warn(since, error, is_new=since is asked_at)
                await asyncio.sleep(INTERVAL_S)
        finally:
            await self._close()

    async def _failure(self) -> Exception | None:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await self._probe.ask()
            return None
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, RedisError, ValueError) as error:
            # OSError has the timeout, ValueError what an address can be wrong in.
            failure: Exception = error
        except Exception as error:  # noqa: BLE001 - a driver's fault is no reason to end the control plane
            report("store_watch", error, store=self._probe.name)
            failure = error
        await self._close()
        return failure

    async def _close(self) -> None:
        """Gives the connection up; that may fail, too, as a Redis that hangs takes no goodbye over TLS."""
        with barrier("store_watch", store=self._probe.name), suppress(RedisError):
            await self._probe.close()

    def _warn(self, since: datetime, error: Exception, *, is_new: bool) -> None:
        name = self._probe.name
        text = f"{name} of this site does not answer since {since:%Y-%m-%dT%H:%M:%SZ} ({self._probe.explain(error)})."
        self._readiness.warn(_key(name), f"{text} What needs it waits.")
        if is_new:
            _log.warning("store_away", store=name, error=type(error).__name__)

    def _clear(self, since: datetime | None) -> None:
        self._readiness.clear(_key(self._probe.name))
        if since is not None:
            _log.info("store_back", store=self._probe.name, away_s=round((self._now() - since).total_seconds(), 1))


def _key(name: str) -> str:
    return f"store {name}"


def watches(postgres_url: str, redis_url: str, readiness: Readiness) -> Jobs:
    """A task for each store that this site has, by name."""
    probes: list[Probe] = []
    if postgres_url:
        probes.append(PostgresProbe(postgres_url))
    if redis_url:
        probes.append(RedisProbe(redis_url))
    return {f"watch of {probe.name}": StoreWatch(probe, readiness).run() for probe in probes}
