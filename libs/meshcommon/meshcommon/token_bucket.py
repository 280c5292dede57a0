"""A token bucket: so many a second on average, and bursts. Pure. Source: RFC 2697 (the idea, with one rate)."""

from __future__ import annotations


class TokenBucket:
    """Allows `rate_per_s` on average and bursts of `burst`; full at the start. `now` is monotonic seconds."""

    __slots__ = ("_burst", "_filled_at", "_rate_per_s", "_tokens")

    def __init__(self, rate_per_s: float, burst: float, now: float) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._tokens = burst
        self._filled_at = now

    def has(self, now: float, count: int = 1) -> bool:
        """Whether there are `count` tokens."""
        self._tokens = min(self._burst, self._tokens + max(0.0, now - self._filled_at) * self._rate_per_s)
        self._filled_at = now
        return self._tokens >= count

    def spend(self, count: int = 1) -> None:
        """Takes `count`, also when there are fewer: what has happened already is charged to the time to come."""
        self._tokens -= count

    def take(self, now: float, count: int = 1) -> bool:
        """Takes `count` tokens if there are so many."""
        if not self.has(now, count):
            return False
        self._tokens -= count
        return True
