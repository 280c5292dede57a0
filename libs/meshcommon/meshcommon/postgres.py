"""The site's Postgres: one async engine, and what to tell of its absence.

No service needs Postgres to start or to go on: a background task tries every `RETRY_S` and works from then on. Leaves
out: migrations, which the control plane runs, and telling that Postgres is away (`mesh_control.shell.store_watch`).
"""

from __future__ import annotations

from typing import Any, Final

import asyncpg
from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from meshcommon.errors import ErrorCode, MeshError
from meshcommon.store_urls import POSTGRES_TLS, fault_in, parse_postgres, tls_of

RETRY_S: Final = 1.0
_NO_TLS: Final = ("rejected SSL upgrade",)
"""What asyncpg says of a server without TLS."""


SETTING: Final = "MESH_NODE_POSTGRES_URL"


def target_of(url: str) -> tuple[URL, dict[str, Any]]:
    """The URL without what it says about TLS, and that as arguments of asyncpg.

    Raises:
        MeshError: SETTING_INVALID: an option that is unknown or malformed, or a file that cannot be used.
    """
    try:
        wanted = parse_postgres(url)
    except ValueError as error:
        text = f"Setting {SETTING} is not valid: {error}."
        raise MeshError(ErrorCode.SETTING_INVALID, text, {"setting": SETTING}) from None
    plain = make_url(url).difference_update_query(POSTGRES_TLS)
    if wanted is None:
        return plain, {}
    return plain, {"ssl": tls_of(wanted, SETTING) if wanted.is_used else False}


def create_engine(url: str) -> AsyncEngine:
    """A small pool; `url` is `postgresql+asyncpg://…`. Connects only when used.

    Raises:
        MeshError: as `target_of`.
    """
    plain, tls = target_of(url)
    engine = create_async_engine(
        plain, pool_size=4, max_overflow=0, pool_pre_ping=True, pool_timeout=5, connect_args={"timeout": 5, **tls}
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
    if (fault := fault_in(error)) is not None:
        return f"{fault}; see sslmode and sslrootcert in {SETTING}"
    if any(text in str(error) for text in _NO_TLS):
        return f"{ErrorCode.TLS_FAILED}: it speaks no TLS, which sslmode in {SETTING} wants"
    return f"{type(error).__name__}: check that it runs"
