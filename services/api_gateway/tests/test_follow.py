"""The WebSocket that follows a stream, over a real connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest
import websockets
from websockets.asyncio.client import ClientConnection, connect

from meshapi.supervisor.v1 import data_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.http_server import HttpLimits, serve_asgi
from meshtest.ports import free_ports
from meshtest.waiting import eventually

if TYPE_CHECKING:
    from tests.conftest import Gateway


@pytest.fixture
async def address(gateway: Gateway) -> AsyncIterator[str]:
    """`host:port` of the REST listener."""
    port = free_ports(1)[0]
    serving = asyncio.create_task(
        serve_asgi(gateway.app, f"127.0.0.1:{port}", "The test", limits=HttpLimits(64, has_sockets=True))
    )
    yield f"127.0.0.1:{port}"
    serving.cancel()
    await asyncio.wait([serving])


class Stream:
    """A Read of the data plane: the batches given, then waiting, or an error."""

    def __init__(self, gateway: Gateway, *batches: data_pb2.ReadResponse, error: MeshError | None = None) -> None:
        self.batches = batches
        self.error = error
        self.requests: list[data_pb2.ReadBatchesRequest] = []
        self.cancelled = asyncio.Event()
        self.sent = 0
        gateway.data.answer_reads(self.read)
        gateway.data.answer("DescribeStream", data_pb2.DescribeStreamResponse(floor_offset=3, stream_id=7))

    async def read(self, request: data_pb2.ReadBatchesRequest, _context: Any) -> AsyncIterator[data_pb2.ReadResponse]:
        self.requests.append(request)
        try:
            for batch in self.batches:
                yield batch
                self.sent += 1
            if self.error is not None:
                raise self.error
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()


def batch(*values: bytes, first: int = 0) -> data_pb2.ReadResponse:
    records = [data_pb2.ReadRecord(offset=first + n, value=value, timestamp_ms=8) for n, value in enumerate(values)]
    return data_pb2.ReadResponse(records=records, next_offset=first + len(values), stream_id=7)


def follow(address: str, query: str = "") -> connect:
    return connect(f"ws://{address}/v1/streams/demo/lines/follow{query}")


async def receive(socket: ClientConnection) -> Any:
    async with asyncio.timeout(10):
        return json.loads(await socket.recv())


async def test_each_batch_is_one_message(gateway: Gateway, address: str) -> None:
    stream = Stream(gateway, batch(b"one", b"\xff", first=5), batch(b"three", first=7))
    async with follow(address, "?from=5") as socket:
        assert await receive(socket) == {
            "records": [
                {"offset": 5, "timestamp_ms": 8, "value": "one"},
                {"offset": 6, "timestamp_ms": 8, "value_base64": "/w=="},
            ],
            "next_offset": 7,
            "stream_id": 7,
        }
        assert (await receive(socket))["records"][0]["value"] == "three"
        assert socket.response is not None
        assert socket.response.headers["x-correlation-id"]
    assert stream.requests == [data_pb2.ReadBatchesRequest(stream="demo/lines", from_offset=5, follow=True)]


async def test_without_from_it_begins_at_the_floor(gateway: Gateway, address: str) -> None:
    stream = Stream(gateway, batch(b"x", first=3))
    async with follow(address) as socket:
        await receive(socket)
    assert (stream.requests[0].from_offset, stream.requests[0].stream_id) == (3, 7)


async def test_a_parameter_that_is_not_known_is_refused(gateway: Gateway, address: str) -> None:
    stream = Stream(gateway, batch(b"x"))
    async with follow(address, "?frm=3") as socket:
        problem = await receive(socket)
        assert (problem["code"], problem["details"]["field"]) == ("INVALID_ARGUMENT", "frm")
    assert stream.requests == []


async def test_the_stream_that_is_meant_is_asked_for(gateway: Gateway, address: str) -> None:
    """A cursor of a deleted stream is told so, and reads nothing of the one that has its name now."""
    error = MeshError(ErrorCode.STREAM_REPLACED, "Another one.", {"stream": "demo/lines", "stream_id": "9"})
    stream = Stream(gateway, error=error)
    async with follow(address, "?from=5&stream_id=7") as socket:
        problem = await receive(socket)
        assert (problem["code"], problem["details"]["stream_id"]) == ("STREAM_REPLACED", "9")
        with pytest.raises(websockets.ConnectionClosedError) as closed:
            await socket.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1008
    assert (stream.requests[0].from_offset, stream.requests[0].stream_id) == (5, 7)


async def test_a_client_that_goes_cancels_the_read(gateway: Gateway, address: str) -> None:
    stream = Stream(gateway, batch(b"x"))
    async with follow(address, "?from=0") as socket:
        await receive(socket)
        assert gateway.registry.get_sample_value("mesh_gateway_followers") == 1
    async with asyncio.timeout(10):
        await stream.cancelled.wait()

    async def nobody_follows() -> bool:
        return gateway.registry.get_sample_value("mesh_gateway_followers") == 0

    await eventually("no follower is counted", nobody_follows)


async def test_a_client_that_is_cut_off_cancels_the_read(gateway: Gateway, address: str) -> None:
    stream = Stream(gateway, batch(b"x"))
    socket = await follow(address, "?from=0")
    await receive(socket)
    socket.transport.abort()
    async with asyncio.timeout(10):
        await stream.cancelled.wait()


@pytest.mark.parametrize(
    ("error", "close_code"),
    [
        (MeshError(ErrorCode.STREAM_NOT_FOUND, "There is no stream."), 1008),
        (MeshError(ErrorCode.OFFSET_BELOW_FLOOR, "Gone."), 1008),
        (MeshError(ErrorCode.STREAM_UNAVAILABLE, "No leader."), 1011),
    ],
)
async def test_an_error_is_a_problem_and_a_close(
    gateway: Gateway, address: str, error: MeshError, close_code: int
) -> None:
    Stream(gateway, batch(b"x"), error=error)
    async with follow(address, "?from=0") as socket:
        await receive(socket)
        problem = await receive(socket)
        assert (problem["code"], problem["detail"]) == (error.code, error.message)
        assert socket.response is not None
        assert problem["correlation_id"] == socket.response.headers["x-correlation-id"]
        with pytest.raises(websockets.ConnectionClosedError) as closed:
            await socket.recv()
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (close_code, str(error.code))


@pytest.mark.parametrize("given", ["-1", "x", "", "9" * 30, "1e3", "٣"])
@pytest.mark.parametrize("field", ["from", "stream_id"])
async def test_a_bad_number_is_refused(gateway: Gateway, address: str, field: str, given: str) -> None:
    stream = Stream(gateway)
    async with follow(address, f"?{field}={given}") as socket:
        assert (await receive(socket))["code"] == "INVALID_ARGUMENT"
        with pytest.raises(websockets.ConnectionClosedError):
            await socket.recv()
    assert stream.requests == []


async def test_a_data_plane_that_goes_is_told(gateway: Gateway, address: str) -> None:
    Stream(gateway, batch(b"x"))
    async with follow(address, "?from=0") as socket:
        await receive(socket)
        await gateway.data.server.server.stop(None)
        problem = await receive(socket)
        assert (problem["code"], problem["retryable"]) == ("UNAVAILABLE", True)
        with pytest.raises(websockets.ConnectionClosedError) as closed:
            await socket.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1011


async def test_what_a_client_sends_is_dropped(gateway: Gateway, address: str) -> None:
    Stream(gateway, batch(b"x"))
    async with follow(address, "?from=0") as socket:
        await socket.send("hello")
        assert (await receive(socket))["next_offset"] == 1


async def test_i6_a_slow_reader_slows_only_its_own_read(gateway: Gateway, address: str) -> None:
    """I6: a client that does not read makes the data plane's read wait; nothing piles up in the gateway."""
    stream = Stream(gateway, *[batch(b"x" * 200_000, first=n) for n in range(1_000)])
    slow = await connect(f"ws://{address}/v1/streams/demo/lines/follow?from=0", max_queue=1, compression=None)
    await receive(slow)
    sent = await settled(lambda: stream.sent)
    assert sent < 300
    other = Stream(gateway, batch(b"quick"))
    async with follow(address, "?from=0") as quick:
        assert (await receive(quick))["records"][0]["value"] == "quick"
    assert other.requests
    slow.transport.abort()
    async with asyncio.timeout(10):
        await stream.cancelled.wait()


async def test_a_foreign_page_may_not_follow(gateway: Gateway, address: str) -> None:
    """WebSockets know no same-origin rule: without this any web page could read streams through a browser here."""
    stream = Stream(gateway, batch(b"x"))
    with pytest.raises(websockets.InvalidStatus) as refused:
        async with connect(f"ws://{address}/v1/streams/demo/lines/follow", origin="https://evil.example"):  # type: ignore[arg-type]
            pass
    assert refused.value.response.status_code == 403
    assert json.loads(refused.value.response.body)["code"] == "ORIGIN_NOT_ALLOWED"
    assert stream.requests == []


async def test_an_unknown_websocket_path_is_refused(address: str) -> None:
    with pytest.raises(websockets.InvalidStatus):
        async with connect(f"ws://{address}/v1/nowhere"):
            pass


async def settled(read: Any) -> int:
    """The value of `read()` once it no longer changes for a while."""
    before = -1
    async with asyncio.timeout(30):
        while (now := int(read())) != before:
            before = now
            await asyncio.sleep(0.5)
    return before
