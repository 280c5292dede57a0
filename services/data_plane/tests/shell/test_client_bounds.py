"""What applications at the client listener can make the node hold: the same at ten times the load.

Also: a fault of the node's own in one request or frame ends that one, or its connection, and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from data_plane_testing import stream_cluster
from data_plane_testing.stream_cluster import NAME, STREAM, A, B, C, Cluster, cluster, make_view, publish_values, until
from mesh_data.core.stream_requests import encode_stream_body
from mesh_data.core.view import StreamPhase
from mesh_data.shell.clients import client_session
from mesh_data.shell.clients.client_listener import ClientListener
from mesh_data.shell.clients.client_room import ClientRoom
from mesh_data.shell.clients.client_session import ClientSession
from mesh_data.shell.streams.publish_call import CREDIT_BYTES
from meshclient import ErrorCode, MeshClient, MeshError
from meshclient.connection import read_error
from meshcommon.frame_socket import FrameSocket, SocketClosed
from meshcommon.heap import resident_bytes
from meshcommon.ids import NodeId
from meshwire import client as wire
from meshwire.client import SUBPROTOCOL, Kind
from meshwire.records import Record, encode_batch

MIB = 1024 * 1024
BATCH_BYTES = 64 * 1024
FLOWS = 16
"""Producers of one connection."""


@pytest.fixture
async def formed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    monkeypatch.setattr(stream_cluster, "TIMING", replace(stream_cluster.TIMING, publish_deadline_s=60.0))
    async with cluster(tmp_path) as made:
        await made.formed()
        yield made


@contextlib.asynccontextmanager
async def listening(made: Cluster, room: ClientRoom | None = None) -> AsyncIterator[str]:
    listener = ClientListener("127.0.0.1:0", made.sites[A].catalogue, made.sites[A].budgets)
    if room is not None:
        listener.room = room
    serving = asyncio.create_task(listener.run(), name="clients")
    try:
        yield f"ws://127.0.0.1:{listener.port}"
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


def dial(address: str) -> connect:
    """Its answers are not all read, so that a close is not always answered: it is not waited for."""
    protocols = [Subprotocol(SUBPROTOCOL)]
    return connect(address, subprotocols=protocols, proxy=None, compression=None, max_size=4 * MIB, close_timeout=0.1)


async def flood(socket: ClientConnection) -> None:
    """One batch of each of many producers after the other, without end, until the node reads no more."""
    value = bytes(BATCH_BYTES)
    number = 0
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            for producer in range(1, FLOWS + 1):
                batch = encode_batch([Record(value)], producer, 1, number)
                await socket.send(wire.encode_publish(number, STREAM, batch))
            number += 1


async def test_what_publishers_hold_is_bounded_for_all_of_them_together(formed: Cluster) -> None:
    """Nothing commits. 32 flows fill the budget; 320 hold as much, and when the quorum is back everybody is answered."""
    budget = formed.sites[A].budgets.publish
    budget.limit_bytes = 8 * MIB
    await formed.stop(B)
    await formed.stop(C)
    most = 0
    async with listening(formed) as address, contextlib.AsyncExitStack() as stack:
        tasks: list[asyncio.Task[None]] = []

        async def load(connections: int) -> int:
            nonlocal most
            for _ in range(connections):
                socket = await stack.enter_async_context(dial(address))
                tasks.append(asyncio.create_task(flood(socket), name="flood"))
            calm = 0
            used = -1
            while calm < 20:
                await asyncio.sleep(0.05)
                calm = calm + 1 if budget.used_bytes == used else 0
                used = budget.used_bytes
                most = max(most, used)
            return resident_bytes()

        once = await load(2)
        assert 3 * budget.limit_bytes // 4 <= budget.used_bytes <= budget.limit_bytes
        ten_times = await load(18)
        assert most <= budget.limit_bytes
        # Each connection keeps a frame and some input, on both sides of it in this process. Unbounded it would be 4 MiB
        # a flow.
        assert ten_times - once < 40 * MIB
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks)
        small = asyncio.create_task(publish_values(formed.sites[A], [b"small"]), name="a small publisher")
        await asyncio.sleep(0.2)
        for node in (B, C):
            formed.start(node, make_view(2, StreamPhase.ACTIVE))
        async with asyncio.timeout(60):
            (answer,) = await small
        assert answer.error.code == ""
    await until(lambda: budget.used_bytes == 0)
    await until(lambda: budget.flows == 0)
    assert not budget.line


async def test_tiny_batches_count_as_what_they_cost(formed: Cluster) -> None:
    """A node that counted bytes only would hold a thousand objects of half a KiB for every KiB that it counts."""
    site = formed.sites[A]
    await formed.stop(B)
    await formed.stop(C)
    async with listening(formed) as address, dial(address) as socket:
        batch = encode_batch([Record(b"")])
        for number in range(600):
            await socket.send(wire.encode_publish(number, STREAM, batch))
        await until(lambda: site.budgets.publish.used_bytes >= 600 * 512)


async def test_batches_of_other_nodes_are_bounded_and_no_node_takes_it_all(formed: Cluster) -> None:
    """Nothing commits at the leader: one node's batches are refused with BACKPRESSURE, another's are still taken."""
    site = formed.sites[A]
    serving = site.serving
    serving._publishes.limit_bytes = 4 * MIB
    await formed.stop(B)
    await formed.stop(C)
    body = encode_stream_body(STREAM, encode_batch([Record(bytes(BATCH_BYTES))]))
    waiting: list[asyncio.Task[bytes]] = []

    async def publish(source: NodeId, count: int) -> list[MeshError]:
        asked = [asyncio.create_task(serving._publish(source, body), name="publish") for _ in range(count)]
        await asyncio.sleep(0.1)
        waiting.extend(task for task in asked if not task.done())
        return [error for task in asked if task.done() and isinstance(error := task.exception(), MeshError)]

    refused = await publish(B, 100)
    assert {error.code for error in refused} == {ErrorCode.BACKPRESSURE}
    assert 0 < serving._publishes.used_bytes <= MIB
    assert not await publish(C, 5)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert (serving._publishes.used_bytes, serving._publishes_of) == (0, {})


async def test_flows_of_the_node_are_bounded_and_every_connection_keeps_some(
    formed: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_session, "NODE_FLOWS_MAX", 10)
    await formed.stop(B)
    await formed.stop(C)
    async with listening(formed) as address, dial(address) as first, dial(address) as second:
        for socket in (first, second):
            for producer in range(1, 13):
                await socket.send(wire.encode_publish(producer, STREAM, encode_batch([Record(b"x")], producer, 1, 0)))
        refused: list[ErrorCode] = []
        async with asyncio.timeout(20):
            while len(refused) < 4:
                messages = wire.decode_messages(bytes(await second.recv(decode=False)))
                refused += [read_error(message.body).code for message in messages]
        assert set(refused) == {ErrorCode.BACKPRESSURE}
        assert formed.sites[A].budgets.publish.flows <= 10 + 8
    await until(lambda: formed.sites[A].budgets.publish.flows == 0)


class Deaf:
    """The node's end of a connection whose peer reads nothing."""

    remote = "peer"

    def __init__(self, *frames: bytes) -> None:
        self._frames = iter(frames)
        self.is_aborted = asyncio.Event()
        self.is_writable = False

    async def receive(self) -> bytes:
        for frame in self._frames:
            return frame
        await self.is_aborted.wait()
        raise SocketClosed("aborted")

    async def send(self, _frame: bytes) -> None:
        await self.is_aborted.wait()
        raise SocketClosed("aborted")

    async def close(self, _reason: str) -> None:
        """It is closed already."""

    def abort(self) -> None:
        self.is_aborted.set()


