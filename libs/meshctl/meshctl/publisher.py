"""Publishes batches of records in order, pipelined, each exactly once; they are encoded here, and opened only by readers.

The caller hands in batches and gets a future for each; a task of the publisher keeps one PublishBatch call open and many
batches in flight on it, within the credit that the server gives. Answers come in the order of the requests. After a
failure that a retry can cure, or a broken call, everything unanswered is sent again in order on a new call with the
same producer id and sequences: what had been committed is recognised and answered as a duplicate, so nothing is lost or
doubled. A failure that no retry cures ends the publisher, because the batches behind it would leave a gap.

Leaves out: splitting a stream of records into batches, and records above 1 MiB. Source: architecture §8.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, TypeVar

import grpc
import grpc.aio

from meshapi.supervisor.v1 import data_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.go_back_n import GoBackN, Place, is_curable
from meshcommon.grpc_client import call_metadata, from_detail, mesh_error
from meshwire.batch import Codec
from meshwire.errors import WireCode, WireError
from meshwire.records import Record, encode_batch

if TYPE_CHECKING:
    from meshapi.supervisor.v1.data_pb2_grpc import MeshDataServiceAsyncStub

BATCH_BYTES_MAX: Final = 1024 * 1024
"""Largest batch: keys and values together."""

_INIT_TIMEOUT_S: Final = 15.0
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class Committed:
    """A committed batch. `is_duplicate`: it had been committed by an earlier attempt; the offset is that of then."""

    base_offset: int
    count: int
    is_duplicate: bool


@dataclass(frozen=True, slots=True)
class PublisherLimits:
    """Bounds of a publisher.

    Attributes:
        window_bytes: Bytes handed in and unanswered before `send` waits; this much memory it may take.
        window_batches: The same in batches.
        give_up_after_s: Time without any progress after which it fails, seconds.
        backoff_first_s: Longest wait before the first retry, seconds; doubled by each, drawn with full jitter.
        backoff_max_s: Cap of that.
    """

    window_bytes: int = 4 * 1024 * 1024
    window_batches: int = 256
    give_up_after_s: float = 30.0
    backoff_first_s: float = 0.05
    backoff_max_s: float = 1.0


@dataclass(slots=True, eq=False)
class _Batch:
    data: bytes
    size: int
    answer: asyncio.Future[Committed]
    place: Place = Place.DUE


@dataclass(slots=True)
class _Session:
    """One PublishBatch call."""

    credit_bytes: int
    in_flight_bytes: int = 0
    is_over: bool = False
    wake: asyncio.Event = field(default_factory=asyncio.Event)


class Publisher:
    """Use as an asynchronous context manager: leaving it normally waits until everything is committed.

    Batches are ordered as their `send` calls returned. It belongs to one event loop.
    """

    def __init__(
        self,
        service: MeshDataServiceAsyncStub,
        stream: str,
        *,
        producer_name: str = "",
        stream_id: int = 0,
        limits: PublisherLimits | None = None,
        codec: Codec = Codec.NONE,
        rng: random.Random | None = None,
    ) -> None:
        """Nothing happens before the context is entered.

        Args:
            service: Stub on a channel to a gateway or data plane; the channel stays the caller's.
            stream: `namespace/name`.
            producer_name: Stable name; it fences whoever published under it before. Empty for an anonymous producer.
            stream_id: The stream that is meant; another one of that name refuses. 0 for whichever there is at the start.
            limits: Bounds.
            codec: How batches are compressed.
            rng: Draws the jitter; give a seeded one for repeatable runs.
        """
        self._service = service
        self.stream = stream
        self._producer_name = producer_name
        self._expected = stream_id
        self._limits = limits or PublisherLimits()
        self._codec = codec
        self._rng = rng or random.Random()
        self._producer = data_pb2.InitProducerResponse()
        self._next_sequence = 0
        self._unanswered: GoBackN[_Batch] = GoBackN()
        self._unanswered_bytes = 0
        self._session: _Session | None = None
        self._failure: MeshError | None = None
        self._progress_at = 0.0
        self._changed = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None
        self.retries = 0

    @property
    def producer_id(self) -> int:
        """Id of the producer, 0 before the context is entered."""
        return self._producer.producer_id

    @property
    def stream_id(self) -> int:
        """Id of the stream that takes the records: all go there or nowhere."""
        return self._producer.stream_id or self._expected

    async def __aenter__(self) -> Self:
        """Gets a producer id and begins.

        Raises:
            MeshError: The stream cannot be published to, or no gateway answered for `give_up_after_s`.
        """
        request = data_pb2.InitProducerRequest(
            stream=self.stream, producer_name=self._producer_name, stream_id=self._expected
        )
        self._progress_at = asyncio.get_running_loop().time()
        self._producer = await self._with_retries(lambda: self._init(request))
        self._next_sequence = self._producer.next_sequence
        self._task = asyncio.create_task(self._run(), name=f"publisher of {self.stream}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Waits until everything is committed, unless an exception is on its way; then ends the call."""
        try:
            if kind is None:
                await self.flush()
        finally:
            if self._task is not None:
                self._task.cancel()
                with suppress(asyncio.CancelledError):
                    await self._task
            self._abandon(MeshError(ErrorCode.OUTCOME_UNKNOWN, "The publisher was closed before this was answered."))

    async def send(self, records: Sequence[Record]) -> asyncio.Future[Committed]:
        """Hands in one batch, which is committed as a whole; waits while the window is full.

        Returns:
            A future of the committed batch; it fails with the publisher. It need not be awaited.

        Raises:
            MeshError: EMPTY_BATCH, MESSAGE_TOO_LARGE or INVALID_ARGUMENT, and the publisher goes on without the batch; or the
                failure that ended the publisher.
        """
        size = _size(records)
        async with self._changed:
            await self._changed.wait_for(lambda: self._failure is not None or self._has_room(size))
        if self._failure is not None:
            raise self._failure
        loop = asyncio.get_running_loop()
        batch = _Batch(self._encode(records), size, loop.create_future())
        if not len(self._unanswered):
            self._progress_at = loop.time()
        self._next_sequence += len(records)
        self._unanswered.add(batch)
        self._unanswered_bytes += size
        if self._session is not None:
            self._session.wake.set()
        await self._tell()
        return batch.answer

    def _encode(self, records: Sequence[Record]) -> bytes:
        now_ms = time.time_ns() // 1_000_000
        producer = (self._producer.producer_id, self._producer.producer_epoch, self._next_sequence)
        try:
            return encode_batch(records, *producer, timestamps_ms=(now_ms, now_ms), codec=self._codec)
        except WireError as error:
            code = ErrorCode.MESSAGE_TOO_LARGE if error.code is WireCode.TOO_LARGE else ErrorCode.INVALID_ARGUMENT
            raise MeshError(code, f"The batch is refused: {error.reason}.") from error

    async def flush(self) -> None:
        """Waits until everything handed in is committed.

        Raises:
            MeshError: The failure that ended the publisher.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self._failure is not None or not self._unanswered)
        if self._failure is not None:
            raise self._failure

    def _has_room(self, size: int) -> bool:
        if not self._unanswered:
            return True
        fits = self._unanswered_bytes + size <= self._limits.window_bytes
        return fits and len(self._unanswered) < self._limits.window_batches

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _init(self, request: data_pb2.InitProducerRequest) -> data_pb2.InitProducerResponse:
        return await self._service.InitProducer(request, timeout=_INIT_TIMEOUT_S, metadata=call_metadata())

    async def _run(self) -> None:
        """Keeps calls going until cancelled or failed."""
        try:
            while True:
                async with self._changed:
                    await self._changed.wait_for(lambda: bool(self._unanswered))
                await self._with_retries(self._one_call)
        except MeshError as error:
            self._failure = error
            self._abandon(error)
            await self._tell()

    async def _with_retries(self, attempt: Callable[[], Awaitable[ResultT]]) -> ResultT:
        """Repeats `attempt` while that can help and something moved within `give_up_after_s`."""
        backoff_s = self._limits.backoff_first_s
        before = self._progress_at
        while True:
            try:
                return await attempt()
            except grpc.aio.AioRpcError as fault:
                error = mesh_error(fault, "gateway")
            except MeshError as refusal:
                error = refusal
            now = asyncio.get_running_loop().time()
            is_late = now - self._progress_at > self._limits.give_up_after_s
            # Which batch failed does not matter: a new call sends everything again. Sequences make that recognised.
            if is_late or not is_curable(error.code, error.retry, is_behind=True, is_recognised=True):
                raise error
            if self._progress_at != before:
                backoff_s, before = self._limits.backoff_first_s, self._progress_at
            self.retries += 1
            await asyncio.sleep(self._rng.uniform(0, backoff_s))
            backoff_s = min(backoff_s * 2, self._limits.backoff_max_s)

    async def _one_call(self) -> None:
        """One PublishBatch call, until it breaks or an answer is an error. Returns when it ended with nothing unanswered."""
        session = self._session = _Session(self._limits.window_bytes)
        self._unanswered.resume()
        call = self._service.PublishBatch(self._requests(session), metadata=call_metadata())
        try:
            async for response in call:
                await self._take_answer(session, response)
        except (grpc.aio.AioRpcError, MeshError):
            # An idle call that breaks is no failure: the next batch opens another.
            if self._unanswered:
                raise
        finally:
            # First of all: a request generator that is still waiting must not write for a later call.
            session.is_over = True
            session.wake.set()
            self._session = None
            self._unanswered.lost()
            call.cancel()
            await self._tell()
        if self._unanswered:
            raise MeshError(ErrorCode.UNAVAILABLE, "The gateway ended the call; it may be restarting.")

    async def _take_answer(self, session: _Session, response: data_pb2.PublishBatchResponse) -> None:
        if response.HasField("error"):
            raise from_detail(response.error)
        batch = self._unanswered.front
        if batch is None or batch.place is not Place.AWAITED:
            raise MeshError(ErrorCode.INTERNAL, "The gateway answered more batches than it was sent.")
        self._unanswered.answered(batch)
        self._unanswered_bytes -= batch.size
        session.in_flight_bytes -= batch.size
        if response.credit_bytes:
            session.credit_bytes = response.credit_bytes
        session.wake.set()
        self._progress_at = asyncio.get_running_loop().time()
        if not batch.answer.done():
            batch.answer.set_result(Committed(response.base_offset, response.count, response.is_duplicate))
        await self._tell()

    async def _requests(self, session: _Session) -> AsyncIterator[data_pb2.PublishBatchRequest]:
        while not session.is_over:
            batch = self._next_to_write(session)
            if batch is None:
                session.wake.clear()
                await session.wake.wait()
                continue
            self._unanswered.sent()
            session.in_flight_bytes += batch.size
            yield data_pb2.PublishBatchRequest(
                stream=self.stream,
                wait=data_pb2.PUBLISH_WAIT_COMMITTED,
                batch=batch.data,
                stream_id=self.stream_id,
            )

    def _next_to_write(self, session: _Session) -> _Batch | None:
        batch = self._unanswered.next_due()
        if batch is None:
            return None
        # A batch larger than the whole credit still goes out alone: credit paces, it does not refuse.
        fits = session.in_flight_bytes + batch.size <= session.credit_bytes
        return batch if fits or self._unanswered.is_drained else None

    def _abandon(self, error: MeshError) -> None:
        """Fails what is unanswered."""
        for batch in self._unanswered.take_all():
            if not batch.answer.done():
                batch.answer.set_exception(error)
                # The failure is told by `send` and `flush` too; a future nobody looks at is no news.
                batch.answer.exception()
        self._unanswered_bytes = 0


def _size(records: Sequence[Record]) -> int:
    if not records:
        raise MeshError(ErrorCode.EMPTY_BATCH, "A batch has to hold at least one record.")
    size = sum(len(record.value) + len(record.key or b"") for record in records)
    if size > BATCH_BYTES_MAX:
        raise MeshError(
            ErrorCode.MESSAGE_TOO_LARGE,
            f"{size} bytes are more than the {BATCH_BYTES_MAX} bytes that one batch may hold: send less at a time.",
            {"limit": str(BATCH_BYTES_MAX), "size": str(size)},
        )
    return size
