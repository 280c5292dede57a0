"""The mesh CA on real processes: the root that `meshctl ca root` prints verifies a site's gateway, before and after rotations."""

from __future__ import annotations

from pathlib import Path

import grpc
import httpx

from meshapi.supervisor.v1 import ca_pb2, mesh_pb2, mesh_pb2_grpc
from meshcommon.grpc_client import open_channel
from meshcommon.tls_contexts import trusting
from meshtest.gateway_client import Gateway
from meshtest.site import Site, SiteConfig
from meshtest.waiting import eventually
from tests.e2e.test_site_tls import tcp_site


async def show(gateway: Gateway) -> ca_pb2.ShowCaResponse:
    return await gateway.ca.ShowCa(ca_pb2.ShowCaRequest(), timeout=10)


def serve_users_over_tls(site: Site) -> None:
    """The gateway again, with the files that the control plane writes for it."""
    files = site.config.directory / "tls" / "gateway"
    extra = {
        "MESH_GATEWAY_TLS_CERTIFICATE": str(files / "tls.crt"),
        "MESH_GATEWAY_TLS_KEY": str(files / "tls.key"),
    }
    site.stop_service("gateway")
    site.config = SiteConfig("a", site.config.directory, site.config.ports, extra={**site.config.extra, **extra})
    site.start_service("gateway")


async def test_one_root_verifies_the_gateway_through_a_rotation_of_the_intermediate(tmp_path: Path) -> None:
    root = tmp_path / "root.pem"
    async with tcp_site(tmp_path) as site:
        async with Gateway(site.config.gateway) as clear:
            seeded = await clear.seed("mesh")
            shown = await show(clear)
            assert seeded.ca_fingerprint == shown.root_fingerprints[0]
            assert seeded.ca_root_key_file == str(tmp_path / "state" / "control" / "ca" / "root.key")
            root.write_text(shown.roots_pem)
        serve_users_over_tls(site)
        port = site.config.ports["gateway_http"]

        async def rest_is_verified() -> bool:
            try:
                async with httpx.AsyncClient(verify=trusting(root)) as client:
                    return (await client.get(f"https://localhost:{port}/v1/ca")).status_code == 200
            except httpx.TransportError:
                return False

        await eventually("REST leads to the mesh's root", rest_is_verified, 40)
        target = f"localhost:{site.config.gateway.rpartition(':')[2]}"
        async with open_channel(target, grpc.ssl_channel_credentials(root.read_bytes())) as channel:
            status = await mesh_pb2_grpc.MeshServiceStub(channel).GetStatus(mesh_pb2.GetStatusRequest(), timeout=10)
            assert status.name == "a"
        async with httpx.AsyncClient(verify=trusting(root)) as client:
            rotated = await client.post(f"https://localhost:{port}/v1/ca/rotate", json={"revoke": True}, timeout=20)
            assert rotated.json()["generation"] == 2
            assert rotated.json()["intermediate_fingerprint"] != shown.intermediate_fingerprint
        await eventually("REST leads to the same root by another intermediate", rest_is_verified, 40)
        site.check_running()
