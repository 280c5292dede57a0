"""Writes what the MCG decided to the node's Postgres, for queries.

Each transaction carries the applied index, and goes on only from the index that the last one left: a database that is
behind, ahead or of another mesh is written anew from the state. Postgres away: it waits, says so, and catches up; the
control plane goes on (architecture §9, I8). Nothing is ever read back to decide anything.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Final

import asyncpg
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mesh_control.core.rows import NO_ROWS, Difference, Rows, difference, rows_of
from mesh_control.shell import metrics
from mesh_control.shell.local_node import LocalNode
from mesh_control.shell.schema import migrate
from mesh_control.shell.tables import MESH, NODES, STREAMS
from meshcommon.admin import Readiness
from meshcommon.barrier import barrier
from meshcommon.errors import MeshError
from meshcommon.logging import get_logger
from meshcommon.postgres import RETRY_S

SCHEMA_RETRY_S: Final = 10.0
_WARNING: Final = "projection"

_log = get_logger(__name__)


class Projection:
    """Keeps the tables `mesh`, `nodes` and `streams` up to date."""

    def __init__(self, engine: AsyncEngine, migrations_dir: Path, node: LocalNode, readiness: Readiness) -> None:
        self._engine = engine
        self._migrations_dir = migrations_dir
        self._node = node
        self._readiness = readiness
        self._written: Rows | None = None

    async def run(self) -> None:
        """Projects until cancelled."""
        try:
            while True:
                # A copy for queries: whatever goes wrong with it must not end the control plane.
                with barrier("control_projection") as projecting:
                    await self._project()
                if projecting.failed:
                    self._readiness.warn(_WARNING, "The tables are behind: the log of the control plane says why.")
                    self._written = None
                    await asyncio.sleep(SCHEMA_RETRY_S)
        finally:
            await self._engine.dispose()

    async def _project(self) -> None:
        try:
            await migrate(self._engine, self._migrations_dir)
            await self._follow()
        except MeshError as error:
            self._readiness.warn(_WARNING, error.message)
            _log.error("projection_refused", code=error.code, reason=error.message)
            await asyncio.sleep(SCHEMA_RETRY_S)
        except (SQLAlchemyError, asyncpg.PostgresError, OSError) as error:
            self._readiness.warn(_WARNING, f"Postgres is away ({type(error).__name__}): its tables are behind.")
            _log.warning("projection_interrupted", error=type(error).__name__)
            self._written = None
            await asyncio.sleep(RETRY_S)

    async def _follow(self) -> None:
        while True:
            # Changes that came while a transaction ran are news now: wait only when there is nothing left to write.
            if not await self._write():
                self._readiness.clear(_WARNING)
                await self._node.changed.wait()

    async def _write(self) -> bool:
        """Writes the newest state; False, at once, when it is written already."""
        mcg = self._node.mcg
        if mcg is None:
            return await self._empty()
        if not mcg.state.mesh_id:
            return False
        rows = rows_of(mcg.state, self._node.node_id)
        if self._written is not None and self._written.mesh["revision"] == rows.mesh["revision"]:
            return False
        async with self._engine.begin() as connection:
            if self._written is None or not await self._is_where_we_left_it(connection, self._written):
                await self._rebuild(connection, rows)
            else:
                await self._put(connection, NODES, difference(self._written.nodes, rows.nodes))
                await self._put(connection, STREAMS, difference(self._written.streams, rows.streams))
                await connection.execute(sa.update(MESH).values(rows.mesh))
                metrics.PROJECTIONS.labels("difference").inc()
        self._written = rows
        return True

    async def _is_where_we_left_it(self, connection: AsyncConnection, written: Rows) -> bool:
        found = (await connection.execute(sa.select(MESH).with_for_update())).mappings().all()
        return [dict(row) for row in found] == [written.mesh]

    async def _rebuild(self, connection: AsyncConnection, rows: Rows) -> None:
        for table in (STREAMS, NODES, MESH):
            await connection.execute(sa.delete(table))
        await connection.execute(sa.insert(MESH).values(rows.mesh))
        await self._put(connection, NODES, difference(NO_ROWS, rows.nodes))
        await self._put(connection, STREAMS, difference(NO_ROWS, rows.streams))
        metrics.PROJECTIONS.labels("rebuild").inc()
        _log.info("projection_rebuilt", applied_index=rows.applied_index)

    async def _put(self, connection: AsyncConnection, table: sa.Table, change: Difference) -> None:
        key = table.primary_key.columns[0]
        if change.remove:
            await connection.execute(sa.delete(table).where(key.in_(change.remove)))
        if not change.put:
            return
        statement: Any = insert(table)
        others = {column.name: statement.excluded[column.name] for column in table.columns if not column.primary_key}
        await connection.execute(statement.on_conflict_do_update(index_elements=[key], set_=others), change.put)

    async def _empty(self) -> bool:
        """A node that is in no mesh projects none."""
        if self._written is not None and not self._written.nodes:
            return False
        async with self._engine.begin() as connection:
            for table in (STREAMS, NODES, MESH):
                await connection.execute(sa.delete(table))
        self._written = Rows({"applied_index": 0, "revision": -1})
        return True
