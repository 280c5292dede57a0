"""The way in: one connection to a data plane, made again when it is lost, and what can be done over it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from meshclient.connection import Connection, decoded, encoded
from meshclient.gathering import Batching
from meshclient.producer import Producer
from meshclient.reading import Reader
from meshcommon.address import is_loopback, is_peer_address, parse_peer_address
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.operator_token import is_token
from meshcommon.tls_contexts import trusting
from meshwire import client as wire
from meshwire.client import ANY_STREAM, Kind, StreamInfo

GIVE_UP_AFTER_S: Final = 30.0
_CONNECT_TIMEOUT_S: Final = 5.0
_DESCRIBE_TIMEOUT_S: Final = 10.0


class MeshClient:
    """A client of one mesh. Use as an asynchronous context manager; it belongs to one event loop.

    Producers and readers share its connection. With several addresses the next one is tried when one does not answer; any
    node serves any stream.
    """

    def __init__(
        self,
        *addresses: str,
        give_up_after_s: float = GIVE_UP_AFTER_S,
        tls: ssl.SSLContext | None = None,
        ca_file: str | Path | None = None,
        token: str | None = None,
    ) -> None:
        """Nothing happens before something is asked.

        Args:
            addresses: `ws://host:port` or, over TLS, `wss://host:port` of client listeners (`MESH_DATA_CLIENT_LISTEN`).
            give_up_after_s: Time without progress after which a producer or reader fails, seconds.
            tls: Judges the certificates of `wss` addresses; without it and `ca_file` the system's authorities do. With one
                of them an address in clear is refused.
            ca_file: PEM file of the only authorities to trust: the short form of `tls`.
            token: The operator's token of the site, for listeners that other machines reach. It is shown over TLS, and in
                clear to a loopback address only.

        Raises:
            MeshError: INVALID_ARGUMENT: no address, both `tls` and `ca_file`, a file without certificates, no token, or one
                for an address in clear that is not a loopback one.
        """
        if token is not None:
            _check_token(token, addresses)
        if tls is not None and ca_file is not None:
            raise MeshError(ErrorCode.INVALID_ARGUMENT, "Give tls or ca_file, not both.")
        if not addresses:
            raise MeshError(ErrorCode.INVALID_ARGUMENT, "Name the address of a data plane's client listener.")
        self._addresses = addresses
        self._tls = tls if ca_file is None else trusting(ca_file)
        self._token = token
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
            MeshError: ADDRESS_UNREACHABLE, TLS_FAILED, WRONG_PROTOCOL, BACKPRESSURE or INVALID_ARGUMENT.
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
                self._connection = await Connection.open(address, _CONNECT_TIMEOUT_S, self._tls, self._token)
            except MeshError:
                self._turn += 1
                raise
            return self._connection

    def producer(
        self, stream: str, *, name: str = "", batching: Batching | None = None, stream_id: int = ANY_STREAM
    ) -> Producer:
        """A producer of `stream` (`namespace/name`); enter it to begin.

        Args:
            stream: The stream's name.
            name: Stable name of the producer: it goes on where the last one of that name ended, which is fenced. Empty for
                an anonymous one.
            batching: How it gathers records; the default suits both a lone record and a flood.
            stream_id: The stream that is meant, as `Producer.stream_id` told before; entering the producer is refused with
                STREAM_REPLACED when another one has the name by now. 0 for whichever has it.
        """
        return Producer(self, stream, name, batching or Batching(), self._give_up_after_s, stream_id)

    def read(self, stream: str, from_offset: int = 0, *, follow: bool = False, stream_id: int = ANY_STREAM) -> Reader:
        """Records from `from_offset` on, in order; ends at the stream's end unless told to `follow`.

        An offset belongs to one stream. Whoever keeps `Reader.next_offset` to go on from later keeps `Reader.stream_id` with
        it and gives both here: another stream that has the name by then refuses the read with STREAM_REPLACED, in place of
        giving records that the offset was never meant for.

        Raises:
            MeshError: from the iteration: OFFSET_PAST_END, OFFSET_BELOW_FLOOR, STREAM_NOT_FOUND, STREAM_REPLACED, or the
                last failure when there was no progress for `give_up_after_s`.
        """
        return Reader(self, stream, from_offset, self._give_up_after_s, follow=follow, stream_id=stream_id)

    async def describe(self, stream: str, *, stream_id: int = ANY_STREAM) -> StreamInfo:
        """The stream as its leader sees it.

        Raises:
            MeshError: STREAM_NOT_FOUND, STREAM_REPLACED, ILLEGAL_NAME, STREAM_UNAVAILABLE, or that nothing answers.
        """
        connection = await self.connection()
        request = encoded(lambda: wire.encode_describe(wire.Describe(stream, stream_id)))
        _, body = await connection.ask(Kind.DESCRIBE, request, _DESCRIBE_TIMEOUT_S)
        return decoded(lambda: wire.decode_stream(body))


def _check_token(token: str, addresses: Sequence[str]) -> None:
    """Refuses what is no token, and one that would cross a network in clear. Raises INVALID_ARGUMENT."""
    if not is_token(token):
        raise MeshError(ErrorCode.INVALID_ARGUMENT, "The token is no operator's token: give it as it was printed.")
    for address in filter(is_peer_address, addresses):
        target = parse_peer_address(address)
        if target.scheme != "wss" and not is_loopback(target.host):
            text = f"{target} is in clear, and a token is shown over TLS only: use wss://host:port."
            raise MeshError(ErrorCode.INVALID_ARGUMENT, text, {"address": str(target)})
