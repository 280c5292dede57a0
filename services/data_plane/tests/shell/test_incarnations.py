"""A stream that was deleted and made again under its name: what was meant for the first one never meets the second.

Three nodes with real Raft logs; the calls come over gRPC's servicer and over the client listener with `meshclient`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from data_plane_testing.stream_cluster import (
    COMMITTED,
    NAME,
    STREAM,
    A,
    B,
    C,
    Cluster,
    D,
    Site,
    cluster,
    make_view,
    opened,
    publish,
    publish_values,
    until,
)
from mesh_data.core.view import Member, StreamPhase, View
from mesh_data.shell.clients.client_listener import ClientListener
from meshapi.supervisor.v1 import data_pb2
from meshclient import ErrorCode, MeshClient, MeshError
from meshcommon.ids import MemberId, NodeId, StreamId
from meshwire.records import Record, encode_batch

SECOND = StreamId(2)


def second_view(revision: int, state: StreamPhase, *, with_tombstone: bool = True) -> View:
    """The first stream is being deleted, or gone; the second one has its name."""
    deleted = make_view(revision, StreamPhase.DELETING, is_sealed=True)
    members = tuple(Member(node, MemberId(20 + node), is_voter=True) for node in (A, B, C))
    second = replace(
        deleted.streams[STREAM], stream_id=SECOND, members=members, state=state, revision=revision, is_sealed=False
    )
    streams = {SECOND: second} | ({STREAM: deleted.streams[STREAM]} if with_tombstone else {})
    return replace(deleted, streams=streams)


async def make_again(made: Cluster) -> None:
    """Deletes the stream and makes another one of its name, with one record."""
    made.set_view(make_view(3, StreamPhase.DELETING, is_sealed=True))
    await until(lambda: all(site.groups.replica(STREAM) is None for site in made.sites.values()))
    made.set_view(second_view(4, StreamPhase.FORMING))

    def leads() -> bool:
        replica = made.sites[A].groups.replica(SECOND)
        return replica is not None and replica.is_leading

    await until(leads)
    made.set_view(second_view(5, StreamPhase.ACTIVE))
    answers = await publish_values(made.sites[A], [b"of the second"])
    assert [(answer.stream_id, answer.error.code) for answer in answers] == [(SECOND, "")]


@pytest.fixture
async def four(tmp_path: Path) -> AsyncIterator[Cluster]:
    """Three members and a node without a replica, the stream formed, three records in it."""
    async with cluster(tmp_path, nodes=(A, B, C, D)) as made:
        await until(lambda: made.leaders() == [A])
        made.set_view(make_view(2, StreamPhase.ACTIVE))
        await publish_values(made.sites[A], [b"0", b"1", b"2"])
        yield made


def refused(error: MeshError) -> tuple[ErrorCode, str]:
    """What a refusal says: its code and the present id."""
    return error.code, error.details.get("stream_id", "")


REPLACED = (ErrorCode.STREAM_REPLACED, str(SECOND))


async def read_all(site: Site, *, from_offset: int = 0, stream_id: int = 0) -> list[data_pb2.ReadBatchesResponse]:
    asked = data_pb2.ReadBatchesRequest(stream=NAME, from_offset=from_offset, stream_id=stream_id)
    return [response async for response in site.api.ReadBatches(asked, None)]


@pytest.mark.parametrize("node", [A, B, D], ids=["leader", "follower", "no replica"])
async def test_a_cursor_of_the_first_stream_reads_nothing_of_the_second(four: Cluster, node: NodeId) -> None:
    site = four.sites[node]
    pages = await read_all(site, from_offset=1)
    assert {page.stream_id for page in pages} == {STREAM}
    assert [page.stream_id for page in await read_all(site, from_offset=3)] == [STREAM]  # an empty page tells it too
    await make_again(four)
    for offset in (0, 1, 3):
        with pytest.raises(MeshError) as answer:
            await read_all(site, from_offset=offset, stream_id=pages[0].stream_id)
        assert refused(answer.value) == REPLACED
    stale = data_pb2.ReadBatchesRequest(
        stream=NAME, from_offset=1, stream_id=STREAM, consistency=data_pb2.READ_CONSISTENCY_STALE_OK
    )
    with pytest.raises(MeshError) as answer:
        _ = [response async for response in site.api.ReadBatches(stale, None)]
    assert refused(answer.value) == REPLACED
    (page,) = await read_all(site, stream_id=SECOND)
    assert ([value for _, value in opened(page)], page.stream_id) == ([b"of the second"], SECOND)


async def test_a_producer_of_the_first_stream_writes_nothing_to_the_second(four: Cluster) -> None:
    """Its id and epoch may well be another producer's there: ids are log indexes, which begin again."""
    site = four.sites[B]
    init = data_pb2.InitProducerRequest(stream=NAME, producer_name="meter")
    ready = await site.api.InitProducer(init, None)
    assert ready.stream_id == STREAM
    await make_again(four)
    second = four.sites[A].groups.replica(SECOND)
    assert second is not None

    def batch(producer_id: int, stream_id: int) -> data_pb2.PublishBatchRequest:
        return data_pb2.PublishBatchRequest(
            stream=NAME, wait=COMMITTED, batch=encode_batch([Record(b"late")], producer_id, 1), stream_id=stream_id
        )

    twin = await site.api.InitProducer(init, None)
    for request in (batch(ready.producer_id, STREAM), batch(twin.producer_id, STREAM), batch(0, STREAM)):
        (answer,) = await publish(site, [request])
        assert (answer.error.code, answer.error.details["stream_id"]) == REPLACED
    assert second.next_offset == 1
    with pytest.raises(MeshError) as refusal:
        await site.api.InitProducer(data_pb2.InitProducerRequest(stream=NAME, stream_id=STREAM), None)
    assert refused(refusal.value) == REPLACED
    (answer,) = await publish(site, [batch(twin.producer_id, SECOND)])
    assert (answer.stream_id, answer.base_offset) == (SECOND, 1)


