"""One read of a stream: from where it is served, whether the end has to be confirmed, when it turns to another member.

A linearizable read ends at the stream's end as the leader confirms it after the read began, so that what anybody has seen
committed is in it (invariant I13). A stale one takes what a replica has. A follow read has no end. The local replica is
read where there is one, unless it stands still and another member may know what comes next. Pure. Leaves out: which member
is asked (`leader_hints`), sending, waiting, the text of errors. Source: architecture §5 "Remote reads are cursors with byte
credit", §8.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from mesh_data.core.stream_requests import Fetched
from mesh_data.core.stream_timing import StreamTiming
from meshcommon.errors import MeshError, Retry

CHUNK_BYTES: Final = 256 * 1024
"""Batches that are fetched at a time; one batch that is larger comes alone."""
FOLLOW_WAIT_S: Final = 2.0
"""A follow read looks this often whether its stream and node are still there; new records end the wait."""
GIVE_UP_S: Final = 10.0
"""Members are asked in turn for this long."""
ANSWER_S: Final = 2.0
"""A member is waited for so long, on top of what it is asked to wait itself."""


@dataclass(frozen=True, slots=True)
class LocalView:
    """The local replica, if records can be read from it.

    Attributes:
        next_offset: end of what it has.
        stands_still: it applies nothing more until the node is updated.
    """

    next_offset: int
    stands_still: bool


class EndFrom(Enum):
    """Where the read learns the stream's end."""

    HERE = "here"
    """From the local replica as it is."""
    HERE_CONFIRMED = "here confirmed"
    """From the local replica, after the leader was asked for a read index."""
    MEMBER = "member"
    """From a member elsewhere."""


class Beginning(Enum):
    """Whether the read may begin."""

    BEGINS = "begins"
    BELOW_FLOOR = "below floor"
    PAST_END = "past end"
    UNCONFIRMED = "unconfirmed"


class Failure(Enum):
    """What is done about a member that failed."""

    TELL = "tell"
    AGAIN = "again"
    GIVE_UP = "give up"


@dataclass(frozen=True, slots=True)
class FetchStep:
    """The next fetch.

    Attributes:
        is_local: from the local replica.
        bytes_max: at most so much, or one batch.
        wait_s: how long is waited at the end of what is known.
        is_gated: batches come now, so it counts against what fetches at a time.
    """

    is_local: bool
    bytes_max: int
    wait_s: float
    is_gated: bool


class ReadPlan:
    """Where a read is, and what it needs next."""

    __slots__ = ("_known_next_offset", "_timing", "end", "follow", "is_stale_ok", "offset")

    def __init__(self, from_offset: int, timing: StreamTiming, *, follow: bool, is_stale_ok: bool) -> None:
        self.offset = from_offset
        """Of the next record."""
        self.end: int | None = None
        """Where the read is over; None for one that follows, and before `begin`."""
        self.follow = follow
        self.is_stale_ok = is_stale_ok
        self._timing = timing
        self._known_next_offset = from_offset

    # Beginning

    @property
    def confirm_s(self) -> float:
        """How long a leader is waited for to confirm the end."""
        return self._timing.stale_wait_s if self.is_stale_ok else self._timing.read_barrier_s

    @property
    def must_be_exact(self) -> bool:
        """Whether the read needs an end that the leader confirmed."""
        return not self.follow and not self.is_stale_ok

    def end_from(self, local: LocalView | None) -> EndFrom:
        """Where to learn the end."""
        if local is None or (local.stands_still and not self.is_stale_ok):
            return EndFrom.MEMBER  # what stands still is old; another member can tell the end
        if self.follow and not self.is_stale_ok and self.offset <= local.next_offset:
            return EndFrom.HERE
        return EndFrom.HERE_CONFIRMED

    def takes_end(self, seen: Fetched) -> bool:
        """Whether what a member told is enough; if not, another one is asked while there is time."""
        return seen.is_confirmed or not self.must_be_exact

    def begin(self, seen: Fetched) -> Beginning:
        """Begins with the end as it was learned. "Past the end" is only said of an end that the leader confirmed."""
        if self.offset < seen.floor_offset:
            return Beginning.BELOW_FLOOR
        if not seen.is_confirmed and (self.must_be_exact or self.offset > seen.next_offset):
            return Beginning.UNCONFIRMED
        if self.offset > seen.next_offset:
            return Beginning.PAST_END
        self._known_next_offset = seen.next_offset
        self.end = None if self.follow else seen.next_offset
        return Beginning.BEGINS

    # Going on

    @property
    def is_at_end(self) -> bool:
        """Whether the read is over; never for one that follows."""
        return self.end is not None and self.offset >= self.end

    def next_fetch(self, local: LocalView | None) -> FetchStep:
        """The next fetch: here if the replica has it or will have it, else from a member."""
        if local is not None and not (local.stands_still and self.offset >= local.next_offset):
            return FetchStep(is_local=True, bytes_max=CHUNK_BYTES, wait_s=FOLLOW_WAIT_S, is_gated=True)
        if self.offset >= self._known_next_offset:
            # One batch is enough to learn that there are more, and it may be long in coming: not within the gate.
            return FetchStep(is_local=False, bytes_max=1, wait_s=FOLLOW_WAIT_S, is_gated=False)
        return FetchStep(is_local=False, bytes_max=CHUNK_BYTES, wait_s=0.0, is_gated=True)

    def learn(self, fetched: Fetched) -> None:
        """A fetch came back; the read stays where it is until the batches are used."""
        self._known_next_offset = fetched.next_offset

    def advance(self, fetched: Fetched, end_of_batches: int) -> bool:
        """The batches of a fetch were used; they end before `end_of_batches`.

        Returns:
            Whether the member that answered is passed over: it does not have all that another one confirmed as the end.
        """
        if fetched.batches:
            self.offset = end_of_batches
            return False
        return self.end is not None and fetched.next_offset <= self.offset


def after_failure(error: MeshError, is_late: bool) -> Failure:
    """What is done about a member that failed with `error`; `is_late`: members were asked for `GIVE_UP_S`.

    Reads change nothing, so whatever another member may answer is asked of it.
    """
    if error.elsewhere is Retry.FINAL:
        return Failure.TELL
    return Failure.GIVE_UP if is_late else Failure.AGAIN
