"""Reads one stream in order, across lost connections: batches under byte credit, opened here.

The node sends as much as it has credit for; credit goes back as records are taken, so a slow reader slows only itself.
Leaves out: where a reader left off last time: the caller keeps its offset. Source: architecture §5 "cursors with byte credit".
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from meshclient.backoff import Backoff
from meshclient.connection import Connection, read_error
from meshcommon.errors import ErrorCode, MeshError
from meshwire import client as wire
from meshwire.batch import Record as WireRecord
from meshwire.batch import decode_records
from meshwire.client import Kind
from meshwire.errors import WireError

if TYPE_CHECKING:
    from meshclient.client import MeshClient

CREDIT_BYTES: Final = 1024 * 1024
"""What the node may send ahead of the reader; so much memory a read takes, and one batch more."""


@dataclass(frozen=True, slots=True)
class Record:
    """A committed record.

    Attributes:
        offset: Its place in the stream.
        timestamp_ms: When it was committed, by the leader's clock; never falls within a stream.
        key: As published.
        value: As published.
    """

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes


class _Cursor:
    """One READ on one connection: what has come and was not taken."""

    def __init__(self, connection: Connection, request: wire.Read) -> None:
        self._connection = connection
        self._arrived = asyncio.Event()
        self.batches: deque[wire.ReadBatch] = deque()
        self.failure: MeshError | None = None
        self.is_ended = False
        self._correlation = connection.correlate(self._receive, self._lose)
        connection.put(wire.encode_message(Kind.READ, self._correlation, wire.encode_read(request)))

    async def next(self) -> wire.ReadBatch | None:
        """The next batch; None at the end. Raises MeshError."""
        while not self.batches:
            if self.failure is not None:
                raise self.failure
            if self.is_ended:
                return None
            self._arrived.clear()
            await self._arrived.wait()
        return self.batches.popleft()

    def give_back(self, credit_bytes: int) -> None:
        """Lets the node send so much more."""
        body = wire.encode_credit(credit_bytes)
        self._connection.put(wire.encode_message(Kind.CREDIT, self._correlation, body))

    def close(self) -> None:
        """Wants nothing more."""
        self._connection.forget(self._correlation)
        if not self.is_ended and self.failure is None:
            self._connection.put(wire.encode_message(Kind.CANCEL, self._correlation))

    def _receive(self, kind: int, _correlation: int, body: memoryview) -> None:
        if kind == Kind.BATCHES:
            self.batches.extend(wire.decode_batches(body)[1])
        elif kind == Kind.ERROR:
            self.failure = read_error(body)
        else:
            self.is_ended = True
        self._arrived.set()

    def _lose(self) -> None:
        self.failure = self._connection.failure
        self._arrived.set()


async def read_records(
    client: MeshClient, stream: str, from_offset: int, give_up_after_s: float, *, follow: bool
) -> AsyncGenerator[Record]:
    """Records of a stream; see `MeshClient.read`."""
    loop = asyncio.get_running_loop()
    offset = from_offset
    progress_at = loop.time()
    backoff = Backoff()
    while True:
        cursor: _Cursor | None = None
        try:
            cursor = _Cursor(await client.connection(), wire.Read(stream, offset, CREDIT_BYTES, follow))
            while (batch := await cursor.next()) is not None:
                progress_at, backoff = loop.time(), Backoff()
                for at, record in enumerate(_records(batch), batch.base_offset):
                    if at >= offset:
                        offset = at + 1
                        yield Record(at, batch.time_ms, record.key, record.value)
                cursor.give_back(len(batch.batch))
            return
        except MeshError as error:
            if not error.retryable or loop.time() - progress_at > give_up_after_s:
                raise
        finally:
            if cursor is not None:
                cursor.close()
        await backoff.wait()


def _records(batch: wire.ReadBatch) -> list[WireRecord]:
    try:
        return decode_records(batch.batch)
    except WireError as error:
        raise MeshError(
            ErrorCode.INTERNAL, f"The batch at offset {batch.base_offset} cannot be read: {error.reason}."
        ) from error
