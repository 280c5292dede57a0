"""The client for programs without an event loop: the same calls, each of which waits.

    with BlockingClient("ws://127.0.0.1:7303") as client:
        with client.producer("shop/orders") as producer:
            print(producer.publish(b"one order"))
        for record in client.read("shop/orders"):
            print(record.offset, record.value)

One thread in the background runs the event loop of one `MeshClient`; every call hands it work and waits for the outcome. So
several threads may share a client and its producers; a reader belongs to one thread at a time. A call that takes longer
than its `timeout_s` fails with DEADLINE_EXCEEDED; what was handed in before goes on. Leaves out: all decisions, which are
those of the asynchronous client.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections import deque
from collections.abc import Coroutine, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from meshclient.client import GIVE_UP_AFTER_S, MeshClient
from meshclient.gathering import Batching
from meshclient.producer import Producer, Receipt
from meshclient.reading import Reader, Record
from meshcommon.errors import ErrorCode, MeshError
from meshwire.client import ANY_STREAM, StreamInfo
from meshwire.records import Headers

ResultT = TypeVar("ResultT")

_RECORDS_AT_ONCE: Final = 1000
"""Records that one visit to the event loop brings at most: a visit costs more than a record."""


class BlockingClient:
    """See `MeshClient`; use as a context manager. It begins with its construction and ends with `close`."""

    def __init__(
        self,
        *addresses: str,
        give_up_after_s: float = GIVE_UP_AFTER_S,
        tls: ssl.SSLContext | None = None,
        ca_file: str | Path | None = None,
        token: str | None = None,
    ) -> None:
        """Starts the thread; nothing is connected before something is asked. Arguments as `MeshClient`."""
        self._client = MeshClient(*addresses, give_up_after_s=give_up_after_s, tls=tls, ca_file=ca_file, token=token)
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._is_closed = False
        self._thread = threading.Thread(target=self._loop.run_forever, name="mesh client", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection and ends the thread. Close producers first: what they have not had answered stays open."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def producer(
        self, stream: str, *, name: str = "", batching: Batching | None = None, stream_id: int = ANY_STREAM
    ) -> BlockingProducer:
        """As `MeshClient.producer`."""

        async def make() -> Producer:
            return self._client.producer(stream, name=name, batching=batching, stream_id=stream_id)

        return BlockingProducer(self, self.call(make(), None))

    def read(
        self,
        stream: str,
        from_offset: int = 0,
        *,
        follow: bool = False,
        stream_id: int = ANY_STREAM,
        timeout_s: float | None = None,
    ) -> BlockingReader:
        """As `MeshClient.read`. The next record is waited for `timeout_s` at most; after that the iteration can go on."""
        reader = self._client.read(stream, from_offset, follow=follow, stream_id=stream_id)
        return BlockingReader(self, reader, timeout_s)

    def describe(self, stream: str, *, stream_id: int = ANY_STREAM, timeout_s: float | None = None) -> StreamInfo:
        """As `MeshClient.describe`."""
        return self.call(self._client.describe(stream, stream_id=stream_id), timeout_s)

    def call(self, work: Coroutine[Any, Any, ResultT], timeout_s: float | None) -> ResultT:
        """Runs `work` on the client's event loop and waits for it.

        Raises:
            MeshError: what it raised; DEADLINE_EXCEEDED after `timeout_s`, when it is cancelled; UNAVAILABLE once closed.
        """
        with self._lock:
            if self._is_closed or threading.current_thread() is self._thread:
                work.close()
                raise MeshError(
                    ErrorCode.UNAVAILABLE, "The client is closed, or is used on its own thread: make another."
                )
            outcome = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return outcome.result(timeout_s)
        except TimeoutError:
            raise MeshError(ErrorCode.DEADLINE_EXCEEDED, f"This took longer than {timeout_s} s.") from None
        finally:
            outcome.cancel()  # also when Ctrl-C ends the wait

    async def _end(self) -> None:
        await self._client.close()
        own = asyncio.current_task()
        others = [task for task in asyncio.all_tasks() if task is not own]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._loop.shutdown_asyncgens()


class BlockingReceipt:
    """Tells the record's offset, once a quorum of disks has the record. It may also be dropped."""

    __slots__ = ("_client", "_receipt")

    def __init__(self, client: BlockingClient, receipt: Receipt) -> None:
        self._client = client
        self._receipt = receipt

    @property
    def is_decided(self) -> bool:
        """Whether `result` returns at once."""
        return self._receipt.is_decided

    def result(self, timeout_s: float | None = None) -> int:
        """The offset. Raises the MeshError with which the producer ended, or DEADLINE_EXCEEDED: then it may be asked again."""
        return self._client.call(_awaited(self._receipt), timeout_s)


