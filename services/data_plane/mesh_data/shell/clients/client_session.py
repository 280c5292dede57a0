"""One application's connection: its requests in, their answers out, on a WebSocket of `meshwire.client`.

Batches of one producer and stream form a flow, answered in order; flows do not wait for each other's answers. Whatever
the peer does, what it can make this process hold is bounded: unanswered batches by the flow and by the node's budget (then
the connection is not read further), other requests, flows and reads by number, of this connection and of all; batches for
readers by what the peer reads: a read fetches nothing while it has no credit or too much waits to be written. A fault of
ours ends the request, or else the connection, that it was met in. Leaves out: publishing and reading themselves, and frames' layout. Source: architecture §5, §8.

States: *open* → *finishing* (the service stops: nothing more is read, due answers are written) → *closed*.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Final, TypeAlias

from mesh_data.core.stream_requests import Fetched
from mesh_data.shell.clients.client_room import FLOWS_KEPT, NODE_FLOWS_MAX, NODE_READS_MAX, READS_KEPT, ClientRoom
from mesh_data.shell.stream_errors import bad_batch
from mesh_data.shell.streams.publish_call import Batch, Outcome, PublishCall, count_answer, count_committed, count_run
from mesh_data.shell.streams.read_call import ReadCursor
from mesh_data.shell.streams.stream_budgets import StreamBudgets
from mesh_data.shell.streams.stream_calls import begin_producer, describe_live
from mesh_data.shell.streams.streams_catalogue import StreamsCatalogue, shutting_down
from mesh_data.shell.streams_metrics import READ_RECORDS
from meshcommon.barrier import barrier
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.frame_socket import CLOSE_TIMEOUT_S, FrameSocket, SocketClosed, TextFrame
from meshcommon.ids import StreamId
from meshcommon.logging import get_logger
from meshraft import PublishRun, publish_runs
from meshwire import client
from meshwire.batch import decode_header
from meshwire.client import Kind, Message
from meshwire.errors import WireError
from meshwire.request import encode_error

FLOWS_MAX: Final = 256
"""Producers of one connection with unanswered batches."""
REQUESTS_MAX: Final = 64
"""Requests other than publishes and reads that one connection may have under way."""
READS_MAX: Final = 64
FETCHES_MAX: Final = 4
"""Chunks on their way from the log or from another node for the readers of one connection."""
_UNWRITTEN_BYTES_MAX: Final = 1024 * 1024
"""While more waits to be written to the peer, nothing is read from it and no reader gets more; less when the node is full."""
_UNWRITTEN_BYTES_END: Final = 16 * 1024 * 1024
"""A peer that lets so much come together does not read at all: its connection ends."""
_NODE_FULL_PAUSE_S: Final = 0.05
_STALLED_S: Final = 5.0
"""A peer that takes nothing for so long while the node has no room for others' readers loses its connection."""
_FRAME_BYTES_TARGET: Final = 256 * 1024
_PUBLISH: Final = int(Kind.PUBLISH)
_FRAME_MESSAGES_MAX: Final = client.MAX_FRAME_MESSAGES
_CREDIT_BYTES_MAX: Final = 64 * 1024 * 1024

_Request: TypeAlias = Callable[[], Coroutine[Any, Any, None]]

_log = get_logger(__name__)


class _Flow:
    """The batches of one producer to one stream; `correlations` are those of the unanswered ones, in order."""

    __slots__ = ("answering", "call", "correlations", "stream_name")

    def __init__(self, catalogue: StreamsCatalogue, budgets: StreamBudgets, stream_name: str) -> None:
        self.call = PublishCall(catalogue, budgets.publish)
        self.stream_name = stream_name
        self.correlations: deque[int] = deque()
        self.answering: asyncio.Task[None] | None = None


class _Reading:
    """One READ under way."""

    __slots__ = ("credit_bytes", "more", "offset", "task")

    def __init__(self, offset: int, credit_bytes: int) -> None:
        self.offset = offset
        self.credit_bytes = credit_bytes
        self.more = asyncio.Event()
        self.task: asyncio.Task[None] | None = None


class _FetchGate:
    """Lets a few readers of a connection fetch at a time, and only while the peer takes what comes.

    Without the second look hundreds of readers that woke together would each fetch, and throw away, one chunk.
    """

    def __init__(self, until_room: Callable[[], Awaitable[None]]) -> None:
        self._fetches = asyncio.Semaphore(FETCHES_MAX)
        self._until_room = until_room

    async def __aenter__(self) -> None:
        await self._fetches.acquire()
        try:
            await self._until_room()
        except BaseException:
            self._fetches.release()
            raise

    async def __aexit__(self, *_failure: object) -> None:
        self._fetches.release()


