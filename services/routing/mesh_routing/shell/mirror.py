"""Copies of the link-state database for readers: tables in Postgres, a hash per link in Redis.

Nothing in routing reads them, and nothing waits for them: each copy is a task of its own that takes the newest state when
its store is there, and leaves a warning in readyz while it is not. Source: architecture §6, §9.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import asyncpg
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy import and_, delete, or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import ProgrammingError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mesh_routing.core.lsa import Lsa, LsaKey
from mesh_routing.shell.driver import RoutingDriver
from mesh_routing.shell.metrics import RoutingMetrics
from mesh_routing.shell.tables import links, lsa_versions
from meshcommon.admin import Readiness
from meshcommon.barrier import barrier
from meshcommon.cancellation import raise_if_cancelled
from meshcommon.ids import NodeId
from meshcommon.logging import get_logger

RETRY_S: Final = 1.0
WRITE_TIMEOUT_S: Final = 10.0
PAUSE_S: Final = 1.0
"""Least time between two writes: however fast the topology changes, a store sees one write a second."""
REFRESH_S: Final = 10.0
EXPIRY_S: Final = 30
VERSIONS_KEPT: Final = 16
_log = get_logger(__name__)
Link = tuple[NodeId, NodeId]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is mirrored: the columns of each link by its ends, and every advertisement."""

    links: Mapping[Link, Mapping[str, Any]]
    lsas: tuple[Lsa, ...]


def take_snapshot(driver: RoutingDriver) -> Snapshot:
    """The database as it is now, with names."""
    view, lsdb = driver.view, driver.router.lsdb
    rows = {
        (row.origin, row.link.peer): {
            "origin": row.origin,
            "origin_name": view.name(row.origin),
            "peer_name": view.name(row.link.peer),
            "cost": row.cost,
            "is_two_way": row.is_two_way,
            **asdict(row.link),
        }
        for row in lsdb.link_rows()
    }
    return Snapshot(rows, tuple(lsdb.lsas()))


