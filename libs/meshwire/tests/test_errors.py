"""The error itself."""

from __future__ import annotations

import pickle

from meshwire import WireCode, WireError


def test_code_and_reason_survive_pickling() -> None:
    copy = pickle.loads(pickle.dumps(WireError("too long", WireCode.TOO_LARGE)))
    assert (copy.code, copy.reason, str(copy)) == (WireCode.TOO_LARGE, "too long", "too long")


def test_error_is_a_value_error_with_a_code_that_reads_as_text() -> None:
    error = WireError("bad")
    assert isinstance(error, ValueError)
    assert f"{error.code}" == "BAD_FIELD"
