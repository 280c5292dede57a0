"""A stream that was made again under its old name is another one: nothing that belonged to the first reads or writes it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc.aio
import pytest

from meshapi.supervisor.v1 import data_pb2
from meshclient import MeshClient
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.grpc_client import mesh_error
from meshtest.trio import served_everywhere
from meshtest.waiting import eventually
from meshwire import client, request
from tests.attacks.raw_socket import Opcode, answer, http_request, status_of, websocket, websocket_frame
from tests.attacks.target import Target

NAME = "attacks/reborn"
MEMBERS = ["a", "b", "c"]

pytestmark = pytest.mark.changes_state


async def created(target: Target) -> int:
    """Makes the stream, once the name is free; returns its id once every node serves it."""

    async def create() -> int:
        return (await target.gateways["a"].create_stream(NAME, MEMBERS)).stream.stream_id

    stream_id = await eventually("the stream is made", create, 30)
    await served_everywhere(target.gateways, NAME, stream_id)
    return stream_id


async def reborn(target: Target) -> tuple[int, int, data_pb2.InitProducerResponse]:
    """The ids of a stream that is gone and of the one that has its name now, and a producer of the first."""
    first = await created(target)
    producer = await target.gateways["b"].init_producer(NAME, "faithful")
    for at in range(5):
        await target.gateways["a"].publish(NAME, [b"old %d" % at])
    await target.gateways["a"].delete_stream(NAME)
    second = await created(target)
    assert first != second
    for at in range(5):
        await target.gateways["c"].publish(NAME, [b"new %d" % at])
    return first, second, producer


async def code_of(call: object) -> ErrorCode:
    """The code with which a call is refused."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    return mesh_error(caught.value, "gateway").code


async def test_cursor_of_a_deleted_stream(target: Target) -> None:
    """It once read the new stream, silently, from the middle; producers wrote into it."""
    first, second, producer = await reborn(target)
    for gateway in target.gateways.values():
        old = data_pb2.ReadRequest(stream=NAME, from_offset=2, stream_id=first)
        assert await code_of(gateway.data.Read(old).read()) is ErrorCode.STREAM_REPLACED
        new = await gateway.data.Read(data_pb2.ReadRequest(stream=NAME, from_offset=2, stream_id=second)).read()
        assert isinstance(new, data_pb2.ReadResponse)
        assert new.stream_id == second
        describe = data_pb2.DescribeStreamRequest(stream=NAME, stream_id=first)
        assert await code_of(gateway.data.DescribeStream(describe, timeout=10)) is ErrorCode.STREAM_REPLACED
        await publish_is_refused(target, gateway.target, first, producer)
    await rest_is_refused(target, first)
    await client_port_is_refused(target, first)
    assert (await target.gateways["a"].describe(NAME)).next_offset == 5
    await target.gateways["a"].delete_stream(NAME)


async def publish_is_refused(target: Target, gateway: str, first: int, producer: data_pb2.InitProducerResponse) -> None:
    """A batch of the old stream's producer."""
    found = next(item for item in target.gateways.values() if item.target == gateway)
    batch = data_pb2.PublishRequest(
        stream=NAME,
        wait=data_pb2.PUBLISH_WAIT_COMMITTED,
        records=[data_pb2.PublishRecord(value=b"lost")],
        producer_id=producer.producer_id,
        producer_epoch=producer.producer_epoch,
        base_sequence=0,
        stream_id=first,
    )
    with pytest.raises(MeshError) as caught:
        await found.publish_request(batch)
    assert caught.value.code is ErrorCode.STREAM_REPLACED


async def rest_is_refused(target: Target, first: int) -> None:
    """The same through REST."""
    number = target.port("b", "gateway_http")
    found = await answer(
        number,
        http_request("GET", f"/v1/streams/{NAME}/records?from=2&stream_id={first}", f"127.0.0.1:{number}"),
    )
    assert status_of(found) == 409, found[:300]
    assert b"STREAM_REPLACED" in found


async def client_port_is_refused(target: Target, first: int) -> None:
    """The same from an application."""
    read = client.encode_read(client.Read(NAME, 2, 65_536, False, first))
    async with websocket(target.port("c", "data_client"), client.SUBPROTOCOL) as socket:
        await socket.send(websocket_frame(Opcode.BINARY, client.encode_message(client.Kind.READ, 7, read)))
        received = await socket.receive()
    assert received is not None
    ((kind, correlation, body),) = client.decode_messages(received[1])
    assert (kind, correlation) == (client.Kind.ERROR, 7)
    response = request.decode_response(body)
    assert isinstance(response, request.ErrorResponse)
    assert response.code == ErrorCode.STREAM_REPLACED


async def test_follower_of_a_stream_that_is_deleted_under_it(target: Target) -> None:
    """Meshclient goes on by itself after failures, but not into another stream."""
    await created(target)
    await target.gateways["a"].publish(NAME, [b"old"])
    async with MeshClient(target.sites["b"].config.client, give_up_after_s=20) as application:
        follower: AsyncIterator[object] = application.read(NAME, follow=True)
        await anext(follower)
        await target.gateways["a"].delete_stream(NAME)
        await created(target)
        await target.gateways["a"].publish(NAME, [b"new"])
        with pytest.raises(MeshError) as caught:
            await anext(follower)
    assert caught.value.code in {ErrorCode.STREAM_REPLACED, ErrorCode.STREAM_NOT_FOUND}
    await target.gateways["a"].delete_stream(NAME)


async def test_ids_that_no_stream_ever_had(target: Target) -> None:
    """0 means whichever; everything else has to be the id."""
    for stream_id in (2**64 - 1, 2**63, 999_999):
        for gateway in target.gateways.values():
            old = data_pb2.ReadRequest(stream="attacks/honest", from_offset=0, stream_id=stream_id)
            assert await code_of(gateway.data.Read(old).read()) is ErrorCode.STREAM_REPLACED
