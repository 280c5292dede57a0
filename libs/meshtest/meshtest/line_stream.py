"""Publishes the lines of a file at a steady pace and follows the stream at another node, with times for each record.

One message is one line with its terminator, bytes unchanged. Exactly once: every batch carries a producer id and a
sequence, and after a retryable failure the same batches are sent again on a new call, from the first unanswered one.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc.aio

from meshapi.supervisor.v1 import data_pb2
from meshcommon.errors import MeshError
from meshcommon.grpc_client import from_detail, mesh_error
from meshtest.gateway_client import Gateway

TICK_S: Final = 0.01
_BATCH_BYTES_MAX: Final = 256 * 1024
_BATCH_RECORDS_MAX: Final = 1_000
_RETRY_S: Final = 0.1


def split_lines(data: bytes) -> list[bytes]:
    """Lines with their terminators; joined they give `data` again. Only LF ends a line, so CRLF stays together."""
    lines = data.split(b"\n")
    tail = lines.pop()
    return [line + b"\n" for line in lines] + ([tail] if tail else [])


@dataclass(slots=True)
class Batch:
    """Consecutive records on their way. Times are of `time.monotonic`, in seconds."""

    base_sequence: int
    values: Sequence[bytes]
    sent_at: float = 0.0
    committed_at: float = 0.0
    base_offset: int = -1


@dataclass(slots=True)
class Publisher:
    """Publishes batches in order, pipelined, each exactly once; `batches` tells what became of each."""

    gateway: Gateway
    stream: str
    in_flight_max: int = 64
    batches: list[Batch] = field(default_factory=list)
    retries: int = 0
    _waiting: deque[Batch] = field(default_factory=deque)
    _unanswered: deque[Batch] = field(default_factory=deque)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _is_closed: bool = False
    _next_sequence: int = 0
    _calls: int = 0

    @property
    def submitted(self) -> int:
        """Records handed in."""
        return self._next_sequence

    @property
    def committed(self) -> int:
        """Records committed so far."""
        return self.submitted - sum(len(batch.values) for batch in (*self._waiting, *self._unanswered))

    async def submit(self, values: Sequence[bytes]) -> None:
        """Hands in one batch; waits while too many are unanswered."""
        while len(self._waiting) + len(self._unanswered) >= self.in_flight_max:
            self._changed.clear()
            await self._changed.wait()
        batch = Batch(self._next_sequence, values)
        self._next_sequence += len(values)
        self.batches.append(batch)
        self._waiting.append(batch)
        self._changed.set()

    def close(self) -> None:
        """Nothing more will be submitted; `run` returns when all is committed."""
        self._is_closed = True
        self._changed.set()

    async def run(self) -> None:
        """Sends until closed and everything is committed. Raises MeshError for a failure that no retry helps."""
        producer = await self._init_producer()
        while not (self._is_closed and not self._waiting and not self._unanswered):
            try:
                await self._one_call(producer)
            except MeshError as error:
                if not error.retryable:
                    raise
                self.retries += 1
                # The unanswered come first again, unchanged: what was committed is answered as a duplicate.
                self._waiting.extendleft(reversed(self._unanswered))
                self._unanswered.clear()
                await asyncio.sleep(_RETRY_S)

    async def _init_producer(self) -> data_pb2.InitProducerResponse:
        while True:
            try:
                return await self.gateway.init_producer(self.stream)
            except MeshError as error:
                if not error.retryable:
                    raise
                await asyncio.sleep(_RETRY_S)

    async def _one_call(self, producer: data_pb2.InitProducerResponse) -> None:
        self._calls += 1
        call = self.gateway.data.Publish(self._requests(producer, self._calls))
        try:
            async for response in call:
                self._answered(response)
        except grpc.aio.AioRpcError as error:
            raise mesh_error(error, "gateway") from error
        finally:
            self._calls += 1
            call.cancel()

    async def _requests(
        self, producer: data_pb2.InitProducerResponse, number: int
    ) -> AsyncIterator[data_pb2.PublishRequest]:
        # gRPC may go on asking the iterator of a call that was cancelled: it must not take batches from the next one.
        while number == self._calls:
            while self._waiting and number == self._calls:
                batch = self._waiting.popleft()
                self._unanswered.append(batch)
                batch.sent_at = batch.sent_at or time.monotonic()
                yield data_pb2.PublishRequest(
                    stream=self.stream,
                    wait=data_pb2.PUBLISH_WAIT_COMMITTED,
                    records=[data_pb2.PublishRecord(value=value) for value in batch.values],
                    producer_id=producer.producer_id,
                    producer_epoch=producer.producer_epoch,
                    base_sequence=batch.base_sequence,
                )
            if self._is_closed:
                return
            self._changed.clear()
            await self._changed.wait()

    def _answered(self, response: data_pb2.PublishResponse) -> None:
        if response.HasField("error"):
            raise from_detail(response.error)
        batch = self._unanswered.popleft()
        batch.committed_at = time.monotonic()
        batch.base_offset = response.base_offset
        self._changed.set()


async def publish_paced(publisher: Publisher, lines: Sequence[bytes], per_second: float, pause: asyncio.Event) -> None:
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
