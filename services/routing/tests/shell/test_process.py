"""The process: starts alone, says what it lacks, stops when asked, refuses what it cannot work with."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import httpx
import pytest

from meshtest.ports import free_ports
from meshtest.processes import Child, start

DEADLINE_S = 30.0


class Service:
    """`python -m mesh_routing` with everything it talks to away."""

    def __init__(self, directory: Path, **settings: str) -> None:
        ports = free_ports(3)
        self.admin = f"http://127.0.0.1:{ports[1]}"
        own = {
            "MESH_NODE_NAME": "a",
            "MESH_NODE_DATA_DIR": str(directory / "data"),
            "MESH_NODE_POSTGRES_URL": f"postgresql+asyncpg://postgres@/postgres?host={directory}",
            "MESH_NODE_REDIS_URL": f"redis://127.0.0.1:{ports[2]}/0",
            "MESH_ROUTING_GRPC_LISTEN": f"127.0.0.1:{ports[0]}",
            "MESH_ROUTING_ADMIN_LISTEN": f"127.0.0.1:{ports[1]}",
            "MESH_ROUTING_DATA_TARGET": f"127.0.0.1:{ports[2]}",
        }
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("MESH_")}
        self.child: Child = start(
            [sys.executable, "-m", "mesh_routing"],
            log=directory / "routing.log",
            environment=inherited | own | settings,
        )


@pytest.fixture
def services() -> list[Service]:
    return []


@pytest.fixture(autouse=True)
def _ended(services: list[Service]) -> object:
    yield
    for service in services:
        service.child.stop()


def wait_for_readyz(service: Service) -> dict[str, object]:
    transport = httpx.HTTPTransport(retries=8)
    with httpx.Client(transport=transport, timeout=DEADLINE_S) as client:
        answer: dict[str, object] = client.get(f"{service.admin}/readyz").json()
        assert "mesh_routing_lsas" in client.get(f"{service.admin}/metrics").text
        return answer


def test_process_starts_alone_keeps_others_out_and_stops_when_asked(tmp_path: Path, services: list[Service]) -> None:
    first = Service(tmp_path)
    services.append(first)
    answer = wait_for_readyz(first)
    assert answer["ready"] is False
    assert "data plane" in str(answer["reasons"])
    assert "in no mesh yet" in str(answer["warnings"])
    second = Service(tmp_path)
    services.append(second)
    assert second.child.wait(DEADLINE_S) == 84
    assert "DATA_DIR_LOCKED" in second.child.log_tail()
    assert first.child.stop() == 0, first.child.log_tail()


def test_unknown_setting_ends_the_start(tmp_path: Path, services: list[Service]) -> None:
    services.append(Service(tmp_path, MESH_ROUTING_DATA_TARGETS="127.0.0.1:1"))
    assert services[0].child.wait(DEADLINE_S) == 78
    assert "data_target" in services[0].child.log_tail()
