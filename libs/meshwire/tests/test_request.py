"""Overlay requests and responses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshwire.errors import WireCode, WireError
from meshwire.request import (
    MAX_DETAILS,
    MAX_DETAILS_BYTES,
    ErrorResponse,
    OkResponse,
    Request,
    decode_request,
    decode_response,
    encode_error,
    encode_request,
    encode_response,
)

REQUESTS = st.builds(Request, st.integers(0, 255), st.integers(0, 2**32 - 1), st.binary(max_size=200))
SHORT_TEXT = st.text(max_size=60)
ERRORS = st.builds(
    ErrorResponse, SHORT_TEXT, st.text(max_size=300), st.booleans(), st.dictionaries(SHORT_TEXT, st.text(), max_size=5)
)


def encoded(error: ErrorResponse) -> bytes:
    """Bytes of an error."""
    return encode_error(error.code, error.message, error.retryable, error.details)


def response_code(data: bytes) -> WireCode:
    """Why these bytes are no response."""
    with pytest.raises(WireError) as caught:
        decode_response(data)
    return caught.value.code


@given(REQUESTS)
def test_request_comes_back_as_it_was(request: Request) -> None:
    assert decode_request(encode_request(request)) == request


@given(st.binary(max_size=200))
def test_answer_comes_back_as_it_was(body: bytes) -> None:
    assert decode_response(encode_response(body)) == OkResponse(body)


@given(ERRORS)
def test_error_comes_back_as_it_was(error: ErrorResponse) -> None:
    assert decode_response(encoded(error)) == error


def test_equal_errors_hash_alike() -> None:
    first, second = (ErrorResponse("A", "b", True, {"k": "v"}) for _ in range(2))
    assert hash(first) == hash(second)


def test_bodies_are_not_copied() -> None:
    data = encode_request(Request(1, 2, b"body"))
    body = decode_request(data).body
    assert isinstance(body, memoryview)
    assert body.obj is data


def test_truncation_is_refused() -> None:
    for length in range(5):
        with pytest.raises(WireError) as caught:
            decode_request(bytes(length))
        assert caught.value.code is WireCode.TRUNCATED
    data = encode_error("NOT_LEADER", "ask node 7", True, {"leader": "7"})
    for length in range(len(data)):
        assert response_code(data[:length]) is WireCode.TRUNCATED


@pytest.mark.parametrize(
    "data",
    [
        b"\x02",
        b"\x01\x00\x00\x00\x02\x00",
        b"\x01\x00\x00\x00\x00\x00trailing",
        b"\x01\x01\xff\x00\x00\x00\x00",
        b"\x01\x00\x00\x00\x00\x02\x01k\x00\x00\x01k\x00\x00",
    ],
    ids=["status", "retryable", "trailing", "utf8", "key twice"],
)
def test_malformed_response_is_refused(data: bytes) -> None:
    assert response_code(data) is WireCode.BAD_FIELD


@pytest.mark.parametrize(("method", "deadline_ms"), [(256, 0), (-1, 0), (0, 2**32), (0, -1)])
def test_encode_request_refuses_numbers_out_of_range(method: int, deadline_ms: int) -> None:
    with pytest.raises(WireError) as caught:
        encode_request(Request(method, deadline_ms, b""))
    assert caught.value.code is WireCode.BAD_FIELD


def test_texts_and_details_are_limited() -> None:
    most = {str(number): "" for number in range(MAX_DETAILS)}
    largest = ErrorResponse("c" * 255, "m" * 65_535, False, most)
    assert decode_response(encoded(largest)) == largest
    for error, sent in (
        (ErrorResponse("c" * 256, ""), ErrorResponse("c" * 255, "")),
        (ErrorResponse("", "m" * 66_000), ErrorResponse("", "m" * 65_535)),
        (ErrorResponse("", "ü" * 66_000), ErrorResponse("", "ü" * 32_767)),
        (ErrorResponse("", "", False, {**most, "one more": ""}), ErrorResponse("", "", False, most)),
        (ErrorResponse("", "", False, {"k" * 256: "v"}), ErrorResponse("", "", False, {"k" * 255: "v"})),
        (ErrorResponse("", "", False, {"k": "v" * 66_000}), ErrorResponse("", "", False, {"k": "v" * 65_535})),
        (ErrorResponse("", "", False, {"k": "v" * 65_535, "l": ""}), ErrorResponse("", "", False, {"k": "v" * 65_535})),
        (ErrorResponse("", "a\ud800b"), ErrorResponse("", "a?b")),
    ):
        assert decode_response(encoded(error)) == sent


@given(
    st.text(st.characters(), max_size=300),
    st.text(st.characters(), max_size=300),
    st.dictionaries(st.text(st.characters(), max_size=300), st.text(st.characters(), max_size=300), max_size=300),
    st.integers(1, 100_000),
)
def test_every_error_can_be_answered(code: str, message: str, details: dict[str, str], times: int) -> None:
    """Whatever an error quotes, its answer is well formed and bounded."""
    data = encode_error(code, message * times, True, details)
    answer = decode_response(data)
    assert isinstance(answer, ErrorResponse)
    assert len(data) <= 256 + 65_537 + MAX_DETAILS_BYTES + 3 * MAX_DETAILS + 3
    assert (message * times).encode(errors="replace").decode().startswith(answer.message)


def test_details_that_are_no_text_are_answered_too() -> None:
    """A MeshError that was made carelessly must not leave its caller without an answer."""
    data = encode_error("INTERNAL", "…", False, {"number": 7, None: object})  # type: ignore[dict-item]
    answer = decode_response(data)
    assert isinstance(answer, ErrorResponse)
    assert answer.details["number"] == "7"
