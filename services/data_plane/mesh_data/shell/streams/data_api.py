"""MeshDataService: producers, publish, read and describe, for this site's callers.

Any node answers for any stream of the mesh: what it does not hold it asks of a member. Bad input is answered with a stable
code and changes nothing. Batches pass as bytes: their header and checksum are checked, their records are the gateway's and
the clients' matter (docs/design/batches.md). Leaves out: Publish and Read of records (gateway), Ping and GetForwarding (`forwarding_api`). Source: meshapi/supervisor/v1/data.proto.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, Final, NoReturn

from mesh_data.core.stream_lookup import ANY_STREAM
from mesh_data.core.stream_requests import Published
from mesh_data.shell.stream_errors import bad_batch
from mesh_data.shell.streams.publish_call import BATCHES_MAX, CREDIT_BYTES, Batch, PublishCall, count_answer
from mesh_data.shell.streams.read_call import read_batches
from mesh_data.shell.streams.stream_budgets import StreamBudgets
from mesh_data.shell.streams.stream_calls import begin_producer, describe_live
from mesh_data.shell.streams.streams_catalogue import StreamsCatalogue, shutting_down
from mesh_data.shell.streams.streams_serving import describe
from meshapi.supervisor.v1 import data_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.grpc_server import error_detail
from meshcommon.ids import StreamId
from meshwire.batch import decode_header
from meshwire.errors import WireError

_NO_STREAM: Final = StreamId(0)


class StreamsApi:
    """The calls about streams; `main` mixes them into one servicer with those about forwarding."""

    def __init__(self, catalogue: StreamsCatalogue, budgets: StreamBudgets) -> None:
        self._catalogue = catalogue
        self._budgets = budgets
        self._calls: set[PublishCall] = set()

    def close(self) -> None:
        """The service stops: ends calls that would stay for ever, after the answers that are due."""
        self._catalogue.close()
        for call in self._calls:
            call.complete()

    async def InitProducer(  # noqa: N802 - named by the proto
        self, request: data_pb2.InitProducerRequest, context: Any
    ) -> data_pb2.InitProducerResponse:
        """Gives out a producer id, or the next epoch of a named one."""
        stream = self._catalogue.named(request.stream, request.stream_id)
        ready = await begin_producer(self._catalogue, stream, request.producer_name)
        return data_pb2.InitProducerResponse(
            producer_id=ready.producer_id,
            producer_epoch=ready.epoch,
            next_sequence=ready.next_sequence,
            last_offset_next=ready.last_offset_next,
            stream_id=stream.stream_id,
        )

    async def PublishBatch(  # noqa: N802 - named by the proto
        self, request_iterator: AsyncIterator[data_pb2.PublishBatchRequest], context: Any
    ) -> AsyncIterator[data_pb2.PublishBatchResponse]:
        """Publishes batches; answers in the order of the requests."""
        call = PublishCall(self._catalogue, self._budgets.publish)
        requests = _Requests(self._catalogue)
        answers = _Answers()

        async def take_requests() -> None:
            try:
                async for request in request_iterator:
                    batch = requests.batch(request)
                    await answers.room(len(batch.data))
                    await call.add(batch)
            finally:
                call.complete()

        async def give_answers() -> None:
            try:
                while (answered := await call.answer()) is not None:
                    answers.put(_publish_response(*answered), len(answered[0].data))
            finally:
                answers.end()

        taking = asyncio.create_task(take_requests(), name="publish: requests")
        giving = asyncio.create_task(give_answers(), name="publish: answers")
        self._calls.add(call)
        try:
            while (answer := await answers.next()) is not None:
                yield answer
            await giving
            if self._catalogue.closing.is_set():
                raise shutting_down()
            await taking
        finally:
            self._calls.discard(call)
            taking.cancel()
            giving.cancel()
            await asyncio.wait((taking, giving))
            await call.abandon()

    async def ReadBatches(  # noqa: N802 - named by the proto
        self, request: data_pb2.ReadBatchesRequest, context: Any
    ) -> AsyncIterator[data_pb2.ReadBatchesResponse]:
        """Streams committed batches in order."""
        stream = self._catalogue.named(request.stream, request.stream_id)
        responses = read_batches(
            self._catalogue,
            self._budgets.read_room,
            stream,
            request.from_offset,
            request.records_max,
            follow=request.follow,
            is_stale_ok=request.consistency == data_pb2.READ_CONSISTENCY_STALE_OK,
        )
        async for response in responses:
            yield response

    def Publish(self, request_iterator: Any, context: Any) -> NoReturn:  # noqa: N802 - named by the proto
        """Records are the gateway's matter."""
        raise _of_the_gateway("PublishBatch")

    def Read(self, request: Any, context: Any) -> NoReturn:  # noqa: N802 - named by the proto
        """Records are the gateway's matter."""
        raise _of_the_gateway("ReadBatches")

    async def DescribeStream(  # noqa: N802 - named by the proto
        self, request: data_pb2.DescribeStreamRequest, context: Any
    ) -> data_pb2.DescribeStreamResponse:
        """Live state from the leader; from the local replica while there is none, then without members."""
        stream = self._catalogue.named(request.stream, request.stream_id)
        if request.is_local:
            return await describe(self._catalogue, self._catalogue.served(stream.stream_id))

        return await describe_live(self._catalogue, stream)


