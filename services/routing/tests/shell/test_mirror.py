"""The mirror against a real Postgres and a real Valkey."""

from __future__ import annotations

import asyncio
import importlib.util
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from alembic.migration import MigrationContext
from alembic.operations import Operations
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis
from sqlalchemy import Connection, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from mesh_routing.core.config import preset
from mesh_routing.core.lsa import LOSS_PPM_MAX, Lsa, LsaLink, LsaMessage
from mesh_routing.core.lsa_codec import encode_message
from mesh_routing.core.lsa_signature import LsaSignatures
from mesh_routing.core.origination import LocalLink
from mesh_routing.core.router import Router
from mesh_routing.core.view import View
from mesh_routing.shell.driver import RoutingDriver
from mesh_routing.shell.metrics import RoutingMetrics
from mesh_routing.shell.mirror import VERSIONS_KEPT, PostgresMirror, RedisMirror
from mesh_routing.shell.tables import links, lsa_versions
from meshcommon.admin import Readiness
from meshcommon.delegation import Delegations, Use
from meshcommon.ids import NodeId
from meshcommon.key_signer import KeySigner
from meshcommon.postgres import create_engine
from meshtest.delegated import delegated_signer
from meshtest.ports import free_ports
from meshtest.stores import EmbeddedPostgres, EmbeddedValkey

DEADLINE_S = 30.0
A, B = NodeId(1), NodeId(2)
MIGRATIONS = Path(__file__).parents[4] / "migrations" / "versions"


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.05)


def migrate(connection: Connection, step: str) -> None:
    """Runs one direction of the migrations of the topology by themselves."""
    names = ("0002_topology.py", "0003_unknown_loss.py")
    for name in names if step == "upgrade" else reversed(names):
        spec = importlib.util.spec_from_file_location("topology_migration", MIGRATIONS / name)
        assert spec is not None
        assert spec.loader is not None
        module: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        with Operations.context(MigrationContext.configure(connection)):
            getattr(module, step)()


def signed_by_b(lsa: Lsa) -> Lsa:
    signer = delegated_signer(b"b" * 32, "m", B, Use.LINK_STATES, mesh_epoch=1)
    return LsaSignatures("m", 1, Delegations(time.time)).sign(lsa, signer)


class Situation:
    """A driver with two nodes, a and b, linked both ways."""

    def __init__(self) -> None:
        self.metrics = RoutingMetrics(CollectorRegistry())
        self.readiness = Readiness()
        self.driver = RoutingDriver(Router(preset("test"), 1, random.Random(1), Delegations(time.time)), self.metrics)
        keys = {A: KeySigner(bytes(32)).public_key, B: KeySigner(b"b" * 32).public_key}
        own = delegated_signer(bytes(32), "m", A, Use.LINK_STATES, mesh_epoch=1)
        self.driver.configure(View(A, "m", 1, 1, {A: "a", B: "b"}, keys), own)
        self.driver.set_links(A, [LocalLink(B, 2_000, 100)], is_fresh=True)
        self.advertise(1)

    def advertise(self, sequence: int, *peers: NodeId) -> None:
        lsa = Lsa(B, sequence, tuple(LsaLink(peer, 1_000) for peer in peers or (A,)))
        signed = signed_by_b(lsa)
        self.driver.receive([(B, encode_message(LsaMessage((signed,))))])


@pytest_asyncio.fixture
async def postgres(tmp_path: Path) -> AsyncIterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(tmp_path / "pg", tmp_path / "pg.log")
    await asyncio.to_thread(server.prepare)
    server.launch()
    await server.wait()
    yield server
    await asyncio.to_thread(server.stop)


async def rows(engine: AsyncEngine) -> set[tuple[int, int, bool]]:
    async with engine.connect() as connection:
        found = await connection.execute(select(links.c.origin, links.c.peer, links.c.is_two_way))
        return {(row.origin, row.peer, row.is_two_way) for row in found}


async def test_postgres_follows_the_database_through_its_absence(postgres: EmbeddedPostgres) -> None:
    situation = Situation()
    engine = create_engine(postgres.url)
    mirror = PostgresMirror(engine, situation.driver, situation.readiness, situation.metrics)

    async def has(expected: set[tuple[int, int, bool]]) -> bool:
        return not situation.readiness.warnings() and await rows(engine) == expected

    async def warns(word: str) -> bool:
        return any(word in text for text in situation.readiness.warnings())

    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(mirror.run())
        await eventually(lambda: warns("tables are not there"))
        async with engine.begin() as connection:
            await connection.run_sync(migrate, "upgrade")
        await eventually(lambda: has({(A, B, True), (B, A, True)}))
        situation.driver.set_links(A, [], is_fresh=False)
        await eventually(lambda: has({(B, A, False)}))
        await asyncio.to_thread(postgres.stop)
        situation.driver.set_links(A, [LocalLink(B, 2_000, 100)], is_fresh=False)
        await eventually(lambda: warns("does not answer"))
        postgres.launch()
        await postgres.wait()
        await eventually(lambda: has({(A, B, True), (B, A, True)}))
        running.cancel()
    async with engine.begin() as connection:
        await connection.run_sync(migrate, "downgrade")
        assert (await connection.execute(text("select to_regclass('links')"))).scalar() is None
    await engine.dispose()


