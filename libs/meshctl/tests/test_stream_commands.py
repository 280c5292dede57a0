"""Commands about streams, and publish and subscribe as a pair: bytes in are bytes out."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from meshapi.common.v1 import view_pb2
from meshapi.supervisor.v1 import data_pb2, mesh_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.grpc_server import error_detail
from meshwire.batch import Codec, assemble, decode_header
from meshwire.records import Record, encode_batch, iter_values

if TYPE_CHECKING:
    from pathlib import Path

    from meshtest.fake_services import FakeServer
    from tests.conftest import Program


def catalogue(gateway: FakeServer) -> None:
    members = [view_pb2.StreamMember(node_id=1, is_voter=True), view_pb2.StreamMember(node_id=9)]
    stream = view_pb2.StreamView(
        stream_id=4, name="demo/lines", state=view_pb2.STREAM_STATE_ACTIVE, members=members, created_at_ms=1_000
    )
    nodes = [view_pb2.NodeView(node_id=1, name="a")]
    gateway.answer("GetStatus", mesh_pb2.GetStatusResponse(view=view_pb2.MeshView(nodes=nodes)))
    gateway.answer("ListStreams", mesh_pb2.ListStreamsResponse(streams=[stream]))
    gateway.answer("GetStream", mesh_pb2.GetStreamResponse(stream=stream))
    gateway.answer("CreateStream", mesh_pb2.CreateStreamResponse(stream=stream, warnings=["Two members."]))
    gateway.answer("DeleteStream", mesh_pb2.DeleteStreamResponse())
    live = data_pb2.DescribeStreamResponse(
        floor_offset=2,
        next_offset=12,
        leader="a",
        state_hash=b"\xff",
        members=[data_pb2.MemberProgress(node="a", is_voter=True, matched_index=7)],
    )
    gateway.answer("DescribeStream", live)


class Log:
    """A stream of the fake gateway: what is published can be read."""

    def __init__(self, gateway: FakeServer) -> None:
        self.values: list[bytes] = []
        self.arrived = asyncio.Event()
        gateway.answer("InitProducer", data_pb2.InitProducerResponse(producer_id=1, producer_epoch=1, stream_id=4))
        gateway.answer("DescribeStream", data_pb2.DescribeStreamResponse(floor_offset=0, stream_id=4))
        gateway.answer_publishes(self.publish)
        gateway.answer_reads(self.read)

    async def publish(self, requests: Any, _context: Any) -> AsyncIterator[data_pb2.PublishResponse]:
        async for request in requests:
            base = len(self.values)
            assert (request.base_sequence, request.stream_id) == (base, 4)
            self.values += [record.value for record in request.records]
            self.arrived.set()
            yield data_pb2.PublishResponse(base_offset=base, count=len(request.records))

    async def read(self, request: Any, _context: Any) -> AsyncIterator[data_pb2.ReadResponse]:
        end = len(self.values)
        if request.from_offset > end:
            raise MeshError(ErrorCode.OFFSET_PAST_END, f"The stream ends at {end}.")
        last = min(end, request.from_offset + request.records_max) if request.records_max else end
        for offset in range(request.from_offset, last):
            record = data_pb2.ReadRecord(offset=offset, value=self.values[offset], timestamp_ms=5)
            yield data_pb2.ReadResponse(records=[record], next_offset=end, stream_id=4)


async def test_create_list_info_and_remove(gateway: FakeServer, meshctl: Program) -> None:
    catalogue(gateway)
    result = await meshctl.run("stream", "create", "demo/lines", "--members", "a, b,c", "--retained-bytes", "67108864")
    assert "created stream demo/lines (id 4)" in result.stdout
    assert "warning: Two members." in result.stdout
    request = mesh_pb2.CreateStreamRequest(name="demo/lines", members=["a", "b", "c"], retained_bytes_max=67_108_864)
    assert gateway.asked[-1].request == request
    listed = (await meshctl.run("stream", "ls")).stdout
    assert "demo/lines" in listed
    assert "a, node 9" in listed
    info = (await meshctl.run("stream", "info", "demo/lines")).stdout
    assert "10, offsets 2 to 12" in info
    assert "1970-01-01T00:00:01+00:00" in info
    assert (await meshctl.run("stream", "rm", "demo/lines")).exit_code == 2
    assert "deleted" in (await meshctl.run("stream", "rm", "demo/lines", "--yes")).stdout


async def test_streams_for_programs(gateway: FakeServer, meshctl: Program) -> None:
    catalogue(gateway)
    listed = json.loads((await meshctl.run("stream", "ls", "--json")).stdout)
    assert [member["node"] for member in listed[0]["members"]] == ["a", ""]
    info = json.loads((await meshctl.run("stream", "info", "demo/lines", "--json")).stdout)
    assert (info["live"]["next_offset"], info["live"]["state_hash"], info["warnings"]) == (12, "ff", [])
    created = await meshctl.run("--json", "stream", "create", "demo/lines", "--members", "a,b")
    assert json.loads(created.stdout)["warnings"] == ["Two members."]
    assert json.loads((await meshctl.run("stream", "--json", "rm", "demo/lines", "--yes")).stdout) == {}


async def test_info_without_a_leader_shows_the_catalogue(gateway: FakeServer, meshctl: Program) -> None:
    catalogue(gateway)
    gateway.answer("DescribeStream", MeshError(ErrorCode.STREAM_UNAVAILABLE, "No leader."))
    result = await meshctl.run("stream", "info", "demo/lines")
    assert result.exit_code == 0
    assert "no live state: STREAM_UNAVAILABLE" in result.stdout
    body = json.loads((await meshctl.run("stream", "info", "demo/lines", "--json")).stdout)
    assert (body["live"], body["warnings"]) == (None, ["STREAM_UNAVAILABLE: No leader."])


@pytest.mark.parametrize(
    "content",
    [
        b"one\ntwo\n",
        b"no end",
        b"\n\n\r\n",
        b"",
        b"\x00\xff\xfe\nutf-8 \xc3\xa4\r\n",
        random.Random(1).randbytes(600_000),
    ],
)
async def test_what_is_subscribed_is_what_was_published(gateway: FakeServer, meshctl: Program, content: bytes) -> None:
    log = Log(gateway)
    published = await meshctl.run("publish", "demo/lines", given=content)
    assert published.exit_code == 0
    assert b"".join(log.values) == content
    assert len(log.values) == content.count(b"\n") + (not content.endswith(b"\n") and bool(content))
    assert (await meshctl.run("subscribe", "demo/lines")).stdout_bytes == content


async def test_publish_from_a_file_whole_and_its_summary(gateway: FakeServer, meshctl: Program, tmp_path: Path) -> None:
    log = Log(gateway)
    file = tmp_path / "lines"
    file.write_bytes(b"1\n2\n3\n")
    result = await meshctl.run("publish", "demo/lines", str(file), "--producer", "meter")
    assert result.stdout == "committed 3 records (6 bytes) to demo/lines at offsets 0 to 2\n"
    assert gateway.asked[0].request.producer_name == "meter"
    log.values.clear()
    result = await meshctl.run("publish", "demo/lines", str(file), "--whole", "--json")
    assert log.values == [b"1\n2\n3\n"]
    assert json.loads(result.stdout) == {
        "stream": "demo/lines",
        "stream_id": 4,
        "count": 1,
        "bytes": 6,
        "duplicates": 0,
        "first_offset": 0,
        "last_offset": 0,
    }


async def test_publish_of_nothing(gateway: FakeServer, meshctl: Program) -> None:
    log = Log(gateway)
    assert json.loads((await meshctl.run("publish", "d/l", "--json", given=b"")).stdout)["first_offset"] is None
    await meshctl.run("publish", "d/l", "--whole", given=b"")
    assert log.values == [b""]


@pytest.mark.parametrize("mode", ["--lines", "--whole"])
async def test_an_oversized_record_is_refused_with_the_limit(gateway: FakeServer, meshctl: Program, mode: str) -> None:
    log = Log(gateway)
    result = await meshctl.run("publish", "demo/lines", mode, given=b"x" * 1_048_577)
    assert result.exit_code == 1
    assert "error: MESSAGE_TOO_LARGE: " in result.stderr
    assert "1048576" in result.stderr
    assert log.values == []


async def test_a_refused_publish_says_how_far_it_came(gateway: FakeServer, meshctl: Program) -> None:
    gateway.answer("InitProducer", MeshError(ErrorCode.STREAM_NOT_FOUND, "There is no stream d/l."))
    result = await meshctl.run("publish", "d/l", given=b"1\n")
    assert result.exit_code == 1
    assert result.stderr == "nothing was committed to d/l\nerror: STREAM_NOT_FOUND: There is no stream d/l.\n"


async def test_a_publish_that_breaks_off_says_what_is_not_known(gateway: FakeServer, meshctl: Program) -> None:
    log = Log(gateway)

    async def answers_once(requests: Any, context: Any) -> AsyncIterator[data_pb2.PublishResponse]:
        async for answer in log.publish(requests, context):
            yield answer
            if len(log.values) >= 1_000:
                async for _ in requests:
                    yield data_pb2.PublishResponse(
                        error=error_detail(MeshError(ErrorCode.PRODUCER_FENCED, "Another one took over."))
                    )

    gateway.answer_publishes(answers_once)
    result = await meshctl.run("publish", "d/l", given=b"x\n" * 1_500)
    assert result.exit_code == 1
    assert result.stderr == (
        "committed 1000 records (2000 bytes) to d/l at offsets 0 to 999; the outcome of 500 more is unknown\n"
        "error: PRODUCER_FENCED: Another one took over.\n"
    )


async def test_subscribe_from_max_offsets_and_json(gateway: FakeServer, meshctl: Program) -> None:
    log = Log(gateway)
    log.values = [b"zero\n", b"one\n", b"two\n", b"\xff"]
    result = await meshctl.run("subscribe", "d/l", "--from", "1", "--max", "2", "--offsets")
    assert result.stdout == "1\tone\n2\ttwo\n"
    lines = (await meshctl.run("subscribe", "d/l", "--from", "2", "--json")).stdout.splitlines()
    assert [json.loads(line) for line in lines] == [
        {"offset": 2, "timestamp_ms": 5, "value": "two\n"},
        {"offset": 3, "timestamp_ms": 5, "value_base64": "/w=="},
    ]
    assert (await meshctl.run("subscribe", "d/l", "--from", "9")).exit_code == 1


@pytest.mark.parametrize(("age_ms", "words"), [(None, "of unknown age"), (12, "at most 12 ms old")])
async def test_subscribe_stale_says_how_old_on_standard_error(
    gateway: FakeServer, meshctl: Program, age_ms: int | None, words: str
) -> None:
    async def read(request: Any, _context: Any) -> AsyncIterator[data_pb2.ReadResponse]:
        assert request.consistency == data_pb2.READ_CONSISTENCY_STALE_OK
        yield data_pb2.ReadResponse(next_offset=1, view=data_pb2.ReplicaView(applied_index=7, age_ms_max=age_ms))
        yield data_pb2.ReadResponse(records=[data_pb2.ReadRecord(offset=0, value=b"x")], next_offset=1)

    gateway.answer_reads(read)
    result = await meshctl.run("subscribe", "d/l", "--from", "0", "--stale-ok")
    assert result.stdout == "x"
    assert f"The view is {words} (log index 7)." in result.stderr


async def test_subscribe_begins_at_the_floor(gateway: FakeServer, meshctl: Program) -> None:
    log = Log(gateway)
    log.values = [b"0", b"1", b"2"]
    gateway.answer("DescribeStream", data_pb2.DescribeStreamResponse(floor_offset=1))
    assert (await meshctl.run("subscribe", "d/l", "--earliest")).stdout == "12"


async def test_the_stream_that_is_meant_is_asked_for(gateway: FakeServer, meshctl: Program) -> None:
    """From the first call on with --stream-id, and without it from the first answer on."""
    error = MeshError(ErrorCode.STREAM_REPLACED, "demo/lines is stream 9 now.", {"stream_id": "9"})
    Log(gateway)
    gateway.answer("InitProducer", error)
    result = await meshctl.run("publish", "demo/lines", "--stream-id", "4", given=b"x")
    assert result.exit_code == 1
    assert "STREAM_REPLACED: demo/lines is stream 9 now." in result.stderr
    assert gateway.asked[-1].request.stream_id == 4
    gateway.answer("DescribeStream", error)
    assert "STREAM_REPLACED" in (await meshctl.run("subscribe", "demo/lines", "--stream-id", "4")).stderr
    assert gateway.asked[-1].request.stream_id == 4
    reads: list[data_pb2.ReadBatchesRequest] = []

    async def replaced(request: data_pb2.ReadBatchesRequest, context: Any) -> AsyncIterator[data_pb2.ReadResponse]:
        reads.append(request)
        if len(reads) > 1:
            raise error
        yield data_pb2.ReadResponse(records=[data_pb2.ReadRecord(value=b"0,")], next_offset=1, stream_id=4)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")

    gateway.answer_reads(replaced)
    gateway.answer("DescribeStream", data_pb2.DescribeStreamResponse(stream_id=4))
    result = await meshctl.run("subscribe", "demo/lines", "--from", "0", "--follow")
    assert (result.stdout, result.exit_code) == ("0,", 1)
    assert "STREAM_REPLACED" in result.stderr
    assert [request.stream_id for request in reads] == [0, 4]


async def test_subscribe_goes_on_where_a_read_broke(gateway: FakeServer, meshctl: Program) -> None:
    log = Log(gateway)
    log.values = [b"%d," % n for n in range(10)]
    whole = log.read
    reads = 0

    async def breaking(request: Any, context: Any) -> AsyncIterator[data_pb2.ReadResponse]:
        nonlocal reads
        reads += 1
        left = 4
        async for answer in whole(request, context):
            if left == 0:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")
            left -= 1
            yield answer

    gateway.answer_reads(breaking)
    result = await meshctl.run("subscribe", "d/l", "--max", "10")
    assert result.exit_code == 0
    assert result.stdout == "0,1,2,3,4,5,6,7,8,9,"
    assert reads == 3


async def following(gateway: FakeServer) -> asyncio.Event:
    """Makes Read give one record and then wait; the event is set when the read was cancelled."""
    cancelled = asyncio.Event()
    Log(gateway)

    async def read(_request: Any, _context: Any) -> AsyncIterator[data_pb2.ReadResponse]:
        try:
            yield data_pb2.ReadResponse(records=[data_pb2.ReadRecord(value=b"first\n")], next_offset=1)
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    gateway.answer_reads(read)
    return cancelled


async def test_ctrl_c_ends_a_follow_with_130_and_cancels_the_read(gateway: FakeServer) -> None:
    cancelled = await following(gateway)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "meshctl", "--gateway", gateway.target, "subscribe", "demo/lines", "--follow"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"first\n"
    process.send_signal(signal.SIGINT)
    _, errors = await process.communicate()
    assert (process.returncode, errors) == (130, b"\ninterrupted\n")
    async with asyncio.timeout(10):
        await cancelled.wait()


async def test_ctrl_c_ends_a_publish_that_waits_for_input(gateway: FakeServer) -> None:
    log = Log(gateway)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "meshctl", "--gateway", gateway.target, "publish", "demo/lines"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(b"early\nhalf a li")
    async with asyncio.timeout(20):
        await log.arrived.wait()
    process.send_signal(signal.SIGINT)
    _, errors = await process.communicate()
    assert process.returncode == 130
    # The answer to the first line may or may not have come back before.
    assert b"committed 1 record (6 bytes)" in errors or b"the outcome of 1 more is unknown" in errors
    assert log.values == [b"early\n"]


async def test_a_reader_that_goes_away_is_no_traceback(gateway: FakeServer) -> None:
    log = Log(gateway)
    log.values = [b"x" * 1_000] * 1_000
    reading, writing = os.pipe()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "meshctl", "--gateway", gateway.target, "subscribe", "demo/lines"),
        stdout=writing,
        stderr=subprocess.PIPE,
    )
    os.close(writing)
    os.close(reading)
    _, errors = await process.communicate()
    assert (process.returncode, errors) == (141, b"")


@pytest.mark.parametrize("is_skipping", [False, True])
async def test_subscribe_stops_at_an_unreadable_batch_or_goes_on_behind_it(
    gateway: FakeServer, meshctl: Program, is_skipping: bool
) -> None:
    lying = assemble(bytes(40), record_count=5, uncompressed_bytes=40)
    log = [(0, encode_batch([Record(b"first,")])), (1, lying), (6, encode_batch([Record(b"last")], codec=Codec.ZSTD))]

    async def read(request: Any, _context: Any) -> AsyncIterator[data_pb2.ReadBatchesResponse]:
        batches = [data_pb2.ReadBatch(base_offset=at, batch=batch) for at, batch in log if at >= request.from_offset]
        yield data_pb2.ReadBatchesResponse(batches=batches, next_offset=7)

    gateway.answers["ReadBatches"] = read
    result = await meshctl.run("subscribe", "d/l", "--from", "0", *(["--skip-unreadable"] if is_skipping else []))
    assert (result.stdout, result.exit_code) == (("first,last", 0) if is_skipping else ("first,", 1))
    assert "BATCH_UNREADABLE" in result.stderr
    assert "go on from offset 6" in result.stderr
    again = await meshctl.run("subscribe", "d/l", "--from", "6")
    assert (again.stdout, again.exit_code) == ("last", 0)


async def test_publish_compresses_when_told(gateway: FakeServer, meshctl: Program) -> None:
    taken: list[bytes] = []
    Log(gateway)

    async def publish(requests: Any, _context: Any) -> AsyncIterator[data_pb2.PublishBatchResponse]:
        async for request in requests:
            taken.append(request.batch)
            yield data_pb2.PublishBatchResponse(count=decode_header(request.batch, verify=True).record_count)

    gateway.answers["PublishBatch"] = publish
    given = b"again and again\n" * 100
    assert (await meshctl.run("publish", "d/l", "--zstd", given=given)).exit_code == 0
    assert b"".join(value for batch in taken for value in iter_values(batch)) == given
    assert sum(map(len, taken)) < len(given) / 2
