"""A site whose services call each other over TCP: mutual TLS by itself, certificates renewed under traffic (ADR 0020)."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import httpx
import pytest
from cryptography import x509

from meshapi.data.v1 import data_pb2, data_pb2_grpc
from meshapi.supervisor.v1 import mesh_pb2, mesh_pb2_grpc, topology_pb2
from meshclient import MeshClient
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.grpc_client import mesh_error, open_channel, open_service
from meshcommon.operator_token import FILE_NAME, hashed_line, new_token
from meshcommon.service_certificates import Service
from meshcommon.site_files import CERTIFICATE, SiteFiles
from meshcommon.tls_contexts import trusting
from meshtest.gateway_client import Gateway
from meshtest.ports import free_ports
from meshtest.site import PORTS_PER_SITE, Site, SiteConfig, name_ports
from meshtest.waiting import eventually

LIFE_S = 20
BACKENDS = ("control", "routing", "data")


@asynccontextmanager
async def tcp_site(directory: Path, **extra: str) -> AsyncIterator[Site]:
    """A running site whose backends listen on all interfaces, with nothing said of security but where certificates lie."""
    ports = dict(zip(BACKENDS, free_ports(len(BACKENDS)), strict=True))
    settings = {"MESH_NODE_TLS_DIR": str(directory / "tls"), "MESH_CONTROL_CERTIFICATE_LIFE_S": str(LIFE_S)}
    settings |= {f"MESH_{name.upper()}_GRPC_LISTEN": f"0.0.0.0:{port}" for name, port in ports.items()}
    for caller, called in (
        *(("CONTROL", "data"), ("CONTROL", "routing"), ("ROUTING", "data")),
        *(("GATEWAY", "control"), ("GATEWAY", "routing"), ("GATEWAY", "data")),
    ):
        settings[f"MESH_{caller}_{called.upper()}_TARGET"] = f"127.0.0.1:{ports[called]}"
    config = SiteConfig("a", directory, name_ports(free_ports(PORTS_PER_SITE)), extra=settings | extra)
    site = Site(config)
    try:
        await site.start()
        yield site
    finally:
        await site.stop()


def address(site: Site, service: str) -> str:
    _, _, port = site.config.extra[f"MESH_{service.upper()}_GRPC_LISTEN"].rpartition(":")
    return f"127.0.0.1:{port}"


def serial(site: Site, service: str) -> int:
    path = site.config.directory / "tls" / service / CERTIFICATE
    return x509.load_pem_x509_certificate(path.read_bytes()).serial_number


async def refusal(channel: grpc.aio.Channel) -> MeshError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await data_pb2_grpc.DataPlaneServiceStub(channel).Configure(data_pb2.ConfigureRequest(), timeout=5)
    return mesh_error(caught.value, "data plane")


async def test_no_call_fails_while_certificates_are_renewed(tmp_path: Path) -> None:
    """Certificates of 20 s, renewed at 10 s: reads and writes through the gateway for three renewals, each call counted."""
    async with tcp_site(tmp_path) as site, Gateway(site.config.gateway) as gateway:
        await gateway.seed("mesh")
        async with open_channel(site.config.gateway) as channel:
            stub = mesh_pb2_grpc.MeshServiceStub(channel)
            seen, calls = {serial(site, "data")}, 0
            deadline = asyncio.get_running_loop().time() + 90
            while len(seen) < 4:
                assert asyncio.get_running_loop().time() < deadline, "certificates are not renewed"
                await stub.GetStatus(mesh_pb2.GetStatusRequest(), timeout=5)
                await stub.IssueToken(mesh_pb2.IssueTokenRequest(ttl_s=1), timeout=5)
                await gateway.topology.ListLinks(topology_pb2.ListLinksRequest(), timeout=5)
                seen.add(serial(site, "data"))
                calls += 3
                await asyncio.sleep(0.05)
        assert calls > 100
        site.check_running()
        for name, child in site.services.items():
            log = child.log_tail()
            assert "Traceback" not in log, name


async def test_backends_answer_services_of_their_site_alone(tmp_path: Path) -> None:
    async with tcp_site(tmp_path) as site:
        data = address(site, "data")
        async with open_channel(data) as clear:
            assert (await refusal(clear)).code is ErrorCode.UNAVAILABLE
        root = (tmp_path / "tls" / "ca" / "ca.crt").read_bytes()
        options = [("grpc.ssl_target_name_override", "data.a.mesh.internal")]
        async with grpc.aio.secure_channel(data, grpc.ssl_channel_credentials(root), options=options) as anonymous:
            assert (await refusal(anonymous)).code in {ErrorCode.UNAVAILABLE, ErrorCode.TLS_FAILED}
        files = SiteFiles(tmp_path / "tls", "a", Service.GATEWAY)
        await files.look()
        async with open_service(data, Service.DATA, files) as as_gateway:
            error = await refusal(as_gateway)
            assert error.code is ErrorCode.CALLER_NOT_ALLOWED
            assert "node/a/gateway may not call meshapi.data.v1.DataPlaneService/Configure" in error.message


async def test_users_of_listeners_that_others_reach_get_tls(tmp_path: Path) -> None:
    http, grpc_port, client_port = free_ports(3)
    listen = {
        "MESH_GATEWAY_HTTP_LISTEN": f"0.0.0.0:{http}",
        "MESH_GATEWAY_GRPC_LISTEN": f"0.0.0.0:{grpc_port}",
    }
    token = new_token()
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / FILE_NAME).write_text(hashed_line(token))
    async with tcp_site(tmp_path, MESH_DATA_CLIENT_LISTEN=f"0.0.0.0:{client_port}") as site:
        site.stop_service("gateway")
        moved = SiteConfig("a", tmp_path, site.config.ports, extra={**site.config.extra, **listen})
        site.config = moved
        site.start_service("gateway")
        authority = tmp_path / "tls" / "ca" / "ca.crt"

        async def answers() -> bool:
            try:
                shown = {"Authorization": f"Bearer {token}"}
                async with httpx.AsyncClient(verify=trusting(authority), headers=shown) as client:
                    return (await client.get(f"https://localhost:{http}/v1/mesh")).status_code == 200
            except httpx.TransportError:
                return False

        await eventually("REST answers over TLS", answers)
        credentials = grpc.ssl_channel_credentials(authority.read_bytes())
        async with open_channel(f"localhost:{grpc_port}", credentials, token) as channel:
            status = await mesh_pb2_grpc.MeshServiceStub(channel).GetStatus(mesh_pb2.GetStatusRequest(), timeout=5)
            assert status.name == "a"
        async with httpx.AsyncClient() as client:
            with pytest.raises(httpx.TransportError):
                await client.get(f"http://localhost:{http}/v1/mesh")
        with pytest.raises(httpx.ConnectError) as caught:
            async with httpx.AsyncClient(verify=ssl.create_default_context()) as client:
                await client.get(f"https://localhost:{http}/v1/mesh")
        assert "CERTIFICATE_VERIFY_FAILED" in str(caught.value)
        address = f"wss://localhost:{client_port}"
        async with MeshClient(address, ca_file=authority, token=token, give_up_after_s=5) as application:
            with pytest.raises(MeshError) as refused:
                await application.describe("no/stream")
            assert refused.value.code in {ErrorCode.NOT_A_MEMBER, ErrorCode.STREAM_NOT_FOUND}, "it got an answer"
        (tmp_path / "tokens").mkdir()
        (tmp_path / "tokens" / "a-operator-token").write_text(token)
        await forms_a_mesh(tmp_path, authority, f"a=localhost:{grpc_port}")


async def forms_a_mesh(directory: Path, authority: Path, node: str) -> None:
    """The seed service of compose.yaml trusts what the control plane writes for users, as soon as it is there.

    It shows the operator's token of the secrets.
    """
    folders = [f"--authorities={directory / 'authorities'}", f"--tokens={directory / 'tokens'}"]
    words = [sys.executable, "deploy/seed/form_mesh.py", *folders, node]
    seed = await asyncio.create_subprocess_exec(*words, stdout=PIPE, stderr=STDOUT)
    assert seed.stdout is not None
    async with asyncio.timeout(60):
        first = await seed.stdout.readline()
        assert b"writes its authority" in first, "it waits for the authority"
        trusted = directory / "authorities" / "a"
        trusted.mkdir(parents=True)
        await asyncio.to_thread(shutil.copy, authority, trusted / "ca.crt")
        printed, _ = await seed.communicate()
        status = await seed.wait()
    assert status == 0, printed.decode()
    assert b"mesh_formed" in printed