async def test_a_call_stays_with_the_stream_that_it_began_with(four: Cluster) -> None:
    """Also when every request of it names the stream and none gives an id."""
    site = four.sites[B]
    again = asyncio.Event()

    async def requests() -> AsyncIterator[data_pb2.PublishBatchRequest]:
        one = data_pb2.PublishBatchRequest(stream=NAME, wait=COMMITTED, batch=encode_batch([Record(b"x")]))
        yield one
        await again.wait()
        yield one

    answers = site.api.PublishBatch(requests(), None)
    first = await anext(aiter(answers))
    assert (first.stream_id, first.base_offset) == (STREAM, 3)
    await make_again(four)
    again.set()
    assert (await anext(aiter(answers))).error.code == ErrorCode.STREAM_REPLACED
    second = four.sites[A].groups.replica(SECOND)
    assert second is not None
    assert second.next_offset == 1


@pytest.mark.parametrize("node", [B, D], ids=["follower", "no replica"])
async def test_a_follow_ends_with_its_stream(four: Cluster, node: NodeId) -> None:
    site = four.sites[node]
    values: list[bytes] = []

    async def follow() -> None:
        asked = data_pb2.ReadBatchesRequest(stream=NAME, follow=True)
        async for response in site.api.ReadBatches(asked, None):
            assert response.stream_id == STREAM
            values.extend(value for _, value in opened(response))

    following = asyncio.create_task(follow(), name="follow")
    await until(lambda: len(values) == 3)
    await make_again(four)
    async with asyncio.timeout(20):
        with pytest.raises(MeshError) as ended:
            await following
    assert ended.value.code in (ErrorCode.STREAM_REPLACED, ErrorCode.STREAM_NOT_FOUND)
    assert values == [b"0", b"1", b"2"]


async def test_describe_tells_and_checks_the_stream(four: Cluster) -> None:
    site = four.sites[D]
    asked = data_pb2.DescribeStreamRequest(stream=NAME, stream_id=STREAM)
    assert (await site.api.DescribeStream(asked, None)).stream_id == STREAM
    await make_again(four)
    with pytest.raises(MeshError) as answer:
        await site.api.DescribeStream(asked, None)
    assert refused(answer.value) == REPLACED
    assert not answer.value.retryable


async def test_a_stream_that_the_node_has_not_heard_of_yet_may_be_there_later(four: Cluster) -> None:
    """Another node may have told the new id already: that is no reason for the application to give up."""
    with pytest.raises(MeshError) as answer:
        await read_all(four.sites[B], stream_id=SECOND)
    assert refused(answer.value) == (ErrorCode.STREAM_REPLACED, str(STREAM))
    assert answer.value.retryable


