"""What a key is delegated for, and when its service is asked for another one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mesh_control.core.delegator import ASK_AGAIN_S, Delegator
from meshcommon.delegation import RENEW_AFTER_S, VALID_AFTER_S, VALID_BEFORE_S, Grantor, Use
from meshcommon.ids import NodeId
from meshcommon.key_signer import KeySigner
from meshcommon.signer import Signer
from meshtest.delegated import NOW_S

IDENTITY = KeySigner(b"i" * 32)
GRANTOR = Grantor(IDENTITY.public_key, "mesh", 2, NodeId(1))
KEY = KeySigner(b"k" * 32).public_key
OFFERED = KEY, NOW_S


def signature(
    grantor: Grantor = GRANTOR, offered: tuple[bytes, int] = OFFERED, identity: Signer = IDENTITY, use: Use = Use.LANES
) -> bytes:
    return Delegator(use).introduce(identity, "a", grantor, offered, NOW_S + 60).delegation.signature


def test_node_is_introduced_with_a_delegation_until_a_day_after_the_key_was_made() -> None:
    for later_s in (0.0, 0.7, RENEW_AFTER_S, 10 * VALID_AFTER_S):
        told = Delegator(Use.LINK_STATES).introduce(IDENTITY, "a", GRANTOR, OFFERED, NOW_S + later_s)
        assert (told.node_id, told.name, told.public_key) == (1, "a", IDENTITY.public_key)
        delegation = told.delegation
        assert (delegation.public_key, int(delegation.use)) == (KEY, int(Use.LINK_STATES))
        assert (delegation.not_before_s, delegation.not_after_s) == (NOW_S - VALID_BEFORE_S, NOW_S + VALID_AFTER_S)


def test_key_that_claims_to_come_from_the_future_gets_no_longer_life() -> None:
    told = Delegator(Use.LANES).introduce(IDENTITY, "a", GRANTOR, (KEY, NOW_S + 10**9), NOW_S)
    assert told.delegation.not_after_s == NOW_S + VALID_AFTER_S


def test_service_is_asked_for_another_key_once_half_a_day_after_it_made_this_one() -> None:
    delegator = Delegator(Use.LANES)
    assert delegator.renewals(NOW_S) == 0
    delegator.introduce(IDENTITY, "a", GRANTOR, OFFERED, NOW_S + 3_600)
    assert delegator.renewals(NOW_S + RENEW_AFTER_S - 1) == 0
    assert [delegator.renewals(NOW_S + RENEW_AFTER_S + n) for n in range(3)] == [1, 1, 1], "told once for each"
    delegator.introduce(IDENTITY, "a", GRANTOR, (KEY, NOW_S + RENEW_AFTER_S), NOW_S + RENEW_AFTER_S)
    assert delegator.renewals(NOW_S + 2 * RENEW_AFTER_S - 1) == 1
    assert delegator.renewals(NOW_S + 2 * RENEW_AFTER_S) == 2


def test_service_whose_clock_is_behind_is_asked_again_and_not_without_end() -> None:
    delegator, late_s = Delegator(Use.LANES), NOW_S + RENEW_AFTER_S + 5
    delegator.introduce(IDENTITY, "a", GRANTOR, OFFERED, late_s)
    assert delegator.renewals(late_s + ASK_AGAIN_S - 1) == 0
    assert delegator.renewals(late_s + ASK_AGAIN_S) == 1


def test_clock_that_was_set_back_is_followed() -> None:
    delegator = Delegator(Use.LANES)
    delegator.introduce(IDENTITY, "a", GRANTOR, OFFERED, NOW_S)
    assert delegator.renewals(NOW_S - VALID_BEFORE_S) == 0
    assert delegator.renewals(NOW_S - VALID_BEFORE_S - 1) == 1
    told = Delegator(Use.LANES).introduce(IDENTITY, "a", GRANTOR, (KEY, 5), 5.0)
    assert told.delegation.not_before_s == 0, "a machine that lost its clock"


@pytest.mark.parametrize(
    "moved",
    [replace(GRANTOR, mesh_id="other"), replace(GRANTOR, mesh_epoch=3), replace(GRANTOR, node_id=NodeId(2))],
)
def test_the_same_key_and_place_get_the_same_bytes_and_no_others(moved: Grantor) -> None:
    first = signature()
    assert signature() == first
    assert signature(moved) != first
    assert signature(offered=(KeySigner(b"2" * 32).public_key, NOW_S)) != first
    assert signature(offered=(KEY, NOW_S + 1)) != first
    assert signature(use=Use.LINK_STATES) != first
    other = KeySigner(b"j" * 32)
    assert signature(replace(GRANTOR, public_key=other.public_key), identity=other) != first
