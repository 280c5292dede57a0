"""One publisher against members that refuse, lose, forget and change their leader (I2, I5): decisions without a loop."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh_data.core.publish_flow import QUEUED_BYTES_MAX, PublishFlow, Step, Way, way_to
from mesh_data.core.stream_timing import StreamTiming
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.go_back_n import Place
from meshcommon.ids import NO_NODE, NodeId

TIMING = StreamTiming.preset("test")
OWN, OTHER = NodeId(1), NodeId(2)
REFUSALS = (ErrorCode.NOT_LEADER, ErrorCode.BACKPRESSURE, ErrorCode.NODE_STOPPED, ErrorCode.UNKNOWN_GROUP)
DOUBTS = (ErrorCode.OUTCOME_UNKNOWN, ErrorCode.DEADLINE_EXCEEDED, ErrorCode.NO_PATH, ErrorCode.STORAGE_FAILED)


def error_of(code: ErrorCode) -> MeshError:
    return MeshError(code, "Because.")


@dataclass(slots=True, eq=False)
class Item:
    sequence: int
    has_producer: bool
    arrived: float = 0.0
    is_sent_behind: bool = False
    is_uncertain: bool = False
    place: Place = Place.DUE
    attempts: int = 0
    answer: ErrorCode | str | None = None
    """Of the attempt that is under way: "appended", a code, or None as long as there is none."""


class Members:
    """The stream's log. Its leader is here, where proposals keep their order, or at a node where requests overtake."""

    def __init__(self, rng: random.Random, failure_rate: float, *, has_producer: bool) -> None:
        self.rng = rng
        self.failure_rate = failure_rate
        self.has_producer = has_producer
        self.leads_here = rng.random() < 0.5
        self.log: list[int] = []
        self.proposed: list[Item] = []
        self.asked: list[tuple[Item, int]] = []

    def send(self, item: Item) -> None:
        item.attempts += 1
        item.answer = None
        if not self.leads_here:
            self.asked.append((item, item.attempts))
        elif self.rng.random() < self.failure_rate / 4:
            item.answer = ErrorCode.BACKPRESSURE
        else:
            self.proposed.append(item)

    def take_one(self) -> None:
        """Decides a proposal or a request that is under way."""
        if self.proposed and (not self.asked or self.rng.random() < 0.5):
            if self.rng.random() < self.failure_rate:
                self._lose_leadership()
            else:
                item = self.proposed.pop(0)
                item.answer = self._append(item.sequence)
        elif self.asked:
            item, attempt = self.asked.pop(self.rng.randrange(len(self.asked)))
            code = self._asked(item.sequence)
            if attempt == item.attempts:
                item.answer = code

    def _lose_leadership(self) -> None:
        """Some proposals are committed all the same; of the others it is known that they are not, or nothing is known."""
        kept = self.rng.randint(0, len(self.proposed))
        is_known = self.rng.random() < 0.5
        for number, item in enumerate(self.proposed):
            answer = self._append(item.sequence) if number < kept else ErrorCode.NOT_LEADER
            item.answer = answer if is_known else self.rng.choice(DOUBTS)
        self.proposed.clear()
        self.leads_here = False

    def _asked(self, sequence: int) -> ErrorCode | str:
        if self.rng.random() >= self.failure_rate:
            return self._append(sequence)
        if self.rng.random() < 0.5:
            return self.rng.choice(REFUSALS)
        if self.rng.random() < 0.5:
            self._append(sequence)
        return self.rng.choice(DOUBTS)

    def _append(self, sequence: int) -> ErrorCode | str:
        if self.has_producer:
            if sequence > len(self.log):
                return ErrorCode.SEQUENCE_GAP
            if sequence < len(self.log):
                return "appended"
        self.log.append(sequence)
        return "appended"


class Publisher:
    """The loop of `PublishCall` without its awaits."""

    def __init__(self, members: Members) -> None:
        self.members = members
        self.flow: PublishFlow[Item] = PublishFlow(TIMING)
        self.told: list[tuple[int, Step | None]] = []

    def send(self) -> None:
        for item in self.flow.window.items:
            self.look_at(item)
        while (due := self.flow.next_to_send(self.leads)) is not None:
            for item in self.flow.window.items:
                if item is due:
                    break
                assert item.place is not Place.DUE, "it overtakes one that is due"
                if not self.members.has_producer:
                    assert not item.is_uncertain, "it overtakes one whose outcome is not known"
                    assert self.members.leads_here, "two are on their way to a node that does not keep their order"
            is_here = self.members.leads_here
            self.members.send(due)
            self.flow.sent(due, is_here=is_here)
            self.look_at(due)

    def leads(self, _item: Item) -> bool:
        return self.members.leads_here

    def add(self, item: Item) -> None:
        """As a call takes the next batch: sent at once if nothing is in its way."""
        if self.flow.window.items:
            self.look_at(self.flow.window.items[-1])
        if self.flow.window.is_flowing and self.flow.may_send(item, self.leads):
            is_here = self.members.leads_here
            self.members.send(item)
            self.flow.add_sent(item, is_here=is_here)
        else:
            self.flow.window.add(item)

    def look_at(self, item: Item) -> None:
        if item.place is Place.AWAITED and item.answer not in (None, "appended"):
            error = error_of(ErrorCode(str(item.answer)))
            self.flow.failed(item, error.code, error.elsewhere)

    def settle(self, now: float) -> None:
        """What is done when the front's attempt is over."""
        front = self.flow.window.front
        if front is None or front.answer is None:
            return
        if front.answer == "appended":
            self._tell(front, None)
            return
        error = error_of(ErrorCode(front.answer))
        self.flow.failed(front, error.code, error.elsewhere)
        step = self.flow.step(front, error, now)
        if step not in (Step.SEND_AGAIN, Step.LOOK_AGAIN):
            self._tell(front, step)
            return
        for item in self.flow.window.items:
            self.look_at(item)
        self.flow.window.resume()
        self.send()

    def _tell(self, item: Item, step: Step | None) -> None:
        self.flow.answered(item)
        self.told.append((item.sequence, step))


