"""The compose mesh as the tests see it: three gateways from outside, faults from Docker, checks over every member."""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc
import httpx

from meshapi.common.v1 import view_pb2
from meshtest.gateway_client import Gateway
from meshtest.ports import free_ports
from meshtest.trio import NODES, Trio, served_everywhere
from meshtest.waiting import eventually
from tests.docker.engine import CommandFailedError, Compose, command, docker
from tests.e2e.workload import Workload, check, publishing

PROJECT: Final = "mesh-e2e"
STORES: Final = ("postgres", "redis")
SERVICES: Final = ("control", "routing", "gateway", "data")
WANS: Final = {"a": ("wan-ab", "wan-ac"), "b": ("wan-ab", "wan-bc"), "c": ("wan-ac", "wan-bc")}
FORMED_BOUND_S: Final = 60.0
MEMORY_BOUND_MIB: Final = 1024.0
BATCH_RECORDS: Final = 50
"""Records in a batch of the load; a batch is submitted every 10 ms."""
_MIB: Final = 1024 * 1024


class Narrator:
    """Prints each step with the time since the start."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def say(self, text: str) -> None:
        """One line."""
        print(f"[{time.monotonic() - self._started:6.1f} s] {text}", flush=True)


@dataclass(frozen=True, slots=True)
class Stage:
    """A running compose mesh. `rest` holds the base URL of each gateway, `tokens` its operator's token.

    `gateways` and `authorities`, which hold what the tests trust, are empty until the mesh is up.
    """

    compose: Compose
    targets: dict[str, str]
    rest: dict[str, str]
    tokens: dict[str, str]
    narrator: Narrator
    gateways: dict[str, Gateway] = field(default_factory=dict)
    authorities: dict[str, str] = field(default_factory=dict)

    async def trust(self) -> None:
        """Takes the certificates of the sites' issuers, as a user would, and dials the gateways with them."""
        for node, target in self.targets.items():
            container = await self.compose.container(f"{node}-control")

            async def written(container: str = container) -> str:
                try:
                    return await docker("exec", container, "cat", "/var/lib/mesh-tls/ca/ca.crt")
                except CommandFailedError:
                    return ""

            found = await eventually(f"the control plane of {node} has written its certificate", written)
            if found != self.authorities.get(node):
                self.authorities[node] = found
                if node in self.gateways:
                    await self.gateways[node].close()
                self.gateways[node] = Gateway(target, grpc.ssl_channel_credentials(found.encode()), self.tokens[node])

    async def close(self) -> None:
        """Closes the channels to the gateways."""
        for gateway in self.gateways.values():
            await gateway.close()

    def http(self, node: str, timeout_s: float = 10) -> httpx.AsyncClient:
        """A client for REST of `node`, which trusts the issuer of that site alone and shows its operator's token."""
        tls = ssl.create_default_context(cadata=self.authorities[node])
        shown = {"Authorization": f"Bearer {self.tokens[node]}"}
        return httpx.AsyncClient(base_url=self.rest[node], verify=tls, timeout=timeout_s, headers=shown)

    async def create_stream(self, name: str, members: Sequence[str] = NODES) -> str:
        """A stream on all three nodes, the first being the preferred leader."""

        async def created() -> int:
            return (await self.gateways["a"].create_stream(name, [*members])).stream.stream_id

        stream_id = await eventually(f"stream {name} is created", created, timeout_s=60)
        await served_everywhere(self.gateways, name, stream_id)
        return name

    @asynccontextmanager
    async def under_load(self, stream: str, at: str, members: Sequence[str] = NODES) -> AsyncIterator[Workload]:
        """Publishes at node `at` while the body runs; afterwards C1, C2, C4 and C5 hold on every member."""
        await self.create_stream(stream, members)
        async with publishing(self.gateways[at], stream, BATCH_RECORDS) as workload:
            yield workload
        await self.check(workload)

    async def check(self, workload: Workload) -> None:
        """Zero findings of C1, C2, C4 and C5 over all members; says how many records they are about."""
        await check(Trio({}, {}, self.gateways), workload)
        waits_s = workload.recoveries_s
        recovery = f", first commit at most {max(waits_s):.2f} s after a fault healed" if waits_s else ""
        self.narrator.say(
            f"    {workload.publisher.submitted:,} records at every member, none lost or doubled "
            f"({workload.publisher.retries} retries{recovery})"
        )

    async def is_healthy(self) -> bool:
        """Whether every node sees three members and all of them reachable."""
        for gateway in self.gateways.values():
            view = (await gateway.status()).view
            if len(view.nodes) != len(NODES) or view.status != view_pb2.MESH_STATUS_HEALTHY:
                return False
        return True

    async def wait_until_healthy(self, timeout_s: float = 60.0) -> None:
        """Returns when `is_healthy`."""
        await eventually("all three nodes see a HEALTHY mesh", self.is_healthy, timeout_s, poll_s=0.2)

    async def wait_for_path(self, start: str, end: str, path: list[str], timeout_s: float = 30.0) -> None:
        """Returns when packets from `start` to `end` take `path`."""

        async def is_taken() -> bool:
            return await self.gateways[start].path_in_use(end) == path

        await eventually(f"packets from {start} to {end} go {'–'.join(path)}", is_taken, timeout_s)

    async def leader(self, stream: str, ask: str) -> str:
        """The node that leads a stream, as node `ask` knows."""
        return (await self.gateways[ask].describe(stream)).leader

    async def cut(self, node: str, wan: str) -> None:
        """Takes a node off a wan network."""
        await self.compose.disconnect(wan, f"{node}-data")

    async def heal(self, node: str, wan: str) -> None:
        """Puts it back, under the names that compose.yaml gives it."""
        aliases = [f"{node}-data"] if node == "c" else [f"{node}-data", f"{node}.mesh"]
        await self.compose.connect(wan, f"{node}-data", *aliases)

    async def wait_for_restart(self, service: str, old_pid: int, timeout_s: float = 30.0) -> None:
        """Returns when the restart policy has brought a crashed service back."""

        async def is_back() -> bool:
            state = (await self.compose.inspect(service))["State"]
            return bool(state["Running"]) and int(state["Pid"]) not in {0, old_pid}

        await eventually(f"{service} runs again", is_back, timeout_s, poll_s=0.2)

    async def wait_for_seed(self, timeout_s: float = 180.0) -> int:
        """Exit status of the one-shot service."""

        async def ended() -> tuple[int] | None:
            state = (await self.compose.inspect("seed"))["State"]
            return None if state["Running"] or state["Status"] == "created" else (int(state["ExitCode"]),)

        return (await eventually("the seed service has ended", ended, timeout_s, poll_s=0.2))[0]

    async def up(self) -> float:
        """`compose up`, until the mesh has formed; returns the seconds it took."""
        started = time.monotonic()
        await self.compose("up", "-d")
        status = await self.wait_for_seed()
        if status:
            raise CommandFailedError(f"seed ended with status {status}:\n{await self.compose.logs('seed')}")
        await self.trust()
        return time.monotonic() - started

    async def memory_mib(self) -> dict[str, float]:
        """Memory in use by each site, without the page cache that the kernel gives back."""
        containers = await self.compose.containers()
        lines = await docker("stats", "--no-stream", "--format", "{{.MemUsage}}", *containers.values())
        totals = dict.fromkeys(NODES, 0.0)
        for service, usage in zip(containers, lines.splitlines(), strict=True):
            if service[0] in totals and service[1] == "-":
                totals[service[0]] += _mib(usage.split("/")[0].strip())
        return totals


