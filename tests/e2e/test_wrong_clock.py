"""A site whose clock is wrong: an hour costs nothing, three days are named, and once the clock is right nothing is lost.

a and b listen, c dials them; the clock of c's four processes is moved by the library of the fault tests (`tests/faults`). No
site has stores. What clocks mean for delegations is in docs/design/identity.md "Delegations".
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from meshtest.gateway_client import Gateway
from meshtest.ports import free_ports
from meshtest.site import MODULES, PORTS_PER_SITE, Site, SiteConfig, name_ports
from meshtest.waiting import eventually
from tests.faults.faulty_disk import FaultyDisk

pytestmark = pytest.mark.asyncio(loop_scope="module")
HOUR_S = 3600
DAYS_S = 3 * 24 * HOUR_S
STREAM = "clock/one"
WITHOUT_STORES = {"MESH_NODE_POSTGRES_URL": "", "MESH_NODE_REDIS_URL": ""}


@dataclass(frozen=True, slots=True)
class Mesh:
    """Three members, and d, which is in no mesh; the clocks of c and d can be moved."""

    sites: dict[str, Site]
    gateways: dict[str, Gateway]
    clocks: dict[str, FaultyDisk]

    async def ctl(self, site: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The program as an operator runs it."""
        command = [sys.executable, "-m", "meshctl", "--gateway", self.sites[site].config.gateway, *arguments]
        return await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, timeout=100, check=False
        )

    async def restart(self, site: str) -> None:
        """All services of a site, as when its machine starts again."""
        for service in MODULES:
            self.sites[site].kill_service(service)
            self.sites[site].start_service(service)
        await self.sites[site].wait_until_answering()

    async def publish(self, site: str, value: bytes) -> None:
        """Until it is committed; a retry may publish it twice."""

        async def is_committed() -> bool:
            return (await self.gateways[site].publish(STREAM, [value])).count == 1

        await eventually(f"{value!r} is published at {site}", is_committed, timeout_s=60)

    async def values(self, site: str) -> list[bytes]:
        """Everything in the stream, as the site reads it."""
        return [record.value async for record in self.gateways[site].read(STREAM)]

    async def finding(self, site: str, check: str) -> dict[str, object]:
        """What `meshctl check` says."""
        said: list[dict[str, object]] = json.loads((await self.ctl(site, "check", "--only", check, "--json")).stdout)
        return said[0]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh() -> AsyncIterator[Mesh]:
    """The members are a mesh with one stream; every clock is right."""
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mesh-e2e-")))
        ports = free_ports(4 * PORTS_PER_SITE)
        clocks = {name: FaultyDisk(directory / f"disk-{name}", directory / f"orders-{name}") for name in "cd"}
        sites = {}
        for number, name in enumerate("abcd"):
            own = name_ports(ports[number * PORTS_PER_SITE : (number + 1) * PORTS_PER_SITE])
            extra = WITHOUT_STORES | (clocks[name].environment() if name in clocks else {})
            sites[name] = Site(SiteConfig(name, directory / name, own, is_listening=name not in clocks, extra=extra))
        try:
            for site in sites.values():
                for service in MODULES:
                    site.start_service(service)
            await asyncio.gather(*(site.wait_until_answering() for site in sites.values()))
            gateways = {
                name: await stack.enter_async_context(Gateway(site.config.gateway)) for name, site in sites.items()
            }
            await gateways["a"].seed("clocks")
            for name in "bc":
                await gateways[name].join(token=await gateways["a"].issue_token())
            found = Mesh(sites, gateways, clocks)

            async def is_formed() -> bool:
                await gateways["a"].create_stream(STREAM, ["a", "b", "c"])
                return True

            await eventually("the stream is formed", is_formed, timeout_s=60)
            yield found
        finally:
            await asyncio.gather(*(site.stop() for site in sites.values()))
            for clock in clocks.values():
                clock.close()