class _Answers:
    """Answers of one call that its caller has not taken yet.

    What they answer counts against the call's own window until then, but not against what all publishers share: a caller
    that reads no answers holds back itself, and nobody else.
    """

    def __init__(self) -> None:
        self._untaken: deque[tuple[data_pb2.PublishBatchResponse, int]] = deque()
        self._owed = self._owed_bytes = 0
        self._came = asyncio.Event()
        self._went = asyncio.Event()
        self._is_over = False

    async def room(self, size_bytes: int) -> None:
        """Waits until one more batch may be owed an answer; then it is."""
        while self._owed and (self._owed >= BATCHES_MAX or self._owed_bytes + size_bytes > CREDIT_BYTES):
            self._went.clear()
            await self._went.wait()
        self._owed += 1
        self._owed_bytes += size_bytes

    def put(self, answer: data_pb2.PublishBatchResponse, size_bytes: int) -> None:
        """The next answer, to a batch of so many bytes."""
        self._untaken.append((answer, size_bytes))
        self._came.set()

    def end(self) -> None:
        """No more will come."""
        self._is_over = True
        self._came.set()

    async def next(self) -> data_pb2.PublishBatchResponse | None:
        """The next answer; None after the last one."""
        while not self._untaken:
            if self._is_over:
                return None
            self._came.clear()
            await self._came.wait()
        answer, size_bytes = self._untaken.popleft()
        self._owed -= 1
        self._owed_bytes -= size_bytes
        self._went.set()
        return answer


class _Requests:
    """Turns requests of one call into batches. What the first one says holds for those that leave it out."""

    def __init__(self, catalogue: StreamsCatalogue) -> None:
        self._catalogue = catalogue
        self._name = ""
        self._stream_id = _NO_STREAM
        self._wait = data_pb2.PUBLISH_WAIT_UNSPECIFIED

    def batch(self, request: data_pb2.PublishBatchRequest) -> Batch:
        """The batch of a request, or the refusal in its place."""
        try:
            return self._batch(request)
        except MeshError as error:
            return Batch(self._stream_id, self._name, b"", None, refusal=error)

    def _batch(self, request: data_pb2.PublishBatchRequest) -> Batch:
        wait = request.wait or self._wait
        if wait != data_pb2.PUBLISH_WAIT_COMMITTED:
            raise MeshError(
                ErrorCode.WAIT_REQUIRED, 'Say when the publish is complete: "committed" is the one value for now.'
            )
        self._wait = wait
        name = request.stream or self._name
        if not name:
            raise MeshError(ErrorCode.STREAM_NOT_FOUND, "Name the stream in the first request of the call.")
        if name != self._name or request.stream_id not in (ANY_STREAM, self._stream_id):
            self._stream_id = self._catalogue.named(name, request.stream_id).stream_id
            self._name = name
        try:
            header = decode_header(request.batch, verify=True)
        except WireError as error:
            raise bad_batch(error) from error
        return Batch(self._stream_id, self._name, request.batch, header)


def _of_the_gateway(instead: str) -> MeshError:
    return MeshError(
        ErrorCode.METHOD_NOT_ALLOWED,
        f"The data plane passes batches on and opens none: call {instead}, or ask the site's gateway.",
    )


def _publish_response(batch: Batch, outcome: Published | MeshError) -> data_pb2.PublishBatchResponse:
    count_answer(batch, outcome)
    if isinstance(outcome, MeshError):
        return data_pb2.PublishBatchResponse(error=error_detail(outcome), credit_bytes=CREDIT_BYTES)
    return data_pb2.PublishBatchResponse(
        base_offset=outcome.base_offset,
        count=outcome.count,
        is_duplicate=outcome.is_duplicate,
        credit_bytes=CREDIT_BYTES,
        stream_id=batch.stream_id,
    )