class PostgresMirror:
    """Keeps the tables `links` and `lsa_versions` equal to the database."""

    def __init__(
        self, engine: AsyncEngine, driver: RoutingDriver, readiness: Readiness, metrics: RoutingMetrics
    ) -> None:
        self._engine = engine
        self._driver = driver
        self._readiness = readiness
        self._metrics = metrics
        self._changed = driver.watch()
        # What the tables hold; None: unknown, so everything is replaced.
        self._written: Snapshot | None = None

    async def run(self) -> None:
        """Writes after each change until cancelled."""
        while True:
            self._changed.clear()
            # Its tables are for readers: what goes wrong there must not end routing.
            reason: str | None = "the log of routing has the details"
            with barrier("routing_mirror", store="postgres"):
                reason = await self._try_to_write(take_snapshot(self._driver))
            if reason is not None:
                self._readiness.warn("postgres", f"Postgres does not take the topology: {reason}. Routing goes on.")
                self._metrics.mirror_failures.labels("postgres").inc()
                self._written = None
                await asyncio.sleep(RETRY_S)
                continue
            self._readiness.clear("postgres")
            await asyncio.sleep(PAUSE_S)
            await self._changed.wait()

    async def _try_to_write(self, snapshot: Snapshot) -> str | None:
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S), self._engine.begin() as connection:
                await self._write_links(connection, snapshot)
                await self._write_lsas(connection, snapshot.lsas)
        except ProgrammingError as error:
            _log.info("mirror_waits", error=str(error.orig))
            return "its tables are not there yet, the control plane makes them when it starts"
        except (SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            _log.warning("mirror_failed", store="postgres", error=type(error).__name__)
            return f"it does not answer ({type(error).__name__})"
        self._written = snapshot
        return None

    async def _write_links(self, connection: AsyncConnection, snapshot: Snapshot) -> None:
        known = {} if self._written is None else self._written.links
        if self._written is None:
            await connection.execute(delete(links))
        gone = known.keys() - snapshot.links.keys()
        if gone:
            is_gone = [and_(links.c.origin == origin, links.c.peer == peer) for origin, peer in gone]
            await connection.execute(delete(links).where(or_(*is_gone)))
        changed = [row for link, row in snapshot.links.items() if known.get(link) != row]
        if changed:
            statement = insert(links)
            columns = {column.name: statement.excluded[column.name] for column in links.c if not column.primary_key}
            await connection.execute(
                statement.on_conflict_do_update(index_elements=[links.c.origin, links.c.peer], set_=columns), changed
            )

    async def _write_lsas(self, connection: AsyncConnection, lsas: tuple[Lsa, ...]) -> None:
        known: set[LsaKey] = set() if self._written is None else {lsa.key for lsa in self._written.lsas}
        fresh = [lsa for lsa in lsas if lsa.key not in known]
        await connection.execute(delete(lsa_versions).where(lsa_versions.c.origin.not_in([lsa.origin for lsa in lsas])))
        for lsa in fresh:
            row = {"origin": lsa.origin, "sequence": lsa.sequence, "links": [asdict(link) for link in lsa.links]}
            await connection.execute(insert(lsa_versions).values(row).on_conflict_do_nothing())
            versions = select(lsa_versions.c.sequence).where(lsa_versions.c.origin == lsa.origin)
            kept = versions.order_by(lsa_versions.c.sequence.desc()).limit(VERSIONS_KEPT)
            await connection.execute(
                delete(lsa_versions).where(
                    lsa_versions.c.origin == lsa.origin, lsa_versions.c.sequence.not_in(kept.scalar_subquery())
                )
            )


class RedisMirror:
    """Keeps a hash `mesh:link:FROM:TO` per link, which expires when routing stops refreshing it."""

    def __init__(self, redis: Redis, driver: RoutingDriver, readiness: Readiness, metrics: RoutingMetrics) -> None:
        self._redis = redis
        self._driver = driver
        self._readiness = readiness
        self._metrics = metrics
        self._changed = driver.watch()
        self._written: frozenset[str] = frozenset()

    async def run(self) -> None:
        """Writes after each change, and at least so often that nothing expires, until cancelled."""
        while True:
            self._changed.clear()
            failure: str | None = "the log of routing has the details"
            with barrier("routing_mirror", store="redis"):
                failure = await self._try_to_write(take_snapshot(self._driver))
            raise_if_cancelled()
            if failure is not None:
                self._readiness.warn("redis", f"Redis does not answer ({failure}): link metrics are not cached there.")
                self._metrics.mirror_failures.labels("redis").inc()
                await asyncio.sleep(RETRY_S)
                continue
            self._readiness.clear("redis")
            await asyncio.sleep(PAUSE_S)
            try:
                async with asyncio.timeout(REFRESH_S - PAUSE_S):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _try_to_write(self, snapshot: Snapshot) -> str | None:
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                await self._write(snapshot)
        except (RedisError, OSError) as error:
            _log.warning("mirror_failed", store="redis", error=type(error).__name__)
            return type(error).__name__
        return None

    async def _write(self, snapshot: Snapshot) -> None:
        hashes = {
            f"mesh:link:{row['origin_name']}:{row['peer_name']}": {
                key: "" if row[key] is None else int(row[key]) for key in _REDIS_FIELDS
            }
            for row in snapshot.links.values()
        }
        async with self._redis.pipeline(transaction=True) as pipeline:
            for gone in self._written - hashes.keys():
                pipeline.delete(gone)
            for key, fields in hashes.items():
                pipeline.hset(key, items=[part for field in fields.items() for part in field])
                pipeline.expire(key, EXPIRY_S)
            await pipeline.execute()
        self._written = frozenset(hashes)


_REDIS_FIELDS: Final = ("latency_us", "jitter_us", "loss_ppm", "cost", "is_two_way")
"""What nobody measured is the empty text."""
