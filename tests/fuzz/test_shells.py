"""Every entry point, fuzzed for a moment in the suite; `make fuzz TARGET=… SECONDS=60` and `make nightly` do it at length."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from structlog.testing import capture_logs

from mesh_gateway.shell.app import build_app
from meshtest.effort import scaled
from tests.fuzz import shell_rest
from tests.fuzz.mutation import TargetFailedError
from tests.fuzz.shell_registry import SHELL_TARGETS
from tests.fuzz.shell_targets import Attempt, ShellTarget, check_code

SEED = 20_261_129
SECONDS = scaled(2)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What the services log about thousands of wrong inputs is of no interest here."""
    with capture_logs():
        yield


@pytest.mark.parametrize("name", SHELL_TARGETS)
async def test_only_documented_errors_leave(name: str) -> None:
    assert await SHELL_TARGETS[name].run(SECONDS, SEED) > len(SHELL_TARGETS[name].seeds)


def test_only_documented_errors_leave_rest() -> None:
    assert shell_rest.run(SECONDS, SEED) > 30


async def test_an_undocumented_failure_is_a_finding() -> None:
    async def attempt(data: bytes) -> None:
        check_code("INTERNAL" if data == b"bad" else "INVALID_ARGUMENT", "")

    @asynccontextmanager
    async def opening(_directory: Path) -> AsyncIterator[Attempt]:
        yield attempt

    assert await ShellTarget("sound", opening, (b"good",)).run(0.0, SEED) == 1
    with pytest.raises(TargetFailedError, match="INTERNAL"):
        await ShellTarget("unsound", opening, (b"good", b"bad")).run(0.0, SEED)


def test_a_server_error_of_rest_is_a_finding() -> None:
    def broken(*arguments: Any, **options: Any) -> ASGIApp:
        app = build_app(*arguments, **options)

        async def sometimes(scope: Scope, receive: Receive, send: Send) -> None:
            broken_route = PlainTextResponse("broken", 500) if scope.get("path") == "/v1/nodes" else app
            await broken_route(scope, receive, send)

        return sometimes

    with pytest.raises(TargetFailedError, match="/v1/nodes"):
        shell_rest.run(0.5, SEED, broken)
