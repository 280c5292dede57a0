"""The publisher against a server in the same process that loses answers, breaks calls and refuses batches."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from meshapi.supervisor.v1 import data_pb2
from meshapi.supervisor.v1.data_pb2_grpc import MeshDataServiceStub
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.grpc_client import open_channel
from meshcommon.grpc_server import error_detail
from meshctl.publisher import BATCH_BYTES_MAX, Committed, Publisher, PublisherLimits
from meshwire.batch import Codec, decode_header
from meshwire.records import Record

if TYPE_CHECKING:
    from meshapi.supervisor.v1.data_pb2_grpc import MeshDataServiceAsyncStub
    from meshtest.fake_services import FakeServer

QUICK = PublisherLimits(give_up_after_s=20, backoff_first_s=0.001, backoff_max_s=0.01)


@pytest.fixture
async def service(gateway: FakeServer) -> AsyncIterator[MeshDataServiceAsyncStub]:
    channel = open_channel(gateway.target)
    yield MeshDataServiceStub(channel)
    await channel.close()


def records(*values: bytes) -> list[Record]:
    return [Record(value) for value in values]


@dataclass
class ModelStream:
    """A stream with one producer, as dumb as can be: a list of values, and what goes wrong drawn from a seed."""

    rng: random.Random
    trouble: float = 0.0
    credit_bytes: int = 0
    next_sequence: int = 0
    log: list[bytes] = field(default_factory=list)
    calls: int = 0
    offsets: dict[int, int] = field(default_factory=dict)

    def install(self, gateway: FakeServer) -> None:
        start = data_pb2.InitProducerResponse(producer_id=9, producer_epoch=2, next_sequence=self.next_sequence)
        gateway.answer("InitProducer", start)
        gateway.answer_publishes(self.publish)

    async def publish(self, requests: Any, context: Any) -> AsyncIterator[data_pb2.PublishResponse]:
        self.calls += 1
        async for request in requests:
            assert (request.producer_id, request.producer_epoch) == (9, 2)
            assert request.wait == data_pb2.PUBLISH_WAIT_COMMITTED
            fate = self.rng.random()
            if fate < self.trouble / 4:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "lost on the way there")
            if fate < self.trouble / 2:
                yield refusal(ErrorCode.STREAM_UNAVAILABLE)
                continue
            response = self.commit(request)
            if fate < self.trouble:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "lost on the way back")
            yield response

    def commit(self, request: data_pb2.PublishRequest) -> data_pb2.PublishResponse:
        if request.base_sequence > self.next_sequence:
            return refusal(ErrorCode.SEQUENCE_GAP)
        is_duplicate = request.base_sequence < self.next_sequence
        if not is_duplicate:
            self.offsets[request.base_sequence] = len(self.log)
            self.log += [record.value for record in request.records]
            self.next_sequence += len(request.records)
        return data_pb2.PublishResponse(
            base_offset=self.offsets[request.base_sequence],
            count=len(request.records),
            is_duplicate=is_duplicate,
            credit_bytes=self.credit_bytes,
        )


def refusal(code: ErrorCode) -> data_pb2.PublishResponse:
    return data_pb2.PublishResponse(error=error_detail(MeshError(code, "The test says so.")))


async def test_batches_are_committed_in_order_and_each_answer_is_told(
    gateway: FakeServer, service: MeshDataServiceAsyncStub
) -> None:
    stream = ModelStream(random.Random(1))
    stream.install(gateway)
    async with Publisher(service, "demo/lines") as publisher:
        answers = [await publisher.send(records(b"%d" % n, b"+")) for n in range(50)]
    assert stream.log == [value for n in range(50) for value in (b"%d" % n, b"+")]
    assert [await answer for answer in answers] == [Committed(2 * n, 2, False) for n in range(50)]
    assert publisher.producer_id == 9
    assert stream.calls == 1


async def test_a_named_producer_goes_on_at_its_next_sequence(
    gateway: FakeServer, service: MeshDataServiceAsyncStub
) -> None:
    stream = ModelStream(random.Random(1), next_sequence=40)
    stream.install(gateway)
    async with Publisher(service, "demo/lines", producer_name="meter-7") as publisher:
        await publisher.send(records(b"x"))
    assert gateway.asked[0].request.producer_name == "meter-7"
    assert stream.next_sequence == 41


@pytest.mark.parametrize("seed", range(12))
async def test_i2_every_record_is_there_once_and_in_order_whatever_breaks(
    gateway: FakeServer, service: MeshDataServiceAsyncStub, seed: int
) -> None:
    """I2 and I5: lost requests, lost answers, refusals and gaps, drawn from the seed."""
    rng = random.Random(seed)
    stream = ModelStream(rng, trouble=0.3)
    stream.install(gateway)
    values = [b"%d" % n for n in range(200)]
    async with Publisher(service, "demo/lines", limits=QUICK, rng=random.Random(seed)) as publisher:
        answers = []
        position = 0
        while position < len(values):
            size = rng.randint(1, 7)
            answers.append((position, await publisher.send(records(*values[position : position + size]))))
            position += size
    assert stream.log == values
    assert publisher.retries > 0
    for expected, answer in answers:
        assert (await answer).base_offset == expected


async def test_the_checker_of_this_file_sees_a_doubled_record(
    gateway: FakeServer, service: MeshDataServiceAsyncStub
) -> None:
    """A server that forgets to compare sequences doubles what is sent again; the log shows it."""

    class Forgetful(ModelStream):
        def commit(self, request: data_pb2.PublishRequest) -> data_pb2.PublishResponse:
            self.next_sequence = request.base_sequence
            return super().commit(request)

    stream = Forgetful(random.Random(3), trouble=0.3)
    stream.install(gateway)
    values = [b"%d" % n for n in range(100)]
    async with Publisher(service, "demo/lines", limits=QUICK) as publisher:
        for value in values:
            await publisher.send(records(value))
    assert stream.log != values


async def test_a_fatal_refusal_ends_the_publisher_and_tells_every_waiter(
    gateway: FakeServer, service: MeshDataServiceAsyncStub
) -> None:
    stream = ModelStream(random.Random(1))
    stream.install(gateway)

    async def fenced(requests: Any, _context: Any) -> AsyncIterator[data_pb2.PublishResponse]:
        async for _ in requests:
            yield refusal(ErrorCode.PRODUCER_FENCED)

    gateway.answer_publishes(fenced)
    publisher = Publisher(service, "demo/lines", limits=QUICK)
    await publisher.__aenter__()
    first = await publisher.send(records(b"1"))
    for waiter in (first, publisher.send(records(b"2")), publisher.flush(), publisher.__aexit__(None, None, None)):
        with pytest.raises(MeshError, match="PRODUCER_FENCED"):
            await waiter
    assert publisher.retries == 0


async def test_it_gives_up_when_nothing_moves(gateway: FakeServer, service: MeshDataServiceAsyncStub) -> None:
    ModelStream(random.Random(1), trouble=2).install(gateway)
    limits = PublisherLimits(give_up_after_s=0.2, backoff_first_s=0.001, backoff_max_s=0.01)
    with pytest.raises(MeshError) as caught:
        async with Publisher(service, "demo/lines", limits=limits) as publisher:
            await publisher.send(records(b"1"))
    assert caught.value.retryable


async def test_a_stream_that_is_not_there_is_told_at_once(
    gateway: FakeServer, service: MeshDataServiceAsyncStub
) -> None:
    gateway.answer("InitProducer", MeshError(ErrorCode.STREAM_NOT_FOUND, "No such stream."))
    with pytest.raises(MeshError, match="STREAM_NOT_FOUND"):
        async with Publisher(service, "demo/none"):
            pass


async def test_getting_the_producer_id_is_retried(gateway: FakeServer, service: MeshDataServiceAsyncStub) -> None:
    stream = ModelStream(random.Random(1))
    stream.install(gateway)
    later = gateway.answers["InitProducer"]
    tries = 0

    async def twice_without_leader(request: Any, context: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries <= 2:
            raise MeshError(ErrorCode.NO_QUORUM, "Not yet.")
        return await later(request, context)

    gateway.answers["InitProducer"] = twice_without_leader
    async with Publisher(service, "demo/lines", limits=QUICK) as publisher:
        await publisher.send(records(b"1"))
    assert (tries, stream.log) == (3, [b"1"])


async def test_i6_the_window_bounds_what_is_unanswered(gateway: FakeServer, service: MeshDataServiceAsyncStub) -> None:
    stream = ModelStream(random.Random(1))
    stream.install(gateway)
    release = asyncio.Event()
    plain = stream.publish

    async def held(requests: Any, context: Any) -> AsyncIterator[data_pb2.PublishResponse]:
        await release.wait()
        async for response in plain(requests, context):
            yield response

    gateway.answer_publishes(held)
    limits = PublisherLimits(window_bytes=100)
    async with Publisher(service, "demo/lines", limits=limits) as publisher:
        for _ in range(10):
            await publisher.send(records(b"x" * 10))
        eleventh = asyncio.create_task(publisher.send(records(b"x" * 10)), name="eleventh")
        done, _ = await asyncio.wait([eleventh], timeout=0.05)
        assert not done
        release.set()
        await eleventh
    assert len(stream.log) == 11


async def test_the_servers_credit_paces_the_call(gateway: FakeServer, service: MeshDataServiceAsyncStub) -> None:
    stream = ModelStream(random.Random(1), credit_bytes=20)
    stream.install(gateway)
    unanswered_max = 0

    async def counting(requests: Any, context: Any) -> AsyncIterator[data_pb2.PublishResponse]:
        """Answers only when nothing more comes for a moment, and notes how much had come by then."""
        nonlocal unanswered_max
        waiting: list[data_pb2.PublishRequest] = []
        is_first = True
        iterator = aiter(requests)
        following = asyncio.ensure_future(anext(iterator))
        while True:
            done, _ = await asyncio.wait([following], timeout=0.02)
            if done:
                waiting.append(following.result())
                following = asyncio.ensure_future(anext(iterator))
                if not is_first:
                    unanswered_max = max(unanswered_max, sum(len(item.records[0].value) for item in waiting))
                    continue
            if waiting:
                is_first = False
                yield stream.commit(waiting.pop(0))

    gateway.answer_publishes(counting)
    async with Publisher(service, "demo/lines") as publisher:
        await (await publisher.send(records(b"x" * 10)))
        for _ in range(8):
            await publisher.send(records(b"x" * 10))
    assert unanswered_max == 20
    assert len(stream.log) == 9


async def test_an_idle_call_that_breaks_is_no_failure(gateway: FakeServer, service: MeshDataServiceAsyncStub) -> None:
    stream = ModelStream(random.Random(1))
    stream.install(gateway)

    async def one_each(requests: Any, context: Any) -> AsyncIterator[data_pb2.PublishResponse]:
        async for request in requests:
            yield stream.commit(request)
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the gateway restarts")

    gateway.answer_publishes(one_each)
    # Any failure that counted would end it at once.
    limits = PublisherLimits(give_up_after_s=0)
    async with Publisher(service, "demo/lines", limits=limits) as publisher:
        for value in (b"1", b"2", b"3"):
            answer = await publisher.send(records(value))
            assert not (await answer).is_duplicate
            async with asyncio.timeout(10):
                async with publisher._changed:
                    await publisher._changed.wait_for(lambda: publisher._session is None)
    assert (stream.log, publisher.retries) == ([b"1", b"2", b"3"], 0)


@pytest.mark.parametrize(
    ("batch", "code"),
    [([], ErrorCode.EMPTY_BATCH), (records(b"x" * (BATCH_BYTES_MAX + 1)), ErrorCode.MESSAGE_TOO_LARGE)],
)
async def test_a_batch_that_cannot_be_sent_is_refused_and_the_rest_goes_on(
    gateway: FakeServer, service: MeshDataServiceAsyncStub, batch: list[Record], code: ErrorCode
) -> None:
    stream = ModelStream(random.Random(1))
    stream.install(gateway)
    async with Publisher(service, "demo/lines") as publisher:
        with pytest.raises(MeshError) as caught:
            await publisher.send(batch)
        assert caught.value.code == code
        await publisher.send(records(b"fine"))
    assert stream.log == [b"fine"]


async def test_leaving_with_an_exception_does_not_wait(gateway: FakeServer, service: MeshDataServiceAsyncStub) -> None:
    ModelStream(random.Random(1)).install(gateway)

    async def never(requests: Any, _context: Any) -> AsyncIterator[data_pb2.PublishResponse]:
        async for _ in requests:
            await asyncio.Event().wait()
        yield data_pb2.PublishResponse()

    gateway.answer_publishes(never)
    publisher = Publisher(service, "demo/lines")
    await publisher.__aenter__()
    answer = await publisher.send(records(b"1"))
    await publisher.__aexit__(KeyError, KeyError(), None)
    with pytest.raises(MeshError, match="OUTCOME_UNKNOWN"):
        await answer


async def test_compressed_batches_hold_the_same_records(gateway: FakeServer, service: MeshDataServiceAsyncStub) -> None:
    codecs: list[int] = []
    stream = ModelStream(random.Random(1))
    stream.install(gateway)
    opened = gateway.answers["PublishBatch"]

    async def watched(requests: Any, context: Any) -> AsyncIterator[data_pb2.PublishBatchResponse]:
        async def seen() -> AsyncIterator[data_pb2.PublishBatchRequest]:
            async for request in requests:
                codecs.append(decode_header(request.batch, verify=True).codec)
                yield request

        async for answer in opened(seen(), context):
            yield answer

    gateway.answers["PublishBatch"] = watched
    async with Publisher(service, "demo/lines", codec=Codec.ZSTD) as publisher:
        await publisher.send(records(b"again " * 100, b"again " * 100))
        await publisher.send(records(b"x"))
    assert stream.log == [b"again " * 100, b"again " * 100, b"x"]
    assert codecs == [Codec.ZSTD, Codec.NONE]
