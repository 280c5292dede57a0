"""Fixtures: three real nodes, formed into a mesh, shared by the tests of one module."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from meshtest.trio import Trio, form_mesh, running_trio


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here starts real processes."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A directory of its own: Postgres' user has to reach it, and a second pytest would lock pytest's own again."""
    with tempfile.TemporaryDirectory(prefix="mesh-e2e-") as directory:
        yield Path(directory)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh() -> AsyncIterator[Trio]:
    """A formed mesh of a, b and c over proxied links."""
    with tempfile.TemporaryDirectory(prefix="mesh-e2e-") as directory:
        async with running_trio(Path(directory) / "sites") as trio:
            await form_mesh(trio.sites, trio.gateways, print)
            yield trio
