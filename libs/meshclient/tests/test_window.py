"""The window against a group that loses, refuses and doubles: everything is committed once and in order (I1, I2, I5)."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshclient.window import Flow, Unanswered, Window
from meshcommon.errors import ErrorCode, MeshError

RETRYABLE = MeshError(ErrorCode.NO_QUORUM, "no quorum")
UNKNOWN = MeshError(ErrorCode.OUTCOME_UNKNOWN, "unknown", retryable=True)
GAP = MeshError(ErrorCode.SEQUENCE_GAP, "gap")


class Group:
    """What a stream group does with one producer's batches, and a connection that may break."""

    def __init__(self, rng: random.Random, failure_rate: float) -> None:
        self.rng = rng
        self.failure_rate = failure_rate
        self.committed: list[int] = []
        self.answers: list[tuple[Unanswered[int], MeshError | None]] = []

    def take(self, batch: Unanswered[int]) -> None:
        sequence = batch.item
        error: MeshError | None = None
        if sequence > len(self.committed):
            error = GAP
        elif self.rng.random() < self.failure_rate:
            error = self.rng.choice([RETRYABLE, UNKNOWN])
            if error is UNKNOWN and sequence == len(self.committed) and self.rng.random() < 0.5:
                self.committed.append(sequence)
        elif sequence == len(self.committed):
            self.committed.append(sequence)
        self.answers.append((batch, error))


@given(st.integers(0, 2**32), st.integers(1, 8), st.floats(0, 0.5), st.integers(1, 60))
def test_everything_is_committed_once_in_order(seed: int, in_flight: int, failure_rate: float, count: int) -> None:
    rng = random.Random(seed)
    group = Group(rng, failure_rate)
    window: Window[int] = Window(in_flight)
    answered: list[int] = []
    added = 0
    for _ in range(20_000):
        if len(answered) == count:
            break
        choice = rng.random()
        if choice < 0.02:
            group.answers.clear()
            window.lost()
        elif group.answers and choice < 0.5:
            batch, error = group.answers.pop(0)
            if error is None:
                window.answered(batch)
                answered.append(batch.item)
            else:
                assert window.failed(batch, error), "a curable failure ended the producer"
        else:
            if window.flow is Flow.RESTED:
                assert not group.answers, "it rests although an answer is on its way"
                window.resume()
            if window.has_room and added < count:
                window.add(added)
                added += 1
            if (batch_to_send := window.next_to_send()) is not None:
                group.take(batch_to_send)
        assert len(window) <= in_flight
    assert sorted(answered) == list(range(count))
    assert group.committed == list(range(count))


@pytest.mark.parametrize("code", [ErrorCode.PRODUCER_FENCED, ErrorCode.PRODUCER_EXPIRED, ErrorCode.STREAM_NOT_FOUND])
def test_a_failure_that_no_retry_cures_is_told(code: ErrorCode) -> None:
    window: Window[int] = Window(5)
    window.add(0)
    batch = window.next_to_send()
    assert batch is not None
    assert not window.failed(batch, MeshError(code, "over"))


def test_a_gap_with_nothing_before_it_is_final() -> None:
    window: Window[int] = Window(5)
    window.add(0)
    batch = window.next_to_send()
    assert batch is not None
    assert not window.failed(batch, GAP)


def test_nothing_is_sent_between_a_failure_and_the_last_awaited_answer() -> None:
    window: Window[int] = Window(5)
    for item in range(3):
        window.add(item)
    sent = [window.next_to_send() for _ in range(3)]
    assert all(sent)
    first, second, third = (batch for batch in sent if batch is not None)
    assert window.failed(first, RETRYABLE)
    assert window.flow is Flow.DRAINING
    assert not window.has_room
    assert window.next_to_send() is None
    assert window.failed(second, GAP)
    assert window.failed(third, GAP)
    window.resume()
    again = [window.next_to_send() for _ in range(3)]
    assert again == [first, second, third]
