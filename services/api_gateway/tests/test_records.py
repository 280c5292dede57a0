"""Records into batches and back at the gateway: REST and the gRPC calls that speak of records."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from mesh_gateway.core.batches import CHUNK_BYTES, CHUNK_RECORDS, RecordSpan, encode_request
from mesh_gateway.core.byte_budget import ByteBudget
from mesh_gateway.shell.proxy import pass_through
from mesh_gateway.shell.record_exchanges import opened_budget
from meshapi.supervisor.v1 import data_pb2
from meshapi.supervisor.v1.data_pb2_grpc import MeshDataServiceStub
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.grpc_client import mesh_error, open_channel
from meshcommon.grpc_server import GrpcServer, error_detail
from meshwire.batch import MAX_BODY_BYTES, MAX_UNCOMPRESSED_BYTES, Codec, assemble, decode_header
from meshwire.records import Record, decode_records, encode_batch

if TYPE_CHECKING:
    from tests.conftest import Gateway

RECORDS = "/v1/streams/demo/lines/records"
COMMITTED = data_pb2.PUBLISH_WAIT_COMMITTED
CONTEXT = (("traceparent", b"00-1-2-01"), ("correlation-id", b"order-17"))
LYING = assemble(bytes(40), record_count=5, uncompressed_bytes=40)
"""Says five records, has none."""


def request(*values: bytes, **fields: Any) -> data_pb2.PublishRequest:
    return data_pb2.PublishRequest(records=[data_pb2.PublishRecord(value=value) for value in values], **fields)


def answer(batches: Iterable[tuple[int, bytes]], next_offset: int = 99) -> data_pb2.ReadBatchesResponse:
    return data_pb2.ReadBatchesResponse(
        batches=[data_pb2.ReadBatch(base_offset=at, timestamp_ms=8, batch=batch) for at, batch in batches],
        next_offset=next_offset,
        stream_id=4,
    )


def batch(*values: bytes, codec: Codec = Codec.NONE) -> bytes:
    return encode_batch([Record(value) for value in values], codec=codec)


class TestEncoding:
    def test_the_calls_context_goes_to_records_that_have_none(self) -> None:
        given_request = request(b"one", b"two", producer_id=7, producer_epoch=2, base_sequence=9)
        own = data_pb2.RecordHeader(name="traceparent", value=b"mine")
        given_request.records[1].headers.append(own)
        encoded = encode_request(given_request, CONTEXT, 1234)
        header = decode_header(encoded, verify=True)
        assert (header.producer_id, header.producer_epoch, header.base_sequence) == (7, 2, 9)
        assert (header.first_timestamp_ms, header.greatest_timestamp_ms) == (1234, 1234)
        assert decode_records(encoded) == [
            Record(b"one", None, CONTEXT),
            Record(b"two", None, (("traceparent", b"mine"), CONTEXT[1])),
        ]

    def test_a_batch_that_would_become_too_large_by_it_goes_without(self) -> None:
        values = [bytes(1020)] * 1024
        encoded = encode_request(request(*values), CONTEXT, 0)
        assert decode_records(encoded) == [Record(value) for value in values]

    @pytest.mark.parametrize(
        ("bad", "code"),
        [
            (request(), ErrorCode.EMPTY_BATCH),
            (request(bytes(1024 * 1024 + 1)), ErrorCode.MESSAGE_TOO_LARGE),
            (request(bytes(600_000), bytes(600_000)), ErrorCode.MESSAGE_TOO_LARGE),
            (request(*[b""] * 65_537), ErrorCode.MESSAGE_TOO_LARGE),
            (
                data_pb2.PublishRequest(records=[data_pb2.PublishRecord(key=bytes(32 * 1024 + 1))]),
                ErrorCode.MESSAGE_TOO_LARGE,
            ),
            (
                data_pb2.PublishRequest(
                    records=[data_pb2.PublishRecord(headers=[data_pb2.RecordHeader(value=b"nameless")])]
                ),
                ErrorCode.INVALID_ARGUMENT,
            ),
            (request(b"x", base_sequence=2**64 - 1, producer_id=1), None),
            (request(b"x", b"y", base_sequence=2**64 - 1, producer_id=1), ErrorCode.INVALID_ARGUMENT),
        ],
    )
    def test_what_is_wrong_with_a_batch_is_said(self, bad: data_pb2.PublishRequest, code: ErrorCode | None) -> None:
        if code is None:
            encode_request(bad, CONTEXT, 0)
            return
        with pytest.raises(MeshError) as refusal:
            encode_request(bad, CONTEXT, 0)
        assert refusal.value.code is code
        if code is ErrorCode.MESSAGE_TOO_LARGE:
            assert int(refusal.value.details["limit"]) <= MAX_BODY_BYTES


class TestSpan:
    def read(
        self, span: RecordSpan, *answers: data_pb2.ReadBatchesResponse, budget: ByteBudget | None = None
    ) -> list[data_pb2.ReadResponse]:
        found: list[data_pb2.ReadResponse] = []
        opened = budget or opened_budget()
        for item in answers:
            with opened.share() as share:
                found += span.responses(item, share)
        assert opened.used_bytes == 0
        return found

    @given(
        sizes=st.lists(st.integers(1, 5), min_size=1, max_size=8),
        start=st.integers(0, 10),
        records_max=st.integers(0, 12),
        per_answer=st.integers(1, 3),
        codec=st.sampled_from(Codec),
    )
    def test_it_gives_exactly_the_records_that_are_wanted(
        self, sizes: list[int], start: int, records_max: int, per_answer: int, codec: Codec
    ) -> None:
        batches, at = [], 0
        for size in sizes:
            batches.append((at, batch(*(b"%d" % offset for offset in range(at, at + size)), codec=codec)))
            at += size
        answers = [answer(batches[first : first + per_answer]) for first in range(0, len(batches), per_answer)]
        found = self.read(RecordSpan(start, records_max), *answers)
        records = [record for response in found for record in response.records]
        wanted = range(min(start, at), min(at, start + records_max) if records_max else at)
        assert [(record.offset, record.value) for record in records] == [(n, b"%d" % n) for n in wanted]
        assert all(response.next_offset == 99 and response.stream_id == 4 for response in found)

    def test_answers_are_bounded_in_bytes_and_records(self) -> None:
        many = [(at * 2000, batch(*[b""] * 2000)) for at in range(3)]
        large = [(6000, batch(*[bytes(100_000)] * 10)), (6010, batch(bytes(1024 * 1024)))]
        found = self.read(RecordSpan(0, 0), answer([*many, *large]))
        assert max(len(response.records) for response in found) == CHUNK_RECORDS
        assert sum(len(response.records) for response in found) == 6011
        assert max(response.ByteSize() for response in found[:-1]) < CHUNK_BYTES + 1000

    def test_an_answer_without_batches_passes(self) -> None:
        view = data_pb2.ReplicaView(applied_index=7)
        (found,) = self.read(RecordSpan(3, 0), data_pb2.ReadBatchesResponse(next_offset=3, view=view, stream_id=4))
        assert found == data_pb2.ReadResponse(next_offset=3, view=view, stream_id=4)

    def test_an_unreadable_batch_is_told_after_what_came_before_it(self) -> None:
        span = RecordSpan(0, 0)
        found: list[data_pb2.ReadResponse] = []
        with opened_budget().share() as share, pytest.raises(MeshError) as refusal:
            found.extend(span.responses(answer([(0, batch(b"0")), (1, LYING), (6, batch(b"6"))]), share))
        assert [record.value for response in found for record in response.records] == [b"0"]
        assert (refusal.value.code, refusal.value.details) == (
            ErrorCode.BATCH_UNREADABLE,
            {"offset": "1", "next_offset": "6"},
        )
        (behind,) = self.read(RecordSpan(6, 0), answer([(6, batch(b"6"))]))
        assert behind.records[0].offset == 6

    def test_what_is_open_at_a_time_is_bounded(self) -> None:
        """Each batch announces 16 MiB in little more than a kilobyte; one is open at a time, and none beyond the budget."""
        content = (b"\x00\xff\xff\x00\x0f\x00\x00" + bytes(0xF0000)) * 17
        frame = zstandard.ZstdCompressor().compress(content)
        bomb = assemble(frame, record_count=17, uncompressed_bytes=len(content), codec=Codec.ZSTD)
        assert len(bomb) < 10_000 < MAX_UNCOMPRESSED_BYTES - len(content)
        budget = ByteBudget(len(content), "opened batches")
        found = self.read(RecordSpan(0, 0), answer([(17 * at, bomb) for at in range(3)]), budget=budget)
        assert sum(len(response.records) for response in found) == 51
        with pytest.raises(MeshError) as refusal:
            self.read(RecordSpan(0, 0), answer([(0, bomb)]), budget=ByteBudget(len(content) - 1, "opened batches"))
        assert refusal.value.code is ErrorCode.BACKPRESSURE
        small = encode_batch([Record(bytes(0x100000))], codec=Codec.ZSTD)
        assert self.read(RecordSpan(0, 0), answer([(0, small)]), budget=ByteBudget(0, "opened batches"))


class TestRest:
    async def test_headers_come_back_as_text_or_base64(self, gateway: Gateway) -> None:
        async def read(_request: Any, _context: Any) -> AsyncIterator[data_pb2.ReadBatchesResponse]:
            yield answer([(5, encode_batch([Record(b"v", None, (("n", b"text"), ("m", b"\xff")))]))], 6)

        gateway.data.answers["ReadBatches"] = read
        found = (await gateway.http.get(RECORDS, params={"from": 5})).json()["records"]
        assert found == [
            {
                "offset": 5,
                "timestamp_ms": 8,
                "value": "v",
                "headers": [{"name": "n", "value": "text"}, {"name": "m", "value_base64": "/w=="}],
            }
        ]

    async def test_headers_go_out_beside_the_calls_context(self, gateway: Gateway) -> None:
        taken: list[data_pb2.PublishRequest] = []

        async def publish(requests: Any, _context: Any) -> AsyncIterator[data_pb2.PublishResponse]:
            async for item in requests:
                taken.append(item)
                yield data_pb2.PublishResponse(count=1)

        gateway.data.answer_publishes(publish)
        record = {"value": "x", "headers": [{"name": "kind", "value": "a"}, {"name": "raw", "value_base64": "/w=="}]}
        body = {"wait": "committed", "records": [record]}
        done = await gateway.http.post(RECORDS, json=body, headers={"x-correlation-id": "order-17"})
        assert done.status_code == 200
        headers = [(header.name, header.value) for header in taken[0].records[0].headers]
        assert headers == [("kind", b"a"), ("raw", b"\xff"), ("correlation-id", b"order-17")]
        for bad in ([{"name": "n"}], [{"name": "", "value": "x"}], [{"name": "n", "value": "x"}] * 2):
            body = {"wait": "committed", "records": [{"value": "x", "headers": bad}]}
            assert (await gateway.http.post(RECORDS, json=body)).status_code == 400
        assert len(taken) == 1

    async def test_a_page_ends_before_an_unreadable_batch_and_the_next_one_says_where_to_go_on(
        self, gateway: Gateway
    ) -> None:
        log = [(0, batch(b"0", b"1")), (2, LYING), (7, batch(b"7"))]

        async def read(asked: Any, _context: Any) -> AsyncIterator[data_pb2.ReadBatchesResponse]:
            yield answer([item for item in log if item[0] >= asked.from_offset], 8)

        gateway.data.answers["ReadBatches"] = read
        page = (await gateway.http.get(RECORDS, params={"from": 0})).json()
        assert ([record["value"] for record in page["records"]], page["continue_from"]) == (["0", "1"], 2)
        stuck = await gateway.http.get(RECORDS, params={"from": page["continue_from"]})
        assert (stuck.status_code, stuck.json()["code"]) == (422, "BATCH_UNREADABLE")
        assert not stuck.json()["retryable"]
        behind = (await gateway.http.get(RECORDS, params={"from": stuck.json()["details"]["next_offset"]})).json()
        assert [record["value"] for record in behind["records"]] == ["7"]


@pytest.fixture
async def stub(gateway: Gateway) -> AsyncIterator[MeshDataServiceStub]:
    """The gateway's gRPC port."""
    server = GrpcServer()
    pass_through(server.server, gateway.backends, gateway.metrics, opened_budget())
    port = await server.start("127.0.0.1:0", "The gateway of the test")
    client = open_channel(f"127.0.0.1:{port}")
    yield MeshDataServiceStub(client)
    await client.close()
    await server.server.stop(None)


