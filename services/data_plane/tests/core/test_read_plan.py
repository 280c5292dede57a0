"""A read against replicas that lag, stand still, refuse and change while it goes on (I3, I13): decisions without a loop."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh_data.core.read_plan import (
    CHUNK_BYTES,
    FOLLOW_WAIT_S,
    Beginning,
    EndFrom,
    Failure,
    LocalView,
    ReadPlan,
    after_failure,
)
from mesh_data.core.stream_requests import Fetched, StoredBatch
from mesh_data.core.stream_timing import StreamTiming
from meshcommon.errors import ErrorCode, MeshError

TIMING = StreamTiming.preset("test")


@dataclass
class Group:
    """Committed records 0…`committed` - 1, and how far each member has them; member 0 is this node, if it has a replica."""

    rng: random.Random
    has_local: bool
    committed: int
    floor: int
    has: list[int] = field(default_factory=list)
    local_stands_still: bool = False
    has_leader: bool = True

    def step(self) -> None:
        rng = self.rng
        if rng.random() < 0.3:
            self.committed += rng.randint(0, 3)
        for member in range(len(self.has)):
            if rng.random() < 0.5 and not (member == 0 and self.local_stands_still):
                self.has[member] = rng.randint(self.has[member], self.committed)
        if rng.random() < 0.1:
            self.has_leader = not self.has_leader
        if rng.random() < 0.05:
            self.local_stands_still = not self.local_stands_still

    def local(self) -> LocalView | None:
        return LocalView(self.has[0], self.local_stands_still) if self.has_local else None

    def confirmed(self, member: int) -> Fetched:
        is_confirmed = self.has_leader and not (member == 0 and self.local_stands_still)
        if is_confirmed:
            self.has[member] = self.committed  # it answers once it has applied the read index
        return Fetched((), self.has[member], self.floor, is_confirmed)

    def fetch(self, member: int, offset: int) -> Fetched:
        count = self.rng.randint(0, max(0, self.has[member] - offset))
        batches = tuple(StoredBatch(at, 0, b"") for at in range(offset, offset + count))
        return Fetched(batches, self.has[member], self.floor)


def group_of(rng: random.Random) -> Group:
    committed = rng.randint(0, 20)
    group = Group(rng, rng.random() < 0.6, committed, rng.randint(0, min(3, committed)))
    group.has = [rng.randint(group.floor, committed) for _ in range(3)]
    group.has_leader = rng.random() < 0.5
    group.local_stands_still = rng.random() < 0.2
    return group


def begin(group: Group, plan: ReadPlan) -> Fetched:
    """What `ReadCursor.begin` does without its awaits; members are asked in turn."""
    for _ in range(1000):
        way = plan.end_from(group.local())
        if way is EndFrom.HERE:
            return Fetched((), group.has[0], group.floor)
        if way is EndFrom.HERE_CONFIRMED:
            return group.confirmed(0)
        seen = group.confirmed(group.rng.randint(1, 2))
        if plan.takes_end(seen):
            return seen
        group.step()
    raise AssertionError("no member tells the end")


@given(seed=st.integers(0, 2**32), from_offset=st.integers(0, 12), follow=st.booleans(), is_stale_ok=st.booleans())
def test_a_read_gets_each_record_once_and_in_order_up_to_what_was_acknowledged_before(
    seed: int, from_offset: int, follow: bool, is_stale_ok: bool
) -> None:
    rng = random.Random(seed)
    group = group_of(rng)
    plan = ReadPlan(from_offset, TIMING, follow=follow, is_stale_ok=is_stale_ok)
    acknowledged = group.committed
    seen = begin(group, plan)
    beginning = plan.begin(seen)
    if beginning is Beginning.BELOW_FLOOR:
        assert from_offset < group.floor
        return
    if beginning is Beginning.PAST_END:
        assert seen.is_confirmed
        assert from_offset > acknowledged
        return
    if beginning is Beginning.UNCONFIRMED:
        assert not seen.is_confirmed
        return
    if not follow:
        assert plan.end is not None
        assert plan.end <= group.committed
        assert is_stale_ok or plan.end >= acknowledged, "it ends before what was acknowledged"
    read: list[int] = []
    asked = 1
    for _ in range(5000):
        if plan.is_at_end or (follow and len(read) >= 10):
            break
        group.step()
        group.has_leader = True
        local = group.local()
        step = plan.next_fetch(local)
        assert not (step.is_local and local is None)
        if rng.random() < 0.2:
            error = MeshError(rng.choice([ErrorCode.NO_PATH, ErrorCode.UNKNOWN_GROUP, ErrorCode.STORAGE_FAILED]), "…")
            assert after_failure(error, is_late=False) is Failure.AGAIN
            asked = 3 - asked
            continue
        fetched = group.fetch(0 if step.is_local else asked, plan.offset)
        plan.learn(fetched)
        read += [item.base_offset for item in fetched.batches]
        if plan.advance(fetched, plan.offset + len(fetched.batches)):
            asked = 3 - asked
    else:
        assert follow, "it does not end"
    assert read == list(range(from_offset, from_offset + len(read)))
    assert follow or plan.offset >= (plan.end or 0)


def test_a_replica_that_stands_still_is_read_as_far_as_it_came_and_then_others_are_asked() -> None:
    plan = ReadPlan(5, TIMING, follow=False, is_stale_ok=False)
    still = LocalView(8, stands_still=True)
    assert plan.end_from(still) is EndFrom.MEMBER
    assert plan.begin(Fetched((), 10, 0, is_confirmed=True)) is Beginning.BEGINS
    assert plan.next_fetch(still).is_local
    plan.offset = 8
    assert not plan.next_fetch(still).is_local
    assert plan.next_fetch(LocalView(8, stands_still=False)).is_local, "it will get there"
    # Who takes what may be old takes it from here.
    assert ReadPlan(5, TIMING, follow=False, is_stale_ok=True).end_from(still) is EndFrom.HERE_CONFIRMED


def test_at_the_known_end_a_member_waits_with_one_batch_and_outside_of_the_gate() -> None:
    plan = ReadPlan(4, TIMING, follow=True, is_stale_ok=False)
    plan.begin(Fetched((), 6, 0, is_confirmed=False))
    behind = plan.next_fetch(None)
    assert (behind.bytes_max, behind.wait_s, behind.is_gated) == (CHUNK_BYTES, 0.0, True)
    plan.offset = 6
    at_end = plan.next_fetch(None)
    assert (at_end.bytes_max, at_end.wait_s, at_end.is_gated) == (1, FOLLOW_WAIT_S, False)


def test_a_member_that_lags_behind_the_confirmed_end_is_passed_over() -> None:
    plan = ReadPlan(4, TIMING, follow=False, is_stale_ok=False)
    plan.begin(Fetched((), 6, 0, is_confirmed=True))
    assert plan.advance(Fetched((), 4, 0), 4)
    assert not plan.advance(Fetched((), 6, 0), 4), "it has more and will send it"
    follow = ReadPlan(4, TIMING, follow=True, is_stale_ok=False)
    follow.begin(Fetched((), 4, 0))
    assert not follow.advance(Fetched((), 4, 0), 4), "nobody has more yet"


@pytest.mark.parametrize(
    ("code", "early", "late"),
    [
        (ErrorCode.NO_PATH, Failure.AGAIN, Failure.GIVE_UP),
        (ErrorCode.UPDATE_REQUIRED, Failure.AGAIN, Failure.GIVE_UP),
        (ErrorCode.NODE_STOPPED, Failure.AGAIN, Failure.GIVE_UP),
        (ErrorCode.OFFSET_BELOW_FLOOR, Failure.TELL, Failure.TELL),
        (ErrorCode.STREAM_NOT_FOUND, Failure.TELL, Failure.TELL),
        (ErrorCode.INTERNAL, Failure.TELL, Failure.TELL),
    ],
)
def test_what_another_member_may_answer_is_asked_of_it_for_a_while(
    code: ErrorCode, early: Failure, late: Failure
) -> None:
    error = MeshError(code, "Because.")
    assert after_failure(error, is_late=False) is early
    assert after_failure(error, is_late=True) is late
