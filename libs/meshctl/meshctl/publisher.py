"""Publishes batches of records in order, pipelined, each exactly once.

The caller hands in batches and gets a future for each; a task of the publisher keeps one Publish call open and many
batches in flight on it, within the credit that the server gives. Answers come in the order of the requests. After a
failure that a retry can cure, or a broken call, everything unanswered is sent again in order on a new call with the
same producer id and sequences: what had been committed is recognised and answered as a duplicate, so nothing is lost or
doubled. A failure that no retry cures ends the publisher, because the batches behind it would leave a gap.

Leaves out: splitting a stream of records into batches, and records above 1 MiB. Source: architecture §8.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, TypeVar

import grpc
import grpc.aio

from meshapi.supervisor.v1 import data_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.grpc_client import call_metadata, from_detail, mesh_error

if TYPE_CHECKING:
    from meshapi.supervisor.v1.data_pb2_grpc import MeshDataServiceAsyncStub

BATCH_BYTES_MAX: Final = 1024 * 1024
"""Largest batch: keys and values together."""

_CURED_BY_RESENDING: Final = frozenset(
    # With a producer id even these are safe to repeat.
    {ErrorCode.SEQUENCE_GAP, ErrorCode.OUTCOME_UNKNOWN, ErrorCode.DEADLINE_EXCEEDED}
)
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


@dataclass(slots=True)
class _Batch:
    records: Sequence[data_pb2.PublishRecord]
    size: int
    base_sequence: int
    answer: asyncio.Future[Committed]


@dataclass(slots=True)
class _Session:
    """One Publish call. The first `in_flight` unanswered batches were written on it."""

    credit_bytes: int
    in_flight: int = 0
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
        limits: PublisherLimits | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """Nothing happens before the context is entered.

        Args:
            service: Stub on a channel to a gateway or data plane; the channel stays the caller's.
            stream: `namespace/name`.
            producer_name: Stable name; it fences whoever published under it before. Empty for an anonymous producer.
            limits: Bounds.
            rng: Draws the jitter; give a seeded one for repeatable runs.
        """
        self._service = service
        self._stream = stream
        self._producer_name = producer_name
        self._limits = limits or PublisherLimits()
        self._rng = rng or random.Random()
        self._producer = data_pb2.InitProducerResponse()
        self._next_sequence = 0
        self._unanswered: deque[_Batch] = deque()
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

    async def __aenter__(self) -> Self:
        """Gets a producer id and begins.

        Raises:
            MeshError: The stream cannot be published to, or no gateway answered for `give_up_after_s`.
        """
        request = data_pb2.InitProducerRequest(stream=self._stream, producer_name=self._producer_name)
        self._progress_at = asyncio.get_running_loop().time()
        self._producer = await self._with_retries(lambda: self._init(request))
        self._next_sequence = self._producer.next_sequence
        self._task = asyncio.create_task(self._run(), name=f"publisher of {self._stream}")
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

    async def send(self, records: Sequence[data_pb2.PublishRecord]) -> asyncio.Future[Committed]:
        """Hands in one batch, which is committed as a whole; waits while the window is full.

        Returns:
            A future of the committed batch; it fails with the publisher. It need not be awaited.

        Raises:
            MeshError: EMPTY_BATCH or MESSAGE_TOO_LARGE, and the publisher goes on without the batch; or the failure
                that ended the publisher.
        """
        size = _size(records)
        async with self._changed:
            await self._changed.wait_for(lambda: self._failure is not None or self._has_room(size))
        if self._failure is not None:
            raise self._failure
        loop = asyncio.get_running_loop()
        batch = _Batch(records, size, self._next_sequence, loop.create_future())
        if not self._unanswered:
            self._progress_at = loop.time()
        self._next_sequence += len(records)
        self._unanswered.append(batch)
        self._unanswered_bytes += size
        if self._session is not None:
            self._session.wake.set()
        await self._tell()
        return batch.answer

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
            if is_late or not (error.retryable or error.code in _CURED_BY_RESENDING):
                raise error
            if self._progress_at != before:
                backoff_s, before = self._limits.backoff_first_s, self._progress_at
            self.retries += 1
            await asyncio.sleep(self._rng.uniform(0, backoff_s))
            backoff_s = min(backoff_s * 2, self._limits.backoff_max_s)

    async def _one_call(self) -> None:
        """One Publish call, until it breaks or an answer is an error. Returns when it ended with nothing unanswered."""
        session = self._session = _Session(self._limits.window_bytes)
        call = self._service.Publish(self._requests(session), metadata=call_metadata())
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
            call.cancel()
            await self._tell()
        if self._unanswered:
            raise MeshError(ErrorCode.UNAVAILABLE, "The gateway ended the call; it may be restarting.")

    async def _take_answer(self, session: _Session, response: data_pb2.PublishResponse) -> None:
        if response.HasField("error"):
            raise from_detail(response.error)
        if session.in_flight == 0:
            raise MeshError(ErrorCode.INTERNAL, "The gateway answered more batches than it was sent.")
        batch = self._unanswered.popleft()
        self._unanswered_bytes -= batch.size
        session.in_flight -= 1
        session.in_flight_bytes -= batch.size
        if response.credit_bytes:
            session.credit_bytes = response.credit_bytes
        session.wake.set()
        self._progress_at = asyncio.get_running_loop().time()
        if not batch.answer.done():
            batch.answer.set_result(Committed(response.base_offset, response.count, response.is_duplicate))
        await self._tell()

    async def _requests(self, session: _Session) -> AsyncIterator[data_pb2.PublishRequest]:
        while not session.is_over:
            batch = self._next_to_write(session)
            if batch is None:
                session.wake.clear()
                await session.wake.wait()
                continue
            session.in_flight += 1
            session.in_flight_bytes += batch.size
            yield data_pb2.PublishRequest(
                stream=self._stream,
                wait=data_pb2.PUBLISH_WAIT_COMMITTED,
                records=batch.records,
                producer_id=self._producer.producer_id,
                producer_epoch=self._producer.producer_epoch,
                base_sequence=batch.base_sequence,
            )

    def _next_to_write(self, session: _Session) -> _Batch | None:
        if session.in_flight >= len(self._unanswered):
            return None
        batch = self._unanswered[session.in_flight]
        # A batch larger than the whole credit still goes out alone: credit paces, it does not refuse.
        fits = session.in_flight_bytes + batch.size <= session.credit_bytes
        return batch if fits or session.in_flight == 0 else None

    def _abandon(self, error: MeshError) -> None:
        """Fails what is unanswered."""
        for batch in self._unanswered:
            if not batch.answer.done():
                batch.answer.set_exception(error)
                # The failure is told by `send` and `flush` too; a future nobody looks at is no news.
                batch.answer.exception()
        self._unanswered.clear()
        self._unanswered_bytes = 0


def _size(records: Sequence[data_pb2.PublishRecord]) -> int:
    if not records:
        raise MeshError(ErrorCode.EMPTY_BATCH, "A batch has to hold at least one record.")
    size = sum(len(record.value) + len(record.key) for record in records)
    if size > BATCH_BYTES_MAX:
        raise MeshError(
            ErrorCode.MESSAGE_TOO_LARGE,
            f"{size} bytes are more than the {BATCH_BYTES_MAX} bytes that one batch may hold: send less at a time.",
            {"limit": str(BATCH_BYTES_MAX), "size": str(size)},
        )
    return size