@pytest.mark.parametrize("offset_s", [HOUR_S, -HOUR_S])
async def test_site_whose_clock_is_off_by_an_hour_works_as_ever(mesh: Mesh, offset_s: int) -> None:
    """Before and after its restart: nobody's delegation, token or certificate is so short that an hour matters."""
    before = await mesh.values("a")
    mesh.clocks["c"].set_clock(offset_s)
    try:
        await mesh.publish("c", b"moved %d" % offset_s)
        await mesh.restart("c")
        done = await mesh.ctl("c", "check", "--wait", "60")
        assert done.returncode == 0, done.stdout
        await mesh.publish("c", b"restarted %d" % offset_s)
        assert (await mesh.values("b"))[: len(before)] == before
        assert {b"moved %d" % offset_s, b"restarted %d" % offset_s} <= set(await mesh.values("b"))
        mesh.clocks["d"].set_clock(offset_s)
        await mesh.restart("d")
        joined = await mesh.ctl("d", "join", await mesh.gateways["a"].issue_token(ttl_s=300))
        assert joined.returncode == 0, joined.stderr
        assert (await mesh.ctl("d", "leave", "--yes")).returncode == 0
    finally:
        mesh.clocks["c"].set_clock(0)
        mesh.clocks["d"].set_clock(0)


@pytest.mark.parametrize("offset_s", [DAYS_S, -DAYS_S])
async def test_newcomer_whose_clock_is_off_by_three_days_is_told_so(mesh: Mesh, offset_s: int) -> None:
    """Both clocks are in what it is told, and the token is not used up."""
    mesh.clocks["d"].set_clock(offset_s)
    token = await mesh.gateways["a"].issue_token()
    try:
        await mesh.restart("d")
        refused = await mesh.ctl("d", "join", token)
        print(refused.stderr)
        assert refused.returncode == 3, "it may be tried again"
        assert refused.stderr.startswith("error: CLOCK_SKEW: Here it is "), refused.stderr
        assert "Correct the clock that is wrong" in refused.stderr
    finally:
        mesh.clocks["d"].set_clock(0)
    await mesh.restart("d")
    joined = await mesh.ctl("d", "join", token)
    assert joined.returncode == 0, joined.stderr
    assert (await mesh.ctl("d", "leave", "--yes")).returncode == 0


@pytest.mark.parametrize("offset_s", [DAYS_S])
async def test_member_whose_clock_is_off_by_three_days_is_shut_out_by_name_and_loses_nothing(
    mesh: Mesh, offset_s: int
) -> None:
    """The others go on; c says CLOCK_SKEW, and is back within a minute after its clock is right, without a restart."""
    await mesh.publish("c", b"before %d" % offset_s)
    mesh.clocks["c"].set_clock(offset_s)
    try:
        await mesh.restart("c")

        async def is_named() -> bool:
            found = await mesh.finding("c", "lanes.up")
            print(found)
            return found["status"] == "failed" and "CLOCK_SKEW" in str(found["summary"])

        await eventually("c names its clock", is_named, timeout_s=60, poll_s=1)
        hint = str((await mesh.finding("c", "lanes.up"))["hint"])
        assert "Here it is " in hint, hint
        await mesh.publish("a", b"without c %d" % offset_s)

        async def is_missed() -> bool:
            return "c" in str((await mesh.finding("a", "mesh.nodes-reachable"))["summary"])

        await eventually("a misses c", is_missed, timeout_s=60, poll_s=1)
    finally:
        mesh.clocks["c"].set_clock(0)

    async def is_back() -> bool:
        return (await mesh.ctl("c", "check", "--only", "lanes.up")).returncode == 0

    await eventually("c is back", is_back, timeout_s=120, poll_s=1)
    await mesh.publish("c", b"after %d" % offset_s)
    wanted = {b"before %d" % offset_s, b"without c %d" % offset_s, b"after %d" % offset_s}
    for site in "abc":
        assert wanted <= set(await mesh.values(site)), site
