"""Fuzz target of the REST API: schemathesis makes requests from the OpenAPI document, right ones and wrong ones.

The gateway runs in a thread of its own, on a loopback port, in front of fake services whose answers are well formed. A
finding is any 5xx but 503 (a service is away) and 504 (a deadline), and any error that is no problem document with a
known code. Leaves out schemathesis' own checks of what must be refused (it is wrong about values that JSON may coerce) and
its stateful mode (it cannot send binary bodies).
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable
from typing import Any, Final, Self

import hypothesis
import requests
import schemathesis
import uvicorn
from google.protobuf import message_factory
from prometheus_client import CollectorRegistry
from schemathesis import GenerationMode
from schemathesis.core.result import Ok

from mesh_gateway.shell.app import build_app
from mesh_gateway.shell.backends import Backends
from mesh_gateway.shell.metrics import GatewayMetrics
from mesh_gateway.shell.record_exchanges import opened_budget
from meshcommon.errors import ErrorCode
from meshtest.fake_services import CA_SERVICE, DATA_SERVICE, MESH_SERVICE, TOPOLOGY_SERVICE, FakeServer
from tests.fuzz.mutation import TargetFailedError

NAME: Final = "rest"
_ALLOWED: Final = frozenset({503, 504})
_TIMEOUT_S: Final = 2.0


def _answer_everything(server: FakeServer) -> None:
    """Every call gets an empty but well-formed answer."""
    for service in server.services:
        for method in service.methods:
            response = message_factory.GetMessageClass(method.output_type)()
            if method.server_streaming:
                server.answers[method.name] = _streaming(response)
            else:
                server.answer(method.name, response)


def _streaming(response: Any) -> Any:
    async def answer(_request: Any, _context: Any) -> Any:
        yield response

    return answer


class GatewayThread:
    """The gateway and the fakes behind it on an event loop of their own."""

    def __init__(self, build: Callable[..., Any] = build_app) -> None:
        self._build = build
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="gateway", daemon=True)
        self._server: uvicorn.Server | None = None
        self.url = ""

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(30), "the gateway did not start"
        return self

    def __exit__(self, *_exception: object) -> None:
        assert self._server is not None
        self._server.should_exit = True
        self._thread.join(30)

    async def _serve(self) -> None:
        async with (
            FakeServer((MESH_SERVICE, CA_SERVICE)) as mesh,
            FakeServer((TOPOLOGY_SERVICE,)) as topology,
            FakeServer((DATA_SERVICE,)) as data,
        ):
            for fake in (mesh, topology, data):
                _answer_everything(fake)
            backends = Backends(mesh.target, topology.target, data.target)
            metrics = GatewayMetrics(CollectorRegistry())
            app = self._build("a", backends, metrics, _TIMEOUT_S, opened_budget())
            config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", lifespan="off")
            self._server = uvicorn.Server(config)
            serving = asyncio.create_task(self._server.serve(), name="uvicorn")
            while not self._server.started:  # noqa: ASYNC110 - uvicorn tells it by nothing else
                await asyncio.sleep(0.01)
            self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"
            self._started.set()
            await serving
            await backends.close()


def check_response(response: Any) -> None:
    """Fails on an answer that no caller can act on."""
    status = response.status_code
    assert status < 500 or status in _ALLOWED, f"{status}: {response.text[:500]}"
    if status >= 400:
        problem = response.json()
        assert problem["code"] in set(ErrorCode), problem
        assert "Traceback" not in response.text


def run(seconds: float, seed: int, build: Callable[..., Any] = build_app) -> int:
    """Fuzzes for a while; returns how many requests were answered.

    Raises:
        TargetFailedError: an answer that is a finding.
    """
    with GatewayThread(build) as gateway:
        schema = schemathesis.openapi.from_url(f"{gateway.url}/openapi.json")
        operations: list[Any] = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
        assert operations, "the OpenAPI document names no operation"
        random.Random(seed).shuffle(operations)
        until = time.monotonic() + seconds
        count = passes = 0
        while not passes or time.monotonic() < until:
            for operation in operations:
                # One wrong and one right request of each at least, however short the time.
                for mode in (GenerationMode.NEGATIVE, GenerationMode.POSITIVE):
                    if not passes or time.monotonic() < until:
                        examples = min(1 + 4 * passes, 40)
                        count += _fuzz_operation(operation, mode, seed + count, examples)
            passes += 1
        return count


def _fuzz_operation(operation: Any, mode: GenerationMode, seed: int, examples: int) -> int:
    """A few requests of one operation."""
    count = 0

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=(hypothesis.Phase.generate,),
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def attempt(case: Any) -> None:
        nonlocal count
        try:
            response = case.call(timeout=10)
            check_response(response)
        except (AssertionError, requests.RequestException, ValueError, KeyError) as error:
            shown = f"{case.method} {case.formatted_path} query {case.query!r} body {str(case.body)[:300]!r}"
            raise TargetFailedError(f"target {NAME} failed with {error!r} on {shown}") from error
        count += 1

    try:
        attempt()
    except hypothesis.errors.Unsatisfiable:
        return 0  # nothing can be wrong about an operation that takes nothing
    return count
