"""The client against a fake data plane: addresses that do not answer, peers that break the protocol, giving up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.typing import Subprotocol

from meshclient import Batching, ErrorCode, MeshClient, MeshError
from meshtest.ports import free_ports
from meshtest.waiting import eventually
from meshwire import client as wire
from meshwire.batch import decode_header
from meshwire.client import Kind
from meshwire.request import encode_error

Handler = Callable[[ServerConnection], Awaitable[None]]
PRODUCER = wire.encode_producer(wire.ProducerInfo(7, 42, 1, 0, 0))


@asynccontextmanager
async def serving(handler: Handler, subprotocol: str = wire.SUBPROTOCOL) -> AsyncIterator[str]:
    async with serve(handler, "127.0.0.1", 0, subprotocols=[Subprotocol(subprotocol)], compression=None) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        yield f"ws://127.0.0.1:{port}"


async def requests(connection: ServerConnection) -> AsyncIterator[wire.Message]:
    async for frame in connection:
        assert isinstance(frame, bytes)
        for message in wire.decode_messages(frame):
            yield message


def refusing(code: ErrorCode, *, retryable: bool) -> Handler:
    """Gives out producers and refuses every batch."""

    async def handle(connection: ServerConnection) -> None:
        async for message in requests(connection):
            if message.kind == Kind.INIT_PRODUCER:
                await connection.send(wire.encode_message(Kind.PRODUCER, message.correlation, PRODUCER))
            else:
                body = encode_error(str(code), "no", retryable)
                await connection.send(wire.encode_message(Kind.ERROR, message.correlation, body))

    return handle


async def test_nobody_at_the_address_is_said_after_the_time_to_give_up() -> None:
    async with MeshClient(f"ws://127.0.0.1:{free_ports(1)[0]}", give_up_after_s=0.2) as client:
        with pytest.raises(MeshError) as failed:
            async with client.producer("demo/lines"):
                pass
        assert failed.value.code is ErrorCode.ADDRESS_UNREACHABLE
        with pytest.raises(MeshError) as read_failed:
            _ = [record async for record in client.read("demo/lines")]
        assert read_failed.value.code is ErrorCode.ADDRESS_UNREACHABLE


async def test_an_address_that_is_none_is_refused() -> None:
    async with MeshClient("http://127.0.0.1:1") as client:
        with pytest.raises(MeshError) as failed:
            await client.describe("demo/lines")
    assert failed.value.code is ErrorCode.INVALID_ARGUMENT
    with pytest.raises(MeshError):
        MeshClient()


async def test_another_kind_of_server_is_recognised() -> None:
    async def handle(_connection: ServerConnection) -> None:
        await asyncio.sleep(0)

    async with serving(handle, "chat") as address, MeshClient(address) as client:
        with pytest.raises(MeshError) as failed:
            await client.describe("demo/lines")
    assert failed.value.code is ErrorCode.WRONG_PROTOCOL


async def test_a_node_that_dies_in_the_handshake_is_tried_again() -> None:
    """A killed process hangs up on whoever is just connecting: no reason to give up for good."""
    killed = 0

    def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal killed
        killed += 1
        writer.close()

    dying = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    address = f"ws://127.0.0.1:{dying.sockets[0].getsockname()[1]}"
    async with dying, serving(refusing(ErrorCode.NO_QUORUM, retryable=True)) as alive:
        async with MeshClient(address, alive) as client, client.producer("demo/lines") as producer:
            assert producer.producer_id == 42
        assert killed == 1


async def test_the_second_address_serves_when_the_first_does_not_answer() -> None:
    async def handle(connection: ServerConnection) -> None:
        async for message in requests(connection):
            body = wire.encode_stream(wire.StreamInfo(7, 0, 3, "a"))
            await connection.send(wire.encode_message(Kind.STREAM, message.correlation, body))

    async with serving(handle) as address, MeshClient(f"ws://127.0.0.1:{free_ports(1)[0]}", address) as client:
        with pytest.raises(MeshError):
            await client.describe("demo/lines")
        assert (await client.describe("demo/lines")).next_offset == 3


async def test_a_producer_gives_up_when_nothing_moves() -> None:
    async with (
        serving(refusing(ErrorCode.NO_QUORUM, retryable=True)) as address,
        MeshClient(address, give_up_after_s=0.3) as client,
    ):
        with pytest.raises(MeshError) as failed:
            async with client.producer("demo/lines") as producer:
                await producer.send(b"value")
        assert failed.value.code is ErrorCode.NO_QUORUM
        assert producer.retries > 0


async def test_a_receipt_tells_why_the_producer_ended() -> None:
    async with (
        serving(refusing(ErrorCode.PRODUCER_FENCED, retryable=False)) as address,
        MeshClient(address) as client,
        asyncio.timeout(20),
    ):
        producer = await client.producer("demo/lines").__aenter__()
        receipts = [await producer.send(b"one"), await producer.send(b"two")]
        for receipt in receipts:
            with pytest.raises(MeshError) as failed:
                await receipt
            assert failed.value.code is ErrorCode.PRODUCER_FENCED
        with pytest.raises(MeshError):
            await producer.flush()


async def test_unanswered_bytes_are_bounded() -> None:
    """I6: `send` waits once `buffer_bytes` are unanswered, and goes on when answers come."""
    held: list[wire.Message] = []
    release = asyncio.Event()

    async def handle(connection: ServerConnection) -> None:
        async def answer() -> None:
            await release.wait()
            while True:
                while held:
                    message = held.pop(0)
                    count = decode_header(wire.decode_publish(message.body)[2]).record_count
                    await connection.send(wire.encode_published(message.correlation, 0, count, False))
                await asyncio.sleep(0.01)

        answering = asyncio.create_task(answer())
        async for message in requests(connection):
            if message.kind == Kind.INIT_PRODUCER:
                await connection.send(wire.encode_message(Kind.PRODUCER, message.correlation, PRODUCER))
            else:
                held.append(message)
        answering.cancel()

    batching = Batching(batch_bytes=1000, buffer_bytes=10_000)
    async with (
        serving(handle) as address,
        MeshClient(address) as client,
        client.producer("demo/lines", batching=batching) as producer,
    ):
        sent = 0

        async def flood() -> None:
            nonlocal sent
            for _ in range(100):
                await producer.send(bytes(500))
                sent += 1

        flooding = asyncio.create_task(flood())

        async def is_full() -> bool:
            return len(held) == batching.in_flight_max

        await eventually("the window is full", is_full)
        assert sent <= 10_000 // 500
        release.set()
        async with asyncio.timeout(20):
            await flooding
            await producer.flush()
    assert sent == 100
