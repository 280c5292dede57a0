"""The operator's token: what a file accepts, what a request has to show, and what a wrong one costs."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshcommon import operator_token
from meshcommon.admin import Readiness
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.operator_token import (
    FILE_BYTES_MAX,
    FILE_NAME,
    TOKEN_CHARACTERS_MAX,
    TOKEN_CHARACTERS_MIN,
    OperatorToken,
    hashed_line,
    is_token,
    new_token,
    parse_tokens,
)
from meshcommon.wrong_proofs import REFUSED_S, WRONG_PROOFS_MAX
from meshtest.waiting import eventually

HOST = "192.0.2.7"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def guard(tmp_path: Path, *tokens: str) -> tuple[OperatorToken, Clock]:
    file, clock = tmp_path / "token", Clock()
    file.write_text("".join(map(hashed_line, tokens)))
    return OperatorToken(file, "MESH_TEST_FILE", now=clock), clock


def code_of(token: OperatorToken, shown: list[str], host: str = HOST) -> ErrorCode | None:
    try:
        token.admit(shown, host)
    except MeshError as error:
        return error.code
    return None


def test_new_tokens_are_tokens_and_differ() -> None:
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100
    assert all(map(is_token, tokens))


def test_a_file_may_hold_tokens_or_hashes() -> None:
    one, other = new_token(), "ab" * 32
    expected = tuple(hashlib.sha256(token.encode()).digest() for token in (one, other))
    assert parse_tokens(f"{one}\n{other}\n".encode()) == expected
    assert parse_tokens((hashed_line(one) + "\n" + hashed_line(other)).encode()) == expected


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n\n",
        b"short",
        b"a" * (TOKEN_CHARACTERS_MIN - 1),
        b"a" * (TOKEN_CHARACTERS_MAX + 1),
        b"a" * 50 + b" " + b"b" * 50,
        b"\xff" * 64,
        b"sha256:" + b"0" * 63,
        b"sha256:" + b"G" * 64,
        b"sha256:" + b"A" * 64,
        b"a" * (FILE_BYTES_MAX + 1),
        b"".join(hashed_line(str(number) * 50).encode() for number in range(5)),
    ],
)
def test_a_file_with_anything_else_is_refused_without_being_quoted(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    with pytest.raises(MeshError) as refused:
        OperatorToken(file, "MESH_TEST_FILE")
    assert refused.value.code is ErrorCode.SETTING_INVALID
    assert str(file) in refused.value.message
    assert not content.strip() or content.strip().decode("latin-1") not in refused.value.message


@given(st.binary(max_size=600))
def test_no_content_raises_anything_else(content: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert all(len(digest) == 32 for digest in parse_tokens(content))


def test_each_accepted_token_passes_and_no_other(tmp_path: Path) -> None:
    one, other = new_token(), new_token()
    token, _ = guard(tmp_path, one, other)
    assert code_of(token, [f"Bearer {one}"]) is None
    assert code_of(token, [f"bearer {other}"]) is None
    for shown in (
        f"Bearer {one[:-1]}",
        f"Bearer {one}x",
        f"Bearer  {one}",
        f"Bearer {one} ",
        "Bearer ",
        "Bearer \udcff",
    ):
        assert code_of(token, [shown], f"host of {shown!r}") is ErrorCode.OPERATOR_TOKEN_WRONG
    assert code_of(token, ["Bearer " + "a" * 100_000]) is ErrorCode.OPERATOR_TOKEN_WRONG


def test_a_request_without_a_bearer_token_is_told_what_to_show(tmp_path: Path) -> None:
    right = new_token()
    token, _ = guard(tmp_path, right)
    for shown in ([], [""], [right], ["Basic dXNlcjpwYXNz"], ["Bearer"[:-1]]):
        assert code_of(token, shown) is ErrorCode.OPERATOR_TOKEN_REQUIRED


def test_two_headers_are_refused_though_one_is_right(tmp_path: Path) -> None:
    right = new_token()
    token, _ = guard(tmp_path, right)
    assert code_of(token, [f"Bearer {right}", "Bearer x"]) is ErrorCode.INVALID_ARGUMENT
    assert code_of(token, [f"Bearer {right}"] * 2) is ErrorCode.INVALID_ARGUMENT


def test_wrong_tokens_are_limited_by_host_and_do_not_lock_the_right_one_out(tmp_path: Path) -> None:
    right = new_token()
    token, clock = guard(tmp_path, right)
    for number in range(WRONG_PROOFS_MAX):
        # Addresses of one IPv6 network are one host.
        assert code_of(token, ["Bearer x"], f"2001:db8::{number}") is ErrorCode.OPERATOR_TOKEN_WRONG
    assert code_of(token, ["Bearer x"], "2001:db8::ffff") is ErrorCode.BACKPRESSURE
    assert code_of(token, ["Bearer x"], "2001:db8:0:1::1") is ErrorCode.OPERATOR_TOKEN_WRONG
    assert code_of(token, [f"Bearer {right}"], "2001:db8::1") is None
    clock.now += REFUSED_S
    assert code_of(token, ["Bearer x"], "2001:db8::1") is ErrorCode.OPERATOR_TOKEN_WRONG


def test_missing_tokens_cost_nothing(tmp_path: Path) -> None:
    token, _ = guard(tmp_path, new_token())
    for _ in range(10 * WRONG_PROOFS_MAX):
        assert code_of(token, []) is ErrorCode.OPERATOR_TOKEN_REQUIRED


def test_time_tells_nothing_by_construction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every comparison is of two hashes of 32 bytes, in constant time, and none is left out when an earlier one matched."""
    tokens = [new_token() for _ in range(3)]
    token, _ = guard(tmp_path, *tokens)
    compared: list[tuple[int, int]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return constant_time(one, other)

    constant_time = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", compare)
    for shown in (*tokens, new_token(), "x"):
        compared.clear()
        code_of(token, [f"Bearer {shown}"], shown)
        assert compared == [(32, 32)] * 3


@dataclass(frozen=True, slots=True)
class Call:
    """What the token asks of a gRPC call's context."""

    metadata: tuple[tuple[str, str | bytes], ...]
    address: str

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return self.metadata

    def peer(self) -> str:
        return self.address


async def test_grpc_peers_and_the_health_check(tmp_path: Path) -> None:
    right = new_token()
    token, _ = guard(tmp_path, right)
    shown, wrong = (("authorization", f"Bearer {right}"), ("other", b"\x00")), (("authorization", "Bearer x"),)
    await token.admit_call("/mesh.v1.Mesh/Leave", Call(shown, "ipv6:%5B2001:db8::1%5D:80"))
    await token.admit_call("/grpc.health.v1.Health/Check", Call((), "ipv4:192.0.2.1:80"))
    with pytest.raises(MeshError):
        await token.admit_call("/grpc.health.v1.Health/Watch", Call((), "ipv4:192.0.2.1:80"))
    for number in range(WRONG_PROOFS_MAX):
        with pytest.raises(MeshError):
            await token.admit_call("/m", Call(wrong, f"ipv6:%5B2001:db8::1%5D:{number}"))
    with pytest.raises(MeshError) as refused:
        await token.admit_call("/m", Call(wrong, "ipv6:%5B2001:db8::2%5D:9"))
    assert refused.value.code is ErrorCode.BACKPRESSURE


async def test_a_changed_file_is_taken_and_a_bad_one_changes_nothing(tmp_path: Path) -> None:
    old, new = new_token(), new_token()
    token, _ = guard(tmp_path, old)
    (tmp_path / "token").write_text(hashed_line(new))
    assert await token.look() == ""
    assert code_of(token, [f"Bearer {new}"]) is None
    assert code_of(token, [f"Bearer {old}"]) is ErrorCode.OPERATOR_TOKEN_WRONG
    for spoil in (lambda: (tmp_path / "token").write_text("x"), (tmp_path / "token").unlink):
        spoil()
        assert "tokens that were read last" in await token.look()
        assert code_of(token, [f"Bearer {new}"]) is None


def test_the_file_of_the_data_directory_serves_where_no_setting_names_one(tmp_path: Path) -> None:
    assert OperatorToken.of_settings("", tmp_path, "MESH_TEST_FILE") is None
    (tmp_path / FILE_NAME).write_text(hashed_line(new_token()))
    token = OperatorToken.of_settings("", tmp_path, "MESH_TEST_FILE")
    assert token is not None
    with pytest.raises(MeshError, match="MESH_TEST_FILE"):
        OperatorToken.of_settings(str(tmp_path / "missing"), tmp_path, "MESH_TEST_FILE")
    for local in ("127.0.0.1:1", "localhost:1", "[::1]:1", "[::ffff:127.0.0.1]:1", "unix:/run/mesh/a.sock"):
        assert token.on(local) is None
    for reachable in ("0.0.0.0:1", "[::]:1", "mesh.example:1", "[2001:db8::1]:1", "[::ffff:192.0.2.1]:1"):
        assert token.on(reachable) is token


async def test_a_warning_is_told_by_readiness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator_token, "LOOK_EVERY_S", 0.01)
    token, _ = guard(tmp_path, new_token())
    readiness = Readiness()
    (tmp_path / "token").write_text("x")
    running = asyncio.create_task(token.run(readiness))

    async def is_warned() -> bool:
        return bool(readiness.warnings())

    async def is_quiet() -> bool:
        return not readiness.warnings()

    await eventually("it warns", is_warned, timeout_s=10, poll_s=0.01)
    (tmp_path / "token").write_text(hashed_line(new_token()))
    await eventually("the warning is gone", is_quiet, timeout_s=10, poll_s=0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
