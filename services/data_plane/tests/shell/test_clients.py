"""Applications at the client listener: `meshclient` over real WebSockets to three nodes with real Raft logs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from crc32c import crc32c
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import CloseCode
from websockets.typing import Subprotocol

from data_plane_testing.stream_cluster import NAME, STREAM, A, B, Cluster, Site, cluster, numbered, read, until
from mesh_data.shell.clients.client_listener import ClientListener
from mesh_data.shell.clients.client_room import ClientRoom
from mesh_data.shell.clients.client_session import ClientSession
from meshclient import Batching, ErrorCode, MeshClient, MeshError
from meshclient.connection import read_error
from meshcommon.frame_socket import FrameSocket, SocketClosed
from meshcommon.ids import NodeId
from meshtest.ports import free_ports
from meshtest.proxy import FaultProxy
from meshwire.client import (
    MAX_FRAME_MESSAGES,
    SUBPROTOCOL,
    WAIT_COMMITTED,
    Kind,
    Message,
    Published,
    Read,
    decode_end,
    decode_messages,
    decode_published,
    encode_credit,
    encode_message,
    encode_publish,
    encode_read,
)
from meshwire.records import Record, encode_batch


@contextlib.asynccontextmanager
async def listening(site: Site) -> AsyncIterator[str]:
    """The address of a client listener of that node."""
    listener = ClientListener("127.0.0.1:0", site.catalogue, site.budgets)
    serving = asyncio.create_task(listener.run(), name="clients")
    try:
        yield f"ws://127.0.0.1:{listener.port}"
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


@pytest.fixture
async def formed(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with cluster(tmp_path) as made:
        await made.formed()
        yield made


@pytest.mark.parametrize("node", [A, B], ids=["at the leader", "at a follower"])
async def test_records_are_committed_in_order_and_read_back(formed: Cluster, node: NodeId) -> None:
    values = numbered(5000)
    async with listening(formed.sites[node]) as address, MeshClient(address) as client:
        async with client.producer(NAME, batching=Batching(batch_records=100)) as producer:
            receipts = [await producer.send(value) for value in values[:1000]]
            receipts += await producer.send_many(values[1000:])
            assert await receipts[0] == 0
            assert await receipts[999] == 999
            assert await receipts[-1] == 4999
            assert await producer.publish(b"keyed", b"key") == 5000
        records = [record async for record in client.read(NAME)]
        described = await client.describe(NAME)
    assert [record.value for record in records] == [*values, b"keyed"]
    assert [record.offset for record in records] == list(range(5001))
    assert records[-1].key == b"key"
    assert described.next_offset == 5001
    assert await read(formed.sites[A]) == [*values, b"keyed"]


async def test_a_following_reader_gets_what_is_published_later(formed: Cluster) -> None:
    async with (
        listening(formed.sites[B]) as address,
        MeshClient(address) as client,
        client.producer(NAME) as producer,
    ):
        await producer.publish(b"before")
        seen: list[bytes] = []

        async def follow() -> None:
            async for record in client.read(NAME, follow=True):
                seen.append(record.value)
                if len(seen) == 3:
                    return

        following = asyncio.create_task(follow(), name="follow")
        await until(lambda: bool(seen))
        await producer.publish(b"later")
        await producer.publish(b"last")
        async with asyncio.timeout(20):
            await following
    assert seen == [b"before", b"later", b"last"]


async def test_what_is_refused_says_so_and_changes_nothing(formed: Cluster) -> None:
    async with listening(formed.sites[A]) as address, MeshClient(address) as client:
        with pytest.raises(MeshError) as missing:
            await client.describe("demo/none")
        assert missing.value.code is ErrorCode.STREAM_NOT_FOUND
        with pytest.raises(MeshError) as beyond:
            _ = [record async for record in client.read(NAME, 7)]
        assert beyond.value.code is ErrorCode.OFFSET_PAST_END
        async with client.producer(NAME) as producer:
            with pytest.raises(MeshError) as large:
                await producer.send(bytes(2 * 1024 * 1024))
            assert large.value.code is ErrorCode.MESSAGE_TOO_LARGE
            assert await producer.publish(b"goes on") == 0
    assert await read(formed.sites[A]) == [b"goes on"]


async def test_a_fenced_producer_ends(formed: Cluster) -> None:
    async with listening(formed.sites[A]) as address, MeshClient(address) as client:
        fenced = await client.producer(NAME, name="orders").__aenter__()
        assert await fenced.publish(b"one") == 0
        async with client.producer(NAME, name="orders") as successor:
            with pytest.raises(MeshError) as refused:
                await fenced.publish(b"two")
            assert refused.value.code is ErrorCode.PRODUCER_FENCED
            with pytest.raises(MeshError):
                await fenced.send(b"three")
            assert await successor.publish(b"four") == 1
        with pytest.raises(MeshError):
            await fenced.__aexit__(None, None, None)
    assert await read(formed.sites[A]) == [b"one", b"four"]


async def test_lost_connections_cost_no_record_and_double_none(formed: Cluster) -> None:
    """I1, I2, I5: answers are lost with their connection again and again, at a node that does not lead."""
    values = numbered(3000)
    async with listening(formed.sites[B]) as address:
        port = free_ports(1)[0]
        async with (
            FaultProxy(port, int(address.rpartition(":")[2])) as proxy,
            MeshClient(f"ws://127.0.0.1:{port}") as client,
            client.producer(NAME, batching=Batching(batch_records=20, linger_s=0)) as producer,
        ):
            receipts = []
            for at, value in enumerate(values):
                receipts.append(await producer.send(value))
                if at % 500 == 250:
                    await receipts[at - 100]
                    proxy.cut()
                    await asyncio.sleep(0)
                    proxy.heal()
            assert [await receipt for receipt in receipts] == list(range(3000))
            assert producer.retries > 0
    assert await read(formed.sites[A]) == values


async def test_a_new_leader_costs_no_record_and_doubles_none(formed: Cluster) -> None:
    """I1, I2, I5 across the loss of the leader."""
    values = numbered(2000)
    async with (
        listening(formed.sites[B]) as address,
        MeshClient(address) as client,
        client.producer(NAME, batching=Batching(batch_records=10, linger_s=0)) as producer,
    ):
        receipts = [await producer.send(value) for value in values[:1000]]
        await receipts[500]
        await formed.stop(A)
        receipts += [await producer.send(value) for value in values[1000:]]
        assert [await receipt for receipt in receipts] == list(range(2000))
    assert await read(formed.sites[B]) == values


async def test_a_slow_reader_holds_back_only_itself(formed: Cluster) -> None:
    """I6: what a reader does not take stays at the node, within its credit; publishing goes on."""
    async with listening(formed.sites[A]) as address, MeshClient(address) as client:
        slow = client.read(NAME, follow=True)
        async with client.producer(NAME) as producer:
            await producer.publish(b"first")
            assert (await anext(slow)).value == b"first"
            for _ in range(64):
                await producer.send(bytes(100_000))
            await producer.flush()
        rest = 0
        async for record in slow:
            rest += len(record.value)
            if rest == 64 * 100_000:
                break
        await slow.aclose()


class Unread:
    """The node's end of a connection whose peer sends `frames`, reads nothing, and then vanishes."""

    remote = "peer"

    def __init__(self, *frames: bytes) -> None:
        self._frames = iter(frames)
        self._gone = asyncio.Event()

    async def receive(self) -> bytes:
        for frame in self._frames:
            return frame
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async def send(self, _frame: bytes) -> None:
        await self._gone.wait()
        raise SocketClosed

    async def close(self, _reason: str) -> None:
        """It is closed already."""

    def vanish(self) -> None:
        """From now on the connection is known to be lost."""
        self._gone.set()


