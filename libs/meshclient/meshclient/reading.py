"""Reads one stream in order, across lost connections: batches under byte credit, opened here.

The node sends as much as it has credit for; credit goes back as records are taken, so a slow reader slows only itself.
The first answer tells which stream it is; after a lost connection it is that one or none. Leaves out: where a reader left off
last time: the caller keeps its stream id and offset. Source: architecture §5 "cursors with byte credit".
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from meshclient.backoff import Backoff
from meshclient.connection import Connection, encoded, read_error
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.record_batches import open_batch
from meshwire import client as wire
from meshwire.client import Kind
from meshwire.records import Headers

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
        headers: As published.
    """

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes
    headers: Headers = ()


class _Cursor:
    """One READ on one connection: what has come and was not taken."""

    def __init__(self, connection: Connection, request: wire.Read, learn: Callable[[int], None]) -> None:
        """`learn` is told the stream's id."""
        body = encoded(lambda: wire.encode_read(request))
        self._learn = learn
        self._connection = connection
        self._arrived = asyncio.Event()
        self.batches: deque[wire.ReadBatch] = deque()
        self.failure: MeshError | None = None
        self.is_ended = False
        self._correlation = connection.correlate(self._receive, self._lose)
        connection.put(wire.encode_message(Kind.READ, self._correlation, body))

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
            found = wire.decode_batches(body)
            self._learn(found.stream_id)
            self.batches.extend(found.batches)
        elif kind == Kind.ERROR:
            self.failure = read_error(body)
        else:
            self.is_ended = True
        self._arrived.set()

    def _lose(self) -> None:
        self.failure = self._connection.failure
        self._arrived.set()


class Reader:
    """Iterate over it for the records; `MeshClient.read` makes one. Close it with `aclose` when it was not read to its end.

    A batch whose records are not what its header says ends the iteration with BATCH_UNREADABLE. To iterate again goes on
    behind it.

    Attributes:
        stream_id: Id of the stream that is read: the expected one, or 0 until the first answer came.
        next_offset: Offset to go on from: that of the next record.
    """

    def __init__(
        self,
        client: MeshClient,
        stream: str,
        from_offset: int,
        give_up_after_s: float,
        *,
        follow: bool,
        stream_id: int = wire.ANY_STREAM,
    ) -> None:
        self._client = client
        self._stream = stream
        self._give_up_after_s = give_up_after_s
        self._is_following = follow
        self.stream_id = stream_id
        self.next_offset = from_offset
        self._records = self._read()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Record:
        item = await anext(self._records)
        if isinstance(item, MeshError):
            raise item
        return item

    async def aclose(self) -> None:
        """Ends the read."""
        await self._records.aclose()

    def _is_of(self, stream_id: int) -> None:
        self.stream_id = stream_id

    async def _read(self) -> AsyncGenerator[Record | MeshError]:
        """The records; in place of those of an unreadable batch its error, because a generator that raises is at its end."""
        loop = asyncio.get_running_loop()
        progress_at = loop.time()
        backoff = Backoff()
        while True:
            cursor: _Cursor | None = None
            try:
                connection = await self._client.connection()
                request = wire.Read(self._stream, self.next_offset, CREDIT_BYTES, self._is_following, self.stream_id)
                cursor = _Cursor(connection, request, self._is_of)
                while (batch := await cursor.next()) is not None:
                    progress_at, backoff = loop.time(), Backoff()
                    try:
                        records = open_batch(batch.base_offset, batch.batch)
                    except MeshError as error:
                        if error.code is not ErrorCode.BATCH_UNREADABLE:
                            raise
                        self.next_offset = max(self.next_offset, int(error.details["next_offset"]))
                        yield error
                        records = []
                    for at, record in enumerate(records, batch.base_offset):
                        if at >= self.next_offset:
                            self.next_offset = at + 1
                            yield Record(at, batch.time_ms, record.key, record.value, record.headers)
                    cursor.give_back(len(batch.batch))
                return
            except MeshError as error:
                if not error.retryable or loop.time() - progress_at > self._give_up_after_s:
                    raise
            finally:
                if cursor is not None:
                    cursor.close()
            await backoff.wait()
