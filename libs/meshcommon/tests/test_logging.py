"""Log lines: one JSON object each, whatever is logged. Origin and trace ids of a process are in test_lifecycle."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from meshcommon.logging import configure_logging, correlation_id, get_logger, new_correlation_id, usable_correlation_id


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Gives the test runner its own logging back."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def lines(captured: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in captured.readouterr().err.splitlines()]


def test_values_of_any_kind_stay_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("mesh-test", "a", "info")
    get_logger("x").info("odd_values", text="two\nlines", raw=b"\xff", error=OSError("no"), names={"b"})
    (event,) = lines(capsys)
    assert (event["event"], event["service"], event["node"], event["text"]) == (
        "odd_values",
        "mesh-test",
        "a",
        "two\nlines",
    )


def test_exceptions_of_ours_and_of_libraries_carry_their_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("mesh-test", "a", "info")
    try:
        int("not a number")
    except ValueError as error:
        get_logger("x").error("ours", exc_info=error)
        logging.getLogger("a.library").exception("theirs")
    ours, theirs = lines(capsys)
    assert "ValueError" in ours["exception"]
    assert "ValueError" in theirs["exception"]


def test_level_holds_for_ours_and_for_libraries(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("mesh-test", "a", "warning")
    get_logger("x").info("too_quiet")
    logging.getLogger("a.library").info("too quiet")
    get_logger("x").warning("loud")
    assert [event["event"] for event in lines(capsys)] == ["loud"]


def test_chatty_libraries_are_heard_from_warning_on(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("mesh-test", "a", "info")
    logging.getLogger("websockets.client").info("handshake done")
    logging.getLogger("websockets.client").warning("handshake failed")
    assert [event["event"] for event in lines(capsys)] == ["handshake failed"]


def test_correlation_id_is_there_only_when_there_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("mesh-test", "a", "info")
    get_logger("x").info("before")
    token = correlation_id.set("call-7")
    get_logger("x").info("during")
    correlation_id.reset(token)
    before, during = lines(capsys)
    assert "correlation_id" not in before
    assert "trace_id" not in before
    assert during["correlation_id"] == "call-7"


def test_new_correlation_ids_differ() -> None:
    assert new_correlation_id() != new_correlation_id()


@pytest.mark.parametrize("given", ["a", "Call-7_b.c", "x" * 64])
def test_a_plain_correlation_id_is_used(given: str) -> None:
    assert usable_correlation_id(given) == given


@pytest.mark.parametrize(
    "given", [None, b"a", "", "x" * 65, "a b", "a\nb", "ä", "a:b", "\N{ARABIC-INDIC DIGIT ONE}", "a\n"]
)
def test_any_other_correlation_id_is_replaced(given: object) -> None:
    """It goes into logs, headers and metadata, where line ends and length would do harm."""
    fresh = usable_correlation_id(given)
    assert fresh != given
    assert usable_correlation_id(fresh) == fresh
