"""A fake gateway on a port of its own: the three public services with answers that a test decides."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from meshtest.fake_services import DATA_SERVICE, MESH_SERVICE, TOPOLOGY_SERVICE, FakeServer


@pytest.fixture
async def gateway() -> AsyncIterator[FakeServer]:
    async with FakeServer((MESH_SERVICE, TOPOLOGY_SERVICE, DATA_SERVICE)) as server:
        yield server
