"""Go-back-N: what was handed in and is not answered, in order; what is due to be sent, and sent again after a failure.

Items are sent in order, and nothing is sent past one that failed: `failed` and `lost` hold the window, `resume` makes
everything that failed due again, in its old order. Whether a failure allows that is `is_curable`, which reads the table of
errors. A caller that shares one ordered connection waits until the window has drained before it resumes, because answers
behind a failed item tell nothing new; one that asks a new leader for each attempt need not. Pure. Leaves out: sending,
waiting between tries, time. Source: architecture §8 "Exactly once, no window"; Kafka's idempotent producer; ADR 0016.

States of an item: *due* → `sent` → *awaited* → `answered` (gone), or `failed` / `lost` → *failed* → `resume` → *due*.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Final, Generic, Protocol, TypeVar

from meshcommon.errors import ErrorCode, Retry


class Place(Enum):
    """Where an item stands."""

    DUE = "due"
    AWAITED = "awaited"
    FAILED = "failed"
    SETTLED = "settled"
    """It needs no answer and waits only for its turn."""


# Bound once: Python 3.11 looks a member up in 0.4 µs, and a publisher's batch passes several of these lines.
DUE: Final = Place.DUE
AWAITED: Final = Place.AWAITED


class Unanswered(Protocol):
    """An item: it begins as `DUE`, and only the window writes that. A field, so that an item costs no object more."""

    place: Place


T = TypeVar("T", bound=Unanswered)


class GoBackN(Generic[T]):
    """Unanswered items in order. The caller bounds how many there are."""

    __slots__ = ("_awaited", "_due", "_failed", "items")

    def __init__(self) -> None:
        self.items: deque[T] = deque()
        """All that is unanswered, to look at: a caller that handles each batch reads it without a call. Only this class writes it."""
        self._due: deque[T] = deque()
        self._awaited = 0
        self._failed = 0

    def __len__(self) -> int:
        """Items without an answer."""
        return len(self.items)

    @property
    def front(self) -> T | None:
        """The item that is answered next; None when there is none."""
        return self.items[0] if self.items else None

    @property
    def is_flowing(self) -> bool:
        """Whether everything was sent and nothing has failed: what is handed in now may go out at once."""
        return not self._due and not self._failed

    @property
    def is_held(self) -> bool:
        """Whether something failed: nothing is due until `resume`."""
        return self._failed > 0

    @property
    def is_drained(self) -> bool:
        """Whether no answer is awaited."""
        return not self._awaited

    def add(self, item: T) -> None:
        """Takes the next item, which is due."""
        self.items.append(item)
        self._due.append(item)

    def add_sent(self, item: T) -> None:
        """Takes the next item, which was sent already. Only while the window flows."""
        item.place = AWAITED
        self.items.append(item)
        self._awaited += 1

    def add_settled(self, item: T) -> None:
        """Takes the next item, which needs no sending and waits for its turn."""
        item.place = Place.SETTLED
        self.items.append(item)

    def next_due(self) -> T | None:
        """The item to send now; `sent` says that it was. None when nothing is due or the window is held."""
        return self._due[0] if self._due and not self._failed else None

    def sent(self) -> None:
        """The item that was due is on its way."""
        self._due.popleft().place = AWAITED
        self._awaited += 1

    def settled(self, item: T) -> None:
        """The item that was due needs no sending any more."""
        self._due.remove(item)
        item.place = Place.SETTLED

    def answered(self, item: T) -> None:
        """The item is through, whatever was known of it before."""
        if self.items[0] is item:
            self.items.popleft()
        else:
            self.items.remove(item)
        self._leave(item)

    def answered_first(self, count: int) -> None:
        """The first `count` items, at least one, are through, all of them awaited: one call for many."""
        popleft = self.items.popleft
        popleft()
        for _ in range(count - 1):
            popleft()
        self._awaited -= count

    def failed(self, item: T) -> None:
        """The item has to be sent again; nothing else is until `resume`."""
        self._leave(item)
        item.place = Place.FAILED
        self._failed += 1

    def lost(self) -> None:
        """The connection is gone, and every answer that was awaited on it."""
        for item in self.items:
            if item.place is AWAITED:
                item.place = Place.FAILED
        self._failed += self._awaited
        self._awaited = 0

    def resume(self) -> None:
        """What failed is due again, in order, before everything that was never sent."""
        if not self._failed:
            return
        self._failed = 0
        for item in self.items:
            if item.place is Place.FAILED:
                item.place = DUE
        self._due = deque(item for item in self.items if item.place is DUE)

    def split(self, parts_of: Callable[[T], Sequence[T] | None]) -> None:
        """Puts the parts of items in their place, each standing where the whole stood; None leaves an item as it is."""
        items: deque[T] = deque()
        for item in self.items:
            parts = parts_of(item)
            if parts is None:
                items.append(item)
                continue
            for part in parts:
                part.place = item.place
            items.extend(parts)
            self._awaited += (len(parts) - 1) * (item.place is AWAITED)
        self.items = items

    def take_all(self) -> list[T]:
        """Everything unanswered, to be told of the end."""
        items = list(self.items)
        self.items.clear()
        self._due.clear()
        self._awaited = self._failed = 0
        return items

    def _leave(self, item: T) -> None:
        if item.place is AWAITED:
            self._awaited -= 1
        elif item.place is Place.FAILED:
            self._failed -= 1
        elif item.place is DUE:
            self._due.remove(item)


def is_curable(code: ErrorCode, effect: Retry, *, is_behind: bool, is_recognised: bool) -> bool:
    """Whether an item that failed may be sent again, and that can help.

    Args:
        code: What it failed with.
        effect: What the table of errors says for this caller: `retry`, or `elsewhere` if it can turn to another node.
        is_behind: It was sent while an earlier one was unanswered. Then a gap is expected, since that one failed; with
            nothing before it the group has lost the thread.
        is_recognised: A repetition of it changes nothing.
    """
    return is_behind if code is ErrorCode.SEQUENCE_GAP else effect.allows(is_recognised=is_recognised)
