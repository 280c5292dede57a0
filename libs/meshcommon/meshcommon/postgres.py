"""The site's Postgres: one async engine, and what to tell of its absence.

No service needs Postgres to start or to go on: a background task tries every `RETRY_S` and works from then on. Leaves
out: migrations, which the control plane runs, and telling that Postgres is away (`mesh_control.shell.store_watch`).
"""

from __future__ import annotations

from typing import Final

import asyncpg
from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

RETRY_S: Final = 1.0


def create_engine(url: str) -> AsyncEngine:
    """A small pool; `url` is `postgresql+asyncpg://…`. Connects only when used."""
    engine = create_async_engine(
        url, pool_size=4, max_overflow=0, pool_pre_ping=True, pool_timeout=5, connect_args={"timeout": 5}
    )
    SQLAlchemyInstrumentor().instrument(engine=engine.sync_engine)
    return engine


def explain(error: Exception) -> str:
    """What is wrong and what to do, for the operator: the end of a sentence that begins with the store's name."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, asyncpg.InvalidAuthorizationSpecificationError):
            # InvalidPasswordError is one of these.
            return "the user or the password is refused: correct MESH_NODE_POSTGRES_URL, or the secret it is made of"
        cause = cause.__cause__
    return f"{type(error).__name__}: check that it runs"