def _mib(text: str) -> float:
    """Docker's `52.6MiB` as a number of MiB."""
    units = {"GiB": 1024.0, "MiB": 1.0, "KiB": 1 / 1024, "kB": 1000 / _MIB, "B": 1 / _MIB}
    for unit, factor in units.items():
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * factor
    raise ValueError(f"no size: {text!r}")


@asynccontextmanager
async def empty_stage(directory: Path, narrator: Narrator) -> AsyncIterator[Stage]:
    """A compose project with ports, secrets and volumes of its own, nothing started; all of it is removed at the end."""
    ports = free_ports(7)
    names = [f"MESH_{node.upper()}_{kind}_PORT" for node in NODES for kind in ("HTTP", "GRPC")]
    secrets = directory / "secrets"
    await command("scripts/compose-secrets", str(secrets))
    variables = dict(zip([*names, "MESH_PROMETHEUS_PORT"], map(str, ports), strict=True))
    variables |= {"MESH_SECRETS": str(secrets), "MESH_TAG": os.environ.get("MESH_TAG", "dev")}
    compose = await Compose.find(PROJECT, variables)
    narrator.say(f"compose {await compose.version()} by `{' '.join(compose.program)}`, project {PROJECT}")
    await remove(compose)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(remove, compose)
        targets = {node: f"127.0.0.1:{ports[2 * number + 1]}" for number, node in enumerate(NODES)}
        rest = {node: f"https://127.0.0.1:{ports[2 * number]}" for number, node in enumerate(NODES)}
        tokens = {node: (secrets / f"{node}-operator-token").read_text() for node in NODES}
        stage = Stage(compose, targets, rest, tokens, narrator)
        stack.push_async_callback(stage.close)
        yield stage


async def remove(compose: Compose) -> None:
    """Everything of the project and nothing else, side containers included."""
    label = f"label=com.docker.compose.project={compose.project}"
    found = (await docker("ps", "--all", "--quiet", "--filter", label)).split()
    if found:
        await docker("rm", "--force", *found)
    await compose.down("--volumes", "--remove-orphans", profile=("--profile", "observability"))


async def measured(action: Callable[[], Awaitable[None]]) -> float:
    """Seconds that the action took."""
    started = time.monotonic()
    await action()
    return time.monotonic() - started
