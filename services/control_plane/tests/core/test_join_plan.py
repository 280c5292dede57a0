"""Whom a newcomer asks, how often, and what it reports in the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pytest

from control_plane_testing.mcg_commands import MESH_ID
from mesh_control.core.join_plan import TRIES_MIN, JoinAttempts, plan_join
from mesh_control.core.join_tokens import JoinKey, encode_token
from meshcommon.errors import ErrorCode, MeshError

A, B, C, D = (f"ws://{name}:1" for name in "abcd")
AWAY, LATER, FINAL = ErrorCode.ADDRESS_UNREACHABLE, ErrorCode.NO_QUORUM, ErrorCode.NAME_TAKEN
TOKEN: Final = encode_token(JoinKey(MESH_ID, (A, B), bytes(32)))
HOMELESS: Final = encode_token(JoinKey(MESH_ID, (), bytes(32)))


@pytest.mark.parametrize(
    ("given", "addresses"),
    [
        (("", "", TOKEN, False), (A, B)),
        (("", "", TOKEN, True), (A, B)),
        (("ws://C:1", "", TOKEN, False), (C,)),
        ((C, MESH_ID, HOMELESS, False), (C,)),
        ((C, "", "", True), (C,)),
        ((C, "", "", False), ErrorCode.TOKEN_REQUIRED),
        (("", "", "", True), ErrorCode.INVALID_ARGUMENT),
        (("", "", HOMELESS, True), ErrorCode.INVALID_ARGUMENT),
        (("c:1", "", TOKEN, False), ErrorCode.INVALID_ARGUMENT),
        (("", "another", TOKEN, False), ErrorCode.INVALID_ARGUMENT),
        (("", "", TOKEN[:-1], False), ErrorCode.INVALID_ARGUMENT),
    ],
    ids=range(11),
)
def test_plan(given: tuple[str, str, str, bool], addresses: tuple[str, ...] | ErrorCode) -> None:
    if isinstance(addresses, ErrorCode):
        with pytest.raises(MeshError) as caught:
            plan_join(*given[:3], trust_first=given[3])
        assert caught.value.code is addresses
        return
    plan = plan_join(*given[:3], trust_first=given[3])
    assert (plan.addresses, plan.key is None) == (addresses, not given[2])


def asked(addresses: tuple[str, ...], codes: Sequence[ErrorCode], give_up_at: float = 99.0) -> tuple[str, ErrorCode]:
    """Who was asked until the end, when the attempts ended with these codes, and what was reported; one a second."""
    attempts = JoinAttempts(addresses, give_up_at)
    names = ""
    for now, code in enumerate(codes, 1):
        names += attempts.address[5]
        if not attempts.may_go_on(MeshError(code, "It is so."), float(now)):
            break
    return names, attempts.refusal().code


@pytest.mark.parametrize(
    ("addresses", "codes", "names", "reported"),
    [
        ((A,), [FINAL] * 9, "a", FINAL),
        ((A,), [AWAY] * 9, "a", AWAY),
        ((A,), [LATER] * 9, "aaa", LATER),
        ((A,), [LATER, AWAY, AWAY, AWAY], "aaa", LATER),
        ((A,), [LATER, FINAL], "aa", FINAL),
        ((A, B), [AWAY, AWAY, AWAY], "ab", AWAY),
        ((A, B), [FINAL, AWAY], "ab", FINAL),
        ((A, B), [LATER, FINAL], "ab", FINAL),
        ((A, B), [AWAY, LATER, AWAY], "aba", LATER),
        ((A, B, C, D), [LATER] * 9, "abcd", LATER),
        ((A, B, C, D), [FINAL, AWAY, LATER, FINAL], "abcd", FINAL),
    ],
    ids=range(11),
)
def test_attempts(addresses: tuple[str, ...], codes: list[ErrorCode], names: str, reported: ErrorCode) -> None:
    assert asked(addresses, codes) == (names, reported)
    assert max(len(addresses), TRIES_MIN) >= len(names)


def test_no_attempt_begins_after_the_time() -> None:
    assert asked((A, B, C, D), [AWAY] * 9, give_up_at=2.0) == ("ab", AWAY)
