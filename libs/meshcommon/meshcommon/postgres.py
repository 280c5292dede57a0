"""The site's Postgres: one async engine, whose absence is reported and waited out.

No service needs Postgres to start or to go on: a background task awaits `wait_until_there` and works from then on. What
it leaves out: migrations, which the control plane runs.
"""

from __future__ import annotations

import asyncio
from typing import Final

import asyncpg
from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from meshcommon.admin import Readiness
from meshcommon.logging import get_logger

RETRY_S: Final = 1.0
_log = get_logger(__name__)


def create_engine(url: str) -> AsyncEngine:
    """A small pool; `url` is `postgresql+asyncpg://…`. Connects only when used."""
    engine = create_async_engine(
        url, pool_size=4, max_overflow=0, pool_pre_ping=True, pool_timeout=5, connect_args={"timeout": 5}
    )
    SQLAlchemyInstrumentor().instrument(engine=engine.sync_engine)
    return engine


async def wait_until_there(engine: AsyncEngine, readiness: Readiness) -> None:
    """Returns when a connection works; until then the readiness carries a warning."""
    while True:
        try:
            async with engine.connect():
                readiness.clear("postgres")
                return
        except (SQLAlchemyError, asyncpg.PostgresError, OSError) as error:
            readiness.warn("postgres", _explain(error))
            _log.warning("postgres_away", error=str(error).splitlines()[0] if str(error) else type(error).__name__)
            await asyncio.sleep(RETRY_S)


def _explain(error: Exception) -> str:
    """What is wrong and what to do, for the operator."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, asyncpg.InvalidAuthorizationSpecificationError):
            # InvalidPasswordError is one of these.
            return (
                "Postgres refuses the user or the password: correct MESH_NODE_POSTGRES_URL (or the secret it is made of); "
                "what needs Postgres waits."
            )
        cause = cause.__cause__
    return f"Postgres does not answer ({type(error).__name__}): check that it runs; what needs it waits."
