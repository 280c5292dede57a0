"""No crate that is locked has a known vulnerability; the copy of the advisories knows every crate."""

from __future__ import annotations

import json

import pytest

from tests.tidy.rust_advisories import ACCEPTED, COPY, LOCK, findings, is_within, locked

CRATES = locked(LOCK.read_text(encoding="utf-8"))
KNOWN = json.loads(COPY.read_text(encoding="utf-8"))


def test_no_locked_crate_has_an_advisory_that_holds_for_us() -> None:
    found = findings(CRATES, KNOWN["advisories"])
    assert [line for line in found if line.split(":")[0] not in ACCEPTED] == []
    stale = ACCEPTED.keys() - {line.split(":")[0] for line in found}
    assert not stale, f"no longer found, so not to be accepted any more: {sorted(stale)}"


def test_the_copy_was_made_for_these_crates() -> None:
    missing = CRATES.keys() - set(KNOWN["crates"])
    assert not missing, f"make the copy anew (see the module's docstring): it knows nothing of {sorted(missing)}"


def test_a_crate_with_an_advisory_would_be_found() -> None:
    advisory = {"id": "R-1", "package": "x", "title": "Bad", "patched": [">= 1.2.3"], "unaffected": ["< 1.0"]}
    assert findings({"x": {"1.2.2"}, "y": {"1.1.0"}}, [advisory]) == ["R-1: x 1.2.2: Bad"]
    assert findings({"x": {"1.2.3", "0.9.0"}}, [advisory]) == []


@pytest.mark.parametrize(
    ("version", "requirement", "expected"),
    [
        ("1.2.3", ">= 1.2.3", True),
        ("1.2.2", ">= 1.2.3", False),
        ("1.5.0", ">= 1.2, < 1.5", False),
        ("1.9.0", "^1.2", True),
        ("2.0.0", "^1.2", False),
        ("0.3.0", "^0.2.1", False),
        ("0.2.9", "^0.2.1", True),
        ("1.2.9", "~1.2.3", True),
        ("1.3.0", "~1.2.3", False),
        ("1.0.0", "=1.0.0", True),
        ("1.0.0-alpha.1", ">= 1.0.0", False),
        ("1.0.0+build.7", ">= 1.0.0", True),
    ],
)
def test_requirements_are_read_as_cargo_reads_them(version: str, requirement: str, expected: bool) -> None:
    assert is_within(version, requirement) is expected
