"""What becomes durable, and what is said, in that order."""

from __future__ import annotations

import math

from meshcommon.guarded_store import GuardedStore
from meshcommon.ids import NodeId
from meshcommon.store_guard import GuardTiming, StoreMemory
from meshcommon.store_lineage import begin
from meshcommon.store_record import NewIds, StoreRecord
from meshwire.store_message import Hello, Refusal, StoreMessage, Welcome

A, B = NodeId(1), NodeId(2)
TIMING = GuardTiming(repeat_s=1.0, patience_s=3.0)
RAISE_S = 5.0


def store(store_id: int, now: float = 0.0) -> GuardedStore:
    made = GuardedStore(StoreRecord(begin(store_id, store_id + 100)), StoreMemory(), TIMING, RAISE_S, now)
    made.follow({A if store_id == 2 else B}, {A, B}, now)
    return made


def keep(one: GuardedStore, now: float) -> list[tuple[NodeId, StoreMessage]]:
    """What a driver does; returns what is said."""
    one.tick(now)
    if (record := one.unsaved_record) is not None:
        one.record_saved(record, now)
    return [*one.take_messages(now), *one.take_promises()]


def hellos(said: list[tuple[NodeId, StoreMessage]]) -> list[int]:
    """Boot numbers that were announced."""
    return [message.lineage.present.boot for _, message in said if isinstance(message, Hello)]


def introduce(one: GuardedStore, other: GuardedStore, now: float) -> None:
    """Exchanges messages until nothing more is said."""
    for _ in range(8):
        for target, message in keep(one, now):
            assert other.receive(A, message, now) is None
            assert target == B
        for _, message in keep(other, now):
            one.receive(B, message, now)


def test_a_welcome_waits_until_the_memory_is_durable() -> None:
    mine, other = store(1), store(2)
    ((_, hello),) = keep(mine, 0.0)
    other.receive(A, hello, 0.0)
    said = other.take_messages(0.0)
    assert not any(isinstance(message, Welcome) for _, message in said)
    assert other.unsaved_memory is not None
    assert A in other.unsaved_memory.seen
    assert [(target, type(message)) for target, message in other.take_promises()] == [(A, Welcome)]
    assert other.unsaved_memory is None


def test_a_boot_number_is_announced_only_when_it_is_durable() -> None:
    mine, other = store(1), store(2)
    introduce(mine, other, 0.0)
    first = mine.record.lineage.present.boot
    assert mine.next_deadline() == math.inf
    assert mine.written(1.0)
    assert not mine.written(2.0)  # once is enough
    assert mine.next_deadline() == 1.0 + RAISE_S
    assert hellos(keep(mine, 5.9)) == []
    mine.tick(6.0)
    assert mine.unsaved_record is not None
    assert hellos(list(mine.take_messages(6.0))) == []
    assert hellos(keep(mine, 6.0)) == [first + 1]


def test_a_record_that_changed_while_it_was_written_is_written_again() -> None:
    mine, other = store(1), store(2)
    introduce(mine, other, 0.0)
    mine.written(0.0)
    mine.tick(RAISE_S)
    record = mine.unsaved_record
    assert record is not None
    mine.written(RAISE_S)
    mine.tick(2 * RAISE_S)
    mine.record_saved(record, 2 * RAISE_S)
    assert mine.unsaved_record is mine.record
    assert hellos(list(mine.take_messages(2 * RAISE_S))) == []


def test_a_farewell_raises_the_number_at_once_where_something_was_written() -> None:
    mine, other = store(1), store(2)
    introduce(mine, other, 0.0)
    assert not mine.farewell()
    mine.written(0.0)
    assert mine.farewell()
    mine.tick(0.0)
    assert mine.unsaved_record is not None


def test_a_store_that_was_set_back_is_given_up_and_comes_back_as_another_one() -> None:
    mine, other = store(1), store(2)
    introduce(mine, other, 0.0)
    mine.written(0.0)
    for _, message in keep(mine, RAISE_S):
        other.receive(A, message, RAISE_S)
    keep(other, RAISE_S)
    # A copy from before the last boot number, in the same life.
    copy = store(1, RAISE_S)
    ((_, hello),) = keep(copy, RAISE_S)
    other.receive(A, hello, RAISE_S)
    refusal = next(message for _, message in keep(other, RAISE_S) if isinstance(message, Refusal))
    objection = copy.receive(B, refusal, RAISE_S)
    assert objection is not None
    assert copy.receive(B, refusal, RAISE_S) is None  # it knows
    assert not copy.may_send(B, RAISE_S)
    copy.give_up(objection, [7], "it was set back", NewIds(11, 12))
    assert copy.record.disowned == {7}
    assert 1 in copy.record.lineage.renounced
    introduce(copy, other, 2 * RAISE_S)
    assert copy.may_send(B, 2 * RAISE_S)
    assert copy.own_again([7])
    assert not copy.own_again([7])
    assert copy.unsaved_record is not None
    assert copy.record.reason == ""
