"""Fixtures: three real nodes, formed into a mesh, shared by the tests of one module."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from meshtest.trio import Trio, form_mesh, running_trio


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here starts real processes."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Trio]:
    """A formed mesh of a, b and c over proxied links."""
    async with running_trio(tmp_path_factory.mktemp("mesh")) as trio:
        await form_mesh(trio.sites, trio.gateways, print)
        yield trio
