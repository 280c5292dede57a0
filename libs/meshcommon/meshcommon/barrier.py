"""Exception barriers: an unexpected failure ends what caused it, not the service.

A service runs its peers, dials, requests and packets in shared task groups, where any exception that escapes ends all of
them. `barrier` goes around the handling of one such thing. It logs the traceback (per place: the first one, then at most
one in ten seconds, with the number of those left out), counts it in `mesh_unexpected_errors_total{where}` and swallows
it. The caller then aborts that one connection, request or packet.

Leaves out: expected failures. A handler answers a MeshError itself; one that reaches the barrier is a fault too.
Not for the service's own stores: a failed log must end or close what depends on it. Source: architecture §11.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

from prometheus_client import Counter

from meshcommon.logging import get_logger

_PART_MAX: Final = 1000
"""Characters kept of one frame, or of the text of one exception."""
_TRACEBACK_MAX: Final = 16_000
LOG_EVERY_S: Final = 10.0
"""At most one traceback per place in this time."""
UNEXPECTED_ERRORS: Final = Counter(
    "mesh_unexpected_errors_total", "Exceptions that ended one peer, dial, request or packet, by place.", ["where"]
)

_log = get_logger(__name__)


class _Place:
    """What is remembered of one place, so that a flood of failures does not fill the log."""

    __slots__ = ("next_log_at", "suppressed")

    def __init__(self) -> None:
        self.next_log_at = float("-inf")
        self.suppressed = 0


_places: dict[str, _Place] = {}


class barrier:  # noqa: N801 - reads as a statement: `with barrier("lane", peer=3):`
    """Context manager that swallows an `Exception`; `failed` says afterwards whether it did.

    Cancellation and `KeyboardInterrupt` pass through. `where` is one of a fixed set of names (it labels a metric);
    `context` goes into the log and may quote a peer only through `meshcommon.peer_text.printable`.
    """

    __slots__ = ("_clock", "_context", "_where", "failed")

    def __init__(self, where: str, *, clock: Callable[[], float] = time.monotonic, **context: Any) -> None:
        self._where = where
        self._clock = clock
        self._context = context
        self.failed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        self.failed = True
        report(self._where, error, clock=self._clock, **self._context)
        return True


def report(where: str, error: BaseException, *, clock: Callable[[], float] = time.monotonic, **context: Any) -> None:
    """Counts and logs an unexpected failure that the caller has contained itself."""
    UNEXPECTED_ERRORS.labels(where).inc()
    place = _places.setdefault(where, _Place())
    now = clock()
    if now < place.next_log_at:
        place.suppressed += 1
        return
    suppressed, place.suppressed = place.suppressed, 0
    place.next_log_at = now + LOG_EVERY_S
    _log.error("unexpected_error", where=where, suppressed=suppressed, exception=_traceback(error), **context)


def _traceback(error: BaseException) -> str:
    """The traceback as text, bounded: an exception's own text may quote a peer at any length."""
    parts = (part if len(part) <= _PART_MAX else part[:_PART_MAX] + "…\n" for part in traceback.format_exception(error))
    text = "".join(parts)
    return text if len(text) <= _TRACEBACK_MAX else "…" + text[-_TRACEBACK_MAX:]
