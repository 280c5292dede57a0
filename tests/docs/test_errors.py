"""The page of errors is what the tables say, and the tables are complete."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from meshcommon.error_meanings import MEANINGS
from meshcommon.errors import MAPPINGS, ErrorCode
from tests.docs import errors_page


def test_page_is_current() -> None:
    found = errors_page.differences()
    if found:
        pytest.fail(f"run scripts/errors-page and commit docs/errors.md\n{found}", pytrace=False)


def test_stale_page_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stale = tmp_path / "errors.md"
    monkeypatch.setattr(errors_page, "PAGE", stale)
    assert errors_page.differences()
    stale.write_text(errors_page.page().replace("NO_QUORUM", "QUORUM_LOST"), encoding="utf-8")
    assert "-| `QUORUM_LOST`" in errors_page.differences()
    stale.write_text(errors_page.page(), encoding="utf-8")
    assert not errors_page.differences()


def test_every_code_is_mapped_means_something_and_is_on_the_page() -> None:
    assert set(MAPPINGS) == set(MEANINGS) == set(ErrorCode)
    for code in ErrorCode:
        assert errors_page.page().count(f"| `{code}` |") == 1
        assert MEANINGS[code].endswith(".")


def test_every_mapping_names_a_grpc_status_and_an_http_error() -> None:
    for code, mapping in MAPPINGS.items():
        assert grpc.StatusCode[mapping.grpc] is not grpc.StatusCode.OK, code
        assert 400 <= mapping.http < 600, code
        assert 0 < mapping.exit_status < 126, code


def test_start_up_codes_can_be_told_apart_by_exit_status() -> None:
    codes = list(ErrorCode)
    start = codes[codes.index(ErrorCode.SETTING_INVALID) :]
    statuses = [MAPPINGS[code].exit_status for code in start]
    assert len(set(statuses)) == len(statuses) - 1  # a wrong key and a wrong value are both a wrong configuration
