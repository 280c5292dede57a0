"""Settings that every test in the tree shares, and how tests are spread over the workers of pytest-xdist.

Leaves out fixtures: those live in `meshtest` or beside the tests that use them.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from pathlib import PurePosixPath
from typing import Any, Final

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from meshtest.effort import scaled

pytest_plugins = ["tests.costs"]

_ONE_WORKER: Final = frozenset({"attacks", "faults"})
"""Folders under tests/ whose tests share a mesh or write one report: all of a folder runs on one worker."""
_FIRST: Final = ("faults", "attacks", "sim", "e2e")
"""Folders under tests/ that take longest: they begin first, so that no worker ends long after the others."""
_COUNTED: Final = ("libs/", "services/", "tests/e2e/")
"""Tests that count lines, those of their processes included."""

_COVERAGE_OF_PROCESSES: Final = "COVERAGE_PROCESS_CONFIG"
"""By this variable coverage.py measures child processes, too."""

# No deadline: machines that run the tests are shared, and a slow example is no failure. The blob makes any failure
# repeatable from the log alone.
settings.register_profile("mesh", deadline=None, print_blob=True, max_examples=scaled(50))
settings.load_profile("mesh")

# A shell's background job starts with SIGINT ignored, and every process would inherit that: tests that press Ctrl-C would
# wait for ever. A handler, unlike being ignored, does not outlive exec.
signal.signal(signal.SIGINT, signal.default_int_handler)


class _ByFile(LoadScopeScheduling):  # type: ignore[misc,unused-ignore]
    """Gives whole files to a worker, so that a file's fixtures are made once; some folders whole, simulations one by one.

    Not `--dist loadgroup`: pytest-xdist 3.8 writes groups into a field that pytest 9.2 no longer reads.
    """

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.split("::", maxsplit=1)[0]
        folder = _folder(path)
        if folder in _ONE_WORKER:
            return folder
        return nodeid if folder == "sim" else path


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """What spreads the tests; see `_ByFile`."""
    return _ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest folders first, and counts lines only in tests of projects and in what tests/e2e runs of the test kit.

    Simulations, faults and attacks run the same lines for minutes: counting them takes half of the time and adds nothing.
    """
    items.sort(key=_rank)
    for item in items:
        if not _is_counted(item):
            item.add_marker(pytest.mark.no_cover)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Leaves processes uncounted that run what the tests of projects have counted already; a mesh is a dozen of them."""
    setting = os.environ.get(_COVERAGE_OF_PROCESSES)
    if setting is None or _is_counted(item):
        return (yield)
    del os.environ[_COVERAGE_OF_PROCESSES]
    try:
        return (yield)
    finally:
        os.environ[_COVERAGE_OF_PROCESSES] = setting


def _is_counted(item: pytest.Item) -> bool:
    return item.nodeid.startswith(_COUNTED)


def _folder(path: str) -> str:
    """The folder under tests/ that holds the test; empty for the tests of a project."""
    parts = PurePosixPath(path).parts
    return parts[1] if parts[0] == "tests" and len(parts) > 2 else ""


def _rank(item: pytest.Item) -> int:
    folder = _folder(item.nodeid.split("::", maxsplit=1)[0])
    return _FIRST.index(folder) if folder in _FIRST else len(_FIRST)
