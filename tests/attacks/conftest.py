"""One mesh for all attacks, the look before and after each of them, and `build/attacks/attacks.json` at the end."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.attacks.mallory import Mallory, joined_mallory
from tests.attacks.newcomer import Newcomer, running_newcomer
from tests.attacks.report import TALLY, Attack
from tests.attacks.target import MEMORY_MB_MAX, Target, running_target
from tests.attacks.warm_up import warm_up

_HERE = Path(__file__).parent
_LAST = "test_secrets.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All on one loop, since all share one mesh."""
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.e2e)
            if inspect.iscoroutinefunction(getattr(item, "function", None)):
                item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)
    places = [at for at, item in enumerate(items) if _HERE in item.path.parents]
    for place, item in zip(places, sorted((items[at] for at in places), key=_turn), strict=True):
        items[place] = item


def _turn(item: pytest.Item) -> int:
    """First those that leave no trace, then those that change the mesh, the search for secrets last."""
    return 2 if item.path.name == _LAST else int(item.get_closest_marker("changes_state") is not None)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Notes failures, those of the look afterwards too."""
    if report.failed:
        TALLY.failed.add(report.nodeid.rpartition("::")[2])


def pytest_sessionfinish() -> None:
    """Writes the report when any attack ran."""
    if TALLY.attacks:
        TALLY.write()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def running() -> AsyncIterator[Target]:
    """The mesh, warmed up."""
    with tempfile.TemporaryDirectory(prefix="mesh-attacks-") as directory:
        async with running_target(Path(directory) / "sites") as target:
            await warm_up(target)
            yield target
            TALLY.acknowledged = len(target.traffic.acknowledged)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def mallory(running: Target) -> AsyncIterator[Mallory]:
    """A member whose data plane and control plane are the test's."""
    async with joined_mallory(running) as found:
        yield found


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def newcomer(running: Target) -> AsyncIterator[Newcomer]:
    """A node that is in no mesh: the victim of those that it asks to join."""
    async with running_newcomer(running) as found:
        yield found


@pytest_asyncio.fixture(loop_scope="session")
async def target(running: Target, request: pytest.FixtureRequest) -> AsyncIterator[Target]:
    """The mesh, looked at before and after the test.

    The markers `changes_state` and `heap_gaps_mb` allow committed changes, and so many MB in gaps of the heap.
    """
    before = await running.agreed_look()
    name = request.node.name
    TALLY.attacks[name] = attack = Attack(name, memory_mb_before=round(before.memory_mb, 1))
    yield running
    may_change_state = request.node.get_closest_marker("changes_state") is not None
    gaps = request.node.get_closest_marker("heap_gaps_mb")
    findings, after = await running.findings(
        before, may_change_state=may_change_state, memory_mb_max=gaps.args[0] if gaps else MEMORY_MB_MAX
    )
    attack.memory_mb_after = round(after.memory_mb, 1)
    attack.findings = [text[:2_000] for text in findings]
    for code in ("C1", "C2"):
        TALLY.findings[code] += sum(text.startswith(code) for text in findings)
    assert not findings, "\n".join(findings)
