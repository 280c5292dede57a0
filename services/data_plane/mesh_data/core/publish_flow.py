"""One publisher's unanswered batches: what is sent now and to whom, what is sent again, and what a lasting failure is called.

`GoBackN` keeps the order; this adds who may be sent and what a failure means. With a producer a repetition is recognised and
so always safe. Without one a batch is sent again only if it certainly was not appended, nothing is sent past one whose
outcome is not known, and only one at a time goes to another node, because nothing there restores the order. Pure. Leaves
out: sending, waiting, the text of errors. Source: architecture §5, §8; ADR 0016; Kafka's idempotent producer.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Final, Generic, Protocol, TypeVar

from mesh_data.core.stream_timing import StreamTiming
from meshcommon.errors import ErrorCode, MeshError, Retry
from meshcommon.go_back_n import GoBackN, Place, is_curable
from meshcommon.ids import NO_NODE, NodeId

PAUSE_S: Final = 0.05
"""Between two tries when nobody knows the leader."""
QUEUED_BYTES_MAX: Final = 8 * 1024 * 1024
"""Half of what the first hop queues before it drops."""
_NAMES_ITS_CURE: Final = frozenset({ErrorCode.BACKPRESSURE, ErrorCode.DISK_PRESSURE, ErrorCode.UPDATE_REQUIRED})
"""Refusals that are told as they are when they last; any other means that no leader took the batch."""


class Sendable(Protocol):
    """An item of the flow: a batch, or batches that were sent together."""

    place: Place
    is_sent_behind: bool
    """It was sent while an earlier one was unanswered."""
    is_uncertain: bool
    """An attempt of it may have taken effect."""
    arrived: float
    """When it was handed in, seconds of the caller's clock."""

    @property
    def has_producer(self) -> bool:
        """Whether a repetition would be recognised."""
        ...


class Way(Enum):
    """Where a batch goes now."""

    HERE = "here"
    THERE = "there"
    CONGESTED = "congested"
    NOWHERE = "nowhere"


class Step(Enum):
    """What is done about the batch at the front after an attempt failed."""

    SEND_AGAIN = "send again"
    """At once: the batch before it has been answered meanwhile."""
    LOOK_AGAIN = "look again"
    """Learn who leads, wait a moment, and send it again."""
    TELL = "tell"
    """Answer with the error as it is."""
    TELL_UNKNOWN = "tell unknown"
    """Answer that the outcome is not known."""
    TELL_NO_QUORUM = "tell no quorum"
    """Answer that no leader took it."""


T = TypeVar("T", bound=Sendable)


class PublishFlow(Generic[T]):
    """The unanswered batches of one call or of one producer's connection, in order. `now` is in seconds."""

    __slots__ = ("_doubtful", "_elsewhere", "_timing", "window")

    def __init__(self, timing: StreamTiming) -> None:
        self.window: GoBackN[T] = GoBackN()
        self._timing = timing
        self._doubtful = 0
        """Items without a producer whose outcome is not known: nothing is sent past them."""
        self._elsewhere: T | None = None
        """The item without a producer that went to another node last. While it is the front it goes alone: the
        leadership may come here meanwhile, and what is proposed here would overtake it."""

    def next_to_send(self, leads_here: Callable[[T], bool]) -> T | None:
        """The batch that may be sent now; `sent` says that it was.

        Args:
            leads_here: Whether this node leads the batch's stream, and so keeps the order of what is proposed here. Asked only
                where it matters.
        """
        due = self.window.next_due()
        return due if due is not None and self.may_send(due, leads_here) else None

    def may_send(self, item: T, leads_here: Callable[[T], bool]) -> bool:
        """Whether the next batch may be sent while the ones before it are unanswered. It may not be in the window yet."""
        items = self.window.items
        if not items or item is items[0]:
            return True
        if self._doubtful:
            return False
        return item.has_producer or (self._elsewhere is not items[0] and leads_here(item))

    def add_sent(self, item: T, *, is_here: bool) -> None:
        """Takes a batch that was sent at once, as `may_send` allowed. Only while the window flows."""
        item.is_sent_behind = bool(self.window.items)
        self.window.add_sent(item)
        if not item.has_producer:
            self._elsewhere = None if is_here else item

    def sent(self, item: T, *, is_here: bool) -> None:
        """The batch that `next_to_send` named is on its way; `is_here`: it was proposed at this node."""
        item.is_sent_behind = item is not self.window.front
        self.window.sent()
        if not item.has_producer:
            self._elsewhere = None if is_here else item

    def attempt_s(self, item: T, now: float) -> float:
        """How long another node is waited for: a repetition that is recognised can go to its successor soon."""
        remaining_s = max(item.arrived + self._timing.publish_deadline_s - now, 0.001)
        return min(self._timing.attempt_s, remaining_s) if item.has_producer else remaining_s

    def failed(self, item: T, code: ErrorCode, effect: Retry) -> None:
        """An attempt failed; `effect` is what another node could make of it. What can be mended is due after `resume`."""
        if effect is Retry.UNKNOWN and not item.is_uncertain:
            item.is_uncertain = True
            self._doubtful += not item.has_producer
        if item.place is Place.AWAITED and self._may_repeat(item, code, effect):
            self.window.failed(item)

    def answered(self, item: T) -> None:
        """The batch has its answer, whichever."""
        self._doubtful -= item.is_uncertain and not item.has_producer
        if self._elsewhere is item:
            self._elsewhere = None
        self.window.answered(item)

    def step(self, front: T, error: MeshError, now: float) -> Step:
        """What is done about the front batch, whose attempt failed with `error`; `failed` was told before."""
        if now >= front.arrived + self._timing.publish_deadline_s or not self._may_repeat(
            front, error.code, error.elsewhere
        ):
            return self.verdict(front, error)
        return Step.SEND_AGAIN if error.code is ErrorCode.SEQUENCE_GAP else Step.LOOK_AGAIN

    def is_worth_a_try(self, front: T, now: float) -> bool:
        """Whether there is time for another attempt; one that is cut off would make a known refusal an unknown outcome."""
        return now <= front.arrived + self._timing.publish_deadline_s - PAUSE_S

    def verdict(self, item: T, error: MeshError) -> Step:
        """What the caller is told once no further attempt is made."""
        if error.code is ErrorCode.STORAGE_FAILED or error.elsewhere is Retry.FINAL:
            return Step.TELL
        if item.is_uncertain:
            return Step.TELL_UNKNOWN
        is_lasting = error.elsewhere is Retry.NOT_APPLIED and error.code not in _NAMES_ITS_CURE
        return Step.TELL_NO_QUORUM if is_lasting else Step.TELL

    def _may_repeat(self, item: T, code: ErrorCode, effect: Retry) -> bool:
        return is_curable(code, effect, is_behind=item.is_sent_behind, is_recognised=item.has_producer)


def way_to(leader: NodeId, own: NodeId, queued_bytes: int) -> Way:
    """Where a batch goes.

    Args:
        leader: The node to ask as the leader; NO_NODE when nobody can be asked now.
        own: This node.
        queued_bytes: What waits on the way to the leader.
    """
    if leader == own:
        return Way.HERE
    if leader == NO_NODE:
        return Way.NOWHERE
    return Way.CONGESTED if queued_bytes > QUEUED_BYTES_MAX else Way.THERE
