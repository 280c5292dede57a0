"""A fake gateway on a port of its own, and the program run against it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from click.testing import CliRunner, Result

from meshctl.main import cli
from meshtest.fake_services import CA_SERVICE, DATA_SERVICE, MESH_SERVICE, TOPOLOGY_SERVICE, FakeServer


@pytest.fixture
async def gateway() -> AsyncIterator[FakeServer]:
    async with FakeServer((MESH_SERVICE, CA_SERVICE, TOPOLOGY_SERVICE, DATA_SERVICE)) as server:
        yield server


@dataclass(frozen=True, slots=True)
class Program:
    """Runs `meshctl` with arguments. In a thread: the program has an event loop of its own."""

    target: str

    async def run(self, *arguments: str, given: bytes | None = None) -> Result:
        environment = {"MESH_CTL_GATEWAY": self.target}
        return await asyncio.to_thread(CliRunner().invoke, cli, list(arguments), input=given, env=environment)


@pytest.fixture
def meshctl(gateway: FakeServer) -> Program:
    return Program(gateway.target)
