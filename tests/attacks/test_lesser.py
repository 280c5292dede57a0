"""Kind 9 and the edges of the API: labels, correlation ids, names, numbers."""

from __future__ import annotations

from typing import Any

import grpc.aio
import pytest

from meshapi.supervisor.v1 import data_pb2, data_pb2_grpc, mesh_pb2, mesh_pb2_grpc
from meshcommon.errors import ErrorCode
from meshcommon.grpc_client import mesh_error, open_channel
from tests.attacks.raw_socket import answer, http_request, status_of
from tests.attacks.target import STREAM, Target

JSON = "Content-Type: application/json"
UNDOCUMENTED = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS}


async def metrics(target: Target, site: str, port: str) -> list[bytes]:
    """Lines of a metrics page."""
    number = target.port(site, port)
    page = await answer(number, http_request("GET", "/metrics", f"127.0.0.1:{number}"))
    assert status_of(page) == 200
    return page.splitlines()


async def test_methods_of_a_strangers_making_make_no_metrics(target: Target) -> None:
    number = target.port("a", "gateway_http")
    before = len(await metrics(target, "a", "gateway_admin"))
    for at in range(120):
        await answer(number, http_request(f"ATTACK{at}", "/v1/mesh", f"127.0.0.1:{number}"))
        await answer(number, http_request("GET", f"/v1/nothing/{at}", f"127.0.0.1:{number}"))
    after = await metrics(target, "a", "gateway_admin")
    assert len(after) - before < 120
    assert not [line for line in after if b"ATTACK" in line]


async def test_correlation_ids_of_a_strangers_making_in_grpc(target: Target) -> None:
    """They go into every log line; the look afterwards refuses escape sequences and long lines."""
    async with open_channel(target.sites["a"].config.gateway) as channel:
        stub = mesh_pb2_grpc.MeshServiceStub(channel)
        for value in ("x" * 7_000, "a b  c", "forged\\n{}", '","level":"error'):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.GetStream(
                    mesh_pb2.GetStreamRequest(name="no/stream"), timeout=5, metadata=(("x-correlation-id", value),)
                )
            assert caught.value.code() not in UNDOCUMENTED, caught.value
            assert value not in str(dict(caught.value.trailing_metadata() or {}))


