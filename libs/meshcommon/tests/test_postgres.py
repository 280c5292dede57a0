"""Postgres away is a warning; Postgres there, a real one, clears it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import asyncpg
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from meshcommon import postgres
from meshcommon.admin import Readiness
from meshcommon.postgres import create_engine, wait_until_there
from meshtest.stores import EmbeddedPostgres

TIMEOUT_S = 30


async def until_warned(readiness: Readiness, waiting: asyncio.Task[None]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not readiness.warnings():
            assert not waiting.done()
            await asyncio.sleep(0.005)


async def test_absent_postgres_is_a_warning_that_its_arrival_clears(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "pg", tmp_path / "postgres.log")
    readiness = Readiness()
    readiness.clear("starting")
    engine = create_engine(server.url)
    try:
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(wait_until_there(engine, readiness), name="wait for Postgres")
            await until_warned(readiness, waiting)
            assert "Postgres does not answer" in readiness.warnings()[0]
            assert readiness.is_ready
            await asyncio.to_thread(server.prepare)
            server.launch()
            async with asyncio.timeout(TIMEOUT_S):
                await waiting
        assert readiness.warnings() == []
        async with engine.connect() as connection:
            assert (await connection.execute(text("SELECT 1"))).scalar_one() == 1
    finally:
        await engine.dispose()
        await asyncio.to_thread(server.stop)


def test_a_wrong_password_is_told_from_an_absent_server() -> None:
    wrapped = SQLAlchemyError("wrapped")
    wrapped.__cause__ = asyncpg.InvalidPasswordError("password authentication failed")
    assert "MESH_NODE_POSTGRES_URL" in postgres._explain(wrapped)
    assert "check that it runs" in postgres._explain(ConnectionRefusedError())
