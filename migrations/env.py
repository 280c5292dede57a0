"""Runs the migrations: over the connection that a service hands in, or over MESH_NODE_POSTGRES_URL on the command line."""

from __future__ import annotations

import asyncio
import os

from alembic import context
from sqlalchemy import Connection, pool
from sqlalchemy.ext.asyncio import create_async_engine

from meshcommon.postgres import target_of


def run(connection: Connection) -> None:
    """Migrates over `connection`; whoever opened its transaction commits it."""
    context.configure(connection=connection, target_metadata=None)
    with context.begin_transaction():
        context.run_migrations()


async def run_alone() -> None:
    """Connects by itself: `alembic` on the command line."""
    url, tls = target_of(os.environ["MESH_NODE_POSTGRES_URL"])
    engine = create_async_engine(url, poolclass=pool.NullPool, connect_args=tls)
    async with engine.begin() as connection:
        await connection.run_sync(run)


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    asyncio.run(run_alone())
