"""What becomes of proposals when leaders change: who is told what, and in what order."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from meshraft.proposals import Proposals

Told = list[tuple[str, str, int]]


@dataclass
class Waiter:
    """Notes what it is told: its name, the result or error, and how many entries that was."""

    name: str
    told: Told

    def committed(self, index: int, count: int, result: str) -> None:
        self.told.append((self.name, f"{result}@{index}", count))

    def failed(self, count: int, error: str) -> None:
        self.told.append((self.name, error, count))


@dataclass
class Case:
    """Proposals, and all that their waiters were told."""

    told: Told = field(default_factory=list)
    proposals: Proposals[str, str] = field(
        default_factory=lambda: Proposals(lambda: "overwritten", lambda why: f"unknown: {why}")
    )

    def add(self, term: int, index: int, name: str, count: int = 1, key: tuple[int, int, int] | None = None) -> None:
        self.proposals.add(term, index, 10 * count, Waiter(name, self.told), count, key)

    def decide(self, first: int, term: int, last: int | None = None) -> Told:
        """What is told because of the entries from `first` to `last`."""
        self.told.clear()
        self.proposals.decide(first, last or first, term, "ok")
        return self.told.copy()


def test_a_proposal_is_committed_only_with_its_own_term() -> None:
    case = Case()
    case.add(3, 10, "a")
    case.add(3, 11, "b")
    assert case.decide(9, 3) == []
    assert case.decide(10, 3) == [("a", "ok@10", 1)]
    assert case.proposals.size_bytes == 10
    assert case.decide(11, 4) == [("b", "overwritten", 1)]
    assert len(case.proposals) == case.proposals.size_bytes == 0


def test_a_commit_beyond_a_proposal_means_that_it_was_overwritten() -> None:
    case = Case()
    case.add(3, 10, "a")
    case.add(3, 12, "b")
    assert case.decide(12, 3) == [("a", "overwritten", 1), ("b", "ok@12", 1)]


def test_a_reused_index_leaves_unknown_what_this_member_had_proposed_there() -> None:
    case = Case()
    for index, name in ((10, "a"), (11, "b"), (12, "c")):
        case.add(3, index, name)
    case.add(5, 11, "d")
    unknown = "unknown: The leadership was lost and won again meanwhile."
    assert case.told == [("c", unknown, 1), ("b", unknown, 1)]
    assert case.decide(10, 3) == [("a", "ok@10", 1)]
    assert case.decide(11, 5) == [("d", "ok@11", 1)]


def test_closing_tells_everybody_and_gives_everything_back() -> None:
    case = Case()
    case.add(1, 2, "a")
    case.add(1, 3, "run", count=4)
    case.proposals.fail("closed")
    assert case.told == [("a", "closed", 1), ("run", "closed", 4)]
    assert not case.proposals
    assert case.proposals.size_bytes == 0


def test_a_snapshot_leaves_unknown_what_it_jumped_over() -> None:
    case = Case()
    case.add(1, 2, "a")
    case.proposals.jumped_over()
    assert case.told == [("a", "unknown: This node fell behind and was sent a snapshot.", 1)]


def test_a_run_is_decided_in_pieces() -> None:
    case = Case()
    case.add(3, 10, "run", count=5)
    assert case.decide(8, 3, 11) == [("run", "ok@10", 2)]
    assert case.proposals.size_bytes == 50  # of proposals of which some are not decided
    assert case.decide(12, 4, 12) == [("run", "overwritten", 1)]
    assert case.decide(14, 4, 20) == [("run", "overwritten", 1), ("run", "overwritten", 1)]
    assert case.proposals.size_bytes == 0


def test_a_repetition_shares_the_outcome_of_what_is_on_its_way() -> None:
    case = Case()
    case.add(3, 10, "a", key=(7, 1, 0))
    case.add(3, 11, "b", key=(7, 1, 20))
    assert not case.proposals.may_hold((7, 1, 40))
    assert not case.proposals.may_hold((8, 1, 0))
    assert case.proposals.may_hold((7, 1, 0))
    assert case.proposals.join((7, 1, 0), Waiter("a again", case.told))
    assert not case.proposals.join((7, 0, 0), Waiter("of an older epoch", case.told))
    assert case.proposals.size_bytes == 20
    assert case.decide(10, 3) == [("a", "ok@10", 1), ("a again", "ok@10", 1)]
    assert not case.proposals.join((7, 1, 0), Waiter("too late", case.told))
    assert case.proposals.join((7, 1, 20), Waiter("b again", case.told))
    case.told.clear()
    case.add(4, 11, "c")
    assert [name for name, _, _ in case.told] == ["b", "b again"]
    case.proposals.fail("closed")
    assert not case.proposals.may_hold((7, 1, 0))


def test_the_newest_key_is_forgotten_with_the_last_proposal() -> None:
    case = Case()
    case.add(3, 10, "a", key=(7, 1, 0))
    case.decide(10, 3)
    assert not case.proposals.may_hold((7, 1, 0))


def test_a_waiter_may_propose_while_it_is_told() -> None:
    case = Case()

    class Again(Waiter):
        def committed(self, index: int, count: int, result: str) -> None:
            super().committed(index, count, result)
            case.add(3, 12, "next")

    case.proposals.add(3, 10, 10, Again("a", case.told))
    case.add(3, 11, "b")
    assert case.decide(10, 3, 11) == [("a", "ok@10", 1), ("b", "ok@11", 1)]
    assert case.decide(12, 3) == [("next", "ok@12", 1)]


class Log(RuleBasedStateMachine):
    """A member's log under changing leaders, against what is committed in the end."""

    def __init__(self) -> None:
        super().__init__()
        self.case = Case()
        self.log: list[int] = []  # term of each entry here, from index 1 on
        self.term = 1
        self.committed: list[int] = []
        self.proposed: dict[str, tuple[int, int, int]] = {}
        self.told: dict[str, dict[int, str]] = {}

    @rule(count=st.integers(1, 4))
    def propose(self, count: int) -> None:
        name, index = f"{len(self.proposed)}", len(self.log) + 1
        self.log += [self.term] * count
        self.proposed[name] = (self.term, index, count)
        self.case.add(self.term, index, name, count)
        self._take()

    @precondition(lambda self: len(self.log) > len(self.committed))
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        first = len(self.committed) + 1
        term = self.log[first - 1]
        same = next((at for at, other in enumerate(self.log[first - 1 :]) if other != term), len(self.log) - first + 1)
        last = first + data.draw(st.integers(1, same)) - 1
        self.committed = self.log[:last]
        self.case.proposals.decide(first, last, term, "ok")
        self._take()

    @rule(data=st.data())
    def lose_the_leadership_and_win_it(self, data: st.DataObject) -> None:
        """Another leader cuts the log off behind what is committed, and may append its own."""
        keep = data.draw(st.integers(len(self.committed), len(self.log)))
        self.log = self.log[:keep] + [self.term + 1] * data.draw(st.integers(0, 3))
        self.term += 2

    def _take(self) -> None:
        for name, text, count in self.case.told:
            told = self.told.setdefault(name, {})
            begin = self.proposed[name][1] + len(told)
            told |= dict.fromkeys(range(begin, begin + count), text.split("@", maxsplit=1)[0])
        self.case.told.clear()

    @invariant()
    def every_entry_is_told_once_and_truly(self) -> None:
        for name, (term, index, count) in self.proposed.items():
            told = self.told.get(name, {})
            assert len(told) <= count
            for at, text in told.items():
                is_in = at <= len(self.committed) and self.committed[at - 1] == term
                if text == "ok":
                    assert is_in
                elif text == "overwritten":
                    assert at <= len(self.committed)
                    assert not is_in
            if index + count - 1 <= len(self.committed):
                assert len(told) == count


TestLog = Log.TestCase