class ClientSession:
    """See the module. `run` serves the connection until it is gone."""

    def __init__(
        self, catalogue: StreamsCatalogue, budgets: StreamBudgets, room: ClientRoom, socket: FrameSocket
    ) -> None:
        self._catalogue = catalogue
        self._budgets = budgets
        self._room = room
        self._socket = socket
        self._flows: dict[tuple[int, int], _Flow] = {}
        self._reads: dict[int, _Reading] = {}
        self._read_tasks = 0
        self._requests: set[asyncio.Task[None]] = set()
        self._tasks: asyncio.TaskGroup | None = None
        self._receiver: asyncio.Task[None] | None = None
        self._fetches = _FetchGate(self._until_room_for_batches)
        self._unwritten: deque[tuple[bytes, int]] = deque()
        self._unwritten_bytes = 0
        self._writing_bytes = 0
        """The frame that is being sent, which the socket has not got rid of yet."""
        self._wake = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()
        self._ended = asyncio.Event()

    async def run(self) -> None:
        """Serves the connection until the peer closes it, breaks the protocol, or `finish` ends it."""
        try:
            with barrier("client connection", remote=self._socket.remote):
                await self._serve()
        finally:
            for flow in self._flows.values():
                await flow.call.abandon()
            self._flows.clear()
            self._reads.clear()
            self._count_unwritten(-self._unwritten_bytes)
            self._unwritten.clear()
            with suppress(SocketClosed):
                await self._socket.close("shutting down" if self._catalogue.closing.is_set() else "")
            self._ended.set()

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            writer = tasks.create_task(self._write(), name="client: writer")
            self._receiver = tasks.create_task(self._receive(), name="client: receiver")
            # The writer ends only with the connection; the receiver may wait then for room that it will not make.
            await asyncio.wait((self._receiver, writer), return_when=asyncio.FIRST_COMPLETED)
            self._receiver.cancel()
            if self._catalogue.closing.is_set():
                await self._flush_answers()
            writer.cancel()
            self._cancel_children()

    async def finish(self) -> None:
        """The service stops: reads no more, writes the answers that are due, closes."""
        if self._receiver is not None:
            self._receiver.cancel()
        await self._ended.wait()

    async def _flush_answers(self) -> None:
        """Gives what was taken the time to be answered, and the answers the time to be written."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                for flow in list(self._flows.values()):
                    flow.call.complete()
                    if flow.answering is not None:
                        await asyncio.wait((flow.answering,))
                self._respond_error(0, shutting_down())
                while self._unwritten:
                    self._drained.clear()
                    await self._drained.wait()

    def _cancel_children(self) -> None:
        for flow in self._flows.values():
            if flow.answering is not None:
                flow.answering.cancel()
        for reading in self._reads.values():
            if reading.task is not None:
                reading.task.cancel()
        for task in self._requests:
            task.cancel()

    # In

    async def _receive(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                frame = await self._socket.receive()
                now = loop.time()
                runs = publish_runs(frame)
                for run in runs or ():
                    waiting = self._publish_run(run, now)
                    if waiting is not None:
                        await waiting
                for message in () if runs is not None else client.decode_messages(frame):
                    if message.kind == _PUBLISH:
                        # No coroutine for each batch: most fit, and then there is nothing to wait for.
                        waiting = self._publish(message.correlation, message.body, len(frame), now)
                        if waiting is not None:
                            await waiting
                    else:
                        self._take(message)
                if self._unwritten_bytes > _UNWRITTEN_BYTES_MAX:
                    await self._until_drained()
        except SocketClosed:
            return
        except TextFrame:
            await self._refuse("A text frame came: this port carries binary frames only.")
        except WireError as error:
            await self._refuse(f"The frame cannot be read: {error.reason}.")

    async def _refuse(self, why: str) -> None:
        """The peer does not speak the protocol: tells it, and ends the connection."""
        _log.info("client_refused", remote=self._socket.remote, reason=why)
        body = encode_error(str(ErrorCode.WRONG_PROTOCOL), why)
        with suppress(SocketClosed, TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._socket.send(client.encode_message(Kind.ERROR, 0, body))

    def _take(self, message: Message) -> None:
        kind, correlation, body = message
        if kind == Kind.CREDIT:
            reading = self._reads.get(correlation)
            if reading is not None:
                reading.credit_bytes = min(reading.credit_bytes + client.decode_credit(body), _CREDIT_BYTES_MAX)
                reading.more.set()
        elif kind == Kind.CANCEL:
            self._cancel(correlation)
        elif kind == Kind.READ:
            self._begin_read(correlation, client.decode_read(body))
        elif kind == Kind.INIT_PRODUCER:
            init = client.decode_init_producer(body)
            self._start(correlation, lambda: self._init_producer(correlation, init))
        elif kind == Kind.DESCRIBE:
            asked = client.decode_describe(body)
            self._start(correlation, lambda: self._describe(correlation, asked))
        else:
            raise WireError(f"message kind {kind} is a response, not a request")

    # Publishing

    def _publish(
        self, correlation: int, body: memoryview, frame_bytes: int, now: float
    ) -> Coroutine[Any, Any, None] | None:
        """Takes a batch. Returns what to await before anything more is read, when too much is unanswered."""
        stream_id, wait, view = client.decode_publish(body)
        if wait != client.WAIT_COMMITTED:
            text = 'Say when the publish is complete: "committed" is the one value for now.'
            self._respond_error(correlation, MeshError(ErrorCode.WAIT_REQUIRED, text))
            return None
        try:
            # A small batch is copied, so that it does not keep a large frame alive while it waits.
            data = view if 2 * len(view) > frame_bytes else bytes(view)
            header = decode_header(data, verify=True)
            flow = self._flow(stream_id, header.producer_id)
        except WireError as error:
            self._respond_error(correlation, bad_batch(error))
            return None
        except MeshError as error:
            self._respond_error(correlation, error)
            return None
        flow.correlations.append(correlation)
        batch = Batch(StreamId(stream_id), flow.stream_name, data, header)
        return None if flow.call.add_now(batch, now) else flow.call.add(batch)

    def _publish_run(self, run: PublishRun, now: float) -> Coroutine[Any, Any, None] | None:
        """Takes a run of batches that were checked; otherwise like `_publish`."""
        stream_id = StreamId(run.stream)
        try:
            flow = self._flow(stream_id, run.producer_id)
        except MeshError as error:
            for correlation in run.correlations:
                self._respond_error(correlation, error)
            return None
        flow.correlations.extend(run.correlations)
        if flow.call.add_run_now(stream_id, flow.stream_name, run, now):
            return None
        return flow.call.add_run(stream_id, flow.stream_name, run)

    def _flow(self, stream_id: int, producer_id: int) -> _Flow:
        flow = self._flows.get((stream_id, producer_id))
        if flow is not None:
            return flow
        stream = self._catalogue.stream(StreamId(stream_id))
        is_node_full = self._budgets.publish.flows >= NODE_FLOWS_MAX and len(self._flows) >= FLOWS_KEPT
        if is_node_full or len(self._flows) >= FLOWS_MAX:
            self._drop_idle_flow()
        flow = self._flows[stream_id, producer_id] = _Flow(self._catalogue, self._budgets, stream.name)
        flow.answering = self._create(self._answer(flow), "client: answers")
        return flow

    def _drop_idle_flow(self) -> None:
        for key, flow in self._flows.items():
            if not flow.correlations:
                flow.call.complete()
                flow.call.close()
                del self._flows[key]
                return
        raise MeshError(
            ErrorCode.BACKPRESSURE,
            f"{len(self._flows)} producers of this connection wait for answers, {self._budgets.publish.flows} of "
            "this node: wait, or use another connection or node.",
        )

    async def _answer(self, flow: _Flow) -> None:
        correlations = flow.correlations
        while True:
            while (run := await flow.call.answer_run()) is not None:
                while run is not None:
                    for _ in range(len(run.batches)):
                        correlations.popleft()
                    count_run(run)
                    self._put(run.batches.answers(run.attempt.offset), len(run.batches))
                    run = flow.call.take_run()
                self._flush()
            answered = await flow.call.answer()
            if answered is None:
                return
            batch, outcome = answered
            count_answer(batch, outcome)
            self._respond_published(flow.correlations.popleft(), outcome)
            committed = flow.call.take_committed()
            if committed:
                count_committed(flow.stream_name, committed)
            for _, published in committed:
                self._put(
                    client.encode_published(flow.correlations.popleft(), published.base_offset, published.count, False)
                )
            self._flush()

    def _flush(self) -> None:
        """Writes at once what nothing waits before: it spares an answer the way through the writer's task."""
        with suppress(SocketClosed):  # the receiver meets the same end
            while self._unwritten and self._socket.is_writable:
                self._socket.write(b"".join(self._next_frame()))
                self._drained.set()

    def _respond_published(self, correlation: int, outcome: Outcome) -> None:
        if isinstance(outcome, MeshError):
            self._respond_error(correlation, outcome)
            return
        self._put(client.encode_published(correlation, outcome.base_offset, outcome.count, outcome.is_duplicate))

    # Other requests

    def _start(self, correlation: int, request: _Request) -> None:
        if len(self._requests) >= REQUESTS_MAX:
            self._respond_error(
                correlation,
                MeshError(ErrorCode.BACKPRESSURE, f"{REQUESTS_MAX} requests are under way: wait for an answer."),
            )
            return
        task = self._create(self._guarded(correlation, request), "client: request")
        self._requests.add(task)
        task.add_done_callback(self._requests.discard)

    async def _guarded(self, correlation: int, request: _Request) -> None:
        """Answers a failure; a fault of ours in one request must not end the connection's others."""
        with barrier("client request", remote=self._socket.remote) as contained:
            try:
                await request()
            except MeshError as error:
                self._respond_error(correlation, error)
        if contained.failed:
            text = "Internal error; the node's log has details."
            self._respond_error(correlation, MeshError(ErrorCode.INTERNAL, text))

    async def _init_producer(self, correlation: int, request: client.InitProducer) -> None:
        stream = self._catalogue.named(request.stream, request.stream_id)
        ready = await begin_producer(self._catalogue, stream, request.producer)
        info = client.ProducerInfo(
            stream.stream_id, ready.producer_id, ready.epoch, ready.next_sequence, ready.last_offset_next
        )
        self._put(client.encode_message(Kind.PRODUCER, correlation, client.encode_producer(info)))

    async def _describe(self, correlation: int, request: client.Describe) -> None:
        stream = self._catalogue.named(request.stream, request.stream_id)
        found = await describe_live(self._catalogue, stream)
        info = client.StreamInfo(stream.stream_id, found.floor_offset, found.next_offset, found.leader)
        self._put(client.encode_message(Kind.STREAM, correlation, client.encode_stream(info)))

    # Reading

    def _begin_read(self, correlation: int, request: client.Read) -> None:
        if correlation in self._reads:
            raise WireError(f"read {correlation} is under way already")
        is_node_full = self._room.reads >= NODE_READS_MAX and len(self._reads) >= READS_KEPT
        # A read that was cancelled is no longer among the reads, but its task may still be about to end.
        if is_node_full or len(self._reads) >= READS_MAX or self._read_tasks >= 2 * READS_MAX:
            text = (
                f"{len(self._reads)} reads of this connection are under way, {self._room.reads} of this node: end one."
            )
            self._respond_error(correlation, MeshError(ErrorCode.BACKPRESSURE, text))
            return
        self._room.reads += 1
        self._read_tasks += 1
        credit_bytes = min(request.credit_bytes, _CREDIT_BYTES_MAX)
        reading = self._reads[correlation] = _Reading(request.from_offset, credit_bytes)
        reading.task = self._create(
            self._guarded(correlation, lambda: self._read(correlation, request, reading)), "client: read"
        )
        reading.task.add_done_callback(lambda _task: self._forget(correlation, reading))

    async def _read(self, correlation: int, request: client.Read, reading: _Reading) -> None:
        stream = self._catalogue.named(request.stream, request.stream_id)
        cursor, beginning = await ReadCursor.begin(
            self._catalogue, self._budgets.read_room, stream, request.from_offset, follow=request.is_following
        )
        # Tells at once which stream it is, also when there is nothing to read yet.
        self._put_batches(correlation, stream.stream_id, beginning)
        while not cursor.is_at_end:
            while reading.credit_bytes <= 0:
                reading.more.clear()
                await reading.more.wait()
            await self._until_room_for_batches()
            fetched = await cursor.fetch(self._fetches)
            if fetched.batches:
                if not self._has_room_for_batches:
                    continue  # others were quicker: nothing is held while the peer does not read
                reading.credit_bytes -= self._put_batches(correlation, stream.stream_id, fetched)
            before = cursor.offset
            cursor.advance(fetched)
            READ_RECORDS.labels(stream.name).inc(cursor.offset - before)
            reading.offset = cursor.offset
        self._end(correlation, reading)

    def _put_batches(self, correlation: int, stream_id: StreamId, fetched: Fetched) -> int:
        """Sends batches; returns what that takes of the reader's credit."""
        sent = [client.ReadBatch(item.base_offset, item.time_ms, item.batch) for item in fetched.batches]
        body = client.encode_batches(stream_id, fetched.next_offset, sent)
        self._put(client.encode_message(Kind.BATCHES, correlation, body))
        return len(body)

    def _end(self, correlation: int, reading: _Reading) -> None:
        self._put(client.encode_message(Kind.END, correlation, client.encode_end(reading.offset)))

    def _forget(self, correlation: int, reading: _Reading) -> None:
        self._room.reads -= 1
        self._read_tasks -= 1
        # After a CANCEL the number may be another read's already.
        if self._reads.get(correlation) is reading:
            del self._reads[correlation]

    def _cancel(self, correlation: int) -> None:
        reading = self._reads.pop(correlation, None)
        # One that is done has said so itself.
        if reading is not None and reading.task is not None and reading.task.cancel():
            self._end(correlation, reading)

    # Out

    def _create(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        if self._tasks is None:
            raise AssertionError("the session does not run")
        return self._tasks.create_task(work, name=name)

    def _respond_error(self, correlation: int, error: MeshError) -> None:
        body = encode_error(str(error.code), error.message, error.retryable, error.details)
        self._put(client.encode_message(Kind.ERROR, correlation, body))

    def _put(self, message: bytes, count: int = 1) -> None:
        """Writes a message, or `count` of them in a row, when the peer takes it."""
        self._unwritten.append((message, count))
        self._count_unwritten(len(message))
        self._wake.set()
        if self._unwritten_bytes > _UNWRITTEN_BYTES_END:
            _log.info("client_reads_nothing", remote=self._socket.remote, unwritten_bytes=self._unwritten_bytes)
            self._socket.abort()

    def _count_unwritten(self, size_bytes: int) -> None:
        self._unwritten_bytes += size_bytes
        self._room.unwritten.used_bytes += size_bytes

    async def _until_drained(self) -> None:
        while self._unwritten_bytes > _UNWRITTEN_BYTES_MAX:
            self._drained.clear()
            await self._drained.wait()

    @property
    def _has_room_for_batches(self) -> bool:
        """Whether a reader may put more: this connection has not too much unwritten, nor have all together."""
        unwritten = self._room.unwritten
        held_bytes = self._unwritten_bytes + self._writing_bytes
        if not held_bytes:
            return not unwritten.is_full
        return held_bytes <= unwritten.share_bytes(_UNWRITTEN_BYTES_MAX)

    async def _until_room_for_batches(self) -> None:
        while not self._has_room_for_batches:
            if self._unwritten_bytes or self._writing_bytes:
                self._drained.clear()
                await self._drained.wait()
            else:
                await asyncio.sleep(_NODE_FULL_PAUSE_S)  # other connections hold it all

    async def _write(self) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._unwritten:
                    await self._send(b"".join(self._next_frame()))
                    self._drained.set()
        except SocketClosed:
            return  # the receiver meets the same end

    async def _send(self, frame: bytes) -> None:
        unwritten = self._room.unwritten
        self._writing_bytes = len(frame)
        unwritten.used_bytes += len(frame)
        sending = asyncio.create_task(self._socket.send(frame), name="client: frame")
        try:
            while not (await asyncio.wait((sending,), timeout=_STALLED_S))[0]:
                if unwritten.is_full:
                    _log.info("client_reads_nothing", remote=self._socket.remote)
                    self._socket.abort()
            await sending
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            unwritten.used_bytes -= len(frame)
            self._writing_bytes = 0

    def _next_frame(self) -> list[bytes]:
        """As many messages as fit one frame."""
        messages: list[bytes] = []
        size_bytes = in_all = 0
        while self._unwritten:
            message, count = self._unwritten[0]
            size = len(message)
            if messages and (size_bytes + size > _FRAME_BYTES_TARGET or in_all + count > _FRAME_MESSAGES_MAX):
                break
            size_bytes += size
            in_all += count
            messages.append(message)
            self._unwritten.popleft()
        self._count_unwritten(-size_bytes)
        return messages