async def test_a_peer_that_vanishes_without_having_read_leaves_no_session(formed: Cluster) -> None:
    """I6: the receiver waits for room that nobody makes any more; it is told."""
    frame = encode_publish(1, STREAM, b"", wait=2) * MAX_FRAME_MESSAGES
    socket = Unread(frame, frame)
    session = ClientSession(formed.sites[A].catalogue, formed.sites[A].budgets, ClientRoom(), cast(FrameSocket, socket))
    serving = asyncio.create_task(session.run(), name="session")
    socket.vanish()
    async with asyncio.timeout(20):
        await serving


async def test_the_number_of_a_cancelled_read_can_be_used_at_once(formed: Cluster) -> None:
    """A read that was cancelled says so, and takes nothing from the next one of its number: neither credit nor its end."""
    site = formed.sites[A]
    async with (
        listening(site) as address,
        connect(address, subprotocols=[Subprotocol(SUBPROTOCOL)], proxy=None, compression=None) as socket,
    ):
        read_7 = encode_message(Kind.READ, 7, encode_read(Read(NAME, 0, 1, is_following=True)))
        await socket.send(read_7 + encode_message(Kind.CANCEL, 7) + read_7)
        await socket.send(encode_publish(1, STREAM, encode_batch([Record(b"one")])))
        answers: list[Message] = []

        async def come(count: int, kind: Kind) -> None:
            while sum(answer.kind == kind for answer in answers) < count:
                answers.extend(decode_messages(bytes(await socket.recv(decode=False))))

        async with asyncio.timeout(20):
            await come(2, Kind.BATCHES)  # the first one tells the stream and is empty
            await socket.send(encode_publish(2, STREAM, encode_batch([Record(b"two")])))
            await come(2, Kind.PUBLISHED)
            await socket.send(encode_message(Kind.CREDIT, 7, encode_credit(1000)))
            await come(3, Kind.BATCHES)
            await socket.send(encode_message(Kind.CANCEL, 7))
            await come(2, Kind.END)
    ends = [decode_end(answer.body) for answer in answers if answer.kind == Kind.END]
    assert ends == [0, 2]


