"""What can be wrong when a service starts: it says what and what to do, ends with the code's exit status, changes nothing."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from meshcommon.errors import MAPPINGS, ErrorCode
from meshtest.ports import free_ports
from meshtest.processes import Child, start
from meshtest.site import MODULES, PORTS_PER_SITE, SiteConfig, name_ports
from meshtest.waiting import eventually

STORING = ("control", "routing", "data")
NO_STORES = ("postgresql+asyncpg://postgres@127.0.0.1:1/postgres", "redis://127.0.0.1:1/0")


@pytest.fixture
def site(tmp_path: Path) -> SiteConfig:
    return SiteConfig("n", tmp_path, name_ports(free_ports(PORTS_PER_SITE)))


def run(service: str, site: SiteConfig, **changes: str) -> tuple[int, dict[str, str]]:
    """Exit status and the error that the service printed last."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MESH_", "COVERAGE"))}
    environment |= site.environment(*NO_STORES) | changes
    done = subprocess.run(
        [sys.executable, "-m", MODULES[service]], env=environment, capture_output=True, timeout=240, check=False
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    error: dict[str, str] = json.loads(done.stderr.splitlines()[-1])
    return done.returncode, error


def refused_with(code: ErrorCode, outcome: tuple[int, dict[str, str]]) -> str:
    status, error = outcome
    assert (status, error["code"]) == (MAPPINGS[code].exit_status, code), error
    return error["message"]


@pytest.mark.parametrize("service", MODULES)
def test_an_unknown_setting_is_named_with_the_one_that_was_meant(service: str, site: SiteConfig) -> None:
    variable = f"MESH_{service.upper()}_ADMIN_LISTN"
    message = refused_with(ErrorCode.SETTING_UNKNOWN, run(service, site, **{variable: "127.0.0.1:1"}))
    assert variable in message
    assert "admin_listen" in message


@pytest.mark.parametrize("service", MODULES)
def test_an_ill_typed_setting_is_named_with_its_value(service: str, site: SiteConfig) -> None:
    variable = f"MESH_{service.upper()}_ADMIN_LISTEN"
    message = refused_with(ErrorCode.SETTING_INVALID, run(service, site, **{variable: "nonsense"}))
    assert variable in message
    assert "nonsense" in message


@pytest.mark.parametrize("service", MODULES)
async def test_a_port_in_use_is_named(service: str, site: SiteConfig) -> None:
    ports = ("gateway_admin", "gateway_grpc", "gateway_http") if service == "gateway" else (f"{service}_admin",)
    for port in ports:
        taken = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", site.ports[port])
        try:
            message = refused_with(ErrorCode.ADDRESS_IN_USE, await asyncio.to_thread(run, service, site))
            assert str(site.ports[port]) in message
        finally:
            taken.close()


@pytest.mark.parametrize("service", STORING)
async def test_a_socket_in_use_is_named_and_left_alone(service: str, site: SiteConfig) -> None:
    path = site.sockets / f"{service}.sock"
    path.parent.mkdir(mode=0o700, parents=True)
    taken = await asyncio.start_unix_server(lambda _reader, writer: writer.close(), path)
    try:
        message = refused_with(ErrorCode.ADDRESS_IN_USE, await asyncio.to_thread(run, service, site))
        assert str(path) in message
        assert path.exists()
    finally:
        taken.close()


@pytest.mark.parametrize(
    "variable",
    [
        *("MESH_CONTROL_GRPC_LISTEN", "MESH_ROUTING_GRPC_LISTEN", "MESH_DATA_GRPC_LISTEN"),
        *("MESH_GATEWAY_GRPC_LISTEN", "MESH_GATEWAY_HTTP_LISTEN", "MESH_DATA_CLIENT_LISTEN"),
    ],
)
def test_a_listener_that_others_reach_has_to_be_asked_for(variable: str, site: SiteConfig) -> None:
    service = variable.split("_")[1].lower()
    listen = {variable: f"0.0.0.0:{free_ports(1)[0]}", "MESH_INSECURE_DEV": "0"}
    message = refused_with(ErrorCode.INSECURE_NOT_ALLOWED, run(service, site, **listen))
    assert "0.0.0.0" in message
    assert "MESH_NODE_TLS_DIR" in message


@pytest.mark.parametrize("target", ["CONTROL_DATA", "CONTROL_ROUTING", "ROUTING_DATA", "GATEWAY_CONTROL"])
def test_a_service_on_another_machine_is_not_called_in_clear(target: str, site: SiteConfig) -> None:
    service = target.split("_", maxsplit=1)[0].lower()
    message = refused_with(
        ErrorCode.INSECURE_NOT_ALLOWED, run(service, site, **{f"MESH_{target}_TARGET": "other.example.com:7301"})
    )
    assert "other.example.com:7301" in message


def directory_of(service: str, site: SiteConfig) -> Path:
    path = site.directory / "state" / service
    path.mkdir(parents=True)
    return path


@pytest.mark.parametrize("service", STORING)
def test_a_directory_of_another_node(service: str, site: SiteConfig) -> None:
    marker = directory_of(service, site) / "store.json"
    fields = {"role": service, "format_version": 1, "store_id": "x", "boot": 1, "node_name": "other"}
    marker.write_text(json.dumps(fields))
    assert "'other'" in refused_with(ErrorCode.DATA_DIR_FOREIGN, run(service, site))
    assert json.loads(marker.read_text()) == fields


@pytest.mark.parametrize("service", STORING)
def test_a_directory_of_a_newer_version(service: str, site: SiteConfig) -> None:
    marker = directory_of(service, site) / "store.json"
    marker.write_text(json.dumps({"format_version": 99, "unheard": "of"}))
    assert "99" in refused_with(ErrorCode.DATA_DIR_NEWER, run(service, site))


@pytest.mark.parametrize("service", STORING)
def test_a_half_written_directory(service: str, site: SiteConfig) -> None:
    left_over = directory_of(service, site) / "raft"
    left_over.mkdir()
    refused_with(ErrorCode.DATA_DIR_INCOMPLETE, run(service, site))
    assert left_over.is_dir()


@pytest.mark.parametrize("service", STORING)
def test_a_damaged_marker(service: str, site: SiteConfig) -> None:
    (directory_of(service, site) / "store.json").write_text('{"role": "da')
    refused_with(ErrorCode.DATA_DIR_INCOMPLETE, run(service, site))


def test_lanes_in_clear_have_to_be_asked_for(site: SiteConfig) -> None:
    assert "MESH_INSECURE_DEV" in refused_with(
        ErrorCode.INSECURE_NOT_ALLOWED, run("data", site, MESH_DATA_PEER_TLS="false")
    )


def launch(service: str, site: SiteConfig) -> Child:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MESH_", "COVERAGE"))}
    return start(
        [sys.executable, "-m", MODULES[service]],
        log=site.directory / f"{service}.log",
        environment=environment | site.environment(*NO_STORES),
    )


@pytest.mark.parametrize("service", MODULES)
async def test_a_service_starts_without_its_stores_and_stops_when_asked(service: str, site: SiteConfig) -> None:
    child = launch(service, site)
    try:

        async def is_alive() -> bool:
            assert child.exit_status is None, child.log_tail()
            async with httpx.AsyncClient(timeout=2) as http:
                try:
                    answer = await http.get(f"http://127.0.0.1:{site.ports[f'{service}_admin']}/healthz")
                except httpx.HTTPError:
                    return False
            return answer.status_code == 200

        await eventually(f"{service} is alive", is_alive)
        assert open_to_others(site.directory / "state") == []
        assert open_to_others(site.sockets) == []
    finally:
        status = child.stop(timeout_s=10)
    assert status == 0, child.log_tail()


def open_to_others(directory: Path) -> list[Path]:
    """What other users of the machine could read or enter, beginning with the directory itself."""
    if not directory.exists():
        return []
    found = [path for path in (directory, *directory.rglob("*")) if path.stat().st_mode & 0o077]
    # What lies in a directory that nobody may enter is safe.
    return [] if directory not in found else found


async def test_a_second_process_on_the_same_directory_is_refused(site: SiteConfig) -> None:
    child = launch("data", site)
    other = SiteConfig("n", site.directory, name_ports(free_ports(PORTS_PER_SITE)))
    try:

        async def has_marker() -> bool:
            return (site.directory / "state/data/store.json").exists()

        await eventually("the first has its directory", has_marker)
        refused_with(ErrorCode.DATA_DIR_LOCKED, await asyncio.to_thread(run, "data", other))
    finally:
        child.stop()
