"""The page of `meshctl check` lists every check, in the order in which they are printed."""

from __future__ import annotations

import re
from typing import Final

from meshctl.check_command import CALL_S_MAX, CHECKS, REMOTE_STREAMS_MAX
from meshctl.checks import Status
from tests.docs.settings_page import ROOT

PAGE: Final = ROOT / "docs" / "check.md"
_ROW: Final = re.compile(r"^\| `([a-z]+\.[a-z-]+)`( \*)? \| (.*) \|$", re.MULTILINE)


def test_the_table_has_every_check_and_no_other() -> None:
    assert [row[0] for row in _ROW.findall(PAGE.read_text(encoding="utf-8"))] == [check.id for check in CHECKS]


def test_the_table_tells_which_check_needs_which() -> None:
    needs = {check.id: set(check.needs) for check in CHECKS}
    for check_id, star, text in _ROW.findall(PAGE.read_text(encoding="utf-8")):
        told = set(re.findall(r"needs `([a-z.-]+)`", text))
        if check_id != CHECKS[0].id:
            told.add("gateway.reachable")
        if check_id.startswith(("mesh.", "ca.", "lanes.", "streams.")):
            told.add("node.member")
        if star:
            told.add("node.running")
        assert needs[check_id] == told, check_id


def test_the_statuses_and_limits_are_those_of_the_program() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert re.findall(r"^\| . \| `([a-z]+)` \|", text, re.MULTILINE) == [str(status) for status in Status]
    assert f"at most {REMOTE_STREAMS_MAX} such streams" in text
    # Two rounds of calls, one after the other.
    assert 2 * CALL_S_MAX < 10
