"""Postgres and Redis over TLS: what their URLs may say, and real servers with right and wrong certificates."""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import asyncpg
import pytest
from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from meshcommon.errors import ErrorCode, MeshError
from meshcommon.postgres import create_engine, explain, target_of
from meshcommon.redis_store import open_redis
from meshcommon.settings import NodeSettings, load_sections
from meshcommon.store_urls import StoreTls, fault_in, parse_postgres, parse_redis
from meshtest.certificates import Authority, CertificateFiles
from meshtest.ports import free_ports
from meshtest.stores import EmbeddedPostgres, EmbeddedValkey

POSTGRES = "postgresql+asyncpg://mesh:hunter2@db.example/mesh"
REDIS = "rediss://:hunter2@cache.example:6380/0"
SSL_REQUEST = bytes.fromhex("0000000804d2162f")
LIFE_IS_OVER = -timedelta(minutes=1)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", None),
        ("?host=/run/postgresql", None),
        ("?sslmode=disable", StoreTls(is_used=False)),
        ("?sslmode=require", StoreTls(is_used=True, checks_authority=False, checks_name=False)),
        ("?sslmode=require&sslrootcert=/ca.pem", StoreTls(is_used=True, checks_name=False, ca_file="/ca.pem")),
        ("?sslmode=verify-ca&sslrootcert=/ca.pem", StoreTls(is_used=True, checks_name=False, ca_file="/ca.pem")),
        ("?sslmode=verify-full&sslrootcert=/ca.pem", StoreTls(is_used=True, ca_file="/ca.pem")),
        ("?sslmode=verify-full&sslrootcert=system", StoreTls(is_used=True)),
        (
            "?sslmode=verify-full&sslcert=/c.pem&sslkey=/k.pem",
            StoreTls(is_used=True, certificate="/c.pem", key="/k.pem"),
        ),
    ],
)
def test_options_of_libpq_are_understood(options: str, expected: StoreTls | None) -> None:
    assert parse_postgres(POSTGRES + options) == expected


@pytest.mark.parametrize(
    "options",
    [
        "?sslmode=prefer",
        "?sslmode=allow",
        "?sslmode=VERIFY-FULL",
        "?sslmode=",
        "?sslmode=require&sslmode=disable",
        "?sslrootcert=/ca.pem",
        "?sslmode=disable&sslrootcert=/ca.pem",
        "?sslmode=verify-full&sslcert=/c.pem",
        "?sslmode=verify-full&sslkey=/k.pem",
        "?sslmode=verify-full&host=/run/postgresql",
        "?ssl=require",
        "?sslnegotiation=direct",
        "?sslcrl=/crl.pem",
        "?user=mesh&password=hunter3",
        "?nonsense",
    ],
)
def test_anything_else_ends_the_start_and_no_password_is_told(options: str, tmp_path: Path) -> None:
    for url in (POSTGRES + options, f"postgresql+asyncpg://db.example/mesh{options}"):
        environment = {"MESH_NODE_NAME": "a", "MESH_NODE_DATA_DIR": str(tmp_path), "MESH_NODE_POSTGRES_URL": url}
        with pytest.raises(MeshError) as refused:
            load_sections("node", NodeSettings, environment)
        assert refused.value.code is ErrorCode.SETTING_INVALID
        assert "hunter" not in refused.value.message
        with pytest.raises(MeshError) as refused:
            target_of(url)
        assert refused.value.code is ErrorCode.SETTING_INVALID
        assert "hunter" not in refused.value.message


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://cache.example:6379/0", None),
        ("redis://cache.example:6379?db=1", None),
        (REDIS, StoreTls(is_used=True)),
        (f"{REDIS}?ssl_ca_certs=/ca.pem", StoreTls(is_used=True, ca_file="/ca.pem")),
        (
            f"{REDIS}?ssl_certfile=/c.pem&ssl_keyfile=/k.pem",
            StoreTls(is_used=True, certificate="/c.pem", key="/k.pem"),
        ),
    ],
)
def test_options_of_redis_are_understood(url: str, expected: StoreTls | None) -> None:
    assert parse_redis(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        f"{REDIS}?ssl_cert_reqs=none",
        f"{REDIS}?ssl_check_hostname=false",
        f"{REDIS}?ssl_ca_path=/etc",
        f"{REDIS}?ssl_certfile=/c.pem",
        f"{REDIS}?ssl_ca_certs=",
        "redis://cache.example:6379/0?ssl_ca_certs=/ca.pem",
        "unix:///run/redis.sock?password=hunter3",
    ],
)
def test_redis_checks_cannot_be_switched_off(url: str, tmp_path: Path) -> None:
    environment = {"MESH_NODE_NAME": "a", "MESH_NODE_DATA_DIR": str(tmp_path), "MESH_NODE_REDIS_URL": url}
    for fails in (lambda: load_sections("node", NodeSettings, environment), lambda: open_redis(url)):
        with pytest.raises(MeshError) as refused:
            fails()
        assert refused.value.code is ErrorCode.SETTING_INVALID
        assert "hunter" not in refused.value.message


