"""The projection against a real Postgres: differences, rebuilds, an outage, and a schema that is newer."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from mesh_control.core.rows import rows_of
from mesh_control.shell.projection import Projection
from mesh_control.shell.schema import migrate
from mesh_control.shell.settings import ControlSettings
from mesh_control.shell.tables import MESH, METADATA, NODES, STREAMS
from meshapi.control.v1 import mcg_pb2
from meshcommon.admin import Readiness
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.postgres import create_engine
from meshtest.stores import EmbeddedPostgres

if TYPE_CHECKING:
    from tests.shell.conftest import OneNode, SmallMesh

MIGRATIONS = ControlSettings().migrations_dir


@contextmanager
def own_postgres() -> Iterator[EmbeddedPostgres]:
    """A server, prepared but not started, whose files its own user may reach: pytest's directories are root's alone."""
    with tempfile.TemporaryDirectory(prefix="mesh-projection-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        server = EmbeddedPostgres(directory / "data", directory / "postgres.log")
        server.prepare()
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="module")
def postgres() -> Iterator[EmbeddedPostgres]:
    """One server for the module; each test empties the database."""
    with own_postgres() as server:
        server.launch()
        yield server


@pytest.fixture
def stopped_postgres() -> Iterator[EmbeddedPostgres]:
    """A server that does not run yet."""
    with own_postgres() as server:
        yield server


@pytest.fixture
async def engine(postgres: EmbeddedPostgres) -> AsyncIterator[AsyncEngine]:
    """An empty database."""
    await postgres.wait()
    engine = create_engine(postgres.url)
    async with engine.begin() as connection:
        await connection.execute(sa.text("DROP SCHEMA public CASCADE"))
        await connection.execute(sa.text("CREATE SCHEMA public"))
    yield engine
    await engine.dispose()


@asynccontextmanager
async def projecting(node: OneNode, url: str) -> AsyncIterator[Readiness]:
    """The projection of `node` while inside."""
    readiness = Readiness()
    task = asyncio.create_task(Projection(create_engine(url), MIGRATIONS, node.node, readiness).run())
    try:
        yield readiness
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def columns(connection: sa.Connection, table: str) -> Any:
    return sa.inspect(connection).get_columns(table)


async def read(engine: AsyncEngine, table: sa.Table) -> list[dict[str, Any]]:
    async with engine.connect() as connection:
        rows = await connection.execute(sa.select(table).order_by(*table.primary_key.columns))
        return [dict(row) for row in rows.mappings()]


async def names(engine: AsyncEngine, table: sa.Table) -> list[str]:
    try:
        return [row["name"] for row in await read(engine, table)]
    except (sa.exc.SQLAlchemyError, asyncpg.PostgresError, OSError):
        return []


async def eventually_named(engine: AsyncEngine, table: sa.Table, *expected: str) -> None:
    deadline = asyncio.get_running_loop().time() + 20
    while (found := await names(engine, table)) != list(expected):
        assert asyncio.get_running_loop().time() < deadline, f"{table.name} holds {found}"
        await asyncio.sleep(0.05)


async def create(node: OneNode, name: str) -> int:
    command = mcg_pb2.Command(create_stream=mcg_pb2.CreateStream(name=name, node_ids=[1, 2]))
    return (await node.proposer.propose(command)).allocated_id


async def test_migrations_make_what_the_tables_say(engine: AsyncEngine) -> None:
    await migrate(engine, MIGRATIONS)
    await migrate(engine, MIGRATIONS)
    async with engine.connect() as connection:
        for table in METADATA.tables.values():
            found = await connection.run_sync(columns, table.name)
            assert {column["name"]: column["nullable"] for column in found} == {
                column.name: column.nullable for column in table.columns
            }


async def test_services_that_start_together_migrate_once(engine: AsyncEngine) -> None:
    await asyncio.gather(*(migrate(engine, MIGRATIONS) for _ in range(4)))


async def test_newer_schema_is_left_alone(engine: AsyncEngine, mesh: SmallMesh, postgres: EmbeddedPostgres) -> None:
    await migrate(engine, MIGRATIONS)
    async with engine.begin() as connection:
        await connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(MeshError) as caught:
        await migrate(engine, MIGRATIONS)
    assert caught.value.code is ErrorCode.SCHEMA_NEWER
    (a,) = await mesh.grow("a")
    async with projecting(a, postgres.url) as readiness:
        await mesh.eventually(lambda: any("9999" in warning for warning in readiness.warnings()))
    assert await names(engine, NODES) == []


async def test_changes_arrive_with_their_applied_index(
    engine: AsyncEngine, mesh: SmallMesh, postgres: EmbeddedPostgres
) -> None:
    a, _b = await mesh.grow("a", "b")
    async with projecting(a, postgres.url):
        await eventually_named(engine, NODES, "a", "b")
        await create(a, "x/y")
        stream_id = await create(a, "x/z")
        await eventually_named(engine, STREAMS, "x/y", "x/z")
        (row,) = await read(engine, MESH)
        state = a.node.require_mcg().state
        assert (row["mesh_id"], row["revision"], row["local_node_id"]) == (state.mesh_id, state.revision, 1)
        assert 0 < row["applied_index"] <= state.applied_index
        stream = (await read(engine, STREAMS))[1]
        assert stream["stream_id"] == stream_id
        assert stream["members"][0] == {"node_id": 1, "member_id": 3, "is_voter": True}
        await a.proposer.propose(mcg_pb2.Command(delete_stream=mcg_pb2.DeleteStream(stream_id=stream_id)))
        for node_id in (1, 2):
            confirmed = mcg_pb2.ReplicaDestroyed(stream_id=stream_id, node_id=node_id)
            await a.proposer.propose(mcg_pb2.Command(replica_destroyed=confirmed))
        await eventually_named(engine, STREAMS, "x/y")


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE mesh SET applied_index = applied_index + 1000",
        "UPDATE mesh SET applied_index = 1, revision = 1",
        "DELETE FROM mesh",
        "UPDATE mesh SET mesh_id = '00000000-0000-4000-8000-000000000000'",
    ],
)
async def test_restored_or_foreign_database_is_written_anew(
    engine: AsyncEngine, mesh: SmallMesh, postgres: EmbeddedPostgres, damage: str
) -> None:
    """A backup was put back, behind or ahead, or the database is of another mesh."""
    a, _b = await mesh.grow("a", "b")
    async with projecting(a, postgres.url):
        await eventually_named(engine, NODES, "a", "b")
        async with engine.begin() as connection:
            # In the projection's own order, so that the two cannot lock each other out.
            await connection.execute(sa.text(damage))
            await connection.execute(sa.text("UPDATE nodes SET name = 'wrong' WHERE node_id = 2"))
        await create(a, "x/y")
        await eventually_named(engine, STREAMS, "x/y")
        assert await names(engine, NODES) == ["a", "b"]
        assert (await read(engine, MESH))[0]["mesh_id"] == a.node.require_mcg().state.mesh_id


async def test_node_that_left_projects_nothing(
    engine: AsyncEngine, mesh: SmallMesh, postgres: EmbeddedPostgres
) -> None:
    _a, b = await mesh.grow("a", "b")
    async with projecting(b, postgres.url):
        await eventually_named(engine, NODES, "a", "b")
        await b.lifecycle.leave()
        await eventually_named(engine, NODES)
        assert await read(engine, MESH) == []


async def test_outage_is_waited_out_and_caught_up(mesh: SmallMesh, stopped_postgres: EmbeddedPostgres) -> None:
    """Architecture §2: the control plane goes on without Postgres."""
    server = stopped_postgres
    a, _b = await mesh.grow("a", "b")
    engine = create_engine(server.url)
    try:
        async with projecting(a, server.url) as readiness:
            await mesh.eventually(lambda: any("Postgres" in warning for warning in readiness.warnings()))
            server.launch()
            await eventually_named(engine, NODES, "a", "b")
            await mesh.eventually(lambda: not readiness.warnings())
            await asyncio.to_thread(server.stop)
            await create(a, "x/y")
            await mesh.eventually(lambda: any("Postgres" in warning for warning in readiness.warnings()))
            server.launch()
            await eventually_named(engine, STREAMS, "x/y")
            await mesh.eventually(lambda: not readiness.warnings())
    finally:
        await engine.dispose()


async def test_row_that_cannot_be_made_does_not_end_the_control_plane(
    engine: AsyncEngine, mesh: SmallMesh, postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    (a,) = await mesh.grow("a")
    attempts = 0

    def fail_once(*arguments: Any) -> Any:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise OverflowError("date value out of range")
        return rows_of(*arguments)

    monkeypatch.setattr("mesh_control.shell.projection.rows_of", fail_once)
    monkeypatch.setattr("mesh_control.shell.projection.SCHEMA_RETRY_S", 0.1)
    async with projecting(a, postgres.url):
        await eventually_named(engine, NODES, "a")


async def test_greatest_integers_of_a_state_are_projected(
    engine: AsyncEngine, mesh: SmallMesh, postgres: EmbeddedPostgres
) -> None:
    a, _b = await mesh.grow("a", "b")
    greatest = mcg_pb2.CreateStream(name="x/y", node_ids=[1, 2], retained_bytes_max=2**63 - 1)
    async with projecting(a, postgres.url):
        await a.proposer.propose(mcg_pb2.Command(create_stream=greatest))
        await eventually_named(engine, STREAMS, "x/y")
