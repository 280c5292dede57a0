"""Publishes the lines of a file at a steady pace and follows the stream at another node, with times for each record.

One message is one line with its terminator, bytes unchanged. Leaves out how publishing is made exactly once: that is
`meshctl.publisher`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from meshcommon.errors import MeshError
from meshctl.publisher import Committed, Publisher, PublisherLimits
from meshtest.gateway_client import Gateway
from meshwire.records import Record

TICK_S: Final = 0.01
_BATCH_BYTES_MAX: Final = 256 * 1024
_BATCH_RECORDS_MAX: Final = 1_000
_RETRY_S: Final = 0.1
_GIVE_UP_AFTER_S: Final = 120.0


def split_lines(data: bytes) -> list[bytes]:
    """Lines with their terminators; joined they give `data` again. Only LF ends a line, so CRLF stays together."""
    lines = data.split(b"\n")
    tail = lines.pop()
    return [line + b"\n" for line in lines] + ([tail] if tail else [])


@dataclass(slots=True)
class Batch:
    """Consecutive records on their way. Times are of `time.monotonic`, in seconds; `base_offset` is -1 until committed."""

    base_sequence: int
    values: Sequence[bytes]
    sent_at: float = 0.0
    committed_at: float = 0.0
    base_offset: int = -1


class RecordingPublisher:
    """meshctl's publisher with a record of what became of each batch. `run` publishes; `submit` feeds it meanwhile."""

    def __init__(self, gateway: Gateway, stream: str, in_flight_max: int = 64) -> None:
        limits = PublisherLimits(window_batches=in_flight_max, give_up_after_s=_GIVE_UP_AFTER_S)
        self._publisher = Publisher(gateway.data, stream, limits=limits)
        self._is_open = asyncio.Event()
        self._is_closed = asyncio.Event()
        self.batches: list[Batch] = []
        self.submitted = 0
        self.committed = 0

    @property
    def retries(self) -> int:
        """Calls that had to be repeated."""
        return self._publisher.retries

    async def run(self) -> None:
        """Publishes until closed and all is committed. Raises MeshError for a failure that no retry cures."""
        async with self._publisher:
            self._is_open.set()
            await self._is_closed.wait()

    async def submit(self, values: Sequence[bytes]) -> None:
        """Hands in one batch; waits while too many are unanswered. Raises MeshError when the publisher has failed."""
        await self._is_open.wait()
        batch = Batch(self.submitted, values)
        self.submitted += len(values)
        answer = await self._publisher.send([Record(value) for value in values])
        batch.sent_at = time.monotonic()
        self.batches.append(batch)
        answer.add_done_callback(lambda done: self._answered(batch, done))

    def _answered(self, batch: Batch, answer: asyncio.Future[Committed]) -> None:
        if answer.cancelled() or answer.exception() is not None:
            return
        batch.committed_at = time.monotonic()
        batch.base_offset = answer.result().base_offset
        self.committed += len(batch.values)

    def close(self) -> None:
        """Nothing more will be submitted."""
        self._is_closed.set()


async def publish_paced(
    publisher: RecordingPublisher, lines: Sequence[bytes], per_second: float, pause: asyncio.Event
) -> None:
    """Submits lines at a steady pace; while `pause` is not set nothing is submitted. Closes the publisher at the end."""
    credit = 0.0
    before = time.monotonic()
    position = 0
    while position < len(lines):
        await pause.wait()
        await asyncio.sleep(TICK_S)
        now = time.monotonic()
        # After a stall the pace goes on from now; it is not made up for in one burst.
        credit = min(credit + (now - before) * per_second, per_second / 4)
        before = now
        while credit >= 1 and position < len(lines):
            batch = _take(lines, position, int(credit))
            position += len(batch)
            credit -= len(batch)
            await publisher.submit(batch)
    publisher.close()


def _take(lines: Sequence[bytes], position: int, count: int) -> Sequence[bytes]:
    """At least one line and at most `count`, within the bounds of a batch."""
    size = 0
    end = position
    while end < len(lines) and end - position < min(count, _BATCH_RECORDS_MAX):
        size += len(lines[end])
        if size > _BATCH_BYTES_MAX and end > position:
            break
        end += 1
    return lines[position : max(end, position + 1)]


@dataclass(slots=True)
class Reader:
    """Follows a stream into a file. `arrivals` holds (offset, monotonic seconds) of the first record of each arrival."""

    gateway: Gateway
    stream: str
    output: Path
    next_offset: int = 0
    out_of_order: int = 0
    reconnects: int = 0
    lines: list[bytes] = field(default_factory=list)
    arrivals: list[tuple[int, float]] = field(default_factory=list)

    async def run(self) -> None:
        """Reads until cancelled; goes on where it was after a retryable failure."""
        with self.output.open("wb") as output:
            while True:
                try:
                    async for record in self.gateway.read(self.stream, self.next_offset, follow=True):
                        if record.offset != self.next_offset:
                            self.out_of_order += 1
                        self.arrivals.append((record.offset, time.monotonic()))
                        self.lines.append(record.value)
                        output.write(record.value)
                        self.next_offset = record.offset + 1
                except MeshError as error:
                    if not error.retryable:
                        raise
                self.reconnects += 1
                output.flush()
                await asyncio.sleep(_RETRY_S)
