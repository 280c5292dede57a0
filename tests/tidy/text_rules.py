"""House rules that can be read off one file's text and that ruff does not know.

Each rule takes a path relative to the root and the text, and returns findings, each a sentence with its line. Leaves
out what ruff, mypy, clippy and import-linter already see. Source: docs/contributing.md, "House rules".
"""

from __future__ import annotations

import ast
import re
from pathlib import PurePosixPath
from typing import Final

FILE_LINES_MAX: Final = 600
FUNCTION_LINES_MAX: Final = 70

SHAPELESS_NAMES: Final = frozenset({"utils", "util", "helpers", "helper", "misc", "manager"})

# Why a real wait is right there. Everything else waits for a condition with a deadline, or takes its time as a value.
BLOCKING_SLEEP_ALLOWED: Final[dict[str, str]] = {
    "libs/meshtest/tests/test_processes.py": "child programs that are there to be stopped from outside",
}

# Character classes keep these patterns from finding themselves.
_MARKERS: Final[dict[str, re.Pattern[str]]] = {
    "finish it or leave it out": re.compile(
        r"\b(?:T[O]DO|F[I]XME|X[X]X|H[A]CK)\b|N[o]tImplementedError|\bu[n]implemented!|\bt[o]do!"
    ),
    "an ignore names its rule": re.compile(r"#\s*t[y]pe:\s*ignore\s*(?:$|#)|#\s*n[o]qa\s*$|#\s*t[y]pe:\s*ignore$"),
    "a swallowed exception hides the next fault": re.compile(r"except(?:\s+(?:Base)?Exception)?\s*:\s*p[a]ss\b"),
    "a skipped test says why": re.compile(r"mark\.s[k]ip(?:\b(?!if)(?!\(reason=))"),
}
_SWALLOWED: Final = re.compile(r"except(?:\s+(?:Base)?Exception(?:\s+as\s+\w+)?)?\s*:\s*\n\s*p[a]ss\b")
_BLOCKING_SLEEP: Final = re.compile(r"\bt[i]me\.sleep\(")

_MACHINE_PATH: Final = re.compile(r"(?<![\w.$}{<>)-])/(?:w[o]rk|r[o]ot|h[o]me)/[\w.-]+")
_REGISTRY_HOST: Final = re.compile(
    r"\b(?:p[y]pi\.org|p[y]thonhosted\.org|c[r]ates\.io|n[p]mjs\.(?:org|com)|p[r]oxy\.golang\.org|d[o]cker\.io|g[h]cr\.io|q[u]ay\.io|d[e]b\.debian\.org)"
)
_CARGO_LOCK_SOURCE: Final = re.compile(r'^source = "registry\+')


def long_file(path: str, text: str) -> list[str]:
    """A file is one concept; past 600 lines it is several."""
    lines = len(text.splitlines())
    return [f"{path}: {lines} lines; split it (at most {FILE_LINES_MAX})"] if lines > FILE_LINES_MAX else []


def long_functions(path: str, text: str) -> list[str]:
    """A function longer than a screen is split."""
    return [
        f"{path}:{node.lineno}: {node.name} has {length} lines (at most {FUNCTION_LINES_MAX})"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES_MAX
    ]


def shapeless_name(path: str, _text: str) -> list[str]:
    """A module is named after its concept."""
    pure = PurePosixPath(path)
    names = {pure.stem, *pure.parent.parts}
    banned = names & SHAPELESS_NAMES
    if path.startswith("services/"):
        banned |= names & {"common"}
    return [f"{path}: the name '{name}' says nothing; name the concept" for name in sorted(banned)]


def unfinished(path: str, text: str) -> list[str]:
    """No markers of unfinished work, blanket ignores, swallowed exceptions or unexplained skips."""
    found = [
        f"{path}:{number}: {line.strip()[:80]} ({why})"
        for number, line in enumerate(text.splitlines(), 1)
        for why, pattern in _MARKERS.items()
        if pattern.search(line)
    ]
    found += [
        f"{path}:{text.count(chr(10), 0, match.start()) + 1}: a swallowed exception hides the next fault"
        for match in _SWALLOWED.finditer(text)
    ]
    return found


def blocking_sleep(path: str, text: str) -> list[str]:
    """A blocking sleep stops the event loop, or hopes that something will have happened by then."""
    if path in BLOCKING_SLEEP_ALLOWED:
        return []
    return [
        f"{path}:{number}: blocking sleep; wait for the condition with a deadline"
        for number, line in enumerate(text.splitlines(), 1)
        if _BLOCKING_SLEEP.search(line)
    ]


def missing_docstring(path: str, text: str) -> list[str]:
    """A module begins with what it is for. An empty file has nothing to say."""
    if not text.strip() or ast.get_docstring(ast.parse(text)):
        return []
    return [f"{path}: the module has no docstring; say what it is for, what it leaves out, and its source"]


def machine_path(path: str, text: str) -> list[str]:
    """A path of somebody's machine works nowhere else."""
    return [
        f"{path}:{number}: {match.group()} is a path of one machine"
        for number, line in enumerate(text.splitlines(), 1)
        for match in _MACHINE_PATH.finditer(line)
    ]


def registry_host(path: str, text: str) -> list[str]:
    """Packages come from wherever pip and cargo are pointed at; only Cargo's lock must name its source."""
    return [
        f"{path}:{number}: {match.group()} names a package registry"
        for number, line in enumerate(text.splitlines(), 1)
        if not (path.endswith("Cargo.lock") and _CARGO_LOCK_SOURCE.match(line))
        for match in _REGISTRY_HOST.finditer(line)
    ]


def unlocked_requirement(path: str, text: str) -> list[str]:
    """A lock pins one version with hashes and says nothing about where to get it."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        bare = line.split("#")[0].strip()
        if re.search(r"--(?:extra-)?index-url|--find-links|--trusted-host|^-[if]\b|://", bare):
            found.append(f"{path}:{number}: a lock file names no address")
        if re.match(r"[A-Za-z0-9]", line) and ("==" not in line or not line.rstrip().endswith("\\")):
            found.append(f"{path}:{number}: {bare[:60]} is not pinned with hashes")
    return found
