"""Publishes records to one stream: gathered into batches, several in flight, in order, each exactly once.

Batches keep their sequence through lost connections, restarts of the data plane and changes of the leader; what had been
committed is recognised when it is sent again. A failure that no retry cures, or no progress for `give_up_after_s`, ends the
producer: the records behind would leave a gap. Leaves out: which batches to send when (`gathering`, `meshcommon.go_back_n`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from meshclient.backoff import Backoff
from meshclient.connection import Connection, decoded, encoded, read_error
from meshclient.gathering import Batching, Gathered, Gatherer
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.go_back_n import DUE, GoBackN, is_curable
from meshwire import client as wire
from meshwire.batch import MAX_RECORD_BYTES
from meshwire.client import ANY_STREAM, Kind, ProducerInfo, Published
from meshwire.errors import WireCode, WireError
from meshwire.records import Headers

if TYPE_CHECKING:
    from meshclient.client import MeshClient

_INIT_TIMEOUT_S: Final = 15.0


class _Fate:
    """What becomes of one batch; shared by the receipts of its records."""

    __slots__ = ("_waiter", "outcome")

    def __init__(self) -> None:
        self.outcome: Published | MeshError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def decide(self, outcome: Published | MeshError) -> None:
        self.outcome = outcome
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def wait(self) -> asyncio.Future[None]:
        """Made only when somebody waits: most receipts are never looked at."""
        if self._waiter is None or self._waiter.cancelled():
            self._waiter = asyncio.get_running_loop().create_future()
        return self._waiter


class Receipt:
    """Await it for the record's offset, once a quorum of disks has the record. It may also be dropped.

    Awaiting raises the MeshError with which the producer ended.
    """

    __slots__ = ("_fate", "_place")

    def __init__(self, fate: _Fate, place: int) -> None:
        self._fate = fate
        self._place = place

    @property
    def is_decided(self) -> bool:
        """Whether awaiting returns at once."""
        return self._fate.outcome is not None

    def __await__(self) -> Generator[asyncio.Future[None], None, int]:
        while (outcome := self._fate.outcome) is None:
            yield from asyncio.shield(self._fate.wait())
        if isinstance(outcome, MeshError):
            raise outcome
        return outcome.base_offset + self._place


class _Batch(Gathered):
    """A gathered batch with its fate and, once it was taken, its sequence and bytes."""

    __slots__ = ("data", "fate", "place", "size_bytes")

    def __init__(self, now: float) -> None:
        super().__init__(now)
        self.fate = _Fate()
        self.place = DUE
        self.data = b""
        self.size_bytes = 0


class Producer:
    """Use as an asynchronous context manager; leaving it normally waits until everything is committed.

    Records are ordered as their `send` calls returned. It belongs to one event loop; `MeshClient.producer` makes one.
    """

    def __init__(
        self,
        client: MeshClient,
        stream: str,
        name: str,
        batching: Batching,
        give_up_after_s: float,
        stream_id: int = ANY_STREAM,
    ) -> None:
        self._client = client
        self._stream = stream
        self._name = name
        self._expected = stream_id
        self._batching = batching
        self._give_up_after_s = give_up_after_s
        self._gatherer: Gatherer[_Batch] = Gatherer(batching, _Batch)
        self._window: GoBackN[_Batch] = GoBackN()
        self._sent: dict[int, _Batch] = {}
        self._connection: Connection | None = None
        self._info = ProducerInfo(0, 0, 0, 0, 0)
        self._next_sequence = 0
        self._window_bytes = 0
        self._interrupted = asyncio.Event()
        self._interruption: MeshError | None = None
        self._failure: MeshError | None = None
        self._changed = asyncio.Event()
        self._is_awaited = False
        self._progress_at = 0.0
        self._is_idle = True
        self._is_pump_due = False
        self._linger: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self.retries = 0
        """How often unanswered batches were sent again."""

    @property
    def producer_id(self) -> int:
        """Id of the producer, 0 before the context is entered."""
        return self._info.producer_id

    @property
    def stream_id(self) -> int:
        """Id of the stream that takes the records: all go there or nowhere. The expected id before the context is entered."""
        return self._info.stream_id or self._expected

    async def __aenter__(self) -> Self:
        """Gets a producer id and begins.

        Raises:
            MeshError: The stream cannot be published to, another one has its name (STREAM_REPLACED), or no data plane answered for `give_up_after_s`.
        """
        deadline = self._loop.time() + self._give_up_after_s
        backoff = Backoff()
        while not self._info.producer_id:
            try:
                await self._begin()
            except MeshError as error:
                if not error.retryable or self._loop.time() > deadline:
                    raise
                await backoff.wait()
        self._task = asyncio.create_task(self._run(), name=f"producer of {self._stream}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Waits until everything is committed, unless an exception is on its way; then ends."""
        try:
            if kind is None:
                await self.flush()
        finally:
            self._end(MeshError(ErrorCode.UNAVAILABLE, "The producer was closed before the batch was answered."))
            if self._task is not None:
                self._task.cancel()
                await asyncio.gather(self._task, return_exceptions=True)

    async def send(self, value: bytes, key: bytes | None = None, headers: Headers = ()) -> Receipt:
        """Hands in a record; waits only while `buffer_bytes` are unanswered.

        Raises:
            MeshError: MESSAGE_TOO_LARGE or INVALID_ARGUMENT (the record is refused, the producer goes on), or why the
                producer ended.
        """
        if self._failure is not None or self._gatherer.body_bytes + self._window_bytes >= self._batching.buffer_bytes:
            await self._room()
        try:
            batch, place = self._gatherer.append(value, key, self._loop.time(), headers)
        except WireError as error:
            raise _refused(error) from error
        if not self._is_pump_due:
            self._schedule()
        return Receipt(batch.fate, place)

    async def send_many(self, values: Sequence[bytes]) -> list[Receipt]:
        """Hands in records without keys: `send` for each at a fraction of its cost.

        Returns:
            A receipt for the last record of each batch that they went into, in order: when all are awaited, all records
            are committed.

        Raises:
            MeshError: as `send`; records before the one that is too large are in.
        """
        receipts: list[Receipt] = []
        at = 0
        while at < len(values):
            if (
                self._failure is not None
                or self._gatherer.body_bytes + self._window_bytes >= self._batching.buffer_bytes
            ):
                await self._room()
            try:
                batch, place, after = self._gatherer.extend(values, at, self._loop.time())
            except WireError as error:
                raise _refused(error) from error
            finally:
                if not self._is_pump_due:
                    self._schedule()
            receipts.append(Receipt(batch.fate, place + after - at - 1))
            at = after
        return receipts

    async def publish(self, value: bytes, key: bytes | None = None, headers: Headers = ()) -> int:
        """Hands in a record and waits until it is committed; returns its offset.

        Raises:
            MeshError: as `send`.
        """
        return await (await self.send(value, key, headers))

    async def flush(self) -> None:
        """Waits until everything that was handed in is committed.

        Raises:
            MeshError: why the producer ended.
        """
        while self._failure is None and (self._gatherer or len(self._window)):
            await self._change()
        if self._failure is not None:
            raise self._failure

    # Sending

    def _schedule(self) -> None:
        """One look at what is due, after everything else that this turn of the loop brings."""
        if self._is_idle:
            self._is_idle = False
            self._progress_at = self._loop.time()
        self._is_pump_due = True
        self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._is_pump_due = False
        connection = self._connection
        if connection is None or connection.is_lost:
            return
        window = self._window
        now, now_ms = self._loop.time(), time.time_ns() // 1_000_000
        while True:
            while (due := window.next_due()) is not None:
                window.sent()
                correlation = connection.correlate(self._receive)
                self._sent[correlation] = due
                connection.put(wire.encode_publish(correlation, self._info.stream_id, due.data))
            if window.is_held or len(window) >= self._batching.in_flight_max:
                connection.flush()
                return
            batch = self._gatherer.take(now, is_idle=not len(window))
            if batch is None:
                break
            # Its first record came so long ago; one look at the clock serves all batches that are due now.
            first_ms = max(0, now_ms - int((now - batch.opened_at) * 1000))
            self._add(batch, (first_ms, now_ms))
        connection.flush()
        deadline = self._gatherer.next_deadline()
        if deadline is not None and self._linger is None:
            self._linger = self._loop.call_at(deadline, self._lingered)

    def _lingered(self) -> None:
        self._linger = None
        self._pump()

    def _add(self, batch: _Batch, timestamps_ms: tuple[int, int]) -> None:
        records = batch.records
        batch.data = records.encode(
            self._info.producer_id,
            self._info.epoch,
            self._next_sequence,
            timestamps_ms=timestamps_ms,
            codec=self._batching.codec,
        )
        self._next_sequence += records.count
        batch.size_bytes = records.body_bytes
        self._window_bytes += batch.size_bytes
        self._window.add(batch)

    def _receive(self, kind: int, correlation: int, body: memoryview) -> None:
        """An answer to a batch."""
        sent = self._sent.pop(correlation)
        if self._connection is not None:
            self._connection.forget(correlation)
        if self._failure is not None:
            return  # the same frame brought the error that ended the producer
        if kind == Kind.PUBLISHED:
            self._committed(sent, wire.decode_published(body))
            return
        error = read_error(body)
        # Every batch keeps its sequence, so a repetition is recognised.
        is_behind = self._window.front is not sent
        if not is_curable(error.code, error.retry, is_behind=is_behind, is_recognised=True):
            self._end(error)
            return
        self._window.failed(sent)
        self._interruption = error
        if self._window.is_drained:
            self._interrupted.set()

    def _committed(self, sent: _Batch, committed: Published) -> None:
        self._window.answered(sent)
        self._window_bytes -= sent.size_bytes
        sent.fate.decide(committed)
        self._progress_at = self._loop.time()
        self._is_idle = not len(self._window) and not self._gatherer
        if self._window.is_held and self._window.is_drained:
            self._interrupted.set()
        if not self._is_idle and not self._is_pump_due:
            self._schedule()
        self._tell()

    # Beginning, again and at last

    async def _begin(self) -> None:
        """Asks for the producer's id. Raises MeshError."""
        connection = await self._client.connection()
        init = wire.InitProducer(self._stream, self._name, self._expected)
        request = encoded(lambda: wire.encode_init_producer(init))
        _, body = await connection.ask(Kind.INIT_PRODUCER, request, _INIT_TIMEOUT_S)
        self._info = decoded(lambda: wire.decode_producer(body))
        self._next_sequence = self._info.next_sequence

    async def _run(self) -> None:
        """Keeps batches flowing through connections and failures, until the producer ends."""
        backoff = Backoff()
        progress_at = self._progress_at
        while self._failure is None:
            try:
                connection = await self._client.connection()
            except MeshError as error:
                self._interruption = error
            else:
                await self._flow_on(connection)
            if self._progress_at != progress_at:
                backoff, progress_at = Backoff(), self._progress_at
            is_late = self._loop.time() - self._progress_at > self._give_up_after_s
            if is_late and (self._gatherer or len(self._window)):
                self._end(self._interruption or MeshError(ErrorCode.UNAVAILABLE, "No data plane answers."))
            elif self._failure is None:
                await backoff.wait()

    async def _flow_on(self, connection: Connection) -> None:
        """Sends on a connection until it is lost, or what was sent has to be sent again."""
        self._connection = connection
        self._interrupted.clear()
        if len(self._window):
            self.retries += 1
        self._window.resume()
        self._schedule()
        await _first_of(self._interrupted, connection.lost)
        self._connection = None
        for correlation in self._sent:
            connection.forget(correlation)
        self._sent.clear()
        if connection.is_lost:
            self._interruption = connection.failure
            self._window.lost()

    def _end(self, error: MeshError) -> None:
        """Nothing more is sent; everybody who waits is told why."""
        if self._failure is not None:
            return
        self._failure = error
        if self._linger is not None:
            self._linger.cancel()
        for batch in self._window.take_all():
            batch.fate.decide(error)
        for batch in self._gatherer.take_all():
            batch.fate.decide(error)
        self._interrupted.set()
        self._tell()

    # Waiting

    async def _room(self) -> None:
        while True:
            if self._failure is not None:
                raise self._failure
            if self._gatherer.body_bytes + self._window_bytes < self._batching.buffer_bytes:
                return
            await self._change()

    async def _change(self) -> None:
        self._is_awaited = True
        await self._changed.wait()

    def _tell(self) -> None:
        if self._is_awaited:
            self._is_awaited = False
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()


async def _first_of(*events: asyncio.Event) -> None:
    waits = [asyncio.create_task(event.wait(), name="producer: wait") for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


def _refused(error: WireError) -> MeshError:
    if error.code is WireCode.TOO_LARGE:
        return MeshError(
            ErrorCode.MESSAGE_TOO_LARGE,
            f"The record is refused: {error.reason}. Split it.",
            {"limit": str(MAX_RECORD_BYTES)},
        )
    return MeshError(ErrorCode.INVALID_ARGUMENT, f"The record is refused: {error.reason}.")
