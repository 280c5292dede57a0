"""Calls that speak of records, made as calls that speak of batches: one exchange for each call under way.

`Publish` goes on as `PublishBatch`, `Read` as `ReadBatches`. Used by the public gRPC port, reads by REST too. Leaves out: the
calls themselves (`calls`, `proxy`), and how records become batches (`core.batches`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from typing import Final

from opentelemetry import propagate

from mesh_gateway.core.batches import RecordSpan, encode_request
from mesh_gateway.core.byte_budget import ByteBudget
from meshapi.supervisor.v1 import data_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.grpc_server import error_detail
from meshcommon.logging import correlation_id
from meshwire.records import CORRELATION_ID, TRACE_PARENT, TRACE_STATE, Headers

OPENED_BYTES_MAX: Final = 64 * 1024 * 1024
"""Batches that take more than 1 MiB once they are open, over all reads: four of the largest."""


def opened_budget() -> ByteBudget:
    """What all reads of a gateway share."""
    return ByteBudget(OPENED_BYTES_MAX, "opened batches above 1 MiB")


def context_headers() -> Headers:
    """Trace context and correlation id of the call under way, as headers for its records."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    carrier[CORRELATION_ID] = correlation_id.get()
    names = (TRACE_PARENT, TRACE_STATE, CORRELATION_ID)
    return tuple((name, carrier[name].encode()) for name in names if carrier.get(name))


def batch_request(request: data_pb2.PublishRequest, context: Headers) -> data_pb2.PublishBatchRequest:
    """The request for the data plane. Raises MeshError as `encode_request`."""
    batch = encode_request(request, context, time.time_ns() // 1_000_000)
    return data_pb2.PublishBatchRequest(
        stream=request.stream, wait=request.wait, batch=batch, stream_id=request.stream_id
    )


class PublishExchange:
    """A Publish over gRPC. Make it within the call: its context goes into the records."""

    def __init__(self) -> None:
        self._context = context_headers()
        self._refusals: deque[MeshError | None] = deque()

    async def requests(
        self, requests: AsyncIterable[data_pb2.PublishRequest]
    ) -> AsyncIterator[data_pb2.PublishBatchRequest]:
        """The requests for the data plane. In place of one that cannot be encoded goes an empty one, to keep the order."""
        async for request in requests:
            try:
                encoded = batch_request(request, self._context)
            except MeshError as error:
                self._refusals.append(error)
                yield data_pb2.PublishBatchRequest(
                    stream=request.stream, wait=request.wait, stream_id=request.stream_id
                )
            else:
                self._refusals.append(None)
                yield encoded

    async def answers(
        self, answers: AsyncIterable[data_pb2.PublishBatchResponse]
    ) -> AsyncGenerator[data_pb2.PublishResponse]:
        """The answers for the caller, in the order of the requests."""
        async for answer in answers:
            refusal = self._refusals.popleft()
            error = answer.error if answer.HasField("error") else None
            # What the data plane has against stream or wait comes first; against the empty batch we know the reason.
            if refusal is not None and error is not None and error.code == ErrorCode.INVALID_ARGUMENT:
                error = error_detail(refusal)
            yield data_pb2.PublishResponse(
                base_offset=answer.base_offset,
                count=answer.count,
                is_duplicate=answer.is_duplicate,
                error=error,
                credit_bytes=answer.credit_bytes,
                stream_id=answer.stream_id,
            )


class ReadExchange:
    """A Read. `opened` is what all reads share."""

    def __init__(self, request: data_pb2.ReadRequest, opened: ByteBudget) -> None:
        self._span = RecordSpan(request.from_offset, request.records_max)
        self._opened = opened
        self.request = data_pb2.ReadBatchesRequest(
            stream=request.stream,
            from_offset=request.from_offset,
            records_max=request.records_max,
            follow=request.follow,
            consistency=request.consistency,
            stream_id=request.stream_id,
        )

    async def answers(
        self, answers: AsyncIterable[data_pb2.ReadBatchesResponse]
    ) -> AsyncGenerator[data_pb2.ReadResponse]:
        """The answers for the caller. Close it when it is not read to its end: it holds a part of the budget.

        Raises:
            MeshError: BATCH_UNREADABLE after the records before that batch; BACKPRESSURE.
        """
        async for answer in answers:
            if self._span.is_complete:
                continue  # the data plane ends the call by itself, at the end of a batch
            with self._opened.share() as share:
                for response in self._span.responses(answer, share):
                    yield response
