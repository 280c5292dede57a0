"""The connection of one command to a gateway."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, TypeVar

import grpc
import grpc.aio

from meshapi.supervisor.v1.ca_pb2_grpc import CaServiceStub
from meshapi.supervisor.v1.data_pb2_grpc import MeshDataServiceStub
from meshapi.supervisor.v1.mesh_pb2_grpc import MeshServiceStub
from meshapi.supervisor.v1.topology_pb2_grpc import TopologyServiceStub
from meshcommon.address import is_exposed
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.grpc_client import call_metadata, is_broken, mesh_error, open_channel
from meshcommon.logging import correlation_id, new_correlation_id
from meshcommon.operator_token import is_token
from meshcommon.tls_contexts import trusting
from meshctl.options import Options

if TYPE_CHECKING:
    from meshapi.supervisor.v1.ca_pb2_grpc import CaServiceAsyncStub
    from meshapi.supervisor.v1.data_pb2_grpc import MeshDataServiceAsyncStub
    from meshapi.supervisor.v1.mesh_pb2_grpc import MeshServiceAsyncStub
    from meshapi.supervisor.v1.topology_pb2_grpc import TopologyServiceAsyncStub

TOKEN_VARIABLE: Final = "MESH_TOKEN"  # noqa: S105 - the name of a variable
"""Holds the operator's token, where no file does."""
RequestT = TypeVar("RequestT")
ResultT = TypeVar("ResultT")
if TYPE_CHECKING:
    Method = grpc.aio.UnaryUnaryMultiCallable[RequestT, ResultT]


class Connection:
    """Stubs of the four public services. Use as an asynchronous context manager."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._channel = open_channel(options.gateway, _credentials(options), _token(options))
        self.mesh: MeshServiceAsyncStub = MeshServiceStub(self._channel)
        self.ca: CaServiceAsyncStub = CaServiceStub(self._channel)
        self.topology: TopologyServiceAsyncStub = TopologyServiceStub(self._channel)
        self.data: MeshDataServiceAsyncStub = MeshDataServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self._channel.close()

    async def call(self, method: Method[RequestT, ResultT], request: RequestT, *, extra_s: float = 0) -> ResultT:
        """One unary call within the user's time limit plus `extra_s`.

        Raises:
            MeshError: The other side's refusal, or what went wrong on the way.
        """
        try:
            return await method(request, timeout=self.options.timeout_s + extra_s, metadata=call_metadata())
        except grpc.aio.AioRpcError as error:
            raise self.explain(error) from error

    def explain(self, error: grpc.aio.AioRpcError) -> MeshError:
        """`error` as ours; when nothing listens at the gateway's address the text says what to do about it."""
        found = mesh_error(error, "gateway")
        if is_broken(error) and found.code is not ErrorCode.TLS_FAILED:
            return MeshError(
                ErrorCode.UNAVAILABLE,
                f"No gateway answers at {self.options.gateway}: start the node, or name its gateway's gRPC address "
                "(not that of REST or of meshclient) with --gateway or MESH_CTL_GATEWAY; one that speaks TLS takes --tls or "
                "--tls-ca.",
                {"gateway": self.options.gateway},
            )
        return found


def _credentials(options: Options) -> grpc.ChannelCredentials | None:
    """What judges the gateway's certificate; None: in clear. Raises INVALID_ARGUMENT for a file without certificates."""
    if not options.uses_tls:
        return None
    # gRPC has authorities of its own beside those of the system; they serve where the system has no such file.
    file = options.tls_ca or ssl.get_default_verify_paths().cafile or ""
    if not file:
        return grpc.ssl_channel_credentials()
    trusting(file)  # says what is wrong with the file, which gRPC does not
    return grpc.ssl_channel_credentials(Path(file).read_bytes())


def _token(options: Options) -> str:
    """The operator's token to show; empty: none.

    Raises:
        MeshError: INVALID_ARGUMENT: it cannot be read, is none, or would cross a network in clear.
    """
    token, source = os.environ.get(TOKEN_VARIABLE, ""), TOKEN_VARIABLE
    if options.token_file:
        source = options.token_file
        try:
            token = Path(source).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no text"
            text = f"The token file {source} cannot be read ({why}): correct --token-file."
            raise MeshError(ErrorCode.INVALID_ARGUMENT, text) from None
    if not token and not options.token_file:
        return ""
    if not is_token(token):
        text = f"{source} holds no operator's token: give it the line that was printed when the token was made."
        raise MeshError(ErrorCode.INVALID_ARGUMENT, text)
    if not options.uses_tls and is_exposed(options.gateway):
        text = f"The operator's token would go to {options.gateway} in clear: add --tls or --tls-ca."
        raise MeshError(ErrorCode.INVALID_ARGUMENT, text)
    return token


def run(options: Options, work: Callable[[Connection], Awaitable[ResultT]]) -> ResultT:
    """Runs `work` with a connection, in an event loop of its own. Ctrl-C cancels it and raises KeyboardInterrupt."""

    async def connected() -> ResultT:
        async with Connection(options) as connection:
            return await work(connection)

    # Outside of the loop, whose context is a copy: the text of an error may tell it.
    correlation_id.set(new_correlation_id())
    return asyncio.run(connected())
