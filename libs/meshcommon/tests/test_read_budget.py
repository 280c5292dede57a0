"""What all connections of a port hold together: shares are free, the rest is bounded, and who stands still goes first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meshcommon.read_budget import ReadBudget


class Holder:
    """Stands in for a connection: remembers that it was ended."""

    def __init__(self) -> None:
        self.is_evicted = False

    def evict(self) -> None:
        self.is_evicted = True


def test_shares_cost_nothing() -> None:
    budget = ReadBudget(limit_bytes=100, share_bytes=10)
    holders = [Holder() for _ in range(1_000)]
    for holder in holders:
        budget.charge(holder, 10)
    assert budget.held_bytes == 0
    assert not any(holder.is_evicted for holder in holders)


def test_who_has_completed_nothing_for_longest_makes_room() -> None:
    budget = ReadBudget(limit_bytes=100, share_bytes=10)
    stuck, busy, new = Holder(), Holder(), Holder()
    budget.charge(stuck, 60)
    budget.charge(busy, 60)
    assert budget.held_bytes == 100
    budget.progressed(busy)
    budget.charge(new, 20)
    assert (stuck.is_evicted, busy.is_evicted, new.is_evicted) == (True, False, False)
    assert (budget.held_bytes, budget.evicted) == (60, 1)


def test_one_that_alone_holds_too_much_goes_itself() -> None:
    budget = ReadBudget(limit_bytes=100, share_bytes=10)
    greedy = Holder()
    budget.charge(greedy, 111)
    assert greedy.is_evicted
    assert budget.held_bytes == 0


def test_what_was_given_back_is_free_again() -> None:
    budget = ReadBudget(limit_bytes=100, share_bytes=10)
    one, two = Holder(), Holder()
    budget.charge(one, 110)
    budget.charge(one, 0)
    budget.charge(two, 110)
    budget.release(two)
    budget.charge(one, 110)
    assert not one.is_evicted
    assert not two.is_evicted


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 150), st.booleans()), max_size=200))
def test_the_limit_holds_whatever_comes(steps: list[tuple[int, int, bool]]) -> None:
    budget = ReadBudget(limit_bytes=100, share_bytes=10)
    holders = [Holder() for _ in range(10)]
    for number, held_bytes, has_progressed in steps:
        if holders[number].is_evicted:
            holders[number] = Holder()
        budget.charge(holders[number], held_bytes)
        if has_progressed:
            budget.progressed(holders[number])
        assert 0 <= budget.held_bytes <= 100
        assert budget.held_bytes == sum(budget._charged.values())
        assert not any(holder.is_evicted for holder in budget._charged if isinstance(holder, Holder))