@pytest.mark.parametrize(
    "name",
    [
        "a/b\x00",
        "../..",
        "a/../../x",
        "a/b\n",
        "a/" + "b" * 5_000,
        "A/B",
        "a//b",
        "%2e%2e/%2e%2e",
        "é/é",
        "a/b?x=1",
        "",
    ],
    ids=lambda name: ascii(name)[:20],
)
async def test_names_of_streams(target: Target, name: str) -> None:
    """No name becomes a path, and each is refused alike by every call."""
    async with open_channel(target.sites["a"].config.gateway) as channel:
        mesh, data = mesh_pb2_grpc.MeshServiceStub(channel), data_pb2_grpc.MeshDataServiceStub(channel)
        for call in (
            mesh.CreateStream(mesh_pb2.CreateStreamRequest(name=name, members=["a", "b", "c"]), timeout=10),
            mesh.DeleteStream(mesh_pb2.DeleteStreamRequest(name=name), timeout=10),
            data.DescribeStream(data_pb2.DescribeStreamRequest(stream=name), timeout=10),
            data.InitProducer(data_pb2.InitProducerRequest(stream=name, producer_name="p"), timeout=10),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() not in UNDOCUMENTED, caught.value
            assert mesh_error(caught.value, "gateway").code in {
                ErrorCode.ILLEGAL_NAME,
                ErrorCode.STREAM_NOT_FOUND,
                ErrorCode.INVALID_ARGUMENT,
            }


async def test_numbers_beyond_what_postgres_holds(target: Target) -> None:
    """2^63 and more would stop the projection of every node for good."""
    async with open_channel(target.sites["b"].config.gateway) as channel:
        stub = mesh_pb2_grpc.MeshServiceStub(channel)
        for value in (2**63, 2**64 - 1):
            request = mesh_pb2.CreateStreamRequest(
                name="attacks/large", members=["a", "b", "c"], retained_bytes_max=value
            )
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.CreateStream(request, timeout=20)
            assert caught.value.code() not in UNDOCUMENTED, caught.value
    number = target.port("b", "gateway_http")
    for text in ("9223372036854775808", "1e400", "-1", "NaN", '"9"', "1" * 5_000):
        body = b'{"name": "attacks/large", "members": ["a", "b", "c"], "retained_bytes_max": %s}' % text.encode()
        found = await answer(number, http_request("POST", "/v1/streams", f"127.0.0.1:{number}", [JSON], body))
        assert 400 <= status_of(found) < 500, found[:300]


@pytest.mark.parametrize(
    "query",
    [
        "from=-1",
        "from=18446744073709551616",
        "from=1e9",
        "max=0",
        "max=99999999999999999999",
        "from=%00",
        "consistency=x",
    ],
)
async def test_numbers_of_reads(target: Target, query: str) -> None:
    number = target.port("a", "gateway_http")
    found = await answer(number, http_request("GET", f"/v1/streams/{STREAM}/records?{query}", f"127.0.0.1:{number}"))
    assert 400 <= status_of(found) < 500, found[:300]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"\xff\xfe",
        b'{"wait":"committed","records":[{}]}',
        b"null",
        b"[]",
        b'"' + b"\\ud800" * 10 + b'"',
    ],
    ids=["empty", "half", "deep list", "deep object", "no utf-8", "no value", "null", "list", "surrogates"],
)
async def test_bodies_that_are_no_publish(target: Target, body: bytes) -> None:
    number = target.port("a", "gateway_http")
    for path in (f"/v1/streams/{STREAM}/records", "/v1/streams", "/v1/mesh/join", f"/v1/streams/{STREAM}/producers"):
        found = await answer(number, http_request("POST", path, f"127.0.0.1:{number}", [JSON], body))
        if path.endswith("producers") and body in {b"", b"null"}:
            continue  # a body is optional there
        assert 400 <= status_of(found) < 500, (path, found[:300])


@pytest.mark.parametrize(
    "survivors",
    [["a", "b"], ["a"], [], ["a", "a"], ["b"], ["a", "nobody"], ["a\x1b[31m" * 50], ["a"] * 10_000],
    ids=["legal", "alone", "none", "twice", "another", "unknown", "escapes", "many"],
)
async def test_recovery_of_groups_that_have_a_leader(target: Target, survivors: list[str]) -> None:
    """Whoever reaches the API may ask for it: a group with a leader is left as it is, for streams and for the mesh."""
    async with open_channel(target.sites["a"].config.gateway) as channel:
        data = data_pb2_grpc.MeshDataServiceStub(channel)
        mesh = mesh_pb2_grpc.MeshServiceStub(channel)
        for call in (
            data.RecoverStream(data_pb2.RecoverStreamRequest(stream=STREAM, survivors=survivors), timeout=10),
            mesh.RecoverControlGroup(mesh_pb2.RecoverControlGroupRequest(survivors=survivors), timeout=10),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert mesh_error(caught.value, "gateway").code in {ErrorCode.INVALID_ARGUMENT, ErrorCode.UNKNOWN_NODE}


async def test_random_bytes_for_every_call(target: Target) -> None:
    """No service answers INTERNAL or UNKNOWN to bytes that are no message."""
    services = (
        mesh_pb2.DESCRIPTOR.services_by_name["MeshService"],
        data_pb2.DESCRIPTOR.services_by_name["MeshDataService"],
    )
    async with open_channel(target.sites["a"].config.gateway) as channel:
        for service in services:
            for method in service.methods:
                if method.name in {"Seed", "Leave", "Stop", "Start"}:
                    continue  # an empty message is a right one there
                call: Any = channel.unary_unary(f"/{service.full_name}/{method.name}")
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call(b"\xff\xff\xff\xff", timeout=10)
                assert caught.value.code() not in UNDOCUMENTED, (method.name, caught.value)
