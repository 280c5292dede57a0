"""Crates of the Raft extension against known advisories, from a copy that needs no network.

`rust_advisories.json` holds the advisories of the RustSec database about the crates that `Cargo.lock` names, and says of
which day that database is. A newer copy: clone https://github.com/rustsec/advisory-db and run

    python -m tests.tidy.rust_advisories CLONE

Leaves out advisories that only say that a crate is no longer maintained, and Python packages: no copy of their advisories
is recent enough, so docs/contributing.md has a command for them.
"""

from __future__ import annotations

import json
import operator
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
LOCK: Final = ROOT / "libs" / "meshraft" / "Cargo.lock"
COPY: Final = Path(__file__).with_name("rust_advisories.json")
ACCEPTED: Final[Mapping[str, str]] = {
    "RUSTSEC-2024-0437": "protobuf 2.28 refuses a group inside an unknown group instead of descending into it; raft 0.7 needs "
    "protobuf 2 (libs/meshraft/tests/test_hostile_frames.py)",
    "RUSTSEC-2026-0176": "the extension asks no iterator over a Python list or tuple for its n-th item",
    "RUSTSEC-2026-0177": "the extension makes no closure into a Python function",
}
"""Advisories that do not hold for us, and why."""
_COMPARE: Final = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "=": operator.eq}
_FRONT: Final = re.compile(r"```toml\n(.*?)```", re.DOTALL)
_PART: Final = re.compile(r"(\^|>=|<=|>|<|=|~)?\s*([0-9][^\s,]*)")


def locked(lock: str) -> dict[str, set[str]]:
    """Versions by crate."""
    found: dict[str, set[str]] = {}
    for package in tomllib.loads(lock)["package"]:
        if "source" in package:
            found.setdefault(package["name"], set()).add(package["version"])
    return found


def is_within(version: str, requirement: str) -> bool:
    """Whether a version meets a Cargo requirement such as `>= 1.2, < 2`, `^1.2` or `=1.2.3`."""
    parts = _PART.findall(requirement)
    if not parts:
        raise ValueError(f"not a requirement: {requirement!r}")
    key = _key(version)
    return all(_COMPARE[sign](key, _key(bound)) for part in parts for sign, bound in _bounds(*part))


def _bounds(sign: str, number: str) -> list[tuple[str, str]]:
    """A part as comparisons: `^0.2.1` is `>= 0.2.1` and `< 0.3`."""
    if sign not in {"", "^", "~"}:
        return [(sign, number)]
    release = [int(part) for part in number.partition("-")[0].split(".")]
    first = next((index for index, part in enumerate(release) if part), len(release) - 1)
    place = min(1, len(release) - 1) if sign == "~" else first
    return [(">=", number), ("<", ".".join(map(str, [*release[:place], release[place] + 1])))]


def _key(number: str) -> tuple[list[int], bool, str]:
    """For comparing: a pre-release is older than its release, build data do not count."""
    release, _, pre = number.partition("+")[0].partition("-")
    numbers = [int(part) for part in release.split(".")]
    return numbers + [0] * (3 - len(numbers)), not pre, pre


def findings(crates: Mapping[str, Iterable[str]], advisories: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for each locked version that an advisory is about."""
    return [
        f"{advisory['id']}: {advisory['package']} {version}: {advisory['title']}"
        for advisory in advisories
        for version in sorted(crates.get(advisory["package"], ()))
        if not any(is_within(version, text) for text in (*advisory["patched"], *advisory["unaffected"]))
    ]


def read_database(clone: Path, crates: Iterable[str]) -> list[dict[str, Any]]:
    """Advisories of a clone about the crates."""
    found: list[dict[str, Any]] = []
    for crate in sorted(crates):
        for path in sorted((clone / "crates" / crate).glob("RUSTSEC-*.md")):
            text = path.read_text(encoding="utf-8")
            front = _FRONT.search(text)
            if front is None:
                raise ValueError(f"{path} has no front matter")
            document = tomllib.loads(front.group(1))
            advisory, versions = document["advisory"], document.get("versions", {})
            if "withdrawn" in advisory or advisory.get("informational") in {"unmaintained", "notice"}:
                continue
            found.append(
                {
                    "id": advisory["id"],
                    "package": crate,
                    "title": text[front.end() :].strip().splitlines()[0].lstrip("# "),
                    "patched": versions.get("patched", []),
                    "unaffected": versions.get("unaffected", []),
                }
            )
    return found


def main(clone: Path) -> None:
    """Writes the copy anew."""
    crates = locked(LOCK.read_text(encoding="utf-8"))
    day = subprocess.run(
        ["git", "-C", str(clone), "log", "-1", "--format=%cs"], capture_output=True, text=True, check=True
    ).stdout.strip()
    copy = {"database_of": day, "crates": sorted(crates), "advisories": read_database(clone, crates)}
    COPY.write_text(json.dumps(copy, indent=1) + "\n", encoding="utf-8")
    print(f"{COPY.name}: {len(copy['advisories'])} advisories about {len(crates)} crates, as of {day}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
