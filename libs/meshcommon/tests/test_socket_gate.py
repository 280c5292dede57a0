"""Who may hold an unproven socket open: everybody a little, known members a little more (invariant I6)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshcommon.socket_gate import KNOWN_MAX, GateLimits, SocketGate

LIMITS = GateLimits(sockets_max=8, reserved=3, per_address_max=2)


def test_one_address_gets_its_share_and_no_more() -> None:
    gate = SocketGate(LIMITS)
    assert [gate.enter("10.0.0.1") for _ in range(4)] == [True, True, False, False]
    assert gate.enter("10.0.0.2")
    assert (gate.unproven, gate.refused) == (3, 2)


def test_strangers_leave_the_reserved_places_to_those_who_are_known() -> None:
    gate = SocketGate(LIMITS)
    gate.remember("10.9.9.9")
    assert [gate.enter(f"10.0.0.{number}") for number in range(8)] == [True] * 5 + [False] * 3
    assert [gate.enter("10.9.9.9") for _ in range(4)] == [True] * 3 + [False]


def test_a_known_address_has_a_larger_share_and_a_limit() -> None:
    gate = SocketGate(LIMITS)
    gate.remember("10.9.9.9")
    assert [gate.enter("10.9.9.9") for _ in range(5)] == [True] * 4 + [False]


def test_a_place_is_free_again_once_its_socket_has_left() -> None:
    gate = SocketGate(LIMITS)
    for _ in range(100):
        assert gate.enter("10.0.0.1")
        gate.leave("10.0.0.1")
    assert gate.unproven == 0
    assert not gate._unproven


@pytest.mark.parametrize(
    ("one", "other", "are_alike"),
    [
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("", "10.0.0.1", False),
    ],
)
def test_addresses_of_one_host_count_as_one(one: str, other: str, are_alike: bool) -> None:
    gate = SocketGate(GateLimits(sockets_max=8, reserved=0, per_address_max=1))
    assert gate.enter(one)
    assert gate.enter(other) is not are_alike


def test_the_memory_of_known_addresses_is_bounded_and_keeps_the_newest() -> None:
    gate = SocketGate(LIMITS)
    gate.remember("10.9.9.9")
    for number in range(KNOWN_MAX):
        gate.remember(f"10.1.{number >> 8}.{number & 0xFF}")
        gate.remember("10.9.9.9")
    assert len(gate._known) == KNOWN_MAX
    assert [gate.enter("10.9.9.9") for _ in range(3)] == [True] * 3


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), max_size=200))
def test_counts_are_never_beyond_the_limits(steps: list[tuple[bool, int]]) -> None:
    gate, inside = SocketGate(LIMITS), [0] * 5
    gate.remember("10.0.0.0")
    for is_entering, number in steps:
        if is_entering:
            inside[number] += gate.enter(f"10.0.0.{number}")
        elif inside[number]:
            gate.leave(f"10.0.0.{number}")
            inside[number] -= 1
        assert gate.unproven == sum(inside) <= LIMITS.sockets_max
        assert max(inside[1:]) <= LIMITS.per_address_max
