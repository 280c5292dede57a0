"""Batches whose header lies: what a node can see is refused at once; the rest harms the batch itself and nothing else."""

from __future__ import annotations

import json
import zlib
from collections.abc import AsyncIterator
from typing import Final

import grpc.aio
import pytest
import zstandard
from crc32c import crc32c

from meshapi.supervisor.v1 import data_pb2
from meshclient import MeshClient
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.grpc_client import mesh_error
from meshwire import client, request
from meshwire.batch import MAX_UNCOMPRESSED_BYTES, Codec, assemble
from meshwire.records import Record, encode_batch
from tests.attacks.raw_socket import Opcode, answer, http_request, status_of, websocket, websocket_frame
from tests.attacks.target import ABUSED, Target

GOOD: Final = encode_batch([Record(b"value", b"key"), Record(b"")])
COMMITTED: Final = data_pb2.PUBLISH_WAIT_COMMITTED
BOMBS: Final = 40


def changed(at: int, value: bytes) -> bytes:
    """A good batch with other bytes in its header, under a checksum that fits."""
    data = GOOD[:at] + value + GOOD[at + len(value) :]
    return data[:4] + crc32c(data[8:]).to_bytes(4, "big") + data[8:]


REFUSED: Final = {
    "checksum": GOOD[:-1] + b"x",
    "format of before": changed(2, b"\x01"),
    "format to come": changed(2, b"\x09"),
    "chunk": changed(3, b"\x01"),
    "count beyond its bytes": changed(8, (40).to_bytes(4, "big")),
    "count of 2^32": changed(8, b"\xff" * 4),
    "no record": changed(8, bytes(4)),
    "times out of order": changed(12, b"\x7f"),
    "codec": changed(28, b"\x07"),
    "size beyond 16 MiB": changed(28, b"\x01\x01\x00\x00\x01"),
    "size of another body": changed(29, (16).to_bytes(4, "big")),
    "suite": changed(33, b"\x01"),
    "salt without a suite": changed(38, b"\x01"),
    "sequence at the end": changed(78, b"\xff" * 8),
    "nothing": b"",
    "half": GOOD[:50],
}
RECORD: Final = b"\x00\xff\xff\x00\x0f\x00\x00" + bytes(0xF0000)
CONTENT: Final = RECORD * 17


def compressed(content: bytes, count: int, announced_bytes: int) -> bytes:
    frame = zstandard.ZstdCompressor().compress(content)
    return assemble(frame, record_count=count, uncompressed_bytes=announced_bytes, codec=Codec.ZSTD)


LYING: Final = {
    "count": assemble(bytes(70), record_count=9, uncompressed_bytes=70),
    "bomb": compressed(bytes(1 << 29), 9, 100),
    "bomb that announces what is allowed": compressed(bytes(1 << 29), 9, MAX_UNCOMPRESSED_BYTES),
    "size": compressed(CONTENT, 17, len(CONTENT) - 1),
    "no frame": assemble(zlib.compress(bytes(1 << 20)), record_count=9, uncompressed_bytes=1 << 20, codec=Codec.ZSTD),
    "record above its limit": compressed(b"\x00\xff\xff\x00\xf0\x00\x00" + bytes(0xF00000), 1, 7 + 0xF00000),
}


async def publish(target: Target, batches: list[bytes]) -> list[data_pb2.PublishBatchResponse]:
    async def requests() -> AsyncIterator[data_pb2.PublishBatchRequest]:
        for batch in batches:
            yield data_pb2.PublishBatchRequest(stream=ABUSED, wait=COMMITTED, batch=batch)

    call = target.gateways["b"].data.PublishBatch(requests(), timeout=60)
    return [item async for item in call]


