"""Fuzz target of the gRPC services: real servers and their real methods, with bytes that are a message or none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from data_plane_testing.stream_cluster import NAME, A, cluster
from mesh_data.shell.streams.data_api import StreamsApi
from mesh_data.shell.streams.raft_api import RaftApi
from mesh_data.shell.streams.stream_budgets import StreamBudgets
from mesh_data.shell.streams.streams_catalogue import StreamsCatalogue
from meshapi.supervisor.v1 import data_pb2, data_pb2_grpc, mesh_pb2, mesh_pb2_grpc
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.grpc_client import open_channel
from meshcommon.grpc_server import GrpcServer
from services.control_plane.tests.shell.conftest import SmallMesh
from tests.fuzz.shell_targets import Attempt, ShellTarget

_MESH: Final = mesh_pb2.DESCRIPTOR.services_by_name["MeshService"]
_DATA: Final = data_pb2.DESCRIPTOR.services_by_name["MeshDataService"]
_LEFT_OUT: Final = frozenset({"Leave", "Stop", "GetForwarding", "Ping"})
"""After the first two nothing else would be reached; the last two belong to the overlay, which has its own target."""
_UNDOCUMENTED: Final = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS})
_TIMEOUT_S: Final = 0.25
_RESPONSES_MAX: Final = 3


class _Data(StreamsApi, RaftApi, data_pb2_grpc.MeshDataServiceServicer):
    """The data plane's public calls without those of the overlay."""

    def __init__(self, catalogue: StreamsCatalogue, budgets: StreamBudgets) -> None:
        StreamsApi.__init__(self, catalogue, budgets)
        RaftApi.__init__(self, catalogue)

    async def GetForwarding(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Not here."""
        raise MeshError(ErrorCode.UNAVAILABLE, "There is no overlay here.")

    async def Ping(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Not here."""
        raise MeshError(ErrorCode.UNAVAILABLE, "There is no overlay here.")


def _methods(*services: ServiceDescriptor) -> list[MethodDescriptor]:
    return [method for service in services for method in service.methods if method.name not in _LEFT_OUT]


METHODS: Final = _methods(_MESH, _DATA)


class _Caller:
    """Calls whichever method the first byte names with the rest as its message."""

    def __init__(self, channels: dict[str, grpc.aio.Channel]) -> None:
        self._channels = channels

    async def attempt(self, data: bytes) -> None:
        """One call; statuses that say nothing are findings."""
        if not data:
            return
        method = METHODS[data[0] % len(METHODS)]
        try:
            async with asyncio.timeout(10 * _TIMEOUT_S):
                await self._call(method, data[1:])
        except grpc.aio.AioRpcError as error:
            if error.code() in _UNDOCUMENTED and not _is_from_client_library(error):
                raise

    async def _call(self, method: MethodDescriptor, message: bytes) -> None:
        service = method.containing_service
        channel: Any = self._channels[service.name]
        kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
        call = getattr(channel, kind)(
            f"/{service.full_name}/{method.name}",
            response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
        )
        running = call(_one(message) if method.client_streaming else message, timeout=_TIMEOUT_S)
        if not method.server_streaming:
            await running
            return
        count = 0
        async for _response in running:
            count += 1
            if count >= _RESPONSES_MAX:
                running.cancel()
                return


def _is_from_client_library(error: grpc.aio.AioRpcError) -> bool:
    """Whether grpc made the status up at this end: the server had ended the call before the request was sent."""
    return (error.debug_error_string() or "").startswith('Failed "execute_batch"')


async def _one(message: bytes) -> AsyncIterator[bytes]:
    yield message


@asynccontextmanager
async def _open_grpc(directory: Path) -> AsyncIterator[Attempt]:
    async with AsyncExitStack() as stack:
        made = await stack.enter_async_context(cluster(directory / "data"))
        await made.formed()
        small = SmallMesh(directory / "control")
        (node,) = await small.grow("a")
        stack.push_async_callback(small.crash, "a")
        servers = {"MeshService": GrpcServer(), "MeshDataService": GrpcServer()}
        mesh_pb2_grpc.add_MeshServiceServicer_to_server(node.service, servers["MeshService"].server)
        data: data_pb2_grpc.MeshDataServiceServicer = _Data(made.sites[A].catalogue, made.sites[A].budgets)
        data_pb2_grpc.add_MeshDataServiceServicer_to_server(data, servers["MeshDataService"].server)
        channels = {}
        for name, server in servers.items():
            port = await server.start("127.0.0.1:0", name)
            stack.push_async_callback(server.server.stop, None)
            channels[name] = open_channel(f"127.0.0.1:{port}")
            stack.push_async_callback(channels[name].close)
        yield _Caller(channels).attempt


def _seeds() -> tuple[bytes, ...]:
    found: list[bytes] = []
    for at, method in enumerate(METHODS):
        message = message_factory.GetMessageClass(method.input_type)()
        found.append(bytes((at,)))
        for field in method.input_type.fields:
            _fill(message, field.name, field.cpp_type, is_repeated=isinstance(getattr(message, field.name), Sequence))
        found.append(bytes((at,)) + message.SerializeToString())
    return tuple(found)


def _fill(message: Any, name: str, kind: int, *, is_repeated: bool) -> None:
    """A value that is not far from a sensible one."""
    texts = {"stream": NAME, "name": NAME, "members": "a", "node": "n1", "add": "a"}
    if kind == 9:  # CPPTYPE_STRING, also of bytes
        value: Any = texts.get(name, "x")
        if isinstance(getattr(message, name), bytes):
            value = b"x"
        if is_repeated and not isinstance(getattr(message, name), str | bytes):
            getattr(message, name).append(value)
        else:
            setattr(message, name, value)
    elif kind in {1, 2, 3, 4, 7, 8} and not is_repeated:  # integers, bool, enum
        setattr(message, name, 1)


GRPC_TARGETS: Final = (ShellTarget("grpc_services", _open_grpc, _seeds()),)