def read_request(correlation: int) -> bytes:
    body = wire.encode_read(wire.Read(NAME, 0, 2**32 - 1, is_following=True))
    return wire.encode_message(Kind.READ, correlation, body)


async def test_readers_that_read_nothing_hold_little_each_and_bounded_together(
    formed: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 reads with all the credit there is: what waits to be written is bounded for a connection, and for all of them.

    Where there is no room left for others, those that take nothing lose their connections.
    """
    catalogue = formed.sites[A].catalogue
    await publish_values(formed.sites[A], [bytes(200_000)] * 40)
    room = ClientRoom()
    room.unwritten.limit_bytes = 8 * MIB
    chunk = 2 * 256 * 1024
    reads = b"".join(read_request(number) for number in range(64))
    sockets: list[Deaf] = []
    serving: list[asyncio.Task[None]] = []

    async def add(connections: int) -> None:
        for _ in range(connections):
            sockets.append(Deaf(reads))
            session = ClientSession(catalogue, formed.sites[A].budgets, room, cast(FrameSocket, sockets[-1]))
            serving.append(asyncio.create_task(session.run(), name="session"))
        await asyncio.sleep(1.0)

    await add(4)
    await until(lambda: room.unwritten.used_bytes > 2 * MIB)
    assert room.unwritten.used_bytes <= 4 * (MIB + chunk)
    await add(36)
    assert room.unwritten.used_bytes <= room.unwritten.limit_bytes + chunk
    assert not any(socket.is_aborted.is_set() for socket in sockets)
    assert formed.sites[A].budgets.read_room.held_bytes == 0
    # An honest reader still gets its turn.
    async with listening(formed, room) as address, MeshClient(address) as client:
        async with asyncio.timeout(40):
            assert sum([len(record.value) async for record in client.read(NAME)]) == 40 * 200_000
    # Little room lets few at a time take some and lose their connection: many rounds, so each is made short.
    monkeypatch.setattr(client_session, "_STALLED_S", 0.2)
    room.unwritten.limit_bytes = MIB
    await until(lambda: all(socket.is_aborted.is_set() for socket in sockets))
    await asyncio.gather(*serving)
    assert (room.unwritten.used_bytes, room.reads) == (0, 0)


async def test_reads_of_the_node_are_bounded_and_every_connection_keeps_some(
    formed: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_session, "NODE_READS_MAX", 6)
    room = ClientRoom()
    async with listening(formed, room) as address, dial(address) as first, dial(address) as second:
        for socket in (first, second):
            await socket.send(b"".join(read_request(number) for number in range(8)))
        answers: list[wire.Message] = []
        async with asyncio.timeout(20):
            while len(answers) < 8:
                answers += wire.decode_messages(bytes(await second.recv(decode=False)))
        refused = [read_error(answer.body).code for answer in answers if answer.kind == Kind.ERROR]
        assert refused == [ErrorCode.BACKPRESSURE] * 4
    await until(lambda: room.reads == 0)


async def test_reads_that_are_cancelled_at_once_are_bounded_too(formed: Cluster) -> None:
    """Their tasks end a turn of the loop later: a frame of thousands of pairs must not make thousands of them."""
    room = ClientRoom()
    async with listening(formed, room) as address, dial(address) as socket:
        pairs = (read_request(number) + wire.encode_message(Kind.CANCEL, number, b"") for number in range(2_000))
        await socket.send(b"".join(pairs))
        kinds: Counter[Kind] = Counter()
        async with asyncio.timeout(20):
            while kinds[Kind.END] + kinds[Kind.ERROR] < 2_000:
                kinds.update(Kind(item.kind) for item in wire.decode_messages(bytes(await socket.recv(decode=False))))
        assert kinds[Kind.END] == 2 * client_session.READS_MAX
    await until(lambda: room.reads == 0)


async def test_a_peer_that_lets_answers_pile_up_loses_its_connection(formed: Cluster) -> None:
    catalogue, room = formed.sites[A].catalogue, ClientRoom()
    socket = Deaf()
    session = ClientSession(catalogue, formed.sites[A].budgets, room, cast(FrameSocket, socket))
    serving = asyncio.create_task(session.run(), name="session")
    await asyncio.sleep(0)
    for _ in range(16):
        session._put(bytes(MIB))
    assert not socket.is_aborted.is_set()
    session._put(b"one too many")
    assert socket.is_aborted.is_set()
    async with asyncio.timeout(20):
        await serving
    assert room.unwritten.used_bytes == 0


async def test_a_fault_in_a_request_ends_that_request(formed: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(*_arguments: object) -> None:
        raise RuntimeError("a fault of ours")

    async with listening(formed) as address, MeshClient(address) as client:
        async with client.producer(NAME) as producer:
            with monkeypatch.context() as patch:
                patch.setattr(client_session, "describe_live", fails)
                with pytest.raises(MeshError) as answer:
                    await client.describe(NAME)
                assert answer.value.code is ErrorCode.INTERNAL
                assert "fault of ours" not in answer.value.message
            assert await producer.publish(b"goes on") == 0
        assert (await client.describe(NAME)).next_offset == 1


async def test_a_fault_in_a_frame_ends_that_connection_only(formed: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening(formed) as address, MeshClient(address) as other:
        async with other.producer(NAME) as producer:
            async with dial(address) as socket:
                with monkeypatch.context() as patch:

                    def fails(_body: memoryview) -> int:
                        raise RuntimeError("a fault of ours")

                    patch.setattr(wire, "decode_read", fails)
                    await socket.send(read_request(1))
                    async with asyncio.timeout(20):
                        await socket.wait_closed()
            assert await producer.publish(b"goes on") == 0
        async with MeshClient(address) as another:
            assert [record.value async for record in another.read(NAME)] == [b"goes on"]


def test_the_window_of_one_publisher_is_what_the_call_promises() -> None:
    """`credit_bytes` of an answer is all payload: what batches cost besides comes on top."""
    assert CREDIT_BYTES == 4 * MIB
