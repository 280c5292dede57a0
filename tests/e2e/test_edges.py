"""Edges of a site: a mesh whose listeners and lanes are on IPv6, and listeners that other machines reach, with TLS and token.

Site a has its client port on all addresses, and a second gateway process beside its own does as well: neither has
MESH_INSECURE_DEV. All traffic stays on the loopback.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from meshclient import MeshClient
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.operator_token import FILE_NAME
from meshcommon.tls_contexts import trusting
from meshtest.certificates import Authority, CertificateFiles
from meshtest.gateway_client import Gateway
from meshtest.ports import free_ports
from meshtest.processes import Child, start
from meshtest.site import PORTS_PER_SITE, Site
from meshtest.trio import form_mesh, plan, start_sites
from meshtest.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

EVERYWHERE = "[::]"


def meshctl(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The program as an operator runs it."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("MESH_")}
    return subprocess.run(
        [sys.executable, "-m", "meshctl", *arguments],
        env=inherited | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@dataclass(frozen=True, slots=True)
class Edges:
    """The mesh, and what its site a shows to other machines."""

    sites: dict[str, Site]
    gateways: dict[str, Gateway]
    authority: Authority
    pair: CertificateFiles
    token: str

    def second_gateway(self, ports: list[int], **changes: str) -> Child:
        """Starts a gateway of site a on all addresses; a change to the empty string leaves a setting out."""
        config = self.sites["a"].config
        rest, grpc, admin = ports
        values = config.environment("", "") | {
            "MESH_GATEWAY_HTTP_LISTEN": f"{EVERYWHERE}:{rest}",
            "MESH_GATEWAY_GRPC_LISTEN": f"{EVERYWHERE}:{grpc}",
            "MESH_GATEWAY_ADMIN_LISTEN": f"[::1]:{admin}",
            "MESH_GATEWAY_TLS_CERTIFICATE": str(self.pair.certificate),
            "MESH_GATEWAY_TLS_KEY": str(self.pair.key),
        }
        values = {key: value for key, value in (values | changes).items() if value}
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("MESH_", "COVERAGE"))}
        log = config.directory / "log" / f"gateway-{grpc}.log"
        return start([sys.executable, "-m", "mesh_gateway"], log=log, environment=inherited | values)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edges() -> AsyncIterator[Edges]:
    with tempfile.TemporaryDirectory(prefix="mesh-e2e-") as directory:
        base = Path(directory)
        authority = Authority(base)
        pair = authority.issue("node", hosts=("localhost", "::1", "127.0.0.1"))
        configs = {
            name: replace(config, host="[::1]")
            for name, config in plan(base / "sites", free_ports(3 * PORTS_PER_SITE), {}).items()
        }
        a = configs["a"]
        (a.directory / "state").mkdir(parents=True)
        rotated = meshctl("operator-token", "rotate", MESH_NODE_DATA_DIR=str(a.directory / "state"))
        assert rotated.returncode == 0, rotated.stderr
        listen = {
            "MESH_DATA_CLIENT_LISTEN": f"{EVERYWHERE}:{a.ports['data_client']}",
            "MESH_DATA_CLIENT_TLS_CERTIFICATE": str(pair.certificate),
            "MESH_DATA_CLIENT_TLS_KEY": str(pair.key),
        }
        configs["a"] = replace(a, extra={**a.extra, **listen})
        sites = {name: Site(config) for name, config in configs.items()}
        async with AsyncExitStack() as stack:
            try:
                await start_sites(sites, print)
                gateways = {
                    name: await stack.enter_async_context(Gateway(site.config.gateway)) for name, site in sites.items()
                }
                await form_mesh(sites, gateways, print)
                await gateways["a"].create_stream("edges/lines", ["a", "b", "c"])
                yield Edges(sites, gateways, authority, pair, rotated.stdout.strip())
            finally:
                await asyncio.gather(*(site.stop() for site in sites.values()))


async def test_a_mesh_on_ipv6_forms_and_publishes(edges: Edges) -> None:
    view = (await edges.gateways["c"].status()).view
    advertised = {node.name: node.peer_address for node in view.nodes}
    assert advertised == {
        "a": f"wss://[::1]:{edges.sites['a'].config.ports['peer']}",
        "b": f"wss://[::1]:{edges.sites['b'].config.ports['peer']}",
        "c": "",
    }
    await edges.gateways["b"].publish("edges/lines", [b"one", b"two"])
    read = [record.value async for record in edges.gateways["c"].read("edges/lines")]
    assert read[:2] == [b"one", b"two"]


async def test_every_surface_takes_ipv6(edges: Edges) -> None:
    config = edges.sites["b"].config
    async with httpx.AsyncClient(timeout=20) as http:
        for name in ("[::1]", "localhost", "127.0.0.1", "[::ffff:127.0.0.1]"):
            assert (await http.get(f"{config.rest}/v1/mesh", headers={"Host": name})).status_code == 200, name
        assert (await http.get(f"http://[::1]:{config.ports['gateway_admin']}/readyz")).status_code == 200
        forged = await http.get(f"{config.rest}/v1/mesh", headers={"Host": "[2001:db8::1]"})
        assert forged.json()["code"] == "HOST_NOT_ALLOWED"
    status = await asyncio.to_thread(meshctl, "--gateway", config.gateway, "status", "--json")
    assert status.returncode == 0, status.stderr
    async with MeshClient(config.client) as client, client.producer("edges/lines") as producer:
        receipt = await producer.send(b"from a client")
        assert await receipt >= 0


async def test_the_client_port_takes_other_machines_with_tls_and_token(edges: Edges) -> None:
    port = edges.sites["a"].config.ports["data_client"]
    for host in ("[::1]", "127.0.0.1", "localhost"):
        address = f"wss://{host}:{port}"
        async with (
            MeshClient(address, ca_file=edges.authority.file, token=edges.token) as client,
            client.producer("edges/lines") as producer,
        ):
            assert await (await producer.send(host.encode())) >= 0
    async with MeshClient(f"wss://localhost:{port}", ca_file=edges.authority.file) as stranger:
        with pytest.raises(MeshError) as refused:
            await stranger.describe("edges/lines")
    assert refused.value.code is ErrorCode.OPERATOR_TOKEN_REQUIRED


async def test_a_gateway_takes_other_machines_with_tls_and_token(edges: Edges, tmp_path: Path) -> None:
    ports = free_ports(3)
    child = edges.second_gateway(ports)
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text(edges.token)
    try:

        def ctl(*options: str) -> subprocess.CompletedProcess[str]:
            target = ("--gateway", f"localhost:{ports[1]}", "--tls-ca", str(edges.authority.file))
            return meshctl(*target, "status", "--json", *options)

        async def answers() -> bool:
            assert child.exit_status is None, child.log_tail()
            return (await asyncio.to_thread(ctl, "--token-file", str(old))).returncode == 0

        await eventually("the gateway answers", answers, timeout_s=40)
        refused = await asyncio.to_thread(ctl)
        assert (refused.returncode, "OPERATOR_TOKEN_REQUIRED" in refused.stderr) == (1, True), refused.stderr

        async with httpx.AsyncClient(verify=trusting(edges.authority.file), timeout=20) as http:
            for host in ("[::1]", "127.0.0.1", "localhost"):
                url = f"https://{host}:{ports[0]}/v1/mesh"
                assert (await http.get(url)).status_code == 401
                assert (await http.get(url, headers={"Authorization": f"Bearer {edges.token}"})).status_code == 200

            state = edges.sites["a"].config.directory / "state"
            kept = (state / FILE_NAME).read_bytes()
            rotated = meshctl("operator-token", "rotate", "--json", MESH_NODE_DATA_DIR=str(state))
            new.write_text(json.loads(rotated.stdout)["token"])

            async def is_taken() -> bool:
                return (await asyncio.to_thread(ctl, "--token-file", str(new))).returncode == 0

            await eventually("the new token is taken", is_taken, timeout_s=20)
            wrong = await asyncio.to_thread(ctl, "--token-file", str(old))
            assert "OPERATOR_TOKEN_WRONG" in wrong.stderr
            (state / FILE_NAME).write_bytes(kept)
        text = child.log.read_text()
        assert edges.token not in text
        assert new.read_text() not in text
    finally:
        await asyncio.to_thread(child.stop)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"MESH_GATEWAY_TLS_CERTIFICATE": "", "MESH_GATEWAY_TLS_KEY": ""}, "without TLS:"),
        ({"MESH_NODE_DATA_DIR": "/nonexistent/mesh"}, "without authentication of callers:"),
    ],
)
async def test_a_gateway_that_lacks_one_of_them_does_not_start(
    edges: Edges, changes: dict[str, str], said: str
) -> None:
    child = edges.second_gateway(free_ports(3), **changes)
    try:

        async def has_ended() -> bool:
            return child.exit_status is not None

        await eventually("it ends", has_ended, timeout_s=40)
        assert child.exit_status == 77, child.log_tail()
        assert said in child.log_tail()
    finally:
        await asyncio.to_thread(child.stop)
