"""The three nodes of demo, tests and `make up`: a and b listen for peers, c only dials.

Links a–b, c→a and c→b; with `is_proxied` each goes through fault proxies, so that it can be silenced, cut or delayed.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from meshapi.common.v1 import view_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshtest.gateway_client import Gateway
from meshtest.ports import free_ports
from meshtest.proxy import FaultProxy
from meshtest.site import PORTS_PER_SITE, Site, SiteConfig, name_ports
from meshtest.waiting import eventually

NODES = ("a", "b", "c")
Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Link:
    """All proxies between two nodes."""

    proxies: tuple[FaultProxy, ...]

    def silence(self) -> None:
        """Bytes stop, nothing is closed."""
        for proxy in self.proxies:
            proxy.silence()

    def cut(self) -> None:
        """Connections are reset and refused."""
        for proxy in self.proxies:
            proxy.cut()

    def delay(self, seconds: float) -> None:
        """Every chunk waits, each way."""
        for proxy in self.proxies:
            proxy.delay(seconds)

    def heal(self) -> None:
        """All faults end."""
        for proxy in self.proxies:
            proxy.heal()


@dataclass(frozen=True, slots=True)
class Trio:
    """Three running sites, their links (by the two names in order, such as "ac") and a client for each gateway."""

    sites: dict[str, Site]
    links: dict[str, Link]
    gateways: dict[str, Gateway]

    def link(self, one: str, other: str) -> Link:
        """The link between two nodes."""
        return self.links["".join(sorted((one, other)))]

    async def create_stream(self, name: str, members: Sequence[str] = NODES, at: str = "a") -> int:
        """Creates a stream at one node and returns its id once every node serves it."""
        return await create_stream(self.gateways, name, members, at)

    async def delete_stream(self, name: str, at: str = "a") -> None:
        """Deletes a stream at one node and waits until no node's data plane serves it."""
        await self.gateways[at].delete_stream(name)
        for node, gateway in self.gateways.items():
            await eventually(f"node {node} knows that {name} is gone", partial(_is_gone, gateway, name))


def plan(directory: Path, ports: list[int], dial: dict[str, dict[str, str]]) -> dict[str, SiteConfig]:
    """Configurations of the three sites over 3 × PORTS_PER_SITE ports."""
    return {
        name: SiteConfig(
            name=name,
            directory=directory / name,
            ports=name_ports(ports[number * PORTS_PER_SITE : (number + 1) * PORTS_PER_SITE]),
            is_listening=name != "c",
            dial=dial.get(name, {}),
        )
        for number, name in enumerate(NODES)
    }


@asynccontextmanager
async def running_trio(directory: Path, report: Report = lambda _text: None) -> AsyncIterator[Trio]:
    """Three empty nodes, started, with proxied links, not yet joined; everything is stopped at the end.

    Args:
        directory: Where they live; emptied first.
        report: Called with a sentence for each step.
    """
    shutil.rmtree(directory, ignore_errors=True)
    ports = free_ports(3 * PORTS_PER_SITE + 4)
    targets = plan(directory, ports, {})
    async with AsyncExitStack() as stack:

        async def proxy(number: int, target: str) -> FaultProxy:
            forwarder = FaultProxy(ports[3 * PORTS_PER_SITE + number], targets[target].ports["peer"], "wss")
            return await stack.enter_async_context(forwarder)

        b_to_a, a_to_b = await proxy(0, "a"), await proxy(1, "b")
        c_to_a, c_to_b = await proxy(2, "a"), await proxy(3, "b")
        dial = {
            "a": {"b": a_to_b.address},
            "b": {"a": b_to_a.address},
            "c": {"a": c_to_a.address, "b": c_to_b.address},
        }
        sites = {name: Site(config) for name, config in plan(directory, ports, dial).items()}
        links = {"ab": Link((b_to_a, a_to_b)), "ac": Link((c_to_a,)), "bc": Link((c_to_b,))}
        try:
            await start_sites(sites, report)
            gateways = {
                name: await stack.enter_async_context(Gateway(site.config.gateway)) for name, site in sites.items()
            }
            yield Trio(sites, links, gateways)
        finally:
            await asyncio.gather(*(site.stop() for site in sites.values()))


async def start_sites(sites: dict[str, Site], report: Report) -> None:
    """Starts the sites side by side."""

    async def start_one(name: str) -> None:
        await sites[name].start()
        report(f"node {name}: four services, Postgres and Valkey are up; gateway at {sites[name].config.gateway}")

    async with asyncio.TaskGroup() as group:
        for name in sites:
            group.create_task(start_one(name), name=f"start site {name}")


async def form_mesh(sites: dict[str, Site], gateways: dict[str, Gateway], report: Report) -> str:
    """Seeds on a, joins b and c where they are not members yet, waits until all see HEALTHY; returns the mesh id."""
    seed = gateways["a"]
    status = await seed.status()
    mesh_id = status.view.mesh_id
    if not status.node_id:
        mesh_id = (await seed.seed()).mesh_id
        report(f"node a seeded mesh {mesh_id}")
    for name in ("b", "c"):
        if not (await gateways[name].status()).node_id:
            address = sites[name].config.dial.get("a", sites["a"].config.peer_address)
            await gateways[name].join(address, token=await seed.issue_token(name=name))
            report(f"node {name} joined through {address}")
    for name, gateway in gateways.items():
        await eventually(f"node {name} sees a HEALTHY mesh of three", partial(_is_healthy, gateway))
    return mesh_id


async def create_stream(
    gateways: Mapping[str, Gateway], name: str, members: Sequence[str] = NODES, at: str = "a"
) -> int:
    """Creates a stream at one node, waits until the data plane of every node serves it, and returns its id.

    The call itself returns when a quorum has formed the stream: other nodes may learn of it later.
    """
    stream_id = (await gateways[at].create_stream(name, [*members])).stream.stream_id
    await served_everywhere(gateways, name, stream_id)
    return stream_id


async def served_everywhere(gateways: Mapping[str, Gateway], name: str, stream_id: int) -> None:
    """Waits until the data plane of every node knows the stream of that id and its leader."""
    for node, gateway in gateways.items():
        await eventually(f"node {node} serves {name}", partial(_serves, gateway, name, stream_id))


async def _serves(gateway: Gateway, name: str, stream_id: int) -> bool:
    described = await gateway.describe(name)
    return described.stream_id == stream_id and bool(described.leader)


async def _is_gone(gateway: Gateway, name: str) -> bool:
    try:
        await gateway.describe(name)
    except MeshError as error:
        return error.code is ErrorCode.STREAM_NOT_FOUND
    return False


async def _is_healthy(gateway: Gateway) -> bool:
    view = (await gateway.status()).view
    return len(view.nodes) == len(NODES) and view.status == view_pb2.MESH_STATUS_HEALTHY
