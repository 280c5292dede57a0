"""A client of one data plane's own gRPC port, for tests that run no gateway: it passes batches, so records are opened here."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc

from meshapi.supervisor.v1 import data_pb2
from meshcommon.grpc_client import from_detail, mesh_error
from meshtest.gateway_client import Gateway
from meshwire.records import Record, decode_records, encode_batch


class DataPlane(Gateway):
    """Publishes and reads like the gateway's client; calls of the mesh are not served there."""

    async def publish_request(self, request: data_pb2.PublishRequest) -> data_pb2.PublishResponse:
        """Sends one batch; an error in its answer is raised like one of the call."""
        records = [Record(record.value, record.key if record.HasField("key") else None) for record in request.records]
        batch = encode_batch(records, request.producer_id, request.producer_epoch, request.base_sequence)

        async def requests() -> AsyncIterator[data_pb2.PublishBatchRequest]:
            yield data_pb2.PublishBatchRequest(
                stream=request.stream, wait=request.wait, batch=batch, stream_id=request.stream_id
            )

        try:
            async for answer in self.data.PublishBatch(requests(), timeout=20):
                if answer.HasField("error"):
                    raise from_detail(answer.error)
                return data_pb2.PublishResponse(
                    base_offset=answer.base_offset,
                    count=answer.count,
                    is_duplicate=answer.is_duplicate,
                    stream_id=answer.stream_id,
                )
        except grpc.aio.AioRpcError as error:
            raise mesh_error(error, "data plane") from error
        raise ConnectionError("the call ended without an answer")

    async def read(
        self, stream: str, from_offset: int = 0, records_max: int = 0, *, follow: bool = False
    ) -> AsyncIterator[data_pb2.ReadRecord]:
        """Records from an offset on."""
        request = data_pb2.ReadBatchesRequest(
            stream=stream, from_offset=from_offset, records_max=records_max, follow=follow
        )
        given = 0
        try:
            async for response in self.data.ReadBatches(request):
                for batch in response.batches:
                    for offset, record in enumerate(decode_records(batch.batch), batch.base_offset):
                        # A batch comes whole, also when the read begins or ends inside of it.
                        if offset >= from_offset and not 0 < records_max <= given:
                            given += 1
                            yield data_pb2.ReadRecord(
                                offset=offset, value=record.value, key=record.key, timestamp_ms=batch.timestamp_ms
                            )
        except grpc.aio.AioRpcError as error:
            raise mesh_error(error, "data plane") from error
