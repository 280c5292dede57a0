"""Open-loop load: messages are due at fixed times, and latency counts from when a message was due.

A generator that waits for an answer before it sends the next message measures only the good moments (coordinated omission):
while the system stands still, it sends nothing, and misses what users would have seen. Here what is late stays due, is sent at
the next chance, and its delay counts. Pure. Source: G. Tene, "How NOT to Measure Latency".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

_SAMPLES_MAX: Final = 200_000


@dataclass(frozen=True, slots=True)
class Answered:
    """Messages `first` to `first + count - 1` were answered at `at_s`, seconds since the start."""

    first: int
    count: int
    at_s: float


class Pace:
    """Message number i is due at i ÷ rate seconds after the start."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self.sent = 0

    def take_due(self, elapsed_s: float, count_max: int) -> int:
        """How many messages to send now; they count as sent."""
        due = min(int(elapsed_s * self._rate) + 1 - self.sent, count_max)
        self.sent += max(due, 0)
        return max(due, 0)

    def latencies_ms(self, answers: Sequence[Answered], after_s: float) -> list[float]:
        """Latencies, ascending, of the messages that were due after `after_s`; evenly thinned out when there are many."""
        step = max(1, self.sent // _SAMPLES_MAX)
        found: list[float] = []
        for answer in answers:
            begin = max(answer.first, int(after_s * self._rate))
            begin += -begin % step
            found += [
                (answer.at_s - number / self._rate) * 1000 for number in range(begin, answer.first + answer.count, step)
            ]
        found.sort()
        return found


def percentiles(ascending: Sequence[float]) -> dict[str, Any]:
    """The figures that are reported."""
    if not ascending:
        raise ValueError("nothing was answered")
    at = {
        name: ascending[int(len(ascending) * share)] for name, share in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999))
    }
    return {**at, "samples": len(ascending)}
