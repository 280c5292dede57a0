"""Prints the test files of the projects that have to do with what changed: uncommitted files, or else the last commit.

A test file has to do with a module when it is changed itself, or names the module (`mesh_data.core.link`). Tests of Rust
are all of libs/meshraft's. Leaves out tests/: those take minutes.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_PROJECT = re.compile(r"(?:libs|services)/[a-z_]+/(?:python/)?(?P<module>.+)\.py")
_FILES_MAX = 60
"""With more than these only the tests of the changed module's own project are run."""


def git(*words: str) -> list[str]:
    """Lines that git prints."""
    found = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, check=True, text=True)
    return found.stdout.splitlines()


def changed() -> list[str]:
    """Paths from the root."""
    now = [*git("diff", "--name-only", "HEAD"), *git("ls-files", "--others", "--exclude-standard")]
    return now or git("diff", "--name-only", "HEAD~1", "HEAD")


def files_to_run(paths: list[str]) -> set[str]:
    """The test files to run, from the root."""
    tests = {
        str(file.relative_to(ROOT)): file.read_text()
        for folder in ("libs", "services")
        for file in sorted((ROOT / folder).glob("*/tests/**/test_*.py"))
    }
    wanted: set[str] = set()
    for path in paths:
        project = "/".join(path.split("/")[:2]) + "/"
        if path in tests:
            wanted.add(path)
        elif path.startswith("libs/meshraft/src/"):
            wanted |= {test for test in tests if test.startswith("libs/meshraft/")}
        elif (found := _PROJECT.fullmatch(path)) and "/tests/" not in path:
            name = found["module"].replace("/", ".").removesuffix(".__init__")
            # `from package.folder import module` names it in two parts.
            parent, _, last = name.rpartition(".")
            names = re.compile(rf"\b{re.escape(name)}\b|from {re.escape(parent)} import [^\n]*\b{re.escape(last)}\b")
            naming = {test for test, text in tests.items() if names.search(text)}
            wanted |= naming if len(naming) <= _FILES_MAX else {test for test in naming if test.startswith(project)}
    return wanted


if __name__ == "__main__":
    print("\n".join(sorted(files_to_run(sys.argv[1:] or changed()))))
