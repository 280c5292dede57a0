"""Heads that the HTTP parser lets through and a listener refuses."""

from __future__ import annotations

import pytest

from meshcommon.errors import ErrorCode, MeshError
from meshcommon.request_head import HEAD_BYTES_MAX, check_head


def refusal(headers: list[tuple[bytes, bytes]], target_bytes: int = 1) -> ErrorCode | None:
    try:
        check_head(headers, target_bytes)
    except MeshError as error:
        return error.code
    return None


@pytest.mark.parametrize(
    ("headers", "target_bytes"),
    [
        ([(b"x-big", bytes(HEAD_BYTES_MAX))], 1),
        ([(b"x", b"1")] * (HEAD_BYTES_MAX // 6 + 1), 1),
        ([], HEAD_BYTES_MAX + 1),
        ([(b"content-length", b"5"), (b"transfer-encoding", b"chunked")], 1),
    ],
    ids=["one header", "many headers", "target", "two framings"],
)
def test_refused(headers: list[tuple[bytes, bytes]], target_bytes: int) -> None:
    assert refusal(headers, target_bytes) is ErrorCode.INVALID_ARGUMENT


def test_a_coded_body_is_refused_by_its_kind() -> None:
    assert refusal([(b"content-encoding", b"gzip")]) is ErrorCode.MEDIA_TYPE_NOT_SUPPORTED
    assert refusal([(b"content-encoding", b" Identity")]) is None


def test_an_ordinary_head_passes() -> None:
    headers = [(b"host", b"localhost"), (b"content-length", b"5"), (b"content-type", b"application/json")]
    assert refusal(headers, 200) is None
