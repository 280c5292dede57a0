"""Checkers of a stream's calls in time: C3, the history is linearizable; C5, progress returns after the last fault.

C3 decides whether every call can be given one instant between its invocation and its response, such that the calls in that
order are what an append-only log would have answered (Herlihy and Wing 1990). In general that is a search (Wing and Gong
1993); here offsets say in which order appends took effect, so one pass over that order, each call as early as it can be,
decides it in the time of a sort. A publish of unknown outcome may take effect at any later time, or never.

Leaves out: what members hold in the end (`checkers`, C1 and C2). Times are seconds of one clock that never goes back.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

_NEVER: Final = float("inf")


@dataclass(frozen=True, slots=True)
class Publish:
    """One batch, from its first try to its last answer; `values` are distinct in the whole history.

    With `responded_s` and `offset` it was acknowledged there; with `responded_s` alone it was refused for good; with
    neither its outcome is unknown.
    """

    invoked_s: float
    responded_s: float | None
    values: tuple[bytes, ...]
    offset: int | None


@dataclass(frozen=True, slots=True)
class Read:
    """A linearizable read from `offset` on that returned `values`.

    `is_at_end`: it said that nothing followed `values` yet; otherwise it may have stopped early, at a limit. Without
    `responded_s` the read had no answer and says nothing.
    """

    invoked_s: float
    responded_s: float | None
    offset: int
    values: tuple[bytes, ...] = ()
    is_at_end: bool = True

    @property
    def end(self) -> int:
        """The offset after the last record that was returned."""
        return self.offset + len(self.values)


def check_linearizable(
    publishes: Iterable[Publish], reads: Iterable[Read], log: Mapping[int, bytes] | None = None
) -> list[str]:
    """C3 of one stream. `log`: records by offset as found after the run, from wherever it starts; it may be absent.

    Offsets that neither an answer nor `log` names may hold whatever has an unknown outcome. Such a batch may fill them in
    part, which is looser than life only where batches of several records are lost from sight.
    """
    history = _History([*publishes], [item for item in reads if item.responded_s is not None], log or {})
    return history.conflicts or history.order()


class _History:
    def __init__(self, publishes: list[Publish], reads: list[Read], log: Mapping[int, bytes]) -> None:
        self.conflicts: list[str] = []
        self._value_at: dict[int, bytes] = {}
        self._publish_of = {value: item for item in publishes for value in item.values}
        for item in publishes:
            if item.offset is not None:
                self._place(item.offset, item.values, "acknowledged")
        for read in reads:
            self._place(read.offset, read.values, "read")
        for offset, value in sorted(log.items()):
            self._place(offset, (value,), "held")
        self._publish_at = self._find_places()
        seen = {id(item) for item in self._publish_at.values()}
        self._unseen_s = [
            item.invoked_s
            for item in publishes
            if item.responded_s is None and id(item) not in seen
            for _ in item.values
        ]
        heapq.heapify(self._unseen_s)
        self._reads_to: dict[int, list[Read]] = defaultdict(list)
        for read in reads:
            self._reads_to[read.end].append(read)

    def _place(self, offset: int, values: tuple[bytes, ...], how: str) -> None:
        for at, value in enumerate(values, offset):
            known = self._value_at.setdefault(at, value)
            if known != value:
                self.conflicts.append(f"C3 {value!r} was {how} at offset {at}, where {known!r} is")

    def _find_places(self) -> dict[int, Publish]:
        """Batches by first offset, as far as one of their records was seen; what has no one place is a conflict."""
        starts: dict[bytes, int] = {}
        for offset, value in sorted(self._value_at.items()):
            item = self._publish_of.get(value)
            if item is None:
                self.conflicts.append(f"C3 nobody published {value!r}, which is at offset {offset}")
                continue
            if item.responded_s is not None and item.offset is None:
                self.conflicts.append(f"C3 {value!r} was refused and is at offset {offset}")
            start = offset - item.values.index(value)
            if starts.setdefault(item.values[0], start) != start:
                self.conflicts.append(f"C3 {value!r} is at offset {offset}, away from its batch or a second time")
        places = {start: self._publish_of[first] for first, start in starts.items()}
        for start, item in places.items():
            self._place(start, item.values, "appended with its batch")
        return places

    def order(self) -> list[str]:
        """Gives each call the earliest instant that it can have, in the order of effects; findings where none is left."""
        findings: list[str] = []
        stop = max([0, *(at + 1 for at in self._value_at), *self._reads_to])
        now = self._read_to(0, -_NEVER, findings)
        offset = 0
        while offset < stop:
            item = self._publish_at.get(offset)
            if item is None:
                now = max(now, self._fill(offset, findings))
                offset += 1
            else:
                now = max(now, item.invoked_s)
                if item.responded_s is not None and now > item.responded_s:
                    findings.append(
                        f"C3 {item.values[0]!r} at offset {offset} was acknowledged at {item.responded_s} s, "
                        f"but something before it in the log cannot be older than {now} s"
                    )
                    now = item.responded_s
                for inside in range(offset + 1, offset + len(item.values)):
                    if any(read.is_at_end for read in self._reads_to.get(inside, ())):
                        findings.append(
                            f"C3 a read saw the stream end at {inside}, inside the batch of {item.values[0]!r}"
                        )
                    self._read_to(inside, now, findings)
                offset += len(item.values)
            now = self._read_to(offset, now, findings)
        return findings

    def _read_to(self, end: int, now: float, findings: list[str]) -> float:
        """Instants of the reads up to `end`, not before `now`; returns when the next append can be at the earliest."""
        latest = now
        for read in self._reads_to.get(end, ()):
            at = max(now, read.invoked_s)
            if read.responded_s is not None and at > read.responded_s:
                findings.append(
                    f"C3 a read answered at {read.responded_s} s ended at offset {end}, "
                    f"but the stream cannot have been that before {at} s"
                )
            elif read.is_at_end:
                latest = max(latest, at)
        return latest

    def _fill(self, offset: int, findings: list[str]) -> float:
        """What nobody saw there must be of unknown outcome; the one that was invoked first is the least demand."""
        if not self._unseen_s:
            findings.append(f"C3 offset {offset} lies below an offset that was seen, and nobody published it")
            return -_NEVER
        return heapq.heappop(self._unseen_s)


def longest_stall_s(calls: Iterable[Publish | Read], healed_s: float, ended_s: float) -> float:
    """Longest time from `healed_s` to `ended_s` in which some call waited and none was answered; 0 without calls."""
    by_answer = sorted((_NEVER if item.responded_s is None else item.responded_s, item.invoked_s) for item in calls)
    answered_s = [answer for answer, _ in by_answer]
    # The oldest invocation among all calls that were answered at this one's time or later.
    oldest_s = list(itertools.accumulate((invoked for _, invoked in reversed(by_answer)), min))[::-1]
    times = [healed_s, *sorted({at for at in answered_s if healed_s < at < ended_s}), ended_s]
    longest = 0.0
    for since, until in itertools.pairwise(times):
        waiting = bisect.bisect_left(answered_s, until)
        if waiting < len(oldest_s):
            longest = max(longest, until - max(since, oldest_s[waiting]))
    return longest


def check_progress(
    calls: Mapping[str, Iterable[Publish | Read]], healed_s: float, ended_s: float, bound_s: float
) -> list[str]:
    """C5. `calls`: by stream; `healed_s`: when the last fault healed; `ended_s`: until when the calls were watched."""
    stalls = {name: longest_stall_s(items, healed_s, ended_s) for name, items in sorted(calls.items())}
    return [
        f"C5 {name}: nothing was answered for {stall_s:.2f} s after the last fault, {bound_s:g} s are allowed"
        for name, stall_s in stalls.items()
        if stall_s > bound_s
    ]
