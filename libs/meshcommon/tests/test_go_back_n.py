"""The window against a group that loses, refuses and doubles: everything is committed once and in order (I1, I2, I5)."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshcommon.errors import ErrorCode, MeshError
from meshcommon.go_back_n import GoBackN, Place, is_curable

REFUSED = MeshError(ErrorCode.BACKPRESSURE, "not now")
UNKNOWN = MeshError(ErrorCode.OUTCOME_UNKNOWN, "unknown", retryable=False)
GAP = MeshError(ErrorCode.SEQUENCE_GAP, "gap")


@dataclass(slots=True, eq=False)
class Item:
    sequence: int
    place: Place = Place.DUE


class Group:
    """What a stream group does with one producer's batches, each of which takes a way of its own and may be lost on it."""

    def __init__(self, rng: random.Random, failure_rate: float, *, is_ordered: bool) -> None:
        self.rng = rng
        self.failure_rate = failure_rate
        self.is_ordered = is_ordered
        self.committed: list[int] = []
        self.under_way: list[Item] = []
        self.answers: list[tuple[Item, MeshError | None]] = []

    def work(self) -> None:
        """Takes one of the batches that are under way: the oldest, or any where they overtake each other."""
        at = 0 if self.is_ordered else self.rng.randrange(len(self.under_way))
        item = self.under_way.pop(at)
        error: MeshError | None = None
        if item.sequence > len(self.committed):
            error = GAP
        elif self.rng.random() < self.failure_rate:
            error = self.rng.choice([REFUSED, UNKNOWN])
            if error is UNKNOWN and item.sequence == len(self.committed) and self.rng.random() < 0.5:
                self.committed.append(item.sequence)
        elif item.sequence == len(self.committed):
            self.committed.append(item.sequence)
        self.answers.append((item, error))


@dataclass
class Sender:
    """Sends through the window as meshclient does (one connection, drained before it resumes) or as a node does."""

    group: Group
    count: int
    is_drained_first: bool
    window: GoBackN[Item]
    answered: list[int]
    first_sent: list[int]

    def take_answer(self) -> None:
        item, error = self.group.answers.pop(0)
        if error is None:
            self.window.answered(item)
            self.answered.append(item.sequence)
            return
        is_behind = self.window.front is not item
        if error is GAP and not is_behind:
            # It was sent behind another one, which was answered meanwhile.
            assert not self.group.is_ordered or not self.is_drained_first
        else:
            assert is_curable(error.code, error.retry, is_behind=is_behind, is_recognised=True)
        self.window.failed(item)

    def send(self) -> None:
        if self.window.is_held and (self.window.is_drained or not self.is_drained_first):
            self.window.resume()
        due = self.window.next_due()
        if due is None:
            return
        for item in self.window.items:
            if item is due:
                break
            assert item.place is Place.AWAITED, "it overtakes one that waits"
        self.window.sent()
        if due.sequence == len(self.first_sent):
            self.first_sent.append(due.sequence)
        self.group.under_way.append(due)


@given(
    seed=st.integers(0, 2**32),
    in_flight=st.integers(1, 8),
    failure_rate=st.floats(0, 0.5),
    count=st.integers(1, 60),
    is_drained_first=st.booleans(),
    is_ordered=st.booleans(),
)
def test_everything_is_committed_once_in_order_under_any_schedule(
    seed: int, in_flight: int, failure_rate: float, count: int, is_drained_first: bool, is_ordered: bool
) -> None:
    rng = random.Random(seed)
    group = Group(rng, failure_rate, is_ordered=is_ordered)
    window: GoBackN[Item] = GoBackN()
    sender = Sender(group, count, is_drained_first, window, [], [])
    added = 0
    for _ in range(40_000):
        if len(sender.answered) == count:
            break
        choice = rng.random()
        if choice < 0.02 and is_drained_first:
            # The connection goes, and what was on it: some of it arrived.
            while group.under_way and rng.random() < 0.5:
                group.work()
            group.under_way.clear()
            group.answers.clear()
            window.lost()
            assert window.is_drained
        elif group.answers and choice < 0.4:
            sender.take_answer()
        elif group.under_way and choice < 0.7:
            group.work()
        else:
            if len(window) < in_flight and added < count:
                window.add(Item(added))
                added += 1
            sender.send()
        assert len(window) <= in_flight
        assert len(window) + len(sender.answered) == added, "forgotten or doubled"
    assert sorted(sender.answered) == list(range(count))
    assert group.committed == list(range(count))
    assert sender.first_sent == list(range(count))


@pytest.mark.parametrize("code", [ErrorCode.PRODUCER_FENCED, ErrorCode.PRODUCER_EXPIRED, ErrorCode.STREAM_NOT_FOUND])
def test_a_failure_that_no_retry_cures_is_told(code: ErrorCode) -> None:
    error = MeshError(code, "over")
    assert not is_curable(error.code, error.retry, is_behind=True, is_recognised=True)


def test_a_gap_is_expected_only_behind_an_unanswered_batch() -> None:
    assert is_curable(GAP.code, GAP.retry, is_behind=True, is_recognised=True)
    assert not is_curable(GAP.code, GAP.retry, is_behind=False, is_recognised=True)


def test_what_may_have_taken_effect_is_sent_again_only_if_a_repetition_is_recognised() -> None:
    assert is_curable(UNKNOWN.code, UNKNOWN.retry, is_behind=False, is_recognised=True)
    assert not is_curable(UNKNOWN.code, UNKNOWN.retry, is_behind=False, is_recognised=False)
    assert is_curable(REFUSED.code, REFUSED.retry, is_behind=False, is_recognised=False)


def sent_window(count: int) -> tuple[GoBackN[Item], list[Item]]:
    window: GoBackN[Item] = GoBackN()
    items = [Item(number) for number in range(count)]
    for item in items:
        window.add(item)
        window.sent()
    return window, items


def test_nothing_is_due_between_a_failure_and_resume_and_then_only_what_failed() -> None:
    window, (first, second, third) = sent_window(3)
    window.add(fourth := Item(3))
    window.failed(first)
    assert window.is_held
    assert not window.is_drained
    assert window.next_due() is None
    window.failed(third)
    window.resume()
    again = []
    while (due := window.next_due()) is not None:
        window.sent()
        again.append(due)
    assert again == [first, third, fourth]
    assert second.place is Place.AWAITED
    assert window.is_flowing


def test_a_settled_item_keeps_its_turn_and_is_never_due() -> None:
    window, (first,) = sent_window(1)
    window.add_settled(settled := Item(1))
    window.add(last := Item(2))
    assert window.next_due() is last
    window.settled(last)
    window.failed(first)
    window.resume()
    assert window.next_due() is first
    assert [*window.items, settled.place] == [first, settled, last, Place.SETTLED]


def test_parts_stand_where_the_whole_stood() -> None:
    window, (first, whole, last) = sent_window(3)
    parts = [Item(10), Item(11)]
    window.split(lambda item: parts if item is whole else None)
    assert list(window.items) == [first, *parts, last]
    window.answered_first(4)
    assert (len(window), window.is_drained) == (0, True)


def test_the_end_takes_everything_whatever_its_place() -> None:
    window, items = sent_window(2)
    window.add(due := Item(2))
    window.failed(items[0])
    assert window.take_all() == [*items, due]
    assert (len(window), window.is_held, window.is_drained, window.next_due()) == (0, False, True, None)
