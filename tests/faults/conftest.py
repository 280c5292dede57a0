"""A cluster for each test, and `build/faults/faults.json` for all of them."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.faults.cluster import Cluster, Tally, running_cluster

REPORT = Path("build/faults/faults.json")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here starts real processes."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def tally(request: pytest.FixtureRequest) -> Iterator[Tally]:
    """What all tests found; written at the end."""
    found = Tally()
    started = time.time()
    yield found
    names = sorted({item.name for item in request.session.items if "cluster" in getattr(item, "fixturenames", ())})
    report = {
        "taken_at": round(started),
        "faults": names,
        "events": found.acknowledged + found.reads,
        "acknowledged": found.acknowledged,
        "reads": found.reads,
        "findings": dict(sorted(found.findings.items())),
    }
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=2) + "\n")


@pytest_asyncio.fixture
async def cluster(tally: Tally) -> AsyncIterator[Cluster]:
    """Three data planes with one stream, on disks that fail on demand."""
    async with running_cluster(tally) as found:
        yield found
