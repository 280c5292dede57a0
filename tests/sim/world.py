"""The simulated world: one clock, one event queue, one seeded generator; links that lose, delay, repeat and partition.

Purpose: everything in it happens in one thread and in an order that only the seed decides (I10). A lane is a pipe of frames
between two nodes; unlike TCP it loses and repeats, which is harder than what the overlay meets in life. Leaves out: what
nodes do with frames (`node`), and what is asked of them (`clients`).
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

REOPEN_S: Final = 0.3
CHECK_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class FaultRanges:
    """Faults of one run, drawn from the seed within the ranges of the project's bars."""

    loss: float
    replay: float
    delay_min_s: float
    delay_max_s: float
    partitions_per_s: float
    crashes_per_s: float
    vote_crashes: float
    """Share of the elections heard of after which a node loses power at once, and is back before the election is over."""

    @classmethod
    def draw(cls, rng: random.Random) -> FaultRanges:
        """Loss 0–30 %, replay 0–50 %, delay up to 30–100 ms, a partition or crash every few seconds or none."""
        longest_s = rng.uniform(0.03, 0.1)
        return cls(
            loss=rng.choice((0.0, rng.uniform(0, 0.05), rng.uniform(0, 0.3))),
            replay=rng.choice((0.0, rng.uniform(0, 0.5))),
            delay_min_s=rng.uniform(0.0005, longest_s / 2),
            delay_max_s=longest_s,
            partitions_per_s=rng.choice((0.0, 0.2, 0.5)),
            crashes_per_s=rng.choice((0.0, 0.2, 0.5, 1.0)),
            vote_crashes=rng.choice((0.0, 0.0, 0.3)),
        )


class Endpoint(Protocol):
    """What a node offers to the world."""

    number: int
    is_running: bool

    def open_lane(self, lane_id: int, peer: int, *, is_dialled: bool) -> None:
        """A lane to `peer` is up."""

    def close_lane(self, lane_id: int, reason: str) -> None:
        """The lane is gone."""

    def receive_frame(self, lane_id: int, frame: bytes) -> None:
        """A frame came in."""


@dataclass(slots=True)
class _Lane:
    ends: tuple[int, int]
    open_at: set[int]


