"""What a user can get wrong at a running mesh: a stable code, a sentence that says what to do, and nothing changes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import pytest_asyncio

from meshapi.supervisor.v1 import data_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshtest.gateway_client import Gateway
from meshtest.ports import free_ports
from meshtest.trio import Trio

pytestmark = pytest.mark.asyncio(loop_scope="module")
STREAM = "bad/input"


async def refused(call: Awaitable[object]) -> MeshError:
    with pytest.raises(MeshError) as caught:
        await call
    error = caught.value
    assert error.message.endswith("."), error.message
    assert len(error.message) > 20
    return error


async def snapshot(trio: Trio) -> tuple[list[str], list[str]]:
    status = await trio.gateways["a"].status()
    return [node.name for node in status.view.nodes], [stream.name for stream in status.view.streams]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stream(mesh: Trio) -> str:
    await mesh.create_stream(STREAM, ["a", "b"])
    return STREAM


async def test_seeding_a_seeded_node(mesh: Trio) -> None:
    before = await snapshot(mesh)
    assert (await refused(mesh.gateways["a"].seed("another"))).code is ErrorCode.ALREADY_MEMBER
    assert (await refused(mesh.gateways["b"].seed())).code is ErrorCode.ALREADY_MEMBER
    assert await snapshot(mesh) == before


async def test_joining_twice(mesh: Trio) -> None:
    before = await snapshot(mesh)
    address = mesh.sites["a"].config.peer_address
    assert (await refused(mesh.gateways["b"].join(address))).code is ErrorCode.ALREADY_MEMBER
    assert await snapshot(mesh) == before


@pytest.mark.parametrize(
    ("name", "members", "code"),
    [
        ("bad/one", ["a"], ErrorCode.MEMBER_COUNT),
        ("bad/eleven", ["a"] * 11, ErrorCode.MEMBER_COUNT),
        ("bad/unknown", ["a", "zz"], ErrorCode.UNKNOWN_NODE),
        (STREAM, ["a", "b"], ErrorCode.STREAM_EXISTS),
        ("noslash", ["a", "b"], ErrorCode.ILLEGAL_NAME),
        ("Upper/case", ["a", "b"], ErrorCode.ILLEGAL_NAME),
        ("two/many/slashes", ["a", "b"], ErrorCode.ILLEGAL_NAME),
        ("", ["a", "b"], ErrorCode.ILLEGAL_NAME),
    ],
)
async def test_streams_that_cannot_be(mesh: Trio, stream: str, name: str, members: list[str], code: ErrorCode) -> None:
    before = await snapshot(mesh)
    assert (await refused(mesh.gateways["c"].create_stream(name, members))).code is code
    assert await snapshot(mesh) == before


async def test_publishing_to_no_such_stream(mesh: Trio) -> None:
    assert (await refused(mesh.gateways["a"].publish("bad/nowhere", [b"x"]))).code is ErrorCode.STREAM_NOT_FOUND


async def test_an_oversized_message_is_refused_with_the_limit(mesh: Trio, stream: str) -> None:
    before = (await mesh.gateways["a"].describe(stream)).next_offset
    error = await refused(mesh.gateways["a"].publish(stream, [bytes(1024 * 1024 + 1)]))
    assert error.code is ErrorCode.MESSAGE_TOO_LARGE
    assert "1,048,576" in error.message or "1048576" in error.message or "1 MiB" in error.message
    assert (await mesh.gateways["a"].describe(stream)).next_offset == before


async def test_a_message_at_the_limit_is_taken(mesh: Trio, stream: str) -> None:
    response = await mesh.gateways["c"].publish(stream, [bytes(1024 * 1024)])
    values = [item.value async for item in mesh.gateways["c"].read(stream, response.base_offset, 1)]
    assert values == [bytes(1024 * 1024)]


async def test_an_empty_batch_and_a_missing_wait(mesh: Trio, stream: str) -> None:
    assert (await refused(mesh.gateways["a"].publish(stream, []))).code is ErrorCode.EMPTY_BATCH
    request = data_pb2.PublishRequest(stream=stream, records=[data_pb2.PublishRecord(value=b"x")])
    assert (await refused(mesh.gateways["a"].publish_request(request))).code is ErrorCode.WAIT_REQUIRED


async def read_all(gateway: Gateway, stream: str, from_offset: int) -> None:
    async for _ in gateway.read(stream, from_offset):
        pass


async def test_reading_past_the_end_names_the_end(mesh: Trio, stream: str) -> None:
    end = (await mesh.gateways["a"].describe(stream)).next_offset
    error = await refused(read_all(mesh.gateways["a"], stream, end + 1))
    assert error.code is ErrorCode.OFFSET_PAST_END
    assert str(end) in error.message


async def test_unknown_names(mesh: Trio) -> None:
    gateway = mesh.gateways["b"]
    calls: list[tuple[Callable[[], Awaitable[object]], ErrorCode]] = [
        (lambda: gateway.describe("bad/nowhere"), ErrorCode.STREAM_NOT_FOUND),
        (lambda: read_all(gateway, "bad/nowhere", 0), ErrorCode.STREAM_NOT_FOUND),
        (lambda: gateway.delete_stream("bad/nowhere"), ErrorCode.STREAM_NOT_FOUND),
        (lambda: gateway.init_producer("bad/nowhere"), ErrorCode.STREAM_NOT_FOUND),
        (lambda: gateway.ping("zz"), ErrorCode.UNKNOWN_NODE),
        (lambda: gateway.paths("a", "zz"), ErrorCode.UNKNOWN_NODE),
    ]
    for call, code in calls:
        assert (await refused(call())).code is code


async def test_a_deleted_stream_is_gone_everywhere_and_its_name_is_free_again(mesh: Trio) -> None:
    name = "bad/deleted"
    await mesh.create_stream(name)
    await mesh.gateways["a"].publish(name, [b"old"])
    await mesh.delete_stream(name, at="b")
    for gateway in mesh.gateways.values():
        assert (await refused(gateway.describe(name))).code is ErrorCode.STREAM_NOT_FOUND
    await mesh.create_stream(name, ["b", "c"], at="b")
    response = await mesh.gateways["a"].publish(name, [b"new"])
    assert response.base_offset == 0


async def test_garbage_at_the_peer_port_harms_nobody(mesh: Trio) -> None:
    port = mesh.sites["a"].config.ports["peer"]
    for payload in (b"\x00" * 64, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(payload)
        await writer.drain()
        writer.write_eof()
        await asyncio.wait_for(reader.read(4096), 10)
        writer.close()
    assert (await mesh.gateways["a"].ping("b")).rtt_us > 0


async def test_leaving_while_holding_streams_is_refused_with_the_list(mesh: Trio, stream: str) -> None:
    error = await refused(mesh.gateways["b"].leave())
    assert error.code is ErrorCode.STREAMS_AT_RISK
    assert stream in error.message or stream in " ".join(error.details.values())


async def test_free_ports_are_not_a_mesh(mesh: Trio) -> None:
    """An unreachable address does not make a member lose its place."""
    address = f"wss://127.0.0.1:{free_ports(1)[0]}"
    assert (await refused(mesh.gateways["c"].join(address))).code is ErrorCode.ALREADY_MEMBER
