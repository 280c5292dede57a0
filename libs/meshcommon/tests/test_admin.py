"""The pages of the admin port, over real HTTP."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import httpx
import prometheus_client
import pytest

from meshcommon.admin import Readiness, serve_admin
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.listen import bind
from meshtest.ports import free_ports


def free_address() -> str:
    return f"127.0.0.1:{free_ports(1)[0]}"


async def until_listening(address: str, serving: asyncio.Task[None]) -> None:
    """Returns when the port takes connections; fails when the server has ended instead."""
    host, _, port = address.partition(":")
    async with asyncio.timeout(10):
        while True:
            if serving.done():
                await serving
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except ConnectionRefusedError:
                await asyncio.sleep(0.01)
                continue
            writer.close()
            await writer.wait_closed()
            return


@pytest.fixture
def readiness() -> Readiness:
    return Readiness()


@pytest.fixture
async def pages(readiness: Readiness) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a running admin server."""
    address = free_address()
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(serve_admin(readiness, address), name="admin")
        await until_listening(address, serving)
        async with httpx.AsyncClient(base_url=f"http://{address}", timeout=10) as client:
            yield client
        serving.cancel()


async def test_alive_from_the_first_moment(pages: httpx.AsyncClient) -> None:
    answer = await pages.get("/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "alive"})


async def test_ready_only_when_nothing_blocks(pages: httpx.AsyncClient, readiness: Readiness) -> None:
    answer = await pages.get("/readyz")
    assert (answer.status_code, answer.json()["reasons"]) == (503, ["The service is starting."])

    readiness.clear("starting")
    readiness.warn("postgres", "Postgres is away.")
    answer = await pages.get("/readyz")
    assert answer.status_code == 200
    assert answer.json() == {"ready": True, "reasons": [], "warnings": ["Postgres is away."]}

    readiness.block("overlay", "Not connected.")
    answer = await pages.get("/readyz")
    assert answer.status_code == 503
    assert answer.json() == {"ready": False, "reasons": ["Not connected."], "warnings": ["Postgres is away."]}

    readiness.clear("overlay")
    readiness.clear("postgres")
    readiness.clear("never there")
    answer = await pages.get("/readyz")
    assert answer.json() == {"ready": True, "reasons": [], "warnings": []}


async def test_metrics_are_prometheus_text(pages: httpx.AsyncClient) -> None:
    registry_counter = prometheus_client.Counter("mesh_test_admin_pages", "Counts nothing but this test.")
    registry_counter.inc(3)
    answer = await pages.get("/metrics")
    assert answer.headers["content-type"] == prometheus_client.CONTENT_TYPE_LATEST
    assert "mesh_test_admin_pages_total 3.0" in answer.text


async def test_unknown_page_and_wrong_method(pages: httpx.AsyncClient) -> None:
    assert (await pages.get("/nothing")).status_code == 404
    assert (await pages.post("/healthz")).status_code == 405


async def test_port_in_use() -> None:
    with bind("127.0.0.1:0", "the other") as other, pytest.raises(MeshError) as caught:
        await serve_admin(Readiness(), f"127.0.0.1:{other.getsockname()[1]}")
    assert caught.value.code is ErrorCode.ADDRESS_IN_USE


async def test_cancelling_ends_the_server_and_frees_the_port() -> None:
    address = free_address()
    serving = asyncio.create_task(serve_admin(Readiness(), address))
    await until_listening(address, serving)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(address.partition(":")[2])), timeout=5)
    bind(address, "the next").close()