class TestGrpc:
    async def test_publish_goes_on_as_batches_and_a_bad_one_is_answered_in_its_place(
        self, gateway: Gateway, stub: Any
    ) -> None:
        taken: list[data_pb2.PublishBatchRequest] = []

        async def publish(requests: Any, _context: Any) -> AsyncIterator[data_pb2.PublishBatchResponse]:
            async for item in requests:
                taken.append(item)
                if not item.wait:
                    error = MeshError(ErrorCode.WAIT_REQUIRED, "Say it.")
                elif not item.batch:
                    error = MeshError(ErrorCode.INVALID_ARGUMENT, "The batch cannot be read.")
                else:
                    count = decode_header(item.batch, verify=True).record_count
                    yield data_pb2.PublishBatchResponse(base_offset=len(taken), count=count, stream_id=4)
                    continue
                yield data_pb2.PublishBatchResponse(error=error_detail(error), credit_bytes=77)

        gateway.data.answers["PublishBatch"] = publish

        async def requests() -> AsyncIterator[data_pb2.PublishRequest]:
            yield request(stream="d/l")
            yield request(b"one", b"two", stream="d/l", wait=COMMITTED, producer_id=5, producer_epoch=1)
            yield request(wait=COMMITTED)
            yield request(b"three", wait=COMMITTED)

        call = stub.Publish(requests(), metadata=(("x-correlation-id", "order-17"),))
        answers = [item async for item in call]
        assert [(item.error.code, item.base_offset, item.count) for item in answers] == [
            ("WAIT_REQUIRED", 0, 0),
            ("", 2, 2),
            ("EMPTY_BATCH", 0, 0),
            ("", 4, 1),
        ]
        assert (answers[0].credit_bytes, answers[1].stream_id, taken[1].stream) == (77, 4, "d/l")
        (first, _) = decode_records(taken[1].batch)
        assert dict(first.headers)["correlation-id"] == b"order-17"

    async def test_read_opens_batches_until_one_cannot_be_opened(self, gateway: Gateway, stub: Any) -> None:
        asked: list[data_pb2.ReadBatchesRequest] = []

        async def read(item: data_pb2.ReadBatchesRequest, _context: Any) -> AsyncIterator[Any]:
            asked.append(item)
            yield answer([(0, batch(b"0", b"1", codec=Codec.ZSTD)), (2, batch(b"2")), (3, LYING)])

        gateway.data.answers["ReadBatches"] = read
        wanted: dict[str, Any] = {"stream": "d/l", "from_offset": 1, "follow": True, "stream_id": 4}
        answers = aiter(stub.Read(data_pb2.ReadRequest(**wanted)))
        assert [record.value for record in (await anext(answers)).records] == [b"1", b"2"]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await anext(answers)
        assert mesh_error(caught.value, "gateway").details["next_offset"] == "8"
        assert caught.value.code() == grpc.StatusCode.DATA_LOSS
        assert asked == [data_pb2.ReadBatchesRequest(**wanted)]

    async def test_a_read_of_so_many_records_ends_within_a_batch(self, gateway: Gateway, stub: Any) -> None:
        async def read(_item: Any, _context: Any) -> AsyncIterator[Any]:
            yield answer([(0, batch(*[b"x"] * 5))])
            yield answer([(5, batch(b"y"))])

        gateway.data.answers["ReadBatches"] = read
        found = [item async for item in stub.Read(data_pb2.ReadRequest(stream="d/l", from_offset=1, records_max=3))]
        assert [record.offset for item in found for record in item.records] == [1, 2, 3]

    async def test_a_caller_that_cancels_cancels_the_data_plane(self, gateway: Gateway, stub: Any) -> None:
        cancelled = asyncio.Event()

        async def read(_item: Any, _context: Any) -> AsyncIterator[Any]:
            try:
                yield answer([(0, batch(b"x"))])
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        gateway.data.answers["ReadBatches"] = read
        call = stub.Read(data_pb2.ReadRequest(stream="d/l", follow=True))
        await anext(aiter(call))
        call.cancel()
        async with asyncio.timeout(10):
            await cancelled.wait()