class TestAdmission:
    """Who gets no connection, and what ends one."""

    @pytest.mark.parametrize(
        ("options", "status"),
        [
            ({"subprotocols": [Subprotocol("mesh.v1")]}, 400),
            ({"subprotocols": []}, 400),
            ({"subprotocols": [Subprotocol(SUBPROTOCOL)], "origin": "http://localhost"}, 403),
        ],
        ids=["peer protocol", "no protocol", "web page"],
    )
    async def test_is_refused(self, formed: Cluster, options: dict[str, Any], status: int) -> None:
        async with listening(formed.sites[A]) as address:
            with pytest.raises(InvalidStatus) as refused:
                await connect(address, proxy=None, **options)
        assert refused.value.response.status_code == status

    @pytest.mark.parametrize(
        "frame",
        ["text", b"", b"\x00", encode_message(Kind.PUBLISHED, 1), encode_message(Kind.PUBLISH, 1), bytes(5_000_000)],
        ids=["text", "empty", "cut short", "a response", "no body", "too large"],
    )
    async def test_nonsense_ends_the_connection(self, formed: Cluster, frame: str | bytes) -> None:
        async with listening(formed.sites[A]) as address:
            socket = await connect(address, subprotocols=[Subprotocol(SUBPROTOCOL)], proxy=None, compression=None)
            answers: list[Message] = []

            async def collect() -> None:
                while True:
                    answers.extend(decode_messages(bytes(await socket.recv(decode=False))))

            with contextlib.suppress(ConnectionClosed):
                await socket.send(frame)
            async with asyncio.timeout(20):
                with pytest.raises(ConnectionClosed):
                    await collect()
        assert {read_error(answer.body).code for answer in answers} <= {ErrorCode.WRONG_PROTOCOL}
        assert formed.sites[A].replica.next_offset == 0

    async def test_an_unmasked_frame_ends_the_connection(self, formed: Cluster) -> None:
        async with listening(formed.sites[A]) as address:
            port = int(address.rpartition(":")[2])
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(
                b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
                b"Sec-WebSocket-Protocol: " + SUBPROTOCOL.encode() + b"\r\n\r\n"
            )
            assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
            writer.write(b"\x82\x01\x00")
            async with asyncio.timeout(20):
                closing = await reader.read()
            writer.close()
        assert closing[0] == 0x88
        assert int.from_bytes(closing[2:4], "big") == CloseCode.PROTOCOL_ERROR

    @pytest.mark.parametrize("change", ["stream", "wait", "checksum", "magic", "records"])
    async def test_a_bad_batch_is_answered_and_the_connection_lives(self, formed: Cluster, change: str) -> None:
        batch = bytearray(encode_batch([Record(b"a value")]))
        if change == "checksum":
            batch[-1] ^= 1
        elif change == "magic":
            batch[0] ^= 1
        elif change == "records":
            # More than its bytes can hold, under a checksum that fits: offsets without end.
            batch[11] = 200
            batch[4:8] = crc32c(batch[8:]).to_bytes(4, "big")
        stream = 99 if change == "stream" else STREAM
        bad = encode_publish(1, stream, bytes(batch), wait=2 if change == "wait" else WAIT_COMMITTED)
        good = encode_publish(2, STREAM, encode_batch([Record(b"good")]))
        expected = {"stream": ErrorCode.STREAM_NOT_FOUND, "wait": ErrorCode.WAIT_REQUIRED}
        async with (
            listening(formed.sites[A]) as address,
            connect(address, subprotocols=[Subprotocol(SUBPROTOCOL)], proxy=None, compression=None) as socket,
        ):
            await socket.send(bad + good)
            answers: list[Message] = []
            async with asyncio.timeout(20):
                while len(answers) < 2:
                    answers += decode_messages(bytes(await socket.recv(decode=False)))
            async with MeshClient(address) as client:
                assert [record.value async for record in client.read(NAME)] == [b"good"]
        assert [answer.correlation for answer in answers] == [1, 2]
        assert read_error(answers[0].body).code is expected.get(change, ErrorCode.INVALID_ARGUMENT)
        assert decode_published(answers[1].body) == Published(0, 1, is_duplicate=False)


async def test_a_stopping_node_says_so(formed: Cluster) -> None:
    site = formed.sites[A]
    listener = ClientListener("127.0.0.1:0", site.catalogue, site.budgets)
    serving = asyncio.create_task(listener.run(), name="clients")
    async with MeshClient(f"ws://127.0.0.1:{listener.port}") as client:
        connection = await client.connection()
        site.catalogue.close()
        await listener.close()
        async with asyncio.timeout(20):
            await connection.lost.wait()
        assert connection.failure.code is ErrorCode.UNAVAILABLE
        assert "shutting down" in connection.failure.message
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
