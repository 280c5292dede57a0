"""Start, stop and failure of a real service process: exit statuses, the line that says why, its log, its pages."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from meshcommon.grpc_client import open_channel
from meshcommon.grpc_server import GrpcServer
from meshcommon.lifecycle import LEAVE_S
from meshcommon.listen import bind
from meshcommon.logging import CORRELATION_METADATA
from meshtest.ports import free_ports

SERVICE = Path(__file__).with_name("small_service.py")
TIMEOUT_S = 20


class Process:
    """The small service, with its log line by line."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, str(SERVICE)], env=environment, stderr=subprocess.PIPE, text=True, encoding="utf-8"
        )

    def events(self) -> Iterator[dict[str, Any]]:
        """Every line that it logs, as it comes; each must be a JSON object."""
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            event = json.loads(line)
            assert isinstance(event, dict)
            yield event

    def wait_for(self, name: str) -> dict[str, Any]:
        """The next event of this name."""
        seen = []
        for event in self.events():
            seen.append(event)
            if event["event"] == name:
                return event
        pytest.fail(f"the service ended before {name}: {seen}")

    def exit_status(self) -> int:
        return self.popen.wait(TIMEOUT_S)


class Collector:
    """Takes traces by OTLP."""

    def __init__(self) -> None:
        self.spans: dict[str, Span] = {}
        self.resources: list[dict[str, str]] = []
        self.server = GrpcServer()
        handlers: dict[str, Any] = {"Export": grpc.unary_unary_rpc_method_handler(self._export)}
        service = "opentelemetry.proto.collector.trace.v1.TraceService"
        self.server.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))

    async def _export(self, request: bytes, _context: Any) -> bytes:
        for group in ExportTraceServiceRequest.FromString(request).resource_spans:
            self.resources.append({item.key: item.value.string_value for item in group.resource.attributes})
            for scope in group.scope_spans:
                self.spans |= {span.trace_id.hex(): span for span in scope.spans}
        return b""


Start = Callable[..., Process]


@pytest.fixture
def ports() -> dict[str, str]:
    """Free addresses for the service."""
    grpc_port, admin_port = free_ports(2)
    return {
        "MESH_DATA_GRPC_LISTEN": f"127.0.0.1:{grpc_port}",
        "MESH_DATA_ADMIN_LISTEN": f"127.0.0.1:{admin_port}",
    }


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    """A place to export traces to."""
    collector = Collector()
    await collector.server.start("127.0.0.1:0", "The collector")
    yield collector
    await collector.server.stop()


@pytest.fixture
def start(tmp_path: Path, ports: dict[str, str]) -> Iterator[Start]:
    """Starts the small service; a variable given as None is left out."""
    running: list[Process] = []

    def run(**variables: str | None) -> Process:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("MESH_")}
        environment: dict[str, str | None] = {
            **inherited,
            **ports,
            "MESH_NODE_NAME": "a",
            "MESH_NODE_DATA_DIR": str(tmp_path / "data"),
            **variables,
        }
        running.append(Process({key: value for key, value in environment.items() if value is not None}))
        return running[-1]

    yield run
    for process in running:
        if process.popen.poll() is None:
            process.popen.kill()
        process.popen.wait(TIMEOUT_S)
        assert process.popen.stderr is not None
        process.popen.stderr.close()


def last_event(process: Process) -> dict[str, Any]:
    """What an ended process said last."""
    return list(process.events())[-1]


async def say(target: str, text: bytes, correlation: str) -> bytes:
    async with open_channel(target) as channel:
        call: Any = channel.unary_unary("/test.v1.Small/Say")
        answer: bytes = await call(text, metadata=((CORRELATION_METADATA, correlation),), timeout=TIMEOUT_S)
        return answer


