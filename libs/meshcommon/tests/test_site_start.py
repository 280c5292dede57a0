"""The start of a service that waits for its certificate: it says so, is stopped, gives up, and goes on with what is there."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from meshcommon.errors import MAPPINGS, ErrorCode, MeshError
from meshcommon.lifecycle import Stop
from meshcommon.service_certificates import Service
from meshcommon.settings import NodeSettings
from meshcommon.site_start import await_site_files
from meshtest.ports import free_ports
from meshtest.site_certificates import SiteAuthority, service
from meshtest.waiting import eventually


@pytest.fixture
def node(tmp_path: Path) -> NodeSettings:
    return NodeSettings(name="a", data_dir=tmp_path / "state", tls_dir=str(tmp_path / "tls"))


@pytest.fixture
def admin() -> str:
    return f"127.0.0.1:{free_ports(1)[0]}"


async def readyz(admin: str) -> dict[str, Any] | None:
    async with httpx.AsyncClient() as http:
        try:
            answer = await http.get(f"http://{admin}/readyz")
        except httpx.TransportError:
            return None
    body: dict[str, Any] = answer.json()
    return body


async def test_without_a_folder_nothing_is_awaited(tmp_path: Path, admin: str) -> None:
    node = NodeSettings(name="a", data_dir=tmp_path)
    assert await await_site_files(node, Service.DATA, admin, Stop()) is None


async def test_what_is_missing_stands_in_readyz_until_it_comes(node: NodeSettings, admin: str) -> None:
    starting = asyncio.create_task(await_site_files(node, Service.DATA, admin, Stop()))
    body = await eventually("the admin page answers", lambda: readyz(admin))
    assert not body["ready"]
    assert any(f"{node.tls_dir}/data/tls.crt cannot be read" in reason for reason in body["reasons"]), body
    SiteAuthority().write(Path(node.tls_dir), service("data"))
    files = await asyncio.wait_for(starting, 10)
    assert files is not None
    assert files.pair is not None
    assert await readyz(admin) is None, "the port is free for the service"


async def test_a_service_gives_up_in_time_with_a_code_of_its_own(node: NodeSettings, admin: str) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await await_site_files(node, Service.DATA, admin, Stop(), within_s=0.3)
    [error] = caught.value.exceptions
    assert isinstance(error, MeshError)
    assert error.code is ErrorCode.TLS_FILES_MISSING
    assert MAPPINGS[error.code].exit_status == 79
    assert "start it with the same MESH_NODE_TLS_DIR" in error.message


async def test_a_service_that_waits_is_stopped_at_once(node: NodeSettings, admin: str) -> None:
    stop = Stop()
    starting = asyncio.create_task(await_site_files(node, Service.DATA, admin, stop))
    await eventually("the admin page answers", lambda: readyz(admin))
    stop.request()
    assert await asyncio.wait_for(starting, 5) is None


async def test_a_certificate_that_has_ended_holds_up_no_start(node: NodeSettings, admin: str) -> None:
    """A data plane must come up without its control plane, whatever the time."""
    SiteAuthority().write(Path(node.tls_dir), service("data"), begun=timedelta(days=30))
    files = await await_site_files(node, Service.DATA, admin, Stop())
    assert files is not None
    assert files.for_users().pair.certificate == (files.pair.certificate if files.pair else None)