@pytest.mark.parametrize(("expected", "advice"), [(2, "that one is demo/other, check"), (3, "is not used again")])
async def test_an_id_that_can_never_be_that_stream_is_refused_for_good(
    four: Cluster, expected: int, advice: str
) -> None:
    """The catalogue knows the id under another name, or has given it out and its stream is gone."""
    view = make_view(3, StreamPhase.ACTIVE)
    other = replace(view.streams[STREAM], stream_id=SECOND, name="demo/other", members=())
    four.set_view(replace(view, streams=view.streams | {SECOND: other}, next_stream_id=4))
    await until(lambda: four.sites[B].overlay.view().revision == 3)
    with pytest.raises(MeshError, match=advice) as answer:
        await read_all(four.sites[B], stream_id=expected)
    assert refused(answer.value) == (ErrorCode.STREAM_REPLACED, str(STREAM))
    assert not answer.value.retryable
    with pytest.raises(MeshError) as ahead:
        await read_all(four.sites[B], stream_id=4)
    assert ahead.value.retryable


async def test_a_deleted_stream_is_not_found(four: Cluster) -> None:
    four.set_view(make_view(3, StreamPhase.DELETING, is_sealed=True))
    with pytest.raises(MeshError) as answer:
        await read_all(four.sites[B], stream_id=STREAM)
    assert answer.value.code is ErrorCode.STREAM_NOT_FOUND


class TestClient:
    """`meshclient` at the client listener: it learns the id from the first answer and never goes on in another stream."""

    @pytest.fixture
    async def client(self, four: Cluster) -> AsyncIterator[MeshClient]:
        listener = ClientListener("127.0.0.1:0", four.sites[B].catalogue, four.sites[B].budgets)
        serving = asyncio.create_task(listener.run(), name="clients")
        async with MeshClient(f"ws://127.0.0.1:{listener.port}", give_up_after_s=10) as client:
            yield client
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)

    async def test_a_reader_ends_with_its_stream_and_its_cursor_is_refused(
        self, four: Cluster, client: MeshClient
    ) -> None:
        reader = client.read(NAME, follow=True)
        assert reader.stream_id == 0
        assert [(await anext(reader)).value for _ in range(3)] == [b"0", b"1", b"2"]
        assert (reader.stream_id, reader.next_offset) == (STREAM, 3)
        await make_again(four)
        async with asyncio.timeout(20):
            with pytest.raises(MeshError) as ended:
                await anext(reader)
        assert ended.value.code in (ErrorCode.STREAM_REPLACED, ErrorCode.STREAM_NOT_FOUND)
        resumed = client.read(NAME, 1, stream_id=reader.stream_id)
        with pytest.raises(MeshError) as refusal:
            await anext(resumed)
        assert refused(refusal.value) == REPLACED
        anew = client.read(NAME)
        assert [record.value async for record in anew] == [b"of the second"]
        assert anew.stream_id == SECOND

    async def test_a_reader_of_nothing_learns_the_stream_and_keeps_to_it_across_connections(
        self, four: Cluster, client: MeshClient
    ) -> None:
        reader = client.read(NAME, 3, follow=True)
        first = asyncio.create_task(anext(reader), name="read")
        await until(lambda: reader.stream_id == STREAM)
        await make_again(four)
        await (await client.connection()).close()  # it asks again on the next one
        async with asyncio.timeout(20):
            with pytest.raises(MeshError) as ended:
                await first
        assert ended.value.code in (ErrorCode.STREAM_REPLACED, ErrorCode.STREAM_NOT_FOUND)

    async def test_a_producer_ends_with_its_stream(self, four: Cluster, client: MeshClient) -> None:
        producer = await client.producer(NAME, name="meter").__aenter__()
        assert producer.stream_id == STREAM
        assert await producer.publish(b"3") == 3
        await make_again(four)
        with pytest.raises(MeshError) as ended:
            await producer.publish(b"late")
        assert ended.value.code in (ErrorCode.STREAM_REPLACED, ErrorCode.STREAM_NOT_FOUND)
        with pytest.raises(MeshError) as refusal:
            await client.producer(NAME, name="meter", stream_id=STREAM).__aenter__()
        assert refused(refusal.value) == REPLACED
        with pytest.raises(MeshError) as described:
            await client.describe(NAME, stream_id=STREAM)
        assert refused(described.value) == REPLACED
        async with client.producer(NAME, name="meter", stream_id=SECOND) as anew:
            assert await anew.publish(b"in the second") == 1
        second = four.sites[A].groups.replica(SECOND)
        assert second is not None
        assert second.next_offset == 2