class BlockingProducer:
    """See `Producer`: leaving the context normally waits until everything is committed."""

    def __init__(self, client: BlockingClient, producer: Producer) -> None:
        self._client = client
        self._producer = producer

    @property
    def stream_id(self) -> int:
        """As `Producer.stream_id`."""
        return self._producer.stream_id

    @property
    def producer_id(self) -> int:
        """As `Producer.producer_id`."""
        return self._producer.producer_id

    def __enter__(self) -> Self:
        self._client.call(self._producer.__aenter__(), None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.call(self._producer.__aexit__(kind, error, trace), None)

    def send(
        self, value: bytes, key: bytes | None = None, headers: Headers = (), *, timeout_s: float | None = None
    ) -> BlockingReceipt:
        """As `Producer.send`."""
        return BlockingReceipt(self._client, self._client.call(self._producer.send(value, key, headers), timeout_s))

    def send_many(self, values: Sequence[bytes], *, timeout_s: float | None = None) -> list[BlockingReceipt]:
        """As `Producer.send_many`: `send` for each at a fraction of its cost."""
        receipts = self._client.call(self._producer.send_many(values), timeout_s)
        return [BlockingReceipt(self._client, receipt) for receipt in receipts]

    def publish(
        self, value: bytes, key: bytes | None = None, headers: Headers = (), *, timeout_s: float | None = None
    ) -> int:
        """As `Producer.publish`. After DEADLINE_EXCEEDED the record may still be committed."""
        return self._client.call(self._producer.publish(value, key, headers), timeout_s)

    def flush(self, *, timeout_s: float | None = None) -> None:
        """As `Producer.flush`."""
        self._client.call(self._producer.flush(), timeout_s)


class BlockingReader:
    """Iterate over it for the records. Close it, or use it as a context manager, when it was not read to its end.

    Attributes:
        next_offset: Offset to go on from: that of the record after the last one that the iteration gave.
    """

    def __init__(self, client: BlockingClient, reader: Reader, timeout_s: float | None) -> None:
        self._client = client
        self._reader = reader
        self._timeout_s = timeout_s
        self._taken: deque[Record] = deque()
        self._coming: asyncio.Task[Record | None] | None = None
        self.next_offset = reader.next_offset

    @property
    def stream_id(self) -> int:
        """As `Reader.stream_id`: keep it beside the offset."""
        return self._reader.stream_id

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Record:
        if not self._taken:
            try:
                self._client.call(self._take(), self._timeout_s)
            except MeshError as error:
                if error.code is ErrorCode.BATCH_UNREADABLE:
                    self.next_offset = self._reader.next_offset
                raise
        if not self._taken:
            raise StopIteration
        record = self._taken.popleft()
        self.next_offset = record.offset + 1
        return record

    def close(self) -> None:
        """Ends the read."""
        self._client.call(self._end(), None)

    async def _take(self) -> None:
        """Takes the next record, and those that are there with it; none at the end.

        They go where they are found by the next call when this one's time is up in the same moment.
        """
        taken = self._taken
        while len(taken) < _RECORDS_AT_ONCE:
            if self._coming is None:
                self._coming = asyncio.create_task(self._next(), name="mesh client: next record")
                await asyncio.sleep(0)
            if taken and not self._coming.done():
                break
            # A timeout cancels this wait and not the task, so that the record is there next time.
            await asyncio.wait((self._coming,))
            if taken and self._coming.exception() is not None:
                break  # after the records that came before it
            coming, self._coming = self._coming, None
            record = coming.result()
            if record is None:
                break
            taken.append(record)

    async def _next(self) -> Record | None:
        return await anext(self._reader, None)

    async def _end(self) -> None:
        if self._coming is not None:
            self._coming.cancel()
            await asyncio.gather(self._coming, return_exceptions=True)
            self._coming = None
        await self._reader.aclose()


async def _awaited(receipt: Receipt) -> int:
    return await receipt
