"""Three NATS servers with JetStream, and as much of the NATS protocol as a stream and its load generator need.

Spoken directly instead of through a client library, so that no library holds the peer back: a publish is two lines of text.
Source: the NATS client protocol and the JetStream API (`$JS.API`), version 2.9.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Self

from meshtest.ports import free_ports
from meshtest.processes import Child, start
from meshtest.waiting import ConditionNotMetError, eventually
from tests.bench.report import ROOT

SERVER: Final = ROOT / "build" / "nats" / "usr" / "sbin" / "nats-server"
NODES: Final = 3
_PATIENCE_S: Final = 180.0
"""On a machine with more work than processors, three servers take long to elect, and every answer may miss its two seconds."""


class NatsNodes:
    """The three servers; `ports` are those for clients."""

    def __init__(self, ports: dict[str, int], children: Sequence[Child] = ()) -> None:
        """`children`: the processes; one that has ended is told with its log as soon as a stream is wanted."""
        self.ports = ports
        self._children = children

    async def create(self, name: str) -> None:
        """Makes a file stream with three replicas; its subject is its name."""
        wanted = {"name": name, "subjects": [name], "num_replicas": NODES, "storage": "file", "retention": "limits"}

        said = "nothing yet"

        async def made() -> bool:
            nonlocal said
            for child in self._children:
                if child.exit_status is not None:
                    raise SystemExit(f"nats-server ended with status {child.exit_status}:\n{child.log_tail()}")
            answer = await self.ask(f"$JS.API.STREAM.CREATE.{name}", wanted)
            said = str(answer.get("error") or ("no answer in two seconds" if not answer else "made"))
            return "config" in answer

        try:
            await eventually(f"the stream {name}", made, timeout_s=_PATIENCE_S)
            await eventually(f"a leader of {name}", lambda: self.leader(name), timeout_s=_PATIENCE_S)
        except ConditionNotMetError as error:
            logs = "\n".join(child.log_tail() for child in self._children)
            raise SystemExit(f"{error}; the server's last answer: {said}\n{logs}") from error

    async def delete(self, name: str) -> None:
        """Removes a stream and its files."""
        await self.ask(f"$JS.API.STREAM.DELETE.{name}", {})

    async def leader(self, name: str) -> str:
        """Address of the server that leads the stream, as host:port; empty when there is none yet."""
        answer = await self.ask(f"$JS.API.STREAM.INFO.{name}", {})
        cluster = answer.get("cluster", {})
        is_complete = len(cluster.get("replicas", ())) == NODES - 1 and all(
            item.get("current") for item in cluster["replicas"]
        )
        leader = cluster.get("leader", "")
        return f"127.0.0.1:{self.ports[leader]}" if leader in self.ports and is_complete else ""

    async def ask(self, subject: str, body: dict[str, Any]) -> dict[str, Any]:
        """One request of the API to the first server; an empty answer when nobody answers in two seconds."""
        port = next(iter(self.ports.values()))
        try:
            async with asyncio.timeout(2.0), NatsConnection(f"127.0.0.1:{port}") as connection:
                connection.write(b"SUB answer 1\r\n")
                data = json.dumps(body).encode()
                connection.write(b"PUB %s answer %d\r\n%s\r\n" % (subject.encode(), len(data), data))
                found: dict[str, Any] = json.loads(await connection.message())
                return found
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            return {}


class NatsConnection:
    """A connection to one server."""

    def __init__(self, address: str) -> None:
        self._host, _, port = address.rpartition(":")
        self._port = int(port)

    async def __aenter__(self) -> Self:
        self.reader, self._writer = await asyncio.open_connection(self._host, self._port, limit=1 << 20)
        await self.reader.readuntil(b"\r\n")
        self.write(b'CONNECT {"verbose":false,"pedantic":false}\r\nPING\r\n')
        while await self.reader.readuntil(b"\r\n") != b"PONG\r\n":
            continue
        return self

    async def __aexit__(self, *_reason: object) -> None:
        self._writer.close()

    def write(self, data: bytes) -> None:
        """Queues bytes."""
        self._writer.write(data)

    async def drain(self) -> None:
        """Waits while much is unsent."""
        await self._writer.drain()

    async def message(self) -> bytes:
        """Payload of the next message."""
        while True:
            line = await self.reader.readuntil(b"\r\n")
            if line.startswith(b"PING"):
                self.write(b"PONG\r\n")
            elif line.startswith(b"MSG"):
                size = int(line.split()[-1])
                return (await self.reader.readexactly(size + 2))[:-2]


@asynccontextmanager
async def running_nats(directory: Path) -> AsyncIterator[NatsNodes]:
    """Three servers in a cluster, with the defaults of JetStream; ended afterwards."""
    ports = free_ports(2 * NODES)
    clients = ports[:NODES]
    children: list[Child] = []
    try:
        for number, config in enumerate(_configure(directory, clients, ports[NODES:])):
            log = directory / f"nats-{number}.log"
            children.append(start([str(SERVER), "--config", str(config)], log=log, environment=dict(os.environ)))
        yield NatsNodes({f"s{number}": clients[number] for number in range(NODES)}, children)
    finally:
        await asyncio.gather(*(asyncio.to_thread(child.stop) for child in children))


def _configure(directory: Path, clients: list[int], routes: list[int]) -> list[Path]:
    directory.mkdir(parents=True, exist_ok=True)
    peers = ", ".join(f'"nats://127.0.0.1:{port}"' for port in routes)
    configs: list[Path] = []
    for number in range(NODES):
        config = directory / f"nats-{number}.conf"
        config.write_text(
            f"server_name: s{number}\nlisten: 127.0.0.1:{clients[number]}\n"
            f'jetstream {{ store_dir: "{directory / f"nats-{number}"}" }}\n'
            f"cluster {{ name: bench, listen: 127.0.0.1:{routes[number]}, routes: [{peers}] }}\n"
        )
        configs.append(config)
    return configs


def version() -> str:
    """Version of the server."""
    return subprocess.run([SERVER, "--version"], capture_output=True, text=True, check=True).stdout.split()[-1]
