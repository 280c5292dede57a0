"""The engine meets a real Postgres; what is told of an absent one says what to do."""

from __future__ import annotations

import asyncio
from pathlib import Path

import asyncpg
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from meshcommon.postgres import create_engine, explain
from meshtest.stores import EmbeddedPostgres


async def test_the_engine_connects_when_it_is_used(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "pg", tmp_path / "postgres.log")
    engine = create_engine(server.url)
    try:
        await asyncio.to_thread(server.prepare)
        server.launch()
        await server.wait()
        async with engine.connect() as connection:
            assert (await connection.execute(text("SELECT 1"))).scalar_one() == 1
    finally:
        await engine.dispose()
        await asyncio.to_thread(server.stop)


def test_a_wrong_password_is_told_from_an_absent_server() -> None:
    wrapped = SQLAlchemyError("wrapped")
    wrapped.__cause__ = asyncpg.InvalidPasswordError("password authentication failed")
    assert "MESH_NODE_POSTGRES_URL" in explain(wrapped)
    assert "check that it runs" in explain(ConnectionRefusedError())
