"""Kind 7: the gRPC port of a backend that others reach. Whoever has no certificate of the site gets nothing, whatever it does."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
import pytest

from meshapi.data.v1 import data_pb2, data_pb2_grpc
from meshapi.overlay.v1 import overlay_pb2, overlay_pb2_grpc
from meshapi.supervisor.v1 import data_pb2 as public_pb2
from meshapi.supervisor.v1 import data_pb2_grpc as public_grpc
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.grpc_client import mesh_error, open_channel, open_service
from meshcommon.service_certificates import Service
from meshcommon.site_files import AUTHORITY, SiteFiles
from meshtest.ports import free_ports
from meshtest.processes import Child, start
from meshtest.site_certificates import SiteAuthority, service
from meshtest.waiting import eventually
from tests.attacks.target import memory_mb

CONNECTIONS = 300
MEMORY_MB_MAX = 20.0


@dataclass(frozen=True, slots=True)
class Victim:
    """A data plane alone, its gRPC port on all interfaces."""

    child: Child
    port: int
    tls: Path
    authority: SiteAuthority

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def files(self, name: str) -> SiteFiles:
        """The certificate of one of the site's services."""
        files = self.authority.write(self.tls, service(name))
        await files.look()
        return files

    async def answers(self) -> bool:
        """Whether the gateway of the site is served."""
        async with open_service(self.target, Service.DATA, await self.files("gateway")) as channel:
            try:
                await public_grpc.MeshDataServiceStub(channel).ListReplicas(public_pb2.ListReplicasRequest(), timeout=5)
            except grpc.aio.AioRpcError as error:
                return mesh_error(error, "data plane").code is ErrorCode.NOT_A_MEMBER
        return True


@asynccontextmanager
async def running_victim(directory: Path) -> AsyncIterator[Victim]:
    grpc_port, admin, peer = free_ports(3)
    authority, tls = SiteAuthority(), directory / "tls"
    authority.write(tls, service("data"))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MESH_")} | {
        "MESH_NODE_NAME": "a",
        "MESH_NODE_DATA_DIR": str(directory / "state"),
        "MESH_NODE_TLS_DIR": str(tls),
        "MESH_DATA_GRPC_LISTEN": f"0.0.0.0:{grpc_port}",
        "MESH_DATA_ADMIN_LISTEN": f"127.0.0.1:{admin}",
        "MESH_DATA_PEER_LISTEN": f"127.0.0.1:{peer}",
    }
    child = start([sys.executable, "-m", "mesh_data"], log=directory / "log", environment=environment)
    try:
        victim = Victim(child, grpc_port, tls, authority)
        await eventually("the data plane answers its gateway", victim.answers, 60)
        yield victim
        log = (directory / "log").read_text()
        assert child.exit_status is None, log
        assert "Traceback" not in log
        assert "unexpected_error" not in log
        assert await victim.answers()
    finally:
        child.kill()


async def refusal(channel: grpc.aio.Channel) -> MeshError:
    """What becomes of a call that would take the data plane over."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await data_pb2_grpc.DataPlaneServiceStub(channel).Configure(data_pb2.ConfigureRequest(), timeout=10)
    return mesh_error(caught.value, "data plane")


async def test_callers_without_a_right_of_their_own_configure_nothing(tmp_path: Path) -> None:
    async with running_victim(tmp_path) as victim:
        stranger = SiteAuthority()
        stranger.write(tmp_path / "stranger", service("control"))
        right = (victim.tls / "data" / AUTHORITY).read_bytes()
        (tmp_path / "stranger" / "control" / AUTHORITY).write_bytes(right)
        forged = SiteFiles(tmp_path / "stranger", "a", Service.CONTROL)
        await forged.look()
        broken = {ErrorCode.UNAVAILABLE, ErrorCode.TLS_FAILED}
        async with open_channel(victim.target) as clear:
            assert (await refusal(clear)).code in broken
        async with open_service(victim.target, Service.DATA, forged) as channel:
            assert (await refusal(channel)).code in broken
        for name in ("gateway", "routing", "data"):
            async with open_service(victim.target, Service.DATA, await victim.files(name)) as channel:
                assert (await refusal(channel)).code is ErrorCode.CALLER_NOT_ALLOWED, name
        async with open_service(victim.target, Service.DATA, await victim.files("gateway")) as channel:
            attach = overlay_pb2_grpc.OverlayServiceStub(channel).Attach(_nothing())
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await anext(aiter(attach))
            assert mesh_error(caught.value, "data plane").code is ErrorCode.CALLER_NOT_ALLOWED


async def _nothing() -> AsyncIterator[overlay_pb2.AttachRequest]:
    yield overlay_pb2.AttachRequest()


async def test_connections_that_are_no_tls_or_never_finish_it_cost_nothing_that_stays(tmp_path: Path) -> None:
    async with running_victim(tmp_path) as victim:
        before = memory_mb(victim.child.pid)
        openings = (
            b"",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\x16\x03\x01\xff\xff",
            b"\x00" * 100_000,
            b"GET / HTTP/1.1\r\n\r\n",
        )
        for _ in range(3):
            await asyncio.gather(*(_knock(victim.port, openings[at % len(openings)]) for at in range(CONNECTIONS)))
            assert await victim.answers()

        async def is_small() -> bool:
            return memory_mb(victim.child.pid) - before < MEMORY_MB_MAX

        await eventually("memory is as before", is_small, 30)


async def _knock(port: int, opening: bytes) -> None:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(opening)
        await writer.drain()
        async with asyncio.timeout(1):
            await reader.read()
    except (OSError, TimeoutError):
        return
    writer.close()
