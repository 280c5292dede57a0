"""`meshclient.blocking` in a thread of its own, against three nodes with real Raft logs."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from data_plane_testing.stream_cluster import NAME, STREAM, B, cluster, numbered
from mesh_data.shell.clients.client_listener import ClientListener
from meshclient import Batching, ErrorCode, MeshError
from meshclient.blocking import BlockingClient

T = TypeVar("T")


@pytest.fixture
async def address(tmp_path: Path) -> AsyncIterator[str]:
    async with cluster(tmp_path) as made:
        await made.formed()
        listener = ClientListener("127.0.0.1:0", made.sites[B].catalogue, made.sites[B].budgets)
        serving = asyncio.create_task(listener.run(), name="clients")
        yield f"ws://127.0.0.1:{listener.port}"
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def blocking(program: Callable[[], T]) -> T:
    """Runs a program that blocks while the nodes go on."""
    async with asyncio.timeout(60):
        return await asyncio.to_thread(program)


async def test_what_is_published_is_read_and_no_thread_stays(address: str) -> None:
    values = numbered(3000)
    before = set(threading.enumerate())

    def program() -> list[bytes]:
        with BlockingClient(address) as client:
            with client.producer(NAME, name="meter", batching=Batching(batch_records=100)) as producer:
                assert producer.stream_id == STREAM
                receipts = producer.send_many(values)
                assert receipts[-1].result(20) == 2999
                assert producer.publish(b"keyed", b"key", timeout_s=20) == 3000
                late = producer.send(b"last")
                producer.flush(timeout_s=20)
                assert late.is_decided
                assert late.result() == 3001
            assert client.describe(NAME, timeout_s=20).next_offset == 3002
            reader = client.read(NAME)
            records = list(reader)
            assert (reader.next_offset, reader.stream_id) == (3002, STREAM)
            assert records[3000].key == b"key"
            assert [record.offset for record in records] == list(range(3002))
            return [record.value for record in records]

    assert await blocking(program) == [*values, b"keyed", b"last"]
    # The executor of `to_thread`, which the nodes use too, keeps its threads; every other one has to be gone.
    stayed = {thread for thread in threading.enumerate() if not thread.name.startswith("asyncio_")} - before
    assert not stayed


async def test_a_wait_that_is_too_long_fails_and_can_go_on(address: str) -> None:
    def program() -> None:
        with BlockingClient(address) as client, client.producer(NAME) as producer:
            producer.publish(b"0")
            with client.read(NAME, follow=True, timeout_s=0.2) as reader:
                assert next(reader).value == b"0"
                with pytest.raises(MeshError) as late:
                    next(reader)
                assert late.value.code is ErrorCode.DEADLINE_EXCEEDED
                assert reader.next_offset == 1
                producer.publish(b"1")
                # Nothing of what came meanwhile is lost by the wait that was given up.
                for _ in range(50):
                    with contextlib.suppress(MeshError):
                        assert next(reader).value == b"1"
                        break
                assert reader.next_offset == 2

    await blocking(program)


async def test_refusals_come_out_as_they_are(address: str) -> None:
    def program() -> None:
        with BlockingClient(address) as client:
            with pytest.raises(MeshError) as missing:
                client.describe("demo/none")
            assert missing.value.code is ErrorCode.STREAM_NOT_FOUND
            with pytest.raises(MeshError) as beyond:
                list(client.read(NAME, 7))
            assert beyond.value.code is ErrorCode.OFFSET_PAST_END
            with pytest.raises(MeshError) as replaced:
                client.read(NAME, stream_id=STREAM + 1, timeout_s=1).__next__()
            assert replaced.value.code in (ErrorCode.STREAM_REPLACED, ErrorCode.DEADLINE_EXCEEDED)
            with pytest.raises(MeshError) as large, client.producer(NAME) as producer:
                producer.send(bytes(2 * 1024 * 1024))
            assert large.value.code is ErrorCode.MESSAGE_TOO_LARGE
        with pytest.raises(MeshError) as closed:
            client.describe(NAME)
        assert closed.value.code is ErrorCode.UNAVAILABLE
        client.close()

    await blocking(program)


async def test_several_threads_share_a_producer(address: str) -> None:
    def program() -> None:
        with BlockingClient(address) as client:
            with client.producer(NAME) as producer:
                threads = [
                    threading.Thread(
                        target=lambda: [producer.publish(b"x") for _ in range(20)], name=f"publisher {number}"
                    )
                    for number in range(4)
                ]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            assert len(list(client.read(NAME))) == 80

    await blocking(program)
