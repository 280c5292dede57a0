"""The batches of one producer that are not answered: what to send next, and what to send again after a failure.

Every batch keeps its sequence for ever, so sending one again is always safe: the group answers it as a duplicate if it
had been committed. After a failed batch the rest of the answers on the connection are awaited (those behind it fail as a gap,
or prove that it was committed after all), then everything unanswered is sent again in order (go-back-N). After a lost
connection the same happens on the next one. Pure. Leaves out: waiting between tries, encoding, the connection.
Source: architecture §8 "Exactly once, no window".

States: *flowing* → (a curable error) *draining* → (no answer is awaited any more) *rested* → `resume` → *flowing*;
any → *lost* (the connection went) → `resume`; a failure that no retry cures is told by `failed` and ends the producer.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import Final, Generic, TypeVar

from meshcommon.errors import ErrorCode, MeshError

T = TypeVar("T")

_CURED_BY_RESENDING: Final = frozenset({ErrorCode.OUTCOME_UNKNOWN, ErrorCode.DEADLINE_EXCEEDED})


class Flow(Enum):
    """What the window waits for."""

    FLOWING = "flowing"
    DRAINING = "draining"
    RESTED = "rested"


@dataclass(slots=True, eq=False)
class Unanswered(Generic[T]):
    """A batch. `number` rises by one from batch to batch; `item` is the caller's."""

    number: int
    item: T
    is_awaited: bool = False
    """It was sent on the present connection, which has not answered it."""


class Window(Generic[T]):
    """Unanswered batches in order."""

    def __init__(self, in_flight_max: int) -> None:
        self._in_flight_max = in_flight_max
        self._unanswered: deque[Unanswered[T]] = deque()
        self._next_number = 0
        self._awaited = 0
        self._unsent = 0
        self.flow = Flow.FLOWING

    def __len__(self) -> int:
        """Batches without an answer."""
        return len(self._unanswered)

    @property
    def has_room(self) -> bool:
        """Whether another batch may be added and sent now."""
        return self.flow is Flow.FLOWING and len(self._unanswered) < self._in_flight_max

    def add(self, item: T) -> Unanswered[T]:
        """Takes the next batch of the sequence; `next_to_send` will name it."""
        batch = Unanswered(self._next_number, item)
        self._next_number += 1
        self._unanswered.append(batch)
        self._unsent += 1
        return batch

    def next_to_send(self) -> Unanswered[T] | None:
        """The next batch to send now; it counts as sent. None when nothing may be sent."""
        if self.flow is not Flow.FLOWING or not self._unsent:
            return None
        # Unsent ones are at the end while batches flow; after `resume` all are unsent.
        batch = self._unanswered[len(self._unanswered) - self._unsent]
        self._unsent -= 1
        self._awaited += 1
        batch.is_awaited = True
        return batch

    def answered(self, batch: Unanswered[T]) -> None:
        """The batch is committed."""
        if self._unanswered and self._unanswered[0] is batch:
            self._unanswered.popleft()
        else:
            self._unanswered.remove(batch)
        self._no_longer_awaited(batch)

    def failed(self, batch: Unanswered[T], error: MeshError) -> bool:
        """The batch was refused. Returns whether sending it again may help; if not, the producer is at its end."""
        is_front = self._unanswered[0] is batch
        if error.code == ErrorCode.SEQUENCE_GAP:
            # Behind a batch that failed a gap is expected. With nothing before it, the group has lost the thread.
            is_curable = not is_front
        else:
            is_curable = error.retryable or error.code in _CURED_BY_RESENDING
        self.flow = Flow.DRAINING
        self._no_longer_awaited(batch)
        return is_curable

    def lost(self) -> None:
        """The connection is gone, and every answer that was awaited on it."""
        for batch in self._unanswered:
            batch.is_awaited = False
        self._awaited = 0
        self.flow = Flow.RESTED

    def resume(self) -> None:
        """After the rest: everything unanswered is sent again, in order."""
        self._unsent = len(self._unanswered)
        self.flow = Flow.FLOWING

    def take_all(self) -> list[T]:
        """Everything unanswered, to be told of the producer's end."""
        items = [batch.item for batch in self._unanswered]
        self._unanswered.clear()
        self._unsent = self._awaited = 0
        return items

    def _no_longer_awaited(self, batch: Unanswered[T]) -> None:
        if batch.is_awaited:
            batch.is_awaited = False
            self._awaited -= 1
        if self.flow is Flow.DRAINING and not self._awaited:
            self.flow = Flow.RESTED
