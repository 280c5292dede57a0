"""What each test file costs: processor time and waiting. A pytest plugin, which the root's conftest.py loads.

Wall time says little on a shared machine, so both are kept. Processor time is that of pytest's process and of children
that ended meanwhile: the services of a module's mesh count for its last test, so only sums by file are right. Leaves out
what a child has used that nobody waited for.

A run prints the dearest files, and writes all to `build/test-costs.json`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import pytest

FOUND: Final = Path("build/test-costs.json")
_SHOWN: Final = 10
_PROPERTY: Final = "cost"


@dataclass(slots=True)
class Cost:
    """Of one file. `waiting_s` is wall time in which neither the test nor a child that ended used a processor."""

    tests: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0

    def add(self, wall_s: float, cpu_s: float) -> None:
        """One test more."""
        self.tests += 1
        self.wall_s += wall_s
        self.cpu_s += cpu_s


_FOUND: dict[str, Cost] = {}


def table(costs: Mapping[str, Cost]) -> list[str]:
    """The dearest files, one a line, and the sum of all."""
    dearest = sorted(costs.items(), key=lambda item: -item[1].wall_s)[:_SHOWN]
    total = Cost(
        sum(cost.tests for cost in costs.values()),
        sum(cost.wall_s for cost in costs.values()),
        sum(cost.cpu_s for cost in costs.values()),
    )
    return [
        f"{cost.wall_s:8.1f} s wall {cost.cpu_s:8.1f} s processor {cost.tests:6d} tests  {name}"
        for name, cost in [*dearest, (f"all {len(costs)} files", total)]
    ]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Keeps the clocks at the test's begin, fixtures included."""
    item.stash[_STARTED] = (time.monotonic(), _processor_s())
    return (yield)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Sends the cost with the report of the teardown, by which pytest-xdist carries it to the process that prints."""
    report = yield
    if call.when == "teardown":
        wall_s, cpu_s = item.stash[_STARTED]
        report.user_properties.append((_PROPERTY, (time.monotonic() - wall_s, _processor_s() - cpu_s)))
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Adds the test to its file."""
    for name, value in report.user_properties:
        if name == _PROPERTY and isinstance(value, tuple | list):
            _FOUND.setdefault(report.nodeid.partition("::")[0], Cost()).add(*value)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the table and writes the file, whose figures are added to those of the run's other parts."""
    if not _FOUND:
        return
    terminalreporter.section("cost by file")
    for line in table(_FOUND):
        terminalreporter.write_line(line)
    FOUND.parent.mkdir(exist_ok=True)
    earlier = json.loads(FOUND.read_text()) if FOUND.exists() else {}
    FOUND.write_text(json.dumps(earlier | {name: asdict(cost) for name, cost in _FOUND.items()}, indent=1) + "\n")


def _processor_s() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


_STARTED: Final = pytest.StashKey[tuple[float, float]]()
