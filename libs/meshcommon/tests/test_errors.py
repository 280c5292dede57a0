"""The error table is complete, and what it maps to exists."""

from __future__ import annotations

import http

import grpc
import pytest

from meshcommon.error_meanings import MEANINGS
from meshcommon.errors import MAPPINGS, ErrorCode, MeshError, parse_code

# 64 to 78 are sysexits.h; from 81 on our own. A shell needs 126 and above for itself.
EXIT_STATUS_MAX = 125


@pytest.mark.parametrize("code", ErrorCode)
def test_every_code_is_mapped_to_something_that_exists(code: ErrorCode) -> None:
    mapping = MAPPINGS[code]
    assert grpc.StatusCode[mapping.grpc] is not grpc.StatusCode.OK
    assert http.HTTPStatus(mapping.http) >= http.HTTPStatus.BAD_REQUEST
    assert 0 < mapping.exit_status <= EXIT_STATUS_MAX


@pytest.mark.parametrize("code", ErrorCode)
def test_every_code_has_a_meaning_in_one_sentence(code: ErrorCode) -> None:
    meaning = MEANINGS[code]
    assert meaning[0].isupper()
    assert meaning.endswith(".")
    assert len(meaning) < 120


@pytest.mark.parametrize("code", ErrorCode)
def test_code_is_its_own_text(code: ErrorCode) -> None:
    assert code.value == code.name
    assert parse_code(code.value) is code


def test_start_up_errors_can_be_told_apart_by_their_exit_status() -> None:
    own = [mapping.exit_status for mapping in MAPPINGS.values() if mapping.exit_status > 80]
    assert len(own) == len(set(own))


def test_unknown_code_of_a_newer_version_is_internal() -> None:
    assert parse_code("FROM_THE_FUTURE") is ErrorCode.INTERNAL


def test_error_takes_retryable_from_its_code_unless_told() -> None:
    assert MeshError(ErrorCode.NO_QUORUM, "Wait.").retryable
    assert not MeshError(ErrorCode.NO_QUORUM, "Wait.", retryable=False).retryable
    assert not MeshError(ErrorCode.ILLEGAL_NAME, "Rename it.").retryable


def test_error_shows_code_and_sentence() -> None:
    error = MeshError(ErrorCode.LAST_NODE, "It stays.", {"node": "a"})
    assert str(error) == "LAST_NODE: It stays."
    assert error.details == {"node": "a"}
    assert error.mapping is MAPPINGS[ErrorCode.LAST_NODE]
