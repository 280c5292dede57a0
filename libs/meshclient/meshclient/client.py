"""The way in: one connection to a data plane, made again when it is lost, and what can be done over it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Final, Self

from meshclient.connection import Connection
from meshclient.gathering import Batching
from meshclient.producer import Producer
from meshclient.reading import Record, read_records
from meshcommon.errors import ErrorCode, MeshError
from meshwire import client as wire
from meshwire.client import Kind, StreamInfo

GIVE_UP_AFTER_S: Final = 30.0
_CONNECT_TIMEOUT_S: Final = 5.0
_DESCRIBE_TIMEOUT_S: Final = 10.0


class MeshClient:
    """A client of one mesh. Use as an asynchronous context manager; it belongs to one event loop.

    Producers and readers share its connection. With several addresses the next one is tried when one does not answer; any
    node serves any stream.
    """

    def __init__(self, *addresses: str, give_up_after_s: float = GIVE_UP_AFTER_S) -> None:
        """Nothing happens before something is asked.

        Args:
            addresses: `ws://host:port` of client listeners (`MESH_DATA_CLIENT_LISTEN`).
            give_up_after_s: Time without progress after which a producer or reader fails, seconds.
        """
        if not addresses:
            raise MeshError(ErrorCode.INVALID_ARGUMENT, "Name the address of a data plane's client listener.")
        self._addresses = addresses
        self._turn = 0
        self._give_up_after_s = give_up_after_s
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection. Close producers first: what they have not had answered stays open."""
        async with self._connecting:
            connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def connection(self) -> Connection:
        """The connection; a new one when there is none or it was lost.

        Raises:
            MeshError: ADDRESS_UNREACHABLE, WRONG_PROTOCOL, BACKPRESSURE or INVALID_ARGUMENT.
        """
        async with self._connecting:
            if self._connection is not None and not self._connection.is_lost:
                return self._connection
            if self._connection is not None:
                await self._connection.close()
                self._connection = None
                self._turn += 1
            address = self._addresses[self._turn % len(self._addresses)]
            try:
                self._connection = await Connection.open(address, _CONNECT_TIMEOUT_S)
            except MeshError:
                self._turn += 1
                raise
            return self._connection

    def producer(self, stream: str, *, name: str = "", batching: Batching | None = None) -> Producer:
        """A producer of `stream` (`namespace/name`); enter it to begin.

        Args:
            stream: The stream's name.
            name: Stable name of the producer: it goes on where the last one of that name ended, which is fenced. Empty for
                an anonymous one.
            batching: How it gathers records; the default suits both a lone record and a flood.
        """
        return Producer(self, stream, name, batching or Batching(), self._give_up_after_s)

    def read(self, stream: str, from_offset: int = 0, *, follow: bool = False) -> AsyncGenerator[Record]:
        """Records from `from_offset` on, in order; ends at the stream's end unless told to `follow`.

        Raises:
            MeshError: OFFSET_PAST_END, OFFSET_BELOW_FLOOR, STREAM_NOT_FOUND, or the last failure when there was no progress
                for `give_up_after_s`.
        """
        return read_records(self, stream, from_offset, self._give_up_after_s, follow=follow)

    async def describe(self, stream: str) -> StreamInfo:
        """The stream as its leader sees it.

        Raises:
            MeshError: STREAM_NOT_FOUND, ILLEGAL_NAME, STREAM_UNAVAILABLE, or that nothing answers.
        """
        connection = await self.connection()
        _, body = await connection.ask(Kind.DESCRIBE, wire.encode_name(stream), _DESCRIBE_TIMEOUT_S)
        return wire.decode_stream(body)
