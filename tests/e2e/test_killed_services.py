"""kill -9 of each service in turn: only what the architecture (§2) says stops, and nothing acknowledged is lost (I1)."""

from __future__ import annotations

import pytest

from meshcommon.errors import ErrorCode, MeshError
from meshtest.gateway_client import Gateway
from meshtest.trio import Trio
from meshtest.waiting import eventually
from tests.e2e.workload import check, publishing

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def create(trio: Trio, name: str) -> str:
    stream = f"kill/{name}"
    await trio.create_stream(stream)
    return stream


async def is_healthy(gateway: Gateway) -> bool:
    return len((await gateway.status()).view.nodes) == 3


async def test_without_control_plane_streams_go_on_and_the_catalogue_says_so(mesh: Trio) -> None:
    stream = await create(mesh, "control")
    async with publishing(mesh.gateways["a"], stream) as workload:
        mesh.sites["a"].kill_service("control")
        await workload.progress()
        with pytest.raises(MeshError) as caught:
            await mesh.gateways["a"].streams()
        assert caught.value.code is ErrorCode.UNAVAILABLE
        assert len(await mesh.gateways["b"].streams()) >= 1
        mesh.sites["a"].start_service("control")
        await eventually("a's control plane is back", lambda: is_healthy(mesh.gateways["a"]))
        await workload.progress()
    await check(mesh, workload)


async def test_without_routing_forwarding_goes_on_and_repairs_locally(mesh: Trio) -> None:
    stream = await create(mesh, "routing")
    async with publishing(mesh.gateways["a"], stream) as workload:
        for site in mesh.sites.values():
            site.kill_service("routing")
        await workload.progress()
        with pytest.raises(MeshError) as caught:
            await mesh.gateways["a"].paths("a", "c")
        assert caught.value.code is ErrorCode.UNAVAILABLE
        mesh.link("a", "c").silence()

        async def through_b() -> bool:
            return await mesh.gateways["a"].path_in_use("c") == ["a", "b", "c"]

        await eventually("a takes its backup path to c", through_b)
        await workload.progress()
        mesh.link("a", "c").heal()
        for site in mesh.sites.values():
            site.start_service("routing")

        async def direct() -> bool:
            return await mesh.gateways["a"].path_in_use("c") == ["a", "c"]

        await eventually("a reaches c directly again", direct)
    await check(mesh, workload)


async def test_without_gateway_the_node_serves_its_peers(mesh: Trio) -> None:
    stream = await create(mesh, "gateway")
    async with publishing(mesh.gateways["b"], stream) as workload:
        mesh.sites["a"].kill_service("gateway")
        await workload.progress()
        mesh.sites["a"].start_service("gateway")
        await eventually("a's gateway is back", lambda: is_healthy(mesh.gateways["a"]))
    await check(mesh, workload)


async def test_without_the_leaders_data_plane_another_leads(mesh: Trio) -> None:
    stream = await create(mesh, "data")
    async with publishing(mesh.gateways["b"], stream) as workload:
        mesh.sites["a"].kill_service("data")
        await workload.progress()

        async def another_leads() -> bool:
            return (await mesh.gateways["b"].describe(stream)).leader in {"b", "c"}

        await eventually("another node leads", another_leads)
        mesh.sites["a"].start_service("data")
        await workload.progress()
    await check(mesh, workload)


async def test_a_data_plane_restarts_alone(mesh: Trio) -> None:
    stream = await create(mesh, "alone")
    site = mesh.sites["b"]
    async with publishing(mesh.gateways["a"], stream) as workload:
        for service in ("control", "routing", "data"):
            site.kill_service(service)
        site.postgres.stop()
        site.valkey.stop()
        site.start_service("data")

        async def caught_up() -> bool:
            leader = await mesh.gateways["a"].describe(stream)
            own = await mesh.gateways["b"].describe(stream, is_local=True)
            return own.applied_index >= leader.applied_index

        await eventually("b follows again with its data plane alone", caught_up)
        await workload.progress()
        site.postgres.launch()
        site.valkey.launch()
        site.start_service("control")
        site.start_service("routing")
        await eventually("b's control plane is back", lambda: is_healthy(mesh.gateways["b"]))
    await check(mesh, workload)


@pytest.mark.parametrize("store", ["postgres", "valkey"])
async def test_without_a_store_everything_goes_on_with_a_warning(mesh: Trio, store: str) -> None:
    stream = await create(mesh, store)
    server = getattr(mesh.sites["a"], store)
    name = {"postgres": "Postgres", "valkey": "Redis"}[store]

    async def told() -> list[str]:
        answer = await mesh.gateways["a"].status()
        return [warning for warning in answer.warnings if f"{name} of this site does not answer since 20" in warning]

    async def is_silent() -> bool:
        return not await told()

    async with publishing(mesh.gateways["a"], stream) as workload:
        server.child.kill()
        await eventually(f"the status names {name}, and since when", told, timeout_s=10)
        await workload.progress()
        other = await create(mesh, f"{store}-away")
        assert other in [item.name for item in await mesh.gateways["a"].streams()]
        server.launch()
        await server.wait()
        await eventually(f"the status names {name} no longer", is_silent, timeout_s=10)
    await check(mesh, workload)


async def test_everything_killed_at_once_comes_back_with_every_acknowledged_record(mesh: Trio) -> None:
    stream = await create(mesh, "all")
    async with publishing(mesh.gateways["a"], stream) as workload:
        await workload.progress()
        for site in mesh.sites.values():
            for service in ("data", "control", "routing"):
                site.kill_service(service)
        for site in mesh.sites.values():
            for service in ("data", "control", "routing"):
                site.start_service(service)
        await workload.progress(timeout_s=40)
    await check(mesh, workload)
