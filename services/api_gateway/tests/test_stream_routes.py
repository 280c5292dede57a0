"""REST about streams: catalogue, publish, read."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from mesh_gateway.shell.calls import PAGE_BYTES_MAX
from meshapi.common.v1 import view_pb2
from meshapi.supervisor.v1 import data_pb2, mesh_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.grpc_server import error_detail

if TYPE_CHECKING:
    from tests.conftest import Gateway

RECORDS = "/v1/streams/demo/lines/records"


def stream(name: str = "demo/lines", stream_id: int = 4) -> view_pb2.StreamView:
    members = [view_pb2.StreamMember(node_id=1, is_voter=True), view_pb2.StreamMember(node_id=9)]
    return view_pb2.StreamView(
        stream_id=stream_id, name=name, state=view_pb2.STREAM_STATE_ACTIVE, members=members, retained_bytes_max=77
    )


def know_node_a(gateway: Gateway) -> None:
    view = view_pb2.MeshView(nodes=[view_pb2.NodeView(node_id=1, name="a")])
    gateway.control.answer("GetStatus", mesh_pb2.GetStatusResponse(view=view))


class PublishLog:
    """Takes what is published."""

    def __init__(self, gateway: Gateway, response: data_pb2.PublishResponse | None = None) -> None:
        self.requests: list[data_pb2.PublishRequest] = []
        self.response = response or data_pb2.PublishResponse(base_offset=40, count=2, stream_id=7)
        gateway.data.answer_publishes(self.publish)

    async def publish(self, requests: Any, _context: Any) -> AsyncIterator[data_pb2.PublishResponse]:
        async for request in requests:
            self.requests.append(request)
            yield self.response


async def test_create_names_the_members(gateway: Gateway) -> None:
    know_node_a(gateway)
    gateway.control.answer("CreateStream", mesh_pb2.CreateStreamResponse(stream=stream(), warnings=["w"]))
    body = {"name": "demo/lines", "members": ["a", "b"], "retained_bytes_max": 77}
    answer = await gateway.http.post("/v1/streams", json=body)
    assert answer.status_code == 201
    created = answer.json()
    assert [member["node"] for member in created["members"]] == ["a", ""]
    assert (created["state"], created["warnings"]) == ("ACTIVE", ["w"])
    assert gateway.control.asked[0].request == mesh_pb2.CreateStreamRequest(
        name="demo/lines", members=["a", "b"], retained_bytes_max=77
    )


async def test_list_is_by_name(gateway: Gateway) -> None:
    know_node_a(gateway)
    gateway.control.answer("ListStreams", mesh_pb2.ListStreamsResponse(streams=[stream("z/z"), stream("a/a", 9)]))
    body = (await gateway.http.get("/v1/streams")).json()
    assert [item["name"] for item in body["streams"]] == ["a/a", "z/z"]


async def test_one_stream_with_and_without_its_live_state(gateway: Gateway) -> None:
    know_node_a(gateway)
    gateway.control.answer("GetStream", mesh_pb2.GetStreamResponse(stream=stream()))
    live = data_pb2.DescribeStreamResponse(
        next_offset=7,
        leader="a",
        state_hash=b"\xab",
        members=[data_pb2.MemberProgress(node="a", matched_index=3, quiet_ms=5)],
    )
    gateway.data.answer("DescribeStream", live)
    body = (await gateway.http.get("/v1/streams/demo/lines")).json()
    assert (body["live"]["next_offset"], body["live"]["state_hash"]) == (7, "ab")
    assert body["warnings"] == []
    gateway.data.answer("DescribeStream", MeshError(ErrorCode.STREAM_UNAVAILABLE, "No leader."))
    body = (await gateway.http.get("/v1/streams/demo/lines")).json()
    assert (body["stream_id"], body["live"], body["warnings"]) == (4, None, ["STREAM_UNAVAILABLE: No leader."])


async def test_delete(gateway: Gateway) -> None:
    gateway.control.answer("DeleteStream", mesh_pb2.DeleteStreamResponse())
    assert (await gateway.http.delete("/v1/streams/demo/lines")).status_code == 204
    assert gateway.control.asked[-1].request.name == "demo/lines"


@pytest.mark.parametrize("body", [None, {}, {"producer_name": "meter"}])
async def test_producer(gateway: Gateway, body: dict[str, str] | None) -> None:
    answer = data_pb2.InitProducerResponse(
        producer_id=5, producer_epoch=2, next_sequence=8, last_offset_next=9, stream_id=7
    )
    gateway.data.answer("InitProducer", answer)
    response = await gateway.http.post("/v1/streams/demo/lines/producers", json=body)
    assert response.status_code == 201
    assert response.json() == {
        "producer_id": 5,
        "producer_epoch": 2,
        "next_sequence": 8,
        "last_offset_next": 9,
        "stream_id": 7,
    }
    name = (body or {}).get("producer_name", "")
    assert gateway.data.asked[-1].request == data_pb2.InitProducerRequest(stream="demo/lines", producer_name=name)


async def test_publish_json_with_text_base64_keys_and_a_producer(gateway: Gateway) -> None:
    log = PublishLog(gateway)
    body = {
        "wait": "committed",
        "records": [
            {"value": "grüße", "key": "k"},
            {"value_base64": base64.b64encode(b"\x00\xff").decode(), "key_base64": ""},
        ],
        "producer": {"id": 5, "epoch": 2, "base_sequence": 8},
    }
    answer = await gateway.http.post(RECORDS, json=body, headers={"x-correlation-id": "order-17"})
    context = [data_pb2.RecordHeader(name="correlation-id", value=b"order-17")]
    assert (answer.status_code, answer.json()) == (
        200,
        {"base_offset": 40, "count": 2, "is_duplicate": False, "stream_id": 7},
    )
    assert log.requests == [
        data_pb2.PublishRequest(
            stream="demo/lines",
            wait=data_pb2.PUBLISH_WAIT_COMMITTED,
            records=[
                data_pb2.PublishRecord(value="grüße".encode(), key=b"k", headers=context),
                data_pb2.PublishRecord(value=b"\x00\xff", key=b"", headers=context),
            ],
            producer_id=5,
            producer_epoch=2,
            base_sequence=8,
        )
    ]


async def test_publish_bytes_as_one_record(gateway: Gateway) -> None:
    log = PublishLog(gateway)
    headers = {"content-type": "application/octet-stream"}
    answer = await gateway.http.post(f"{RECORDS}?wait=committed", content=b"\x00raw\r\n", headers=headers)
    assert answer.status_code == 200
    assert [record.value for record in log.requests[0].records] == [b"\x00raw\r\n"]
    assert not log.requests[0].records[0].HasField("key")
    refused = await gateway.http.post(RECORDS, content=b"x", headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (400, "WAIT_REQUIRED")
    refused = await gateway.http.post(f"{RECORDS}?wait=processed", content=b"x", headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (400, "INVALID_ARGUMENT")
    assert len(log.requests) == 1


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ({"records": [{"value": "x"}]}, "WAIT_REQUIRED", "committed"),
        ({"wait": "processed", "records": []}, "INVALID_ARGUMENT", "committed"),
        ({"wait": "committed"}, "INVALID_ARGUMENT", "'records' is missing"),
        ({"wait": "committed", "records": [{}]}, "INVALID_ARGUMENT", "records[0] has no value"),
        ({"wait": "committed", "records": [{"value": 7}]}, "INVALID_ARGUMENT", "'records[0].value' is not valid (7)"),
        ({"wait": "committed", "records": [{"value": "x", "value_base64": ""}]}, "INVALID_ARGUMENT", "both given"),
        ({"wait": "committed", "records": [{"value_base64": "§"}]}, "INVALID_ARGUMENT", "not valid base64"),
        ({"wait": "committed", "records": [{"value": "x", "color": 1}]}, "INVALID_ARGUMENT", "not known"),
        ({"wait": "committed", "records": [], "producer": {"id": 0}}, "INVALID_ARGUMENT", "producer.id"),
    ],
)
async def test_bad_bodies_are_refused_with_a_sentence(
    gateway: Gateway, body: dict[str, Any], code: str, said: str
) -> None:
    log = PublishLog(gateway)
    answer = await gateway.http.post(RECORDS, json=body)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == code
    assert said in answer.json()["detail"]
    assert log.requests == []


async def test_lone_surrogates_are_refused(gateway: Gateway) -> None:
    PublishLog(gateway)
    content = b'{"wait": "committed", "records": [{"value": "\\ud800"}]}'
    answer = await gateway.http.post(RECORDS, content=content, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_ARGUMENT")


@pytest.mark.parametrize("media_type", ["text/plain", "", "multipart/form-data; boundary=x"])
async def test_other_media_types_are_415(gateway: Gateway, media_type: str) -> None:
    PublishLog(gateway)
    answer = await gateway.http.post(RECORDS, content=b"x", headers={"content-type": media_type})
    assert (answer.status_code, answer.json()["code"]) == (415, "MEDIA_TYPE_NOT_SUPPORTED")


async def test_malformed_json_is_400(gateway: Gateway) -> None:
    for path in (RECORDS, "/v1/mesh/join"):
        answer = await gateway.http.post(path, content=b"{", headers={"content-type": "application/json"})
        assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_ARGUMENT")
        assert "not valid JSON" in answer.json()["detail"]


async def test_a_body_above_the_limit_is_413_with_the_limit(gateway: Gateway) -> None:
    log = PublishLog(gateway)
    headers = {"content-type": "application/octet-stream"}
    too_large = b"x" * (2 * 1024 * 1024 + 1)

    async def unannounced() -> AsyncIterator[bytes]:
        yield too_large[:-1]
        yield b"x"

    for content in (too_large, unannounced()):
        answer = await gateway.http.post(f"{RECORDS}?wait=committed", content=content, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (413, "MESSAGE_TOO_LARGE")
        assert answer.json()["details"] == {"limit": "2097152"}
    assert log.requests == []
    answer = await gateway.http.post(f"{RECORDS}?wait=committed", content=too_large[: 1024 * 1024], headers=headers)
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("code", "status"),
    [(ErrorCode.SEQUENCE_GAP, 409), (ErrorCode.BACKPRESSURE, 429), (ErrorCode.STREAM_NOT_FOUND, 404)],
)
async def test_an_error_in_the_answer_becomes_a_problem(gateway: Gateway, code: ErrorCode, status: int) -> None:
    detail = error_detail(MeshError(code, "It is so.", {"k": "v"}))
    PublishLog(gateway, data_pb2.PublishResponse(error=detail))
    answer = await gateway.http.post(RECORDS, json={"wait": "committed", "records": [{"value": "x"}]})
    assert (answer.status_code, answer.json()["code"], answer.json()["details"]) == (status, str(code), {"k": "v"})


@pytest.mark.parametrize(("producer", "code"), [(None, "OUTCOME_UNKNOWN"), ({"id": 1, "epoch": 1}, "UNAVAILABLE")])
async def test_a_publish_that_breaks_says_whether_a_retry_may_double(
    gateway: Gateway, producer: dict[str, int] | None, code: str
) -> None:
    async def breaks(requests: Any, context: Any) -> AsyncIterator[Any]:
        async for _ in requests:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "killed")
        yield None

    gateway.data.answer_publishes(breaks)
    body: dict[str, Any] = {"wait": "committed", "records": [{"value": "x"}]}
    if producer is not None:
        body["producer"] = {**producer, "base_sequence": 0}
    answer = await gateway.http.post(RECORDS, json=body)
    assert (answer.status_code, answer.json()["code"]) == (503, code)
    assert answer.json()["retryable"] == (producer is not None)


async def test_a_publish_that_was_never_sent_is_plainly_unavailable(gateway: Gateway) -> None:
    await gateway.data.server.server.stop(None)
    answer = await gateway.http.post(RECORDS, json={"wait": "committed", "records": [{"value": "x"}]})
    assert (answer.status_code, answer.json()["code"]) == (503, "UNAVAILABLE")


async def test_a_publish_without_an_answer_is_unknown(gateway: Gateway) -> None:
    async def silent(_requests: Any, _context: Any) -> AsyncIterator[Any]:
        for answer in list[data_pb2.PublishResponse]():
            yield answer

    gateway.data.answer_publishes(silent)
    answer = await gateway.http.post(RECORDS, json={"wait": "committed", "records": [{"value": "x"}]})
    assert answer.json()["code"] == "OUTCOME_UNKNOWN"


def readable(gateway: Gateway, values: list[bytes], floor: int = 0) -> None:
    async def read(request: Any, _context: Any) -> AsyncIterator[data_pb2.ReadResponse]:
        last = min(len(values), request.from_offset + request.records_max)
        for offset in range(request.from_offset, last):
            record = data_pb2.ReadRecord(offset=offset, value=values[offset], key=b"k", timestamp_ms=6)
            yield data_pb2.ReadResponse(records=[record], next_offset=len(values), stream_id=4)
        if request.from_offset >= last:
            yield data_pb2.ReadResponse(next_offset=len(values), stream_id=4)

    gateway.data.answer_reads(read)
    gateway.data.answer("DescribeStream", data_pb2.DescribeStreamResponse(floor_offset=floor, stream_id=4))


async def test_read_pages_through_text_and_bytes(gateway: Gateway) -> None:
    readable(gateway, [b"one", b"\xff", b"three"])
    answer = await gateway.http.get(RECORDS, params={"from": 0, "max": 2})
    assert answer.json() == {
        "records": [
            {"offset": 0, "timestamp_ms": 6, "value": "one", "key": "k"},
            {"offset": 1, "timestamp_ms": 6, "value_base64": "/w==", "key": "k"},
        ],
        "next_offset": 3,
        "continue_from": 2,
        "stream_id": 4,
    }
    answer = await gateway.http.get(RECORDS, params={"from": 2})
    assert (len(answer.json()["records"]), answer.json()["continue_from"]) == (1, 3)
    answer = await gateway.http.get(RECORDS, params={"from": 3})
    assert answer.json() == {"records": [], "next_offset": 3, "continue_from": 3, "stream_id": 4}


class TestIncarnations:
    """What REST says of streams that were deleted and made again: ids go through as they are, refusals come back whole."""

    error = MeshError(ErrorCode.STREAM_REPLACED, "Another one.", {"stream": "demo/lines", "stream_id": "9"})

    async def test_a_page_of_another_stream_is_refused(self, gateway: Gateway) -> None:
        asked: list[data_pb2.ReadBatchesRequest] = []

        async def refuse(request: data_pb2.ReadBatchesRequest, _context: Any) -> AsyncIterator[Any]:
            asked.append(request)
            if asked:
                raise self.error
            yield data_pb2.ReadResponse()

        gateway.data.answer_reads(refuse)
        answer = await gateway.http.get(RECORDS, params={"from": 9, "stream_id": 4})
        assert (answer.status_code, answer.json()["code"]) == (409, "STREAM_REPLACED")
        assert answer.json()["details"] == {"stream": "demo/lines", "stream_id": "9"}
        assert asked[0].stream_id == 4

    async def test_a_page_from_the_floor_is_of_the_stream_whose_floor_it_is(self, gateway: Gateway) -> None:
        readable(gateway, [b"0", b"1"], floor=1)
        assert (await gateway.http.get(RECORDS, params={"stream_id": 4})).json()["stream_id"] == 4
        assert gateway.data.asked[0].request == data_pb2.DescribeStreamRequest(stream="demo/lines", stream_id=4)

    @pytest.mark.parametrize(("query", "body"), [(7, None), (None, 7), (7, 7)])
    async def test_a_publish_names_the_stream_in_the_query_or_the_body(
        self, gateway: Gateway, query: int | None, body: int | None
    ) -> None:
        log = PublishLog(gateway)
        given: dict[str, Any] = {"wait": "committed", "records": [{"value": "x"}]}
        given |= {} if body is None else {"stream_id": body}
        answer = await gateway.http.post(RECORDS, params={} if query is None else {"stream_id": query}, json=given)
        assert (answer.status_code, answer.json()["stream_id"]) == (200, 7)
        assert log.requests[0].stream_id == 7

    async def test_two_different_ids_are_refused(self, gateway: Gateway) -> None:
        log = PublishLog(gateway)
        body = {"wait": "committed", "records": [{"value": "x"}], "stream_id": 7}
        answer = await gateway.http.post(RECORDS, params={"stream_id": 8}, json=body)
        assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_ARGUMENT")
        assert log.requests == []

    async def test_a_producer_of_another_stream_is_refused(self, gateway: Gateway) -> None:
        gateway.data.answer("InitProducer", self.error)
        answer = await gateway.http.post("/v1/streams/demo/lines/producers", json={"stream_id": 4})
        assert (answer.status_code, answer.json()["code"]) == (409, "STREAM_REPLACED")
        assert gateway.data.asked[-1].request.stream_id == 4

    async def test_one_stream_by_its_id(self, gateway: Gateway) -> None:
        know_node_a(gateway)
        gateway.control.answer("GetStream", mesh_pb2.GetStreamResponse(stream=stream()))
        gateway.data.answer("DescribeStream", data_pb2.DescribeStreamResponse(next_offset=7, stream_id=4))
        found = await gateway.http.get("/v1/streams/demo/lines", params={"stream_id": 4})
        assert found.json()["live"]["next_offset"] == 7
        refused = await gateway.http.get("/v1/streams/demo/lines", params={"stream_id": 3})
        assert (refused.status_code, refused.json()["code"]) == (409, "STREAM_REPLACED")
        assert (refused.json()["details"]["stream_id"], refused.json()["retryable"]) == ("4", False)
        ahead = await gateway.http.get("/v1/streams/demo/lines", params={"stream_id": 5})
        assert (ahead.status_code, ahead.json()["retryable"]) == (409, True), "this site may lag behind"
        others = [view_pb2.StreamView(stream_id=5, name="demo/words")]
        known = mesh_pb2.GetStatusResponse(view=view_pb2.MeshView(streams=others, next_stream_id=7))
        gateway.control.answer("GetStatus", known)
        for stream_id in (5, 6):
            refused = await gateway.http.get("/v1/streams/demo/lines", params={"stream_id": stream_id})
            assert (refused.status_code, refused.json()["retryable"]) == (409, False), "it will never be that stream"


async def test_read_without_from_begins_at_the_floor(gateway: Gateway) -> None:
    readable(gateway, [b"0", b"1", b"2"], floor=1)
    answer = await gateway.http.get(RECORDS)
    assert [record["offset"] for record in answer.json()["records"]] == [1, 2]


async def test_a_page_is_bounded_in_bytes(gateway: Gateway) -> None:
    readable(gateway, [b"x" * 1_000_000] * 20)
    answer = await gateway.http.get(RECORDS, params={"from": 0, "max": 20})
    page = answer.json()
    assert len(page["records"]) == -(-PAGE_BYTES_MAX // 1_000_016)
    assert page["continue_from"] == len(page["records"])


@pytest.mark.parametrize(
    ("code", "status"),
    [(ErrorCode.OFFSET_PAST_END, 416), (ErrorCode.OFFSET_BELOW_FLOOR, 416), (ErrorCode.NO_PATH, 503)],
)
async def test_read_refusals(gateway: Gateway, code: ErrorCode, status: int) -> None:
    async def refuse(request: Any, _context: Any) -> AsyncIterator[Any]:
        if request.from_offset:
            raise MeshError(code, "It is so.")
        yield data_pb2.ReadResponse()

    gateway.data.answer_reads(refuse)
    answer = await gateway.http.get(RECORDS, params={"from": 9})
    assert (answer.status_code, answer.json()["code"]) == (status, str(code))


@pytest.mark.parametrize(
    "query", ["from=-1", "from=x", "max=0", "max=1001", f"from={2**63}", "stream_id=-1", f"stream_id={2**63}"]
)
async def test_bad_numbers_are_400(gateway: Gateway, query: str) -> None:
    answer = await gateway.http.get(f"{RECORDS}?{query}")
    assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_ARGUMENT")
    assert query.partition("=")[0] in answer.json()["detail"]


@pytest.mark.parametrize("age_ms", [None, 12])
async def test_read_that_may_be_stale_says_how_old_it_is(gateway: Gateway, age_ms: int | None) -> None:
    asked: list[data_pb2.ReadBatchesRequest] = []

    async def read(request: Any, _context: Any) -> AsyncIterator[data_pb2.ReadResponse]:
        asked.append(request)
        if request.consistency == data_pb2.READ_CONSISTENCY_STALE_OK:
            yield data_pb2.ReadResponse(next_offset=1, view=data_pb2.ReplicaView(applied_index=7, age_ms_max=age_ms))
        yield data_pb2.ReadResponse(records=[data_pb2.ReadRecord(offset=0, value=b"x")], next_offset=1)

    gateway.data.answer_reads(read)
    path = "/v1/streams/demo/lines/records"
    answer = await gateway.http.get(path, params={"from": 0, "consistency": "stale_ok"})
    view = {"applied_index": 7} if age_ms is None else {"applied_index": 7, "age_ms_max": age_ms}
    assert answer.json()["view"] == view
    assert [record["value"] for record in answer.json()["records"]] == ["x"]
    assert "view" not in (await gateway.http.get(path, params={"from": 0})).json()
    refused = await gateway.http.get(path, params={"from": 0, "consistency": "eventual"})
    assert (refused.status_code, refused.json()["code"]) == (400, "INVALID_ARGUMENT")
    assert [request.consistency for request in asked] == [
        data_pb2.READ_CONSISTENCY_STALE_OK,
        data_pb2.READ_CONSISTENCY_UNSPECIFIED,
    ]