class World:
    """Clock, events and links of one run."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.faults = FaultRanges.draw(self.rng)
        self.is_faulty = False
        self.endpoints: dict[int, Endpoint] = {}
        self.events_done = 0
        self.disk_failures = 0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._lane_ids = itertools.count(1)
        self._lanes: dict[int, _Lane] = {}
        self._blocked: set[tuple[int, int]] = set()
        self._trace = hashlib.sha256()

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Runs `action` so much later."""
        heapq.heappush(self._queue, (self.now + delay_s, next(self._order), action))

    def run_until(self, deadline: float, is_done: Callable[[], bool] = lambda: False) -> bool:
        """Runs events until time or `is_done`, which is asked every CHECK_S; whether it was done."""
        next_check = self.now
        while self._queue and self._queue[0][0] <= deadline:
            if self.now >= next_check:
                if is_done():
                    return True
                next_check = self.now + CHECK_S
            self.now, _, action = heapq.heappop(self._queue)
            action()
            self.events_done += 1
        self.now = max(self.now, deadline)
        return is_done()

    def note(self, *facts: object) -> None:
        """Adds to the trace."""
        self._trace.update(repr((round(self.now, 9), facts)).encode())

    def trace_hash(self) -> str:
        """Equal for equal seeds."""
        return self._trace.hexdigest()

    # Links

    def connect(self, pairs: Iterable[tuple[int, int]]) -> None:
        """These pairs of nodes, the smaller number first, try to have a lane from now on."""
        for one, other in sorted(pairs):
            self._keep_connected(one, other)

    def _keep_connected(self, one: int, other: int) -> None:
        has_lane = any(lane.ends == (one, other) and len(lane.open_at) == 2 for lane in self._lanes.values())
        both_run = self.endpoints[one].is_running and self.endpoints[other].is_running
        if not has_lane and both_run and not self._is_blocked(one, other) and not self._is_blocked(other, one):
            self._open(one, other)
        self.after(REOPEN_S * self.rng.uniform(0.5, 1.5), lambda: self._keep_connected(one, other))

    def _open(self, one: int, other: int) -> None:
        lane_id = next(self._lane_ids)
        self._lanes[lane_id] = _Lane((one, other), {one, other})
        self.note("open", one, other)
        self.endpoints[other].open_lane(lane_id, one, is_dialled=True)
        self.endpoints[one].open_lane(lane_id, other, is_dialled=False)

    def transmit(self, sender: int, lane_id: int, frame: bytes) -> None:
        """Sends a frame along a lane; it may be lost, late, or come twice."""
        lane = self._lanes.get(lane_id)
        if lane is None or sender not in lane.open_at:
            return
        receiver = lane.ends[1] if lane.ends[0] == sender else lane.ends[0]
        copies = 1
        if self.is_faulty:
            if self._is_blocked(sender, receiver) or self.rng.random() < self.faults.loss:
                return
            copies += self.rng.random() < self.faults.replay
        for _ in range(copies):
            self.after(self._delay_s(), lambda: self._arrive(receiver, lane_id, frame))

    def _delay_s(self) -> float:
        if not self.is_faulty:
            return 0.001
        return self.rng.uniform(self.faults.delay_min_s, self.faults.delay_max_s)

    def _arrive(self, receiver: int, lane_id: int, frame: bytes) -> None:
        lane = self._lanes.get(lane_id)
        if lane is not None and receiver in lane.open_at and self.endpoints[receiver].is_running:
            self.note("frame", receiver, lane_id, hashlib.sha256(frame).digest()[:8])
            self.endpoints[receiver].receive_frame(lane_id, frame)

    def closed(self, number: int, lane_id: int) -> None:
        """One end closed its lane; the other learns it, unless the path there is blocked (then by silence)."""
        lane = self._lanes.get(lane_id)
        if lane is None:
            return
        lane.open_at.discard(number)
        for other in sorted(lane.open_at):
            if not self._is_blocked(number, other):
                self.after(self._delay_s(), lambda other=other: self._hang_up(other, lane_id))  # type: ignore[misc]
        if not lane.open_at:
            del self._lanes[lane_id]

    def _hang_up(self, number: int, lane_id: int) -> None:
        lane = self._lanes.get(lane_id)
        if lane is not None and number in lane.open_at and self.endpoints[number].is_running:
            self.endpoints[number].close_lane(lane_id, "closed by the peer")
            self.closed(number, lane_id)

    def forget_lanes_of(self, number: int) -> None:
        """A crashed node says nothing: its peers notice by silence."""
        for lane in self._lanes.values():
            lane.open_at.discard(number)

    # Partitions

    def _is_blocked(self, sender: int, receiver: int) -> bool:
        return (sender, receiver) in self._blocked

    def start_faults(self) -> None:
        """Loss, delay and replay from now on; partitions come and go."""
        self.is_faulty = True
        self._schedule_partition()

    def stop_faults(self) -> None:
        """Everything heals."""
        self.is_faulty = False
        self._blocked.clear()

    def _schedule_partition(self) -> None:
        if self.is_faulty and self.faults.partitions_per_s:
            self.after(self.rng.expovariate(self.faults.partitions_per_s), self._partition)

    def _partition(self) -> None:
        if not self.is_faulty:
            return
        numbers = sorted(self.endpoints)
        side = set(self.rng.sample(numbers, self.rng.randint(1, len(numbers) - 1)))
        pairs = {(one, other) for one in side for other in numbers if other not in side}
        # Half of the partitions are one-way: one side hears nothing but is heard.
        if self.rng.random() < 0.5:
            pairs |= {(other, one) for one, other in pairs}
        self.note("partition", sorted(pairs))
        self._blocked |= pairs
        self.after(self.rng.uniform(0.3, 4.0), lambda: self._blocked.difference_update(pairs))
        self._schedule_partition()
