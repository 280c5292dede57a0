"""The mesh under attack: three real sites, honest traffic, and what must be as before after each attack.

After an attack every process must live with the pid that it had, hold at most `MEMORY_MB_MAX` more, honest records must
go on and be whole (C1, C2), and the committed state must be the same. The comparisons are functions over plain values,
so that the harness's own test can show that each of them fails when it should.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from meshapi.common.v1 import view_pb2
from meshtest.gateway_client import Gateway
from meshtest.ports import free_ports
from meshtest.processes import Child, ProcessId
from meshtest.site import PORTS_PER_SITE, Site, SiteConfig
from meshtest.trio import create_stream, form_mesh, plan, start_sites
from meshtest.waiting import ConditionNotMetError, eventually
from tests.attacks.raw_socket import tls_ports
from tests.attacks.traffic import Traffic, flowing

STREAM: Final = "attacks/honest"
ABUSED: Final = "attacks/abused"
"""A stream for attacks that leave records or entries behind; nobody honest uses it."""
MEMORY_MB_MAX: Final = 20.0
PASSWORD: Final = "canary-Zx81-do-not-tell"
"""Password in the URL of Postgres; the embedded server does not ask for it, and nothing may repeat it."""
LOG_LINE_BYTES_MAX: Final = 16 * 1024
_SETTLE_S: Final = 60.0
_UNWANTED_IN_LOGS: Final = (b"Traceback (most recent call last)", b"unexpected_error", b"\x1b", b"\x00")
"""A known attack is refused for a reason; a caught surprise means that nobody thought of it."""
_PAGE_MB: Final = 4096 / 1024 / 1024


@dataclass(frozen=True, slots=True)
class Process:
    """One process at one moment."""

    process_id: ProcessId
    is_alive: bool
    memory_mb: float


@dataclass(frozen=True, slots=True)
class Look:
    """Everything that an attack must leave alone."""

    processes: Mapping[str, Process]
    state: Mapping[str, object]
    log_bytes: Mapping[Path, int]

    @property
    def memory_mb(self) -> float:
        """Memory of all processes together."""
        return sum(process.memory_mb for process in self.processes.values())


def memory_mb(pid: int) -> float:
    """Resident memory of a process, 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_MB
    except OSError:
        return 0.0


def process_findings(before: Mapping[str, Process], after: Mapping[str, Process]) -> list[str]:
    """Processes that ended or were replaced."""
    findings = []
    for name, process in before.items():
        now = after.get(name)
        if now is None or not now.is_alive:
            findings.append(f"process {name} has ended")
        elif now.process_id != process.process_id:
            findings.append(f"process {name} is another one than before")
    return findings


def memory_findings(
    before: Mapping[str, Process], after: Mapping[str, Process], memory_mb_max: float = MEMORY_MB_MAX
) -> list[str]:
    """Processes that hold more than they may."""
    return [
        f"process {name} went from {process.memory_mb:.0f} to {after[name].memory_mb:.0f} MB"
        for name, process in before.items()
        if name in after and after[name].memory_mb - process.memory_mb > memory_mb_max
    ]


