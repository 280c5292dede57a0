"""What batches hold, end to end over the client port: headers, compression, and batches whose header lies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import zstandard

from data_plane_testing.stream_cluster import COMMITTED, NAME, A, B, Cluster, cluster, publish, request
from mesh_data.shell.clients.client_listener import ClientListener
from meshapi.supervisor.v1 import data_pb2
from meshclient import Batching, Codec, ErrorCode, MeshClient, MeshError
from meshclient.blocking import BlockingClient
from meshwire.batch import assemble, decode_header

LYING = {
    "a count that lies": assemble(bytes(40), record_count=5, uncompressed_bytes=40),
    "no frame": assemble(bytes(40), record_count=5, uncompressed_bytes=40, codec=Codec.ZSTD),
    "a bomb": assemble(
        zstandard.ZstdCompressor().compress(bytes(64 << 20)), record_count=5, uncompressed_bytes=40, codec=Codec.ZSTD
    ),
    "a wrong size": assemble(
        zstandard.ZstdCompressor().compress(bytes(400)), record_count=5, uncompressed_bytes=399, codec=Codec.ZSTD
    ),
}


@pytest.fixture
async def formed(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with cluster(tmp_path) as made:
        await made.formed()
        yield made


@pytest.fixture
async def address(formed: Cluster) -> AsyncIterator[str]:
    listener = ClientListener("127.0.0.1:0", formed.sites[B].catalogue, formed.sites[B].budgets)
    serving = asyncio.create_task(listener.run(), name="clients")
    yield f"ws://127.0.0.1:{listener.port}"
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


async def stored(made: Cluster) -> list[data_pb2.ReadBatch]:
    asked = data_pb2.ReadBatchesRequest(stream=NAME)
    return [item async for response in made.sites[A].api.ReadBatches(asked, None) for item in response.batches]


@pytest.mark.parametrize("codec", Codec)
async def test_records_come_back_with_their_headers_whatever_the_codec(
    formed: Cluster, address: str, codec: Codec
) -> None:
    headers = (("traceparent", b"00-1-2-01"), ("grüße", b"\xff"))
    batching = Batching(codec=codec, batch_records=50, in_flight_max=1)
    async with MeshClient(address) as client:
        async with client.producer(NAME, batching=batching) as producer:
            for number in range(200):
                await producer.send(b"again and again %d" % number, b"key", headers if number % 2 else ())
            await producer.send_many([b"the same once more"] * 100)
            with pytest.raises(MeshError) as refusal:
                await producer.send(b"x", None, (("", b""),))
            assert refusal.value.code is ErrorCode.INVALID_ARGUMENT
            with pytest.raises(MeshError) as refusal:
                await producer.send(b"x", None, (("n", bytes(20_000)),))
            assert refusal.value.code is ErrorCode.MESSAGE_TOO_LARGE
        records = [record async for record in client.read(NAME)]
    assert [record.value for record in records[:200]] == [b"again and again %d" % number for number in range(200)]
    assert [record.headers for record in records[:200]] == [headers if number % 2 else () for number in range(200)]
    assert [record.value for record in records[200:]] == [b"the same once more"] * 100
    found = [decode_header(item.batch, verify=True) for item in await stored(formed)]
    assert codec in {header.codec for header in found}
    for header, item in zip(found, await stored(formed), strict=True):
        assert 0 < header.first_timestamp_ms <= header.greatest_timestamp_ms
        assert abs(header.first_timestamp_ms - item.timestamp_ms) < 60_000


@pytest.mark.parametrize("how", LYING)
async def test_a_lying_batch_harms_only_itself_and_readers_go_on_behind_it(
    formed: Cluster, address: str, how: str
) -> None:
    lying = data_pb2.PublishBatchRequest(stream=NAME, wait=COMMITTED, batch=LYING[how])
    answers = await publish(formed.sites[A], [request([b"before"]), lying, request([b"behind", b"last"])])
    assert [answer.base_offset for answer in answers] == [0, 1, 6]
    async with MeshClient(address) as client:
        reader = client.read(NAME)
        assert (await anext(reader)).value == b"before"
        with pytest.raises(MeshError) as unreadable:
            await anext(reader)
        assert unreadable.value.code is ErrorCode.BATCH_UNREADABLE
        assert unreadable.value.details == {"offset": "1", "next_offset": "6"}
        assert reader.next_offset == 6
        assert [(record.offset, record.value) async for record in reader] == [(6, b"behind"), (7, b"last")]

    def program() -> list[bytes]:
        with BlockingClient(address) as blocking:
            others = blocking.read(NAME)
            assert next(others).value == b"before"
            with pytest.raises(MeshError) as refused:
                next(others)
            assert (refused.value.code, others.next_offset) == (ErrorCode.BATCH_UNREADABLE, 6)
            return [record.value for record in others]

    assert await asyncio.to_thread(program) == [b"behind", b"last"]
    await formed.converged()
