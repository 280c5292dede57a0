"""gRPC services whose answers a test decides: stand-ins for control plane, routing, data plane or a whole gateway.

Built from the descriptors, so a method that the proto gains is there at once. A method without an answer set gives
UNIMPLEMENTED. What was asked is recorded. Leaves out any behaviour of the real services.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Final, Self

import grpc
import grpc.aio
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from meshapi.supervisor.v1 import ca_pb2, data_pb2, mesh_pb2, topology_pb2
from meshcommon.grpc_server import GrpcServer
from meshcommon.tls_files import TlsFiles
from meshwire.batch import decode_header
from meshwire.records import Record, decode_records, encode_batch

MESH_SERVICE: Final = mesh_pb2.DESCRIPTOR.services_by_name["MeshService"]
CA_SERVICE: Final = ca_pb2.DESCRIPTOR.services_by_name["CaService"]
TOPOLOGY_SERVICE: Final = topology_pb2.DESCRIPTOR.services_by_name["TopologyService"]
DATA_SERVICE: Final = data_pb2.DESCRIPTOR.services_by_name["MeshDataService"]

Answer = Callable[[Any, Any], Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """One call that came in. `request` is None where the caller streams."""

    method: str
    request: Any
    metadata: dict[str, str | bytes]
    time_remaining_s: float | None


@dataclass(slots=True)
class FakeServer:
    """A server with the given services. `answers[METHOD] = async def (request, context)`, a generator where it streams.

    Use as an asynchronous context manager; the address is in `target`.
    """

    services: tuple[ServiceDescriptor, ...]
    answers: dict[str, Answer] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    listen: str = "127.0.0.1:0"
    tls: TlsFiles | None = None
    target: str = ""
    server: GrpcServer = field(default_factory=GrpcServer)

    def answer(self, method: str, message: Any) -> None:
        """Makes `method` (unary) always answer `message`, or raise it when it is an exception."""

        async def fixed(_request: Any, _context: Any) -> Any:
            if isinstance(message, Exception):
                raise message
            return message

        self.answers[method] = fixed

    def answer_reads(self, read: Answer) -> None:
        """Makes ReadBatches give the records of `read`, a generator of `ReadResponse`: each of them becomes one batch."""

        async def read_batches(request: Any, context: Any) -> AsyncIterator[data_pb2.ReadBatchesResponse]:
            async for response in read(request, context):
                yield _batches(response)

        self.answers["ReadBatches"] = read_batches

    def answer_publishes(self, publish: Answer) -> None:
        """Makes PublishBatch give its batches, opened, to `publish`: requests and answers are those of Publish."""

        async def publish_batch(requests: Any, context: Any) -> AsyncIterator[data_pb2.PublishBatchResponse]:
            opened = (_publish_request(request) async for request in requests)
            async for response in publish(opened, context):
                yield data_pb2.PublishBatchResponse.FromString(response.SerializeToString())

        self.answers["PublishBatch"] = publish_batch

    async def __aenter__(self) -> Self:
        """Starts it, serving."""
        for service in self.services:
            handlers = {method.name: self._handler(method) for method in service.methods}
            generic = grpc.method_handlers_generic_handler(service.full_name, handlers)
            self.server.server.add_generic_rpc_handlers((generic,))
        port = await self.server.start(self.listen, "A fake server", tls=self.tls)
        self.target = f"127.0.0.1:{port}"
        await self.server.set_serving(True)
        return self

    async def __aexit__(self, *_exception: object) -> None:
        """Ends it at once, with whatever still runs."""
        await self.server.server.stop(None)

    def _handler(self, method: MethodDescriptor) -> Any:
        async def unary(request: Any, context: Any) -> Any:
            return await self._find(method, request, context)(request, context)

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            async for item in self._find(method, request, context)(request, context):
                yield item

        kinds: dict[tuple[bool, bool], Any] = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }
        return kinds[method.client_streaming, method.server_streaming](
            stream if method.server_streaming else unary,
            request_deserializer=message_factory.GetMessageClass(method.input_type).FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )

    def _find(self, method: MethodDescriptor, request: Any, context: Any) -> Answer:
        asked = None if method.client_streaming else request
        metadata = dict(context.invocation_metadata() or ())
        self.asked.append(Asked(method.name, asked, metadata, context.time_remaining()))
        found = self.answers.get(method.name)
        if found is None:
            return _stream_unimplemented if method.server_streaming else _unimplemented
        return found


def _batches(response: data_pb2.ReadResponse) -> data_pb2.ReadBatchesResponse:
    batches = []
    if response.records:
        records = [
            Record(
                item.value,
                item.key if item.HasField("key") else None,
                tuple((header.name, header.value) for header in item.headers),
            )
            for item in response.records
        ]
        first = response.records[0]
        batches.append(
            data_pb2.ReadBatch(base_offset=first.offset, timestamp_ms=first.timestamp_ms, batch=encode_batch(records))
        )
    return data_pb2.ReadBatchesResponse(
        batches=batches,
        next_offset=response.next_offset,
        stream_id=response.stream_id,
        view=response.view if response.HasField("view") else None,
    )


def _publish_request(request: data_pb2.PublishBatchRequest) -> data_pb2.PublishRequest:
    header = decode_header(request.batch)
    return data_pb2.PublishRequest(
        stream=request.stream,
        wait=request.wait,
        stream_id=request.stream_id,
        producer_id=header.producer_id,
        producer_epoch=header.producer_epoch,
        base_sequence=header.base_sequence,
        records=[
            data_pb2.PublishRecord(
                value=record.value,
                key=record.key,
                headers=(data_pb2.RecordHeader(name=name, value=value) for name, value in record.headers),
            )
            for record in decode_records(request.batch)
        ],
    )


async def _unimplemented(_request: Any, context: Any) -> Any:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "the test set no answer")


async def _stream_unimplemented(_request: Any, context: Any) -> AsyncIterator[Any]:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "the test set no answer")
    yield None