def run(seed: int, failure_rate: float, count: int, *, has_producer: bool, ends: bool) -> tuple[Members, Publisher]:
    rng = random.Random(seed)
    members = Members(rng, failure_rate, has_producer=has_producer)
    publisher = Publisher(members)
    added, now = 0, 0.0
    for _ in range(20_000):
        if added == count and not publisher.flow.window.items:
            break
        choice = rng.random()
        if choice < 0.05:
            members.leads_here = True
        if added < count and choice < 0.3:
            publisher.add(Item(added, has_producer, now))
            added += 1
        elif choice < 0.7:
            members.take_one()
        else:
            publisher.send()
            publisher.settle(now)
        if ends:
            now += rng.random() * TIMING.publish_deadline_s / 20
    assert added == count
    assert not publisher.flow.window.items, "forgotten"
    assert [sequence for sequence, _ in publisher.told] == list(range(count)), "answers are in order, one each"
    return members, publisher


@given(seed=st.integers(0, 2**32), failure_rate=st.floats(0, 0.5), count=st.integers(1, 40))
def test_with_a_producer_everything_is_appended_once_and_in_order(seed: int, failure_rate: float, count: int) -> None:
    members, publisher = run(seed, failure_rate, count, has_producer=True, ends=False)
    assert members.log == list(range(count))
    assert {step for _, step in publisher.told} == {None}


@given(seed=st.integers(0, 2**32), failure_rate=st.floats(0, 0.5), count=st.integers(1, 40))
def test_without_a_producer_nothing_is_doubled_and_what_is_acknowledged_is_in_order(
    seed: int, failure_rate: float, count: int
) -> None:
    members, publisher = run(seed, failure_rate, count, has_producer=False, ends=False)
    assert len(set(members.log)) == len(members.log), "doubled"
    acknowledged = [sequence for sequence, step in publisher.told if step is None]
    assert [sequence for sequence in members.log if sequence in acknowledged] == acknowledged
    for sequence, step in publisher.told:
        if step in (Step.TELL_NO_QUORUM, Step.SEND_AGAIN):
            assert sequence not in members.log, "told as certainly not appended"


@given(
    seed=st.integers(0, 2**32),
    failure_rate=st.floats(0.5, 1.0),
    count=st.integers(1, 20),
    has_producer=st.booleans(),
)
def test_a_lasting_failure_ends_each_batch_at_its_deadline_and_certainty_is_told_as_it_is(
    seed: int, failure_rate: float, count: int, has_producer: bool
) -> None:
    members, publisher = run(seed, failure_rate, count, has_producer=has_producer, ends=True)
    for sequence, step in publisher.told:
        if step is None:
            assert sequence in members.log
        if step is Step.TELL_NO_QUORUM:
            assert sequence not in members.log, "told as certainly not appended"


@pytest.mark.parametrize(
    ("code", "is_uncertain", "step"),
    [
        (ErrorCode.NOT_LEADER, False, Step.TELL_NO_QUORUM),
        (ErrorCode.NOT_LEADER, True, Step.TELL_UNKNOWN),
        (ErrorCode.BACKPRESSURE, False, Step.TELL),
        (ErrorCode.DISK_PRESSURE, False, Step.TELL),
        (ErrorCode.UPDATE_REQUIRED, False, Step.TELL),
        (ErrorCode.DEADLINE_EXCEEDED, True, Step.TELL_UNKNOWN),
        (ErrorCode.STORAGE_FAILED, True, Step.TELL),
        (ErrorCode.PRODUCER_FENCED, True, Step.TELL),
        (ErrorCode.SEQUENCE_GAP, False, Step.TELL),
    ],
)
def test_what_a_lasting_failure_is_called(code: ErrorCode, is_uncertain: bool, step: Step) -> None:
    flow: PublishFlow[Item] = PublishFlow(TIMING)
    item = Item(0, has_producer=True, is_uncertain=is_uncertain)
    assert flow.verdict(item, error_of(code)) is step
    assert flow.step(item, error_of(code), TIMING.publish_deadline_s) is step


def test_no_attempt_is_begun_that_would_be_cut_off() -> None:
    flow: PublishFlow[Item] = PublishFlow(TIMING)
    item = Item(0, has_producer=True, arrived=100.0)
    end = 100.0 + TIMING.publish_deadline_s
    assert flow.is_worth_a_try(item, end - 0.1)
    assert not flow.is_worth_a_try(item, end - 0.01)
    assert flow.attempt_s(item, 100.0) == TIMING.attempt_s
    assert 0 < flow.attempt_s(item, end + 1.0) < 0.01
    item.has_producer = False
    assert flow.attempt_s(item, 100.0) == TIMING.publish_deadline_s


def test_where_a_batch_goes() -> None:
    assert way_to(OWN, OWN, 0) is Way.HERE
    assert way_to(OTHER, OWN, QUEUED_BYTES_MAX) is Way.THERE
    assert way_to(OTHER, OWN, QUEUED_BYTES_MAX + 1) is Way.CONGESTED
    assert way_to(NO_NODE, OWN, 0) is Way.NOWHERE
