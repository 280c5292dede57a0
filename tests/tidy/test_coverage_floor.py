"""The floor holds for each package, not for their sum."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import coverage_floor


def report(**covered: int) -> str:
    files = {
        f"libs/{name}/{name}/{part}.py": {"summary": {"covered_lines": lines // 2, "num_statements": 50}}
        for name, lines in covered.items()
        for part in ("one", "two")
    }
    return json.dumps({"files": files})


@pytest.mark.parametrize(("small", "status"), [(80, 0), (78, 1)])
def test_one_package_below_the_floor_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: int, status: int
) -> None:
    file = tmp_path / "coverage.json"
    file.write_text(report(large=100, small=small))
    monkeypatch.setattr(coverage_floor, "FILE", file)
    assert coverage_floor.main() == status
