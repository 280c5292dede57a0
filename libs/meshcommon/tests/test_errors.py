"""The error table is complete, and what it maps to exists."""

from __future__ import annotations

import http

import grpc
import pytest

from meshcommon.error_meanings import MEANINGS
from meshcommon.errors import MAPPINGS, ErrorCode, MeshError, Retry, parse_code

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


@pytest.mark.parametrize("code", ErrorCode)
def test_flag_of_the_wire_and_effect_say_the_same(code: ErrorCode) -> None:
    error = MeshError(code, "Because.")
    assert error.retry is MAPPINGS[code].retry
    assert error.retryable == (error.retry is not Retry.FINAL)
    for is_recognised in (False, True):
        allowed = error.retry.allows(is_recognised=is_recognised)
        assert allowed == (error.retryable and (is_recognised or error.retry is Retry.NOT_APPLIED))


def test_flag_moves_an_error_between_not_applied_and_final_and_never_away_from_unknown() -> None:
    assert MeshError(ErrorCode.MESH_FULL, "Later.", retryable=True).retry is Retry.NOT_APPLIED
    assert MeshError(ErrorCode.BACKPRESSURE, "Never.", retryable=False).retry is Retry.FINAL
    assert MeshError(ErrorCode.OUTCOME_UNKNOWN, "Read first.", retryable=False).retry is Retry.UNKNOWN
    # A code of a later version: nobody here knows whether the request took effect.
    assert MeshError(parse_code("FROM_THE_FUTURE"), "?", retryable=True).retry is Retry.UNKNOWN
    assert MeshError(ErrorCode.INTERNAL, "?").retry is Retry.FINAL


def test_refusal_of_one_node_is_final_there_and_a_refusal_of_the_state_is_final_elsewhere() -> None:
    for code in (ErrorCode.NODE_STOPPED, ErrorCode.NOT_A_MEMBER, ErrorCode.UPDATE_REQUIRED):
        assert (MAPPINGS[code].retry, MAPPINGS[code].elsewhere) == (Retry.FINAL, Retry.NOT_APPLIED)
    for code in (ErrorCode.MESH_CRITICAL, ErrorCode.MEMBERS_CHANGING, ErrorCode.STREAM_NOT_FORMED):
        assert (MAPPINGS[code].retry, MAPPINGS[code].elsewhere) == (Retry.NOT_APPLIED, Retry.FINAL)
    # A member whose disk failed may have sent the batch to a quorum before.
    assert MeshError(ErrorCode.STORAGE_FAILED, "Disk.").elsewhere is Retry.UNKNOWN


def test_error_shows_code_and_sentence() -> None:
    error = MeshError(ErrorCode.LAST_NODE, "It stays.", {"node": "a"})
    assert str(error) == "LAST_NODE: It stays."
    assert error.details == {"node": "a"}
    assert error.mapping is MAPPINGS[ErrorCode.LAST_NODE]