async def test_headers_that_a_node_can_see_through(target: Target) -> None:
    """Refused at both ports, before anything is proposed; the call and the connection go on."""
    before = (await target.gateways["a"].describe(ABUSED)).next_offset
    answers = await publish(target, [*REFUSED.values(), GOOD])
    codes = dict(zip(REFUSED, [item.error.code for item in answers], strict=False))
    allowed = {ErrorCode.INVALID_ARGUMENT, ErrorCode.MESSAGE_TOO_LARGE}
    assert {name for name, code in codes.items() if code not in allowed} == set()
    assert not answers[-1].HasField("error")
    stream_id = answers[-1].stream_id
    frame = b"".join(client.encode_publish(at, stream_id, batch) for at, batch in enumerate(REFUSED.values()))
    last = client.encode_publish(len(REFUSED), stream_id, GOOD)
    async with websocket(target.port("c", "data_client"), client.SUBPROTOCOL) as socket:
        await socket.send(websocket_frame(Opcode.BINARY, frame + last))
        refused: dict[int, str] = {}
        while len(refused) <= len(REFUSED):
            received = await socket.receive()
            assert received is not None
            for kind, correlation, body in client.decode_messages(received[1]):
                response = request.decode_response(body) if kind == client.Kind.ERROR else None
                refused[correlation] = response.code if isinstance(response, request.ErrorResponse) else ""
    assert {code for at, code in refused.items() if at < len(REFUSED)} <= {str(code) for code in allowed}
    assert refused[len(REFUSED)] == ""
    assert (await target.gateways["a"].describe(ABUSED)).next_offset == before + 4


async def test_bodies_that_only_a_reader_sees_through(target: Target) -> None:
    """They get in, take their offsets, and every reader is told and goes on behind them."""
    answers = await publish(target, [GOOD, *LYING.values(), GOOD])
    assert not any(item.HasField("error") for item in answers)
    offset, end = answers[0].base_offset, answers[-1].base_offset
    expected = [(item.base_offset, item.base_offset + item.count) for item in answers[1:-1]]
    assert await by_meshclient(target, offset) == (expected, [offset, offset + 1, end, end + 1])
    assert await by_rest(target, offset) == (expected, [offset, offset + 1, end, end + 1])
    found: list[tuple[int, int]] = []
    for start, _behind in expected:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await drained(target, start)
        error = mesh_error(caught.value, "gateway")
        assert error.code is ErrorCode.BATCH_UNREADABLE
        found.append((int(error.details["offset"]), int(error.details["next_offset"])))
    assert found == expected
    await drained(target, end)


async def drained(target: Target, from_offset: int) -> None:
    """Reads with records over gRPC to the end."""
    asked = data_pb2.ReadRequest(stream=ABUSED, from_offset=from_offset)
    async for _ in target.gateways["c"].data.Read(asked, timeout=60):
        pass


async def by_meshclient(target: Target, offset: int) -> tuple[list[tuple[int, int]], list[int]]:
    """The unreadable batches, and the offsets of the records, as an application sees them."""
    unreadable: list[tuple[int, int]] = []
    offsets: list[int] = []
    async with MeshClient(target.sites["a"].config.client, give_up_after_s=20) as application:
        reader = application.read(ABUSED, offset)
        while True:
            try:
                offsets.append((await anext(reader)).offset)
            except StopAsyncIteration:
                return unreadable, offsets
            except MeshError as error:
                if error.code is not ErrorCode.BATCH_UNREADABLE:
                    raise
                unreadable.append((int(error.details["offset"]), int(error.details["next_offset"])))


async def by_rest(target: Target, offset: int) -> tuple[list[tuple[int, int]], list[int]]:
    """The same, page by page."""
    port = target.port("b", "gateway_http")
    unreadable: list[tuple[int, int]] = []
    offsets: list[int] = []
    while True:
        path = f"/v1/streams/{ABUSED}/records?from={offset}&max=1000"
        found = await answer(port, http_request("GET", path, f"127.0.0.1:{port}"))
        body = json.loads(found.partition(b"\r\n\r\n")[2])
        if status_of(found) == 422:
            details = body["details"]
            unreadable.append((int(details["offset"]), int(details["next_offset"])))
            offset = unreadable[-1][1]
            continue
        assert status_of(found) == 200, found[:300]
        if not body["records"]:
            return unreadable, offsets
        offsets += [record["offset"] for record in body["records"]]
        offset = body["continue_from"]


async def test_pages_of_batches_that_open_to_the_most_that_is_allowed(target: Target) -> None:
    """Forty batches of two kilobytes that open to 16 MB each: a page of four megabytes stays one."""
    bomb = compressed(CONTENT, 17, len(CONTENT))
    assert len(bomb) < 4_000
    answers = await publish(target, [bomb] * BOMBS)
    assert not any(item.HasField("error") for item in answers)
    port = target.port("a", "gateway_http")
    for item in answers[::8]:
        path = f"/v1/streams/{ABUSED}/records?from={item.base_offset}&max=1000"
        found = await answer(port, http_request("GET", path, f"127.0.0.1:{port}"))
        assert status_of(found) == 200
        body = json.loads(found.partition(b"\r\n\r\n")[2])
        assert 1 <= len(body["records"]) < 17
