"""MeshDataService: producers, publish, read and describe, for this site's callers.

Any node answers for any stream of the mesh: what it does not hold it asks of a member. Bad input is answered with a stable
code and changes nothing. Leaves out: Ping and GetForwarding (`forwarding_api`). Source: meshapi/supervisor/v1/data.proto.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

from mesh_data.core.stream_requests import Published
from mesh_data.shell.publish_call import CREDIT_BYTES, Batch, PublishCall, count_answer
from mesh_data.shell.read_call import read_stream
from mesh_data.shell.stream_calls import begin_producer, describe_live
from mesh_data.shell.streams_catalogue import StreamsCatalogue, shutting_down
from mesh_data.shell.streams_serving import describe
from meshapi.supervisor.v1 import data_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.grpc_server import error_detail
from meshcommon.ids import StreamId
from meshwire.batch import (
    HEADER_BYTES,
    MAX_BODY_BYTES,
    MAX_RECORD_BYTES,
    MAX_RECORDS,
    Record,
    decode_header,
    encode_batch,
)
from meshwire.errors import WireCode, WireError

_NO_STREAM: Final = StreamId(0)
KEY_BYTES_MAX: Final = 32 * 1024


class StreamsApi:
    """The calls about streams; `main` mixes them into one servicer with those about forwarding."""

    def __init__(self, catalogue: StreamsCatalogue) -> None:
        self._catalogue = catalogue
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
        stream = self._catalogue.named(request.stream)
        ready = await begin_producer(self._catalogue, stream, request.producer_name)
        return data_pb2.InitProducerResponse(
            producer_id=ready.producer_id,
            producer_epoch=ready.epoch,
            next_sequence=ready.next_sequence,
            last_offset_next=ready.last_offset_next,
        )

    async def Publish(  # noqa: N802 - named by the proto
        self, request_iterator: AsyncIterator[data_pb2.PublishRequest], context: Any
    ) -> AsyncIterator[data_pb2.PublishResponse]:
        """Publishes batches; answers in the order of the requests."""
        call = PublishCall(self._catalogue)
        requests = _Requests(self._catalogue)

        async def take_requests() -> None:
            try:
                async for request in request_iterator:
                    await call.add(requests.batch(request))
            finally:
                call.complete()

        taking = asyncio.create_task(take_requests(), name="publish: requests")
        self._calls.add(call)
        try:
            while (answered := await call.answer()) is not None:
                yield _publish_response(*answered)
            if self._catalogue.closing.is_set():
                raise shutting_down()
            await taking
        finally:
            self._calls.discard(call)
            taking.cancel()
            await asyncio.wait((taking,))
            await call.abandon()

    async def Read(  # noqa: N802 - named by the proto
        self, request: data_pb2.ReadRequest, context: Any
    ) -> AsyncIterator[data_pb2.ReadResponse]:
        """Streams committed records in order."""
        stream = self._catalogue.named(request.stream)
        responses = read_stream(
            self._catalogue,
            stream.stream_id,
            request.from_offset,
            request.records_max,
            follow=request.follow,
            is_stale_ok=request.consistency == data_pb2.READ_CONSISTENCY_STALE_OK,
        )
        async for response in responses:
            yield response

    async def DescribeStream(  # noqa: N802 - named by the proto
        self, request: data_pb2.DescribeStreamRequest, context: Any
    ) -> data_pb2.DescribeStreamResponse:
        """Live state from the leader; from the local replica while there is none, then without members."""
        stream = self._catalogue.named(request.stream)
        if request.is_local:
            return await describe(self._catalogue, self._catalogue.served(stream.stream_id))

        return await describe_live(self._catalogue, stream)


class _Requests:
    """Turns requests of one call into batches. What the first one says holds for those that leave it out."""

    def __init__(self, catalogue: StreamsCatalogue) -> None:
        self._catalogue = catalogue
        self._name = ""
        self._stream_id = _NO_STREAM
        self._wait = data_pb2.PUBLISH_WAIT_UNSPECIFIED

    def batch(self, request: data_pb2.PublishRequest) -> Batch:
        """The batch of a request, or the refusal in its place."""
        try:
            return self._batch(request)
        except MeshError as error:
            return Batch(self._stream_id, request.stream or self._name, b"", None, refusal=error)

    def _batch(self, request: data_pb2.PublishRequest) -> Batch:
        wait = request.wait or self._wait
        if wait != data_pb2.PUBLISH_WAIT_COMMITTED:
            raise MeshError(
                ErrorCode.WAIT_REQUIRED, 'Say when the publish is complete: "committed" is the one value for now.'
            )
        self._wait = wait
        if request.stream and request.stream != self._name:
            self._stream_id = self._catalogue.named(request.stream).stream_id
            self._name = request.stream
        if self._stream_id == _NO_STREAM:
            raise MeshError(ErrorCode.STREAM_NOT_FOUND, "Name the stream in the first request of the call.")
        data = _encode(request)
        return Batch(self._stream_id, self._name, data, decode_header(data))


def _encode(request: data_pb2.PublishRequest) -> bytes:
    if not request.records:
        raise MeshError(ErrorCode.EMPTY_BATCH, "The batch has no records: send at least one.")
    records = [Record(item.value, item.key if item.HasField("key") else None) for item in request.records]
    for record in records:
        key_bytes = len(record.key) if record.key is not None else 0
        if key_bytes > KEY_BYTES_MAX:
            raise _too_large("A key", key_bytes, KEY_BYTES_MAX, "bytes")
        if len(record.value) + key_bytes > MAX_RECORD_BYTES:
            raise _too_large("A record", len(record.value) + key_bytes, MAX_RECORD_BYTES, "bytes")
    try:
        return encode_batch(records, request.producer_id, request.producer_epoch, request.base_sequence)
    except WireError as error:
        if error.code != WireCode.TOO_LARGE:
            raise MeshError(ErrorCode.INVALID_ARGUMENT, f"The batch cannot be encoded: {error.reason}.") from error
    if len(records) > MAX_RECORDS:
        raise _too_large("The batch", len(records), MAX_RECORDS, "records")
    raise _too_large("The batch", HEADER_BYTES + request.ByteSize(), MAX_BODY_BYTES, "bytes")


def _too_large(what: str, size: int, limit: int, unit: str) -> MeshError:
    return MeshError(
        ErrorCode.MESSAGE_TOO_LARGE,
        f"{what} has {size} {unit}, the limit is {limit}: split it.",
        {"size": str(size), "limit": str(limit)},
    )


def _publish_response(batch: Batch, outcome: Published | MeshError) -> data_pb2.PublishResponse:
    count_answer(batch, outcome)
    if isinstance(outcome, MeshError):
        return data_pb2.PublishResponse(error=error_detail(outcome), credit_bytes=CREDIT_BYTES)
    return data_pb2.PublishResponse(
        base_offset=outcome.base_offset,
        count=outcome.count,
        is_duplicate=outcome.is_duplicate,
        credit_bytes=CREDIT_BYTES,
    )