def test_files_that_cannot_be_used_are_named_at_the_start(tmp_path: Path) -> None:
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("nonsense")
    for file in (nonsense, tmp_path / "missing.pem"):
        for fails in (
            lambda file=file: create_engine(f"{POSTGRES}?sslmode=verify-full&sslrootcert={file}"),
            lambda file=file: create_engine(f"{POSTGRES}?sslmode=require&sslcert={file}&sslkey={file}"),
            lambda file=file: open_redis(f"{REDIS}?ssl_ca_certs={file}"),
        ):
            with pytest.raises(MeshError) as refused:
                fails()
            assert refused.value.code is ErrorCode.SETTING_INVALID
            assert str(file) in refused.value.message
            assert "hunter" not in refused.value.message


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    folder = tmp_path_factory.mktemp("stores")
    server = EmbeddedPostgres(folder / "pg", folder / "postgres.log")
    server.launch()
    asyncio.run(server.wait())
    yield server
    server.stop()


Open = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]
Negotiate = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def in_front(
    connect: Open, negotiate: Negotiate | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """Passes bytes on to a store after `negotiate`, or in TLS from the first byte: the wheels' own builds have no TLS."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
        writer.close()

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if negotiate is not None:
                await negotiate(reader, writer)
            far_reader, far_writer = await connect()
        except (OSError, asyncio.IncompleteReadError):  # a client that does not trust the certificate hangs up
            writer.close()
            return
        await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer), return_exceptions=True)

    server = await asyncio.start_server(join, "127.0.0.1", 0, ssl=tls)
    yield server.sockets[0].getsockname()[1]
    server.close()


def showing(pair: CertificateFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    return context


@asynccontextmanager
async def postgres_over_tls(server: EmbeddedPostgres, pair: CertificateFiles | None) -> AsyncIterator[int]:
    """A Postgres that negotiates TLS as the protocol has it (SSLRequest), and takes nothing in clear; None: it refuses TLS."""

    async def negotiate(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.readexactly(8) != SSL_REQUEST:
            raise ConnectionAbortedError("a client in clear")
        writer.write(b"N" if pair is None else b"S")
        if pair is not None:
            await writer.start_tls(showing(pair))

    path = f"{make_url(server.url).query['host']}/.s.PGSQL.5432"
    async with in_front(lambda: asyncio.open_unix_connection(path), negotiate) as port:
        yield port


async def asked(port: int, options: str) -> int:
    engine = create_engine(f"postgresql+asyncpg://postgres:hunter2@localhost:{port}/postgres{options}")
    try:
        async with engine.connect() as connection:
            return int((await connection.execute(text("SELECT 1"))).scalar_one())
    finally:
        await engine.dispose()


async def failure(port: int, options: str) -> str:
    with pytest.raises((SQLAlchemyError, asyncpg.PostgresError, OSError)) as refused:
        await asked(port, options)
    said = explain(refused.value)
    assert "hunter" not in said
    return said


async def test_postgres_is_spoken_to_over_tls(postgres: EmbeddedPostgres, authority: Authority) -> None:
    async with postgres_over_tls(postgres, authority.issue("db")) as port:
        for options in (f"?sslmode=verify-full&sslrootcert={authority.file}", "?sslmode=require"):
            assert await asked(port, options) == 1
        assert "check that it runs" in await failure(port, "?sslmode=disable"), "nothing passes in clear"


async def test_what_is_wrong_with_the_certificate_of_postgres_is_named(
    postgres: EmbeddedPostgres, authority: Authority, tmp_path: Path
) -> None:
    other = Authority(tmp_path, "other")
    elsewhere, expired = (
        authority.issue("elsewhere", hosts=("db.example",)),
        authority.issue("old", ends_in=LIFE_IS_OVER),
    )
    for pair, trusted, said in (
        (authority.issue("db"), other, "unknown authority"),
        (elsewhere, authority, "another name"),
        (expired, authority, "expired"),
    ):
        async with postgres_over_tls(postgres, pair) as port:
            found = await failure(port, f"?sslmode=verify-full&sslrootcert={trusted.file}")
            assert "TLS_FAILED" in found
            assert said in found
            if pair is elsewhere:
                assert await asked(port, f"?sslmode=verify-ca&sslrootcert={trusted.file}") == 1, "any name will do"


async def test_postgres_without_tls_is_refused_where_the_url_wants_it(
    postgres: EmbeddedPostgres, authority: Authority
) -> None:
    async with postgres_over_tls(postgres, None) as port:
        for options in ("?sslmode=require", f"?sslmode=verify-full&sslrootcert={authority.file}"):
            assert "speaks no TLS" in await failure(port, options)


async def test_migrations_run_over_tls(postgres: EmbeddedPostgres, authority: Authority) -> None:
    """On the command line, where the history connects by itself."""
    root = Path(__file__).parents[3]
    script = (
        "from alembic import command; from alembic.config import Config; config = Config(); "
        f"config.set_main_option('script_location', {str(root / 'migrations')!r}); command.upgrade(config, 'head')"
    )
    async with postgres_over_tls(postgres, authority.issue("db")) as port:
        options = f"sslmode=verify-full&sslrootcert={authority.file}"
        url = f"postgresql+asyncpg://postgres@localhost:{port}/postgres?{options}"
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            script,
            env=os.environ | {"MESH_NODE_POSTGRES_URL": url},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()
    engine = create_engine(postgres.url)
    async with engine.connect() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM alembic_version"))).scalar_one() == 1
    await engine.dispose()


@pytest.fixture
async def valkey(tmp_path: Path) -> AsyncIterator[int]:
    (port,) = free_ports(1)
    server = EmbeddedValkey(port, tmp_path / "valkey", tmp_path / "valkey.log")
    server.launch()
    await server.wait()
    yield port
    server.stop()


async def test_redis_is_spoken_to_over_tls_and_its_certificate_is_judged(
    valkey: int, authority: Authority, tmp_path: Path
) -> None:
    other = Authority(tmp_path, "other")
    elsewhere, expired = (
        authority.issue("elsewhere", hosts=("db.example",)),
        authority.issue("old", ends_in=LIFE_IS_OVER),
    )
    for pair, trusted, said in (
        (authority.issue("cache"), authority, ""),
        (authority.issue("cache"), other, "unknown authority"),
        (elsewhere, authority, "another name"),
        (expired, authority, "expired"),
    ):
        async with in_front(partial(asyncio.open_connection, "127.0.0.1", valkey), tls=showing(pair)) as port:
            client = open_redis(f"rediss://localhost:{port}/0?ssl_ca_certs={trusted.file}", socket_timeout=5)
            try:
                if not said:
                    await client.set("key", "value")
                    assert await client.get("key") == b"value"
                    continue
                with pytest.raises(RedisError) as refused:
                    await client.ping()
                found = fault_in(refused.value)
                assert found is not None
                assert "TLS_FAILED" in found
                assert said in found
            finally:
                await client.aclose()
