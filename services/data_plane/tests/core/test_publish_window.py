"""Credit of publishers: windows, the budget of all, and turns."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mesh_data.core.publish_window import Budget, Credit


def test_a_window_lets_one_large_batch_in_while_it_is_empty() -> None:
    credit = Credit(100, Budget[str](100_000), "a")
    assert credit.has_room(1_000)
    credit.take(60)
    assert credit.has_room(40)
    assert not credit.has_room(41)
    credit.give_back(60)
    assert credit.has_room(1_000)


def test_the_budget_of_all_is_not_passed_and_who_waits_for_nothing_else_has_the_next_turn() -> None:
    budget = Budget[str](100)
    first, second, third = (Credit(80, budget, name) for name in ("first", "second", "third"))
    first.take(70)
    assert not second.has_room(31)
    assert not first.has_room(1)  # of what is free it may have a quarter, and has more
    second.line_up()
    assert not third.has_room(1)
    third.line_up()
    assert budget.next_in_line() == "second"
    first.give_back(70)
    assert not first.has_room(1)
    assert second.has_room(31)
    assert second.take(31)
    assert budget.next_in_line() == "third"
    third.close()
    third.close()
    assert budget.next_in_line() is None
    assert first.has_room(69)
    second.close()
    assert (budget.used_bytes, budget.flows) == (0, 1)


def test_a_batch_larger_than_the_budget_goes_alone() -> None:
    budget = Budget[str](100)
    first, second = Credit(80, budget, "first"), Credit(80, budget, "second")
    second.take(1)
    assert not first.has_room(200)
    second.give_back(1)
    assert first.has_room(200)


class Publishers(RuleBasedStateMachine):
    """Flows against the rules that the module promises: the budget is a hard limit, and no flow in line is passed over."""

    LIMIT = 1000

    def __init__(self) -> None:
        super().__init__()
        self.budget = Budget[int](self.LIMIT)
        self.flows = [Credit(200, self.budget, number) for number in range(6)]
        self.unanswered: list[list[int]] = [[] for _ in self.flows]
        self.wants: dict[int, int] = {}

    @rule(flow=st.integers(0, 5), size=st.integers(1, 400))
    def send(self, flow: int, size: int) -> None:
        size = self.wants.get(flow, size)
        credit = self.flows[flow]
        if credit.has_room(size):
            credit.take(size)
            self.unanswered[flow].append(size)
            self.wants.pop(flow, None)
            return
        self.wants[flow] = size
        credit.line_up()
        # It can go on: by an answer of its own, or because it is in line behind others that have something to wait for.
        assert self.unanswered[flow] or credit in self.budget.line

    @precondition(lambda self: any(self.unanswered))
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        flow = data.draw(st.sampled_from([at for at, sizes in enumerate(self.unanswered) if sizes]))
        self.flows[flow].give_back(self.unanswered[flow].pop(0))

    @invariant()
    def holds(self) -> None:
        assert self.budget.used_bytes == sum(map(sum, self.unanswered)) <= self.LIMIT
        if not any(self.unanswered) and self.budget.line:
            front = self.budget.next_in_line()
            assert front is not None
            assert self.flows[front].has_room(self.wants[front])


TestPublishers = Publishers.TestCase
