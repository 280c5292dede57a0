"""What can go wrong when a node joins: a stable code, a sentence, and the node is as free as before; then it joins by token."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from websockets.asyncio.server import ServerConnection, serve

from meshcommon.errors import ErrorCode, MeshError
from meshtest.gateway_client import Gateway
from meshtest.ports import free_ports
from meshtest.site import PORTS_PER_SITE, Site, SiteConfig, name_ports
from meshtest.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")
OTHER_MESH = "00000000-0000-4000-8000-000000000000"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair() -> AsyncIterator[dict[str, Site]]:
    """A seeded node and a free one."""
    with tempfile.TemporaryDirectory(prefix="mesh-e2e-") as directory:
        sites = {
            name: Site(SiteConfig(name, Path(directory) / name, name_ports(free_ports(PORTS_PER_SITE))))
            for name in ("first", "free")
        }
        try:
            await asyncio.gather(*(site.start() for site in sites.values()))
            async with Gateway(sites["first"].config.gateway) as gateway:
                await gateway.seed("e2e")
            yield sites
        finally:
            await asyncio.gather(*(site.stop() for site in sites.values()))


async def refusal(site: Site, address: str, mesh_id: str = "") -> MeshError:
    """The error of a join; afterwards the node is still in no mesh."""
    async with Gateway(site.config.gateway) as gateway:
        with pytest.raises(MeshError) as caught:
            await gateway.join(address, mesh_id)
        assert (await gateway.status()).node_id == 0
    assert caught.value.message.endswith(".")
    return caught.value


async def test_an_address_where_nobody_listens(pair: dict[str, Site]) -> None:
    address = f"wss://127.0.0.1:{free_ports(1)[0]}"
    error = await refusal(pair["free"], address)
    assert error.code is ErrorCode.ADDRESS_UNREACHABLE
    assert address in error.message


@pytest.mark.parametrize("address", ["", "nonsense", "http://127.0.0.1:1", "ws://"])
async def test_an_address_that_is_none(pair: dict[str, Site], address: str) -> None:
    assert (await refusal(pair["free"], address)).code is ErrorCode.INVALID_ARGUMENT


async def test_another_mesh_than_expected(pair: dict[str, Site]) -> None:
    error = await refusal(pair["free"], pair["first"].config.peer_address, OTHER_MESH)
    assert error.code is ErrorCode.MESH_ID_MISMATCH
    assert OTHER_MESH in error.message


async def test_a_websocket_server_that_is_no_peer(pair: dict[str, Site]) -> None:
    async def echo(connection: ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)

    async with serve(echo, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert (await refusal(pair["free"], f"wss://127.0.0.1:{port}")).code is ErrorCode.WRONG_PROTOCOL


async def test_a_server_that_speaks_no_http(pair: dict[str, Site]) -> None:
    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            writer.write(b"220 mail.example ESMTP\r\n")
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    assert (await refusal(pair["free"], f"wss://127.0.0.1:{port}")).code is ErrorCode.WRONG_PROTOCOL
    server.close()


async def test_the_gateway_is_not_the_peer_listener(pair: dict[str, Site]) -> None:
    address = pair["first"].config.rest.replace("http://", "wss://")
    assert (await refusal(pair["free"], address)).code is ErrorCode.WRONG_PROTOCOL


def meshctl(site: Site, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The program as an operator runs it."""
    command = [sys.executable, "-m", "meshctl", "--gateway", site.config.gateway, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


async def test_policy_and_spent_tokens_keep_the_node_out(pair: dict[str, Site]) -> None:
    """Through the program, as an operator would see it."""
    first, free = pair["first"], pair["free"]
    address = first.config.peer_address
    by_address = await asyncio.to_thread(meshctl, free, "join", address, "--trust-first")
    assert (by_address.returncode, by_address.stdout) == (1, "")
    assert by_address.stderr.startswith("error: TOKEN_REQUIRED: ")
    token = (await asyncio.to_thread(meshctl, first, "token", "issue", "--name", "another")).stdout.strip()
    for_another = await asyncio.to_thread(meshctl, free, "join", token)
    assert for_another.stderr.startswith("error: TOKEN_FOR_ANOTHER_NAME: ")
    token_id = (await asyncio.to_thread(meshctl, first, "token", "ls")).stdout.splitlines()[-1].split()[0]
    assert (await asyncio.to_thread(meshctl, first, "token", "revoke", token_id)).returncode == 0
    assert (await asyncio.to_thread(meshctl, free, "join", token)).stderr.startswith("error: TOKEN_UNKNOWN: ")
    await asyncio.to_thread(meshctl, first, "policy", "set", "closed")
    token = (await asyncio.to_thread(meshctl, first, "token", "issue")).stdout.strip()
    assert (await asyncio.to_thread(meshctl, free, "join", token)).stderr.startswith("error: JOIN_CLOSED: ")
    await asyncio.to_thread(meshctl, first, "policy", "set", "key-required")
    assert "key-required" in (await asyncio.to_thread(meshctl, first, "policy", "show")).stdout


async def test_after_all_that_the_node_joins(pair: dict[str, Site]) -> None:
    token = (await asyncio.to_thread(meshctl, pair["first"], "token", "issue")).stdout
    assert len(token.splitlines()) == 1
    joined = await asyncio.to_thread(meshctl, pair["free"], "join", token.strip())
    assert joined.returncode == 0, joined.stderr
    assert "this node has id 2" in joined.stdout
    async with Gateway(pair["free"].config.gateway) as gateway:

        async def has_view() -> bool:
            status = await gateway.status()
            return (status.node_id, status.mesh_name) == (2, "e2e")

        await eventually("the node has the mesh's view", has_view)
    assert not [
        log for log in (pair["free"].config.directory / "log").glob("*.log") if token.strip() in log.read_text()
    ]