async def test_postgres_keeps_the_last_versions_only(postgres: EmbeddedPostgres) -> None:
    situation = Situation()
    engine = create_engine(postgres.url)
    mirror = PostgresMirror(engine, situation.driver, situation.readiness, situation.metrics)
    async with engine.begin() as connection:
        await connection.run_sync(migrate, "upgrade")
        old = [{"origin": B, "sequence": number, "links": []} for number in range(100, 130)]
        await connection.execute(lsa_versions.insert(), [*old, {"origin": 99, "sequence": 1, "links": []}])
    situation.advertise(500)

    async def has_newest() -> bool:
        async with engine.connect() as connection:
            found = await connection.execute(select(lsa_versions.c.sequence).where(lsa_versions.c.origin == B))
            sequences = sorted(found.scalars())
            others = await connection.execute(select(lsa_versions.c.origin).where(lsa_versions.c.origin == 99))
            return sequences == [*range(130 - VERSIONS_KEPT + 1, 130), 500] and not others.all()

    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(mirror.run())
        await eventually(has_newest)
        running.cancel()
    await engine.dispose()


async def test_greatest_integers_that_a_member_can_sign_fit_into_postgres(postgres: EmbeddedPostgres) -> None:
    situation = Situation()
    greatest, u32 = NodeId(2**63 - 1), 2**32 - 1
    lsa = Lsa(B, 2**63 - 1, (LsaLink(greatest, u32, u32, u32, LOSS_PPM_MAX),))
    signed = signed_by_b(lsa)
    situation.driver.receive([(B, encode_message(LsaMessage((signed,))))])
    engine = create_engine(postgres.url)
    mirror = PostgresMirror(engine, situation.driver, situation.readiness, situation.metrics)
    async with engine.begin() as connection:
        await connection.run_sync(migrate, "upgrade")

    async def has_it() -> bool:
        return (B, greatest, False) in await rows(engine)

    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(mirror.run())
        await eventually(has_it)
        running.cancel()
    assert situation.readiness.warnings() == []
    await engine.dispose()


async def test_mirror_outlives_what_it_did_not_expect(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mirror is a copy for readers: whatever goes wrong there, routing goes on."""
    situation = Situation()
    engine = create_engine("postgresql+asyncpg://postgres@127.0.0.1:1/none")
    mirror = PostgresMirror(engine, situation.driver, situation.readiness, situation.metrics)
    calls = 0

    def fail(*_: object) -> None:
        nonlocal calls
        calls += 1
        raise ValueError("unexpected")

    monkeypatch.setattr("mesh_routing.shell.mirror.take_snapshot", fail)
    monkeypatch.setattr("mesh_routing.shell.mirror.RETRY_S", 0.0)

    async def has_tried_again() -> bool:
        return calls >= 2

    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(mirror.run())
        await eventually(has_tried_again)
        running.cancel()
    await engine.dispose()


async def test_redis_holds_a_hash_per_link_that_expires(tmp_path: Path) -> None:
    situation = Situation()
    server = EmbeddedValkey(free_ports(1)[0], tmp_path / "valkey", tmp_path / "valkey.log")
    redis = Redis.from_url(server.url, socket_timeout=2, socket_connect_timeout=2, decode_responses=True)
    mirror = RedisMirror(redis, situation.driver, situation.readiness, situation.metrics)

    async def warns() -> bool:
        return bool(situation.readiness.warnings())

    async def has(keys: set[str]) -> bool:
        return not situation.readiness.warnings() and set(await redis.keys("mesh:link:*")) == keys

    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(mirror.run())
        await eventually(warns)
        server.launch()
        await server.wait()
        await eventually(lambda: has({"mesh:link:a:b", "mesh:link:b:a"}))
        fields = await redis.hgetall("mesh:link:a:b")
        assert fields["latency_us"] == "1000"
        assert fields["is_two_way"] == "1"
        assert 0 < await redis.ttl("mesh:link:a:b") <= 30
        situation.driver.set_links(A, [], is_fresh=False)
        await eventually(lambda: has({"mesh:link:b:a"}))
        running.cancel()
    await redis.aclose()
    await asyncio.to_thread(server.stop)