async def test_runs_answers_and_stops_on_sigterm(start: Start, ports: dict[str, str]) -> None:
    process = start()
    process.wait_for("started")
    async with open_channel(ports["MESH_DATA_GRPC_LISTEN"]) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    async with httpx.AsyncClient(base_url=f"http://{ports['MESH_DATA_ADMIN_LISTEN']}", timeout=TIMEOUT_S) as pages:
        assert (await pages.get("/readyz")).json() == {"ready": True, "reasons": [], "warnings": []}

    process.popen.send_signal(signal.SIGTERM)
    assert process.exit_status() == 0
    for address in ports.values():
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=5)


def test_a_name_that_is_never_resolved_does_not_hold_up_the_stop(start: Start) -> None:
    process = start(MESH_DATA_FAULT="stuck thread")
    process.wait_for("started")
    began = time.monotonic()
    process.popen.send_signal(signal.SIGTERM)
    assert process.exit_status() == 0
    assert time.monotonic() - began < 2 * LEAVE_S


async def test_log_lines_carry_origin_correlation_and_the_trace_that_is_exported(
    start: Start, ports: dict[str, str], collector: Collector
) -> None:
    process = start(MESH_NODE_OTLP_ENDPOINT=f"http://127.0.0.1:{collector.server.port}")
    process.wait_for("started")
    assert await say(ports["MESH_DATA_GRPC_LISTEN"], "ä".encode(), "call-7") == "ä".encode()
    own = process.wait_for("said")
    library = process.wait_for("it said ä")
    assert (own["text"], own["level"]) == ("ä", "info")
    assert (library["level"], library["service"], library["node"]) == ("warning", "mesh-small", "a")
    for event in (own, library):
        assert event["correlation_id"] == "call-7"
        assert len(event["trace_id"]) == 32
        assert len(event["span_id"]) == 16
        assert event["time"].endswith("Z")
    assert own["trace_id"] == library["trace_id"]

    with pytest.raises(grpc.RpcError):
        await say(ports["MESH_DATA_GRPC_LISTEN"], b"", "call-8")
    assert process.wait_for("said")["trace_id"] != own["trace_id"]

    process.popen.send_signal(signal.SIGINT)
    assert await asyncio.to_thread(process.exit_status) == 0
    span = collector.spans[own["trace_id"]]
    assert (span.name, span.span_id.hex()) == ("/test.v1.Small/Say", own["span_id"])
    assert collector.resources[0]["service.name"] == "mesh-small"
    assert collector.resources[0]["service.instance.id"] == "a"


@pytest.mark.parametrize(
    ("variables", "status", "code"),
    [
        ({"MESH_NODE_NAME": None}, 78, "SETTING_INVALID"),
        ({"MESH_DATA_FAULT": "storage"}, 1, "STORAGE_FAILED"),
        ({"MESH_DATA_FAULT": "storage beside a stuck thread"}, 1, "STORAGE_FAILED"),
    ],
)
def test_refusal_is_one_json_line_and_the_codes_exit_status(
    start: Start, variables: dict[str, str | None], status: int, code: str
) -> None:
    process = start(**variables)
    line = last_event(process)
    assert process.exit_status() == status
    assert (line["event"], line["service"], line["code"], line["level"]) == (
        "start_failed",
        "mesh-small",
        code,
        "error",
    )
    assert line["message"]


def test_port_in_use_ends_the_start_also_after_the_first_listener_is_up(start: Start, ports: dict[str, str]) -> None:
    address = ports["MESH_DATA_ADMIN_LISTEN"]
    with bind(address, "the other process"):
        process = start()
        line = last_event(process)
        assert process.exit_status() == 71
    assert line["code"] == "ADDRESS_IN_USE"
    assert address in line["message"]


def test_failed_task_takes_the_service_down_with_its_traceback(start: Start) -> None:
    process = start(MESH_DATA_FAULT="crash")
    event = process.wait_for("service_failed")
    assert "ZeroDivisionError" in event["exception"]
    assert process.exit_status() == 1