def state_findings(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    """Committed facts that changed."""
    return [
        f"{key} was {before.get(key)!r} and is {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def log_findings(before: Mapping[Path, int]) -> list[str]:
    """What stands in the logs since then and should not: tracebacks, control characters, endless lines."""
    findings = []
    for path, size in before.items():
        with path.open("rb") as log:
            log.seek(size)
            lines = log.read().split(b"\n")
        for line in lines:
            unwanted = [text for text in _UNWANTED_IN_LOGS if text in line]
            if unwanted or len(line) > LOG_LINE_BYTES_MAX:
                findings.append(f"log {path.parts[-3]}/{path.name} has a line of {len(line)} bytes: {line[:1500]!r}")
    return findings


@dataclass(slots=True)
class Target:
    """The running mesh."""

    directory: Path
    sites: dict[str, Site]
    gateways: dict[str, Gateway]
    traffic: Traffic
    mesh_id: str
    abused_id: int
    others: dict[str, Child] = field(default_factory=dict)
    """Processes beside the mesh that are attacked too, by name."""
    tokens: list[str] = field(default_factory=list)
    """Join tokens that were issued for the tests: secrets. The first one was there before any look."""
    operator_tokens: list[str] = field(default_factory=list)
    """Operator's tokens of the gateways that the tests started: secrets."""

    async def issue_token(self, uses: int = 1, ttl_s: int = 900) -> str:
        """A join token of the mesh."""
        self.tokens.append(await self.gateways["a"].issue_token(uses, ttl_s))
        return self.tokens[-1]

    def port(self, site: str, name: str) -> int:
        """A port of a site, for instance `peer` or `data_client`."""
        return self.sites[site].config.ports[name]

    def peer_address(self, site: str) -> str:
        """Where a site listens for peers."""
        return self.sites[site].config.peer_address

    def processes(self) -> dict[str, Process]:
        """Every process of every site."""
        children = dict(self.others)
        for site_name, site in self.sites.items():
            children |= {f"{site_name}/{name}": child for name, child in site.children().items()}
        return {
            name: Process(
                child.process_id, child.exit_status is None and child.process_id.is_alive(), memory_mb(child.pid)
            )
            for name, child in children.items()
        }

    async def state(self) -> dict[str, object]:
        """Committed facts as every node tells them."""
        facts: dict[str, object] = {}
        statuses = await asyncio.gather(*(gateway.status() for gateway in self.gateways.values()))
        for name, status in zip(self.gateways, statuses, strict=True):
            facts[f"quorum seen by {name}"] = status.has_quorum
            facts[f"view of {name}"] = _digest(status.view)
            facts[f"status seen by {name}"] = view_pb2.MeshStatus.Name(status.view.status)
            facts[f"nodes seen by {name}"] = sorted(
                (node.name, node.peer_address[:80], view_pb2.NodeState.Name(node.state), node.is_voter)
                for node in status.view.nodes
            )
            facts[f"streams seen by {name}"] = sorted(stream.name for stream in status.view.streams)
        return facts

    @asynccontextmanager
    async def peak_bounded(self, process: str, memory_mb_max: float) -> AsyncIterator[None]:
        """While the body runs, the process never holds so much more than before it; looked at every 20 ms."""
        pid = self.processes()[process].process_id.pid
        before_mb = peak_mb = memory_mb(pid)

        async def watch() -> None:
            nonlocal peak_mb
            while True:
                peak_mb = max(peak_mb, memory_mb(pid))
                await asyncio.sleep(0.02)

        watching = asyncio.create_task(watch(), name=f"memory of {process}")
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        grown_mb = max(peak_mb, memory_mb(pid)) - before_mb
        assert grown_mb <= memory_mb_max, f"{process} held {grown_mb:.0f} MB more during the attack"

    async def agreed_look(self) -> Look:
        """As soon as all nodes tell the same: what an earlier test committed may still be on its way to some of them."""

        async def agreed() -> Look | None:
            look = await self.look()
            is_same = len({look.state[f"view of {name}"] for name in self.gateways}) == 1
            return look if is_same and all(look.state[f"quorum seen by {name}"] for name in self.gateways) else None

        return await eventually("all nodes have the same view", agreed, _SETTLE_S)

    async def look(self) -> Look:
        """Now."""
        return Look(self.processes(), await self.state(), {path: path.stat().st_size for path in self.service_logs()})

    def service_logs(self) -> list[Path]:
        """Logs of our own services; what stores write is theirs."""
        found = [child.log for site in self.sites.values() for child in site.services.values()]
        found += [child.log for child in self.others.values()]
        return [path for path in found if path.exists()]

    async def findings(
        self, before: Look, *, may_change_state: bool = False, memory_mb_max: float = MEMORY_MB_MAX
    ) -> tuple[list[str], Look]:
        """What is not as it was; memory has a while to settle."""
        findings = process_findings(before.processes, self.processes())
        if not findings:
            try:
                await self.traffic.progress()
                findings += await self.traffic.findings(self.gateways)
            except ConditionNotMetError as error:
                findings.append(str(error))
            await self._settle(before, memory_mb_max, may_change_state=may_change_state)
        after = await self._look_or_none() or before
        findings += process_findings(before.processes, self.processes())
        findings += memory_findings(before.processes, self.processes(), memory_mb_max)
        findings += log_findings(before.log_bytes)
        if not may_change_state:
            findings += state_findings(before.state, after.state)
        return list(dict.fromkeys(findings)), dataclasses.replace(after, processes=self.processes())

    async def _settle(self, before: Look, memory_mb_max: float, *, may_change_state: bool) -> None:
        async def is_settled() -> bool:
            if memory_findings(before.processes, self.processes(), memory_mb_max):
                return False
            return may_change_state or not state_findings(before.state, await self.state())

        try:
            await eventually("memory and state are as before", is_settled, _SETTLE_S, poll_s=0.1)
        except ConditionNotMetError:
            return

    async def _look_or_none(self) -> Look | None:
        try:
            async with asyncio.timeout(10):
                return await self.look()
        except Exception:  # noqa: BLE001 - a node that does not answer is already a finding
            return None


def _digest(view: view_pb2.MeshView) -> str:
    return f"revision {view.revision}, {hashlib.sha256(view.SerializeToString(deterministic=True)).hexdigest()[:16]}"


def _with_password(config: SiteConfig) -> SiteConfig:
    url = Site(config).postgres.url.replace("postgres@", f"postgres:{PASSWORD}@", 1)
    return dataclasses.replace(config, extra={**config.extra, "MESH_NODE_POSTGRES_URL": url})


@asynccontextmanager
async def running_target(directory: Path) -> AsyncIterator[Target]:
    """Three joined sites with honest traffic; everything is ended at the end."""
    sites = {name: Site(_with_password(config)) for name, config in _plan(directory).items()}
    async with AsyncExitStack() as stack:
        try:
            await start_sites(sites, lambda _text: None)
            gateways = {
                name: await stack.enter_async_context(Gateway(site.config.gateway)) for name, site in sites.items()
            }
            mesh_id = await form_mesh(sites, gateways, lambda _text: None)
            await create_stream(gateways, STREAM)
            abused_id = await create_stream(gateways, ABUSED, ["b", "c", "a"])
            addresses = [site.config.client for site in sites.values()]
            async with flowing(STREAM, addresses) as traffic:
                tls_ports.update(site.config.ports["peer"] for site in sites.values())
                target = Target(directory, sites, gateways, traffic, mesh_id, abused_id)
                await target.issue_token(uses=1_000, ttl_s=24 * 3600)
                yield target
        finally:
            await asyncio.gather(*(site.stop() for site in sites.values()))


def _plan(directory: Path) -> dict[str, SiteConfig]:
    return plan(directory, free_ports(3 * PORTS_PER_SITE), {})
