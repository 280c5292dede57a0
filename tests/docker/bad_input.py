"""What a container says when what it was given is wrong: a sentence with the remedy, and an exit status of its own."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Final

from meshtest.waiting import eventually
from tests.docker.engine import docker
from tests.docker.stage import Stage

DATA: Final = "data-plane"
CONTROL: Final = "control-plane"
ROUTING: Final = "routing"
_NO_ROOM: Final = ("--tmpfs", "/var/lib/mesh:nr_inodes=2,uid=10001")
_OWN_DIRECTORY: Final = ("--tmpfs", "/var/lib/mesh:uid=10001")
_POSTGRES: Final = "MESH_NODE_POSTGRES_URL=postgresql+asyncpg://mesh:{password}@nowhere/mesh"


@dataclass(frozen=True, slots=True)
class Case:
    """One container with something wrong, the status that it must end with, and a word that its sentence must hold."""

    name: str
    image: str
    status: int
    says: str
    environment: tuple[str, ...] = ("MESH_NODE_NAME=x", "MESH_INSECURE_DEV=1")
    options: tuple[str, ...] = field(default=())


CASES: Final = (
    Case("no name", DATA, 78, "MESH_NODE_NAME", environment=("MESH_INSECURE_DEV=1",)),
    Case("unknown setting", DATA, 78, "MESH_DATA_PEER", environment=("MESH_NODE_NAME=x", "MESH_DATA_PEER=1")),
    Case(
        "insecure not accepted",
        DATA,
        77,
        "MESH_INSECURE_DEV",
        environment=("MESH_NODE_NAME=x", "MESH_DATA_PEER_TLS=false"),
    ),
    Case("no certificates", DATA, 77, "MESH_NODE_TLS_DIR", environment=("MESH_NODE_NAME=x",), options=_OWN_DIRECTORY),
    Case(
        "missing secret",
        CONTROL,
        78,
        "scripts/compose-secrets",
        environment=("MESH_NODE_NAME=x", _POSTGRES, "POSTGRES_PASSWORD_FILE=/run/secrets/postgres_password"),
    ),
    Case("read-only volume", DATA, 85, "data directory", options=("--tmpfs", "/var/lib/mesh:ro,uid=10001")),
    Case("volume of another user", DATA, 85, "data directory", options=("--tmpfs", "/var/lib/mesh:mode=0755,uid=1")),
    # The file system has room for the directory and for nothing in it.
    Case("no disk space", DATA, 85, "No space left", options=_NO_ROOM),
    Case("no disk space for the control plane", CONTROL, 85, "No space left", options=_NO_ROOM),
    Case("no disk space for routing", ROUTING, 85, "No space left", options=_NO_ROOM),
    Case(
        "port in use",
        DATA,
        71,
        "in use",
        options=("--tmpfs", "/var/lib/mesh:uid=10001", "--env", "MESH_DATA_ADMIN_LISTEN=0.0.0.0:7301"),
    ),
)


async def services_say_what_is_wrong(stage: Stage) -> None:
    """Every case of CASES, each in a container without networks."""
    for case in CASES:
        status, printed = await _run(stage, case)
        last = printed.strip().splitlines()[-1] if printed.strip() else ""
        assert status == case.status, f"{case.name}: status {status}\n{printed}"
        assert case.says in last, f"{case.name}: {last}"
        message = json.loads(last)["message"]
        stage.narrator.say(f"    {case.name}: status {status}: {message}")


async def _run(stage: Stage, case: Case) -> tuple[int, str]:
    words = [word for item in case.environment for word in ("--env", item)]
    label = f"com.docker.compose.project={stage.compose.project}"
    tag = stage.compose.environment["MESH_TAG"]
    process = await asyncio.create_subprocess_exec(
        *("docker", "run", "--rm", "--label", label, "--network", "none", "--read-only", "--tmpfs", "/tmp"),
        *(*case.options, *words, f"mesh/{case.image}:{tag}"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(60):
        output, _ = await process.communicate()
    return process.returncode or 0, output.decode(errors="replace")


async def wrong_database_password(stage: Stage) -> None:
    """The control plane goes on, and says that Postgres refuses it; with the right password again the warning goes."""
    right = await docker("exec", await stage.compose.container("b-postgres"), "cat", "/run/secrets/postgres_password")
    await _sql(stage, "ALTER USER mesh PASSWORD 'wrong'")
    await docker("restart", await stage.compose.container("b-control"))
    shown = await _warning(stage, "Postgres")
    stage.narrator.say(f"    {shown}")
    await _sql(stage, f"ALTER USER mesh PASSWORD '{right.strip()}'")
    await _no_warning(stage, "Postgres")
    await stage.wait_until_healthy()


async def database_of_a_newer_schema(stage: Stage) -> None:
    """The control plane goes on without writing there, and says SCHEMA_NEWER until the schema is one that it knows."""
    known = (await _sql(stage, "SELECT version_num FROM alembic_version")).strip()
    await _sql(stage, "UPDATE alembic_version SET version_num = 'newer'")
    await docker("restart", await stage.compose.container("b-control"))
    shown = await _warning(stage, "schema revision newer")
    stage.narrator.say(f"    {shown}")
    assert shown in await stage.compose.readiness("b-control", "b-control.metrics:7102")
    assert "SCHEMA_NEWER" in await stage.compose.logs("b-control", 50)
    await stage.create_stream("docker/newer-schema")
    assert "docker/newer-schema" not in await _sql(stage, "SELECT name FROM streams")
    await _sql(stage, f"UPDATE alembic_version SET version_num = '{known}'")
    await _no_warning(stage, "schema revision newer")

    async def is_written() -> bool:
        return "docker/newer-schema" in await _sql(stage, "SELECT name FROM streams")

    await eventually("b has written what it missed", is_written)
    await stage.wait_until_healthy()


async def _sql(stage: Stage, statement: str) -> str:
    """What b's Postgres answers, rows without a frame."""
    words = ("psql", "--quiet", "--no-align", "--tuples-only", "--username=mesh", "-c", statement)
    return await docker("exec", "--user", "postgres", await stage.compose.container("b-postgres"), *words)


async def _warnings(stage: Stage, word: str) -> list[str]:
    async with stage.http("b") as http:
        found: list[str] = (await http.get("/v1/mesh")).json().get("warnings", [])
    return [warning for warning in found if word in warning]


async def _warning(stage: Stage, word: str) -> str:
    """The first warning of b that holds the word, once there is one."""

    async def shown() -> list[str]:
        return await _warnings(stage, word)

    return (await eventually(f"b warns of: {word}", shown, timeout_s=60))[0]


async def _no_warning(stage: Stage, word: str) -> None:
    async def is_silent() -> bool:
        # While the control plane restarts there are no warnings, and nothing is right.
        return (await stage.gateways["b"].status()).node_id != 0 and not await _warnings(stage, word)

    await eventually(f"b no longer warns of: {word}", is_silent, timeout_s=60)
