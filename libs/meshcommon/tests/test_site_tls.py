"""Mutual TLS between the services of a site, on real gRPC servers: who gets in, who is refused and named, and renewal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc

from meshcommon import site_files
from meshcommon.admin import Readiness
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.grpc_client import mesh_error, open_channel, open_service, site_error
from meshcommon.grpc_server import GrpcServer
from meshcommon.service_certificates import Service, ServiceIdentity
from meshcommon.site_callers import SiteCallers
from meshcommon.site_files import AUTHORITY, CERTIFICATE, KEY, SiteFiles
from meshcommon.tls_files import FILE_BYTES_MAX
from meshtest.site_certificates import SiteAuthority, service
from meshtest.waiting import eventually

MESH = "0b6b5a44-7f5d-4d0e-9a3c-111111111111"
OTHER_MESH = "0b6b5a44-7f5d-4d0e-9a3c-222222222222"
RULES = {
    "mesh.test.Echo": frozenset({Service.CONTROL}),
    "mesh.test.Echo/Follow": frozenset({Service.CONTROL, Service.ROUTING}),
}


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_files, "LOOK_EVERY_S", 0.05)


@pytest.fixture
def authority() -> SiteAuthority:
    return SiteAuthority()


def echo() -> grpc.GenericRpcHandler:
    async def say(request: bytes, _context: Any) -> bytes:
        return request

    async def follow(request: bytes, _context: Any) -> AsyncIterator[bytes]:
        while True:
            yield request
            await asyncio.sleep(0.02)

    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Say": grpc.unary_unary_rpc_method_handler(say),
        "Hidden": grpc.unary_unary_rpc_method_handler(say),
        "Follow": grpc.unary_stream_rpc_method_handler(follow),
    }
    return grpc.method_handlers_generic_handler("mesh.test.Echo", handlers)


@asynccontextmanager
async def serving(files: SiteFiles) -> AsyncIterator[str]:
    """The data plane of a test, with these files; its address."""
    await files.wait(Readiness(), 1)
    server = GrpcServer()
    server.server.add_generic_rpc_handlers((echo(),))
    port = await server.start("127.0.0.1:0", "The data plane of the test", callers=SiteCallers(files, RULES))
    await server.set_serving(True)
    async with asyncio.TaskGroup() as tasks:
        looking = tasks.create_task(files.run(Readiness()))
        yield f"127.0.0.1:{port}"
        await server.stop()
        looking.cancel()


@asynccontextmanager
async def calling(target: str, files: SiteFiles, expected: Service = Service.DATA) -> AsyncIterator[Any]:
    """A channel of the service that has these files."""
    await files.wait(Readiness(), 1)
    async with open_service(target, expected, files) as channel:
        yield channel


async def say(channel: Any, method: str = "Say") -> bytes:
    answer: bytes = await channel.unary_unary(f"/mesh.test.Echo/{method}")(b"hello", timeout=5)
    return answer


async def until(condition: Callable[[], bool]) -> None:
    async def look() -> bool:
        return condition()

    await eventually("the condition", look)


async def refusal(call: Awaitable[Any]) -> MeshError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return mesh_error(caught.value, "data plane")


async def test_a_service_of_the_site_may_call_what_its_rule_says(tmp_path: Path, authority: SiteAuthority) -> None:
    async with serving(authority.write(tmp_path, service("data", MESH))) as target:
        async with calling(target, authority.write(tmp_path, service("control", MESH))) as control:
            assert await say(control) == b"hello"
        async with calling(target, authority.write(tmp_path, service("routing", MESH))) as routing:
            follow = routing.unary_stream("/mesh.test.Echo/Follow")(b"x", timeout=5)
            assert await anext(aiter(follow)) == b"x"
            follow.cancel()
            error = await refusal(say(routing))
            assert error.code is ErrorCode.CALLER_NOT_ALLOWED
            assert f"spiffe://{MESH}/node/a/routing may not call mesh.test.Echo/Say: only control may" in error.message


async def test_every_service_may_ask_for_health_and_none_for_what_no_rule_names(
    tmp_path: Path, authority: SiteAuthority
) -> None:
    async with serving(authority.write(tmp_path, service("data"))) as target:
        for name in Service:
            async with calling(target, authority.write(tmp_path / "callers", service(name))) as channel:
                stub: Any = health_pb2_grpc.HealthStub(channel)
                answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
                error = await refusal(channel.unary_unary("/mesh.test.Other/Say")(b"", timeout=5))
                assert error.code is ErrorCode.INTERNAL
                assert "Method not found" in error.message


Minted = tuple[ServiceIdentity, dict[type, x509.ExtensionType]]
CONTROL = service("control", MESH)


def names(*texts: str, dns: str = CONTROL.dns_name) -> dict[type, x509.ExtensionType]:
    uris = [x509.UniformResourceIdentifier(text) for text in texts]
    return {x509.SubjectAlternativeName: x509.SubjectAlternativeName([*uris, x509.DNSName(dns)])}


@pytest.mark.parametrize(
    ("identity", "replaced", "code", "says"),
    [
        (service("control", OTHER_MESH), {}, ErrorCode.CERTIFICATE_REFUSED, "of another mesh"),
        (service("control", MESH, "b"), {}, ErrorCode.CERTIFICATE_REFUSED, "of another node"),
        (service("gateway", MESH), {}, ErrorCode.CALLER_NOT_ALLOWED, "gateway may not call"),
        (CONTROL, names(CONTROL.uri, CONTROL.uri + "/x"), ErrorCode.CERTIFICATE_REFUSED, "2 URIs"),
        (CONTROL, names(), ErrorCode.CERTIFICATE_REFUSED, "0 URIs"),
        (CONTROL, names(CONTROL.uri, dns="x"), ErrorCode.CERTIFICATE_REFUSED, "lacks the DNS name"),
        (CONTROL, names(f"spiffe://{MESH}/node/a/worker"), ErrorCode.CERTIFICATE_REFUSED, "names no service"),
        (
            CONTROL,
            {x509.BasicConstraints: x509.BasicConstraints(ca=True, path_length=None)},
            ErrorCode.CERTIFICATE_REFUSED,
            "of an authority",
        ),
    ],
    ids=["other mesh", "other node", "other service", "two URIs", "no URI", "no name", "no service", "authority"],
)
async def test_a_caller_that_is_not_who_may_call_is_refused_and_named(
    tmp_path: Path,
    authority: SiteAuthority,
    identity: ServiceIdentity,
    replaced: dict[type, x509.ExtensionType],
    code: ErrorCode,
    says: str,
) -> None:
    shown = authority.write(tmp_path / "caller", identity, replaced=replaced).directory
    async with serving(authority.write(tmp_path, service("data", MESH))) as target, by_hand(target, shown) as channel:
        error = await refusal(say(channel))
        assert (error.code, says in error.message) == (code, True), error.message


@asynccontextmanager
async def by_hand(target: str, shown: Path) -> AsyncIterator[grpc.aio.Channel]:
    """A channel of somebody who shows what these files hold, whatever it is."""
    credentials = grpc.ssl_channel_credentials(
        (shown / AUTHORITY).read_bytes(), (shown / KEY).read_bytes(), (shown / CERTIFICATE).read_bytes()
    )
    options = [("grpc.ssl_target_name_override", service("data").dns_name)]
    async with grpc.aio.secure_channel(target, credentials, options=options) as channel:
        yield channel


@pytest.mark.parametrize(
    ("begun", "life"), [(timedelta(hours=2), timedelta(hours=1)), (timedelta(hours=-1), timedelta(hours=2))]
)  # fmt: skip
async def test_a_certificate_out_of_its_time_gets_no_connection(
    tmp_path: Path, authority: SiteAuthority, begun: timedelta, life: timedelta
) -> None:
    shown = authority.write(tmp_path / "caller", CONTROL, begun=begun, life=life)
    async with serving(authority.write(tmp_path, service("data", MESH))) as target, calling(target, shown) as channel:
        error = await refusal(say(channel))
        assert error.code in {ErrorCode.UNAVAILABLE, ErrorCode.TLS_FAILED}
    readiness = Readiness()
    await shown.wait(readiness, 1)
    [reason] = [text for text in readiness.reasons() if "starting" not in text]
    assert "set the clocks" in reason, "the service itself names both clocks"


async def test_nobody_gets_in_without_a_certificate_or_with_one_of_another_site(
    tmp_path: Path, authority: SiteAuthority
) -> None:
    stranger = SiteAuthority()
    own = authority.write(tmp_path, service("data", MESH))
    forged = stranger.write(tmp_path / "stranger", CONTROL)
    # It trusts the server, so that only the server can refuse it.
    (forged.directory / AUTHORITY).write_bytes((own.directory / AUTHORITY).read_bytes())
    root = (own.directory / AUTHORITY).read_bytes()
    options = [("grpc.ssl_target_name_override", service("data").dns_name)]
    async with serving(own) as target:
        async with by_hand(target, forged.directory) as channel:
            assert (await refusal(say(channel))).code in {ErrorCode.UNAVAILABLE, ErrorCode.TLS_FAILED}
        async with grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(root), options=options) as channel:
            assert (await refusal(say(channel))).code in {ErrorCode.UNAVAILABLE, ErrorCode.TLS_FAILED}
        async with open_channel(target) as channel:
            assert (await refusal(say(channel))).code is ErrorCode.UNAVAILABLE


@pytest.mark.parametrize(
    "met", [service("routing", MESH), service("data", MESH, "b")], ids=["another service", "another node"]
)
async def test_a_caller_does_not_speak_to_another_than_it_means(
    tmp_path: Path, authority: SiteAuthority, met: ServiceIdentity
) -> None:
    control = authority.write(tmp_path, service("control", MESH))
    async with serving(authority.write(tmp_path / "met", met)) as target, calling(target, control) as channel:
        error = await refusal(say(channel))
        assert error.code is ErrorCode.TLS_FAILED
        assert "another name" in error.message


async def test_a_caller_does_not_speak_to_a_server_of_another_site(tmp_path: Path, authority: SiteAuthority) -> None:
    control = authority.write(tmp_path, service("control", MESH))
    stranger = SiteAuthority().write(tmp_path / "stranger", service("data", MESH))
    async with serving(stranger) as target, calling(target, control) as channel:
        error = await refusal(say(channel))
        assert error.code is ErrorCode.TLS_FAILED
        assert "unknown authority" in error.message
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await say(channel)
        found = site_error(caught.value, "data plane")
        assert (found.code, found.retryable) == (ErrorCode.UNAVAILABLE, True), "files are renewed within seconds"
        assert "unknown authority" in found.message


async def test_new_files_count_from_the_next_call_on_and_no_call_ends(tmp_path: Path, authority: SiteAuthority) -> None:
    data, control = (authority.write(tmp_path, service(name)) for name in ("data", "control"))
    async with serving(data) as target, calling(target, control) as channel:
        follow = aiter(channel.unary_stream("/mesh.test.Echo/Follow")(b"x", timeout=60))
        assert await anext(follow) == b"x"
        for mesh in (MESH, OTHER_MESH, "unjoined"):
            for name in ("control", "data"):
                authority.write(tmp_path, service(name, mesh))
            await control.look()
            assert await say(channel) == b"hello", "the server looks again before it refuses"
            assert await anext(follow) == b"x", "the stream of before the renewal runs on"


async def test_an_old_connection_ends_behind_its_last_call(tmp_path: Path, authority: SiteAuthority) -> None:
    data, control = (authority.write(tmp_path, service(name)) for name in ("data", "control"))
    async with serving(data) as target, calling(target, control) as channel:
        follow = channel.unary_stream("/mesh.test.Echo/Follow")(b"x", timeout=60)
        assert await anext(aiter(follow)) == b"x"
        old = channel._current.channel
        authority.write(tmp_path, service("control"))
        await control.look()
        assert await say(channel) == b"hello"
        assert channel._current.channel is not old
        assert len(channel._old) == 1
        follow.cancel()
        await until(lambda: not channel._old and not channel._closing)
        with pytest.raises(grpc.aio.UsageError, match="closed"):
            await say(old)


def lose_key(files: SiteFiles) -> None:
    (files.directory / KEY).unlink()


def exchange_key(files: SiteFiles) -> None:
    SiteAuthority().write(files.directory.parent / "other", service("data"))
    (files.directory / KEY).write_bytes((files.directory.parent / "other" / "data" / KEY).read_bytes())


def spoil(files: SiteFiles) -> None:
    (files.directory / CERTIFICATE).write_bytes(b"no certificate")


def enlarge(files: SiteFiles) -> None:
    (files.directory / AUTHORITY).write_bytes(b"x" * (FILE_BYTES_MAX + 1))


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lose_key, ErrorCode.TLS_FILES_MISSING),
        (exchange_key, ErrorCode.CERTIFICATE_REFUSED),
        (spoil, ErrorCode.CERTIFICATE_REFUSED),
        (enlarge, ErrorCode.CERTIFICATE_REFUSED),
    ],
)
async def test_files_that_cannot_be_used_are_named_at_the_start_and_change_nothing_later(
    tmp_path: Path, authority: SiteAuthority, damage: Callable[[SiteFiles], None], code: ErrorCode
) -> None:
    running = authority.write(tmp_path, service("data"))
    readiness = Readiness()
    await running.wait(readiness, 1)
    pair = running.pair
    damage(running)
    with pytest.raises(MeshError) as caught:
        await SiteFiles(tmp_path, "a", Service.DATA).wait(Readiness(), 0)
    assert caught.value.code is code
    assert str(running.directory) in caught.value.message
    looking = asyncio.create_task(running.run(readiness))
    await until(lambda: any(str(running.directory) in text for text in readiness.warnings()))
    assert running.pair is pair
    authority.write(tmp_path, service("data"))
    await until(lambda: not readiness.warnings())
    looking.cancel()


async def test_the_files_of_another_service_are_not_taken(tmp_path: Path, authority: SiteAuthority) -> None:
    made = authority.write(tmp_path, service("control"))
    made.directory.rename(tmp_path / "data")
    with pytest.raises(MeshError, match="control is not this service, data of node a") as caught:
        await SiteFiles(tmp_path, "a", Service.DATA).wait(Readiness(), 0)
    assert caught.value.code is ErrorCode.CERTIFICATE_REFUSED


async def test_a_renewal_that_is_late_is_told(tmp_path: Path, authority: SiteAuthority) -> None:
    files = authority.write(tmp_path, service("data"), begun=timedelta(hours=20))
    readiness = Readiness()
    await files.wait(readiness, 1)
    assert "should have been renewed" in readiness.warnings()[0]


async def test_other_machines_are_not_called_in_clear() -> None:
    with pytest.raises(MeshError, match="MESH_NODE_TLS_DIR") as caught:
        open_service("data.example.com:7301", Service.DATA, None)
    assert caught.value.code is ErrorCode.INSECURE_NOT_ALLOWED
    await open_service("data.example.com:7301", Service.DATA, None, is_insecure_dev=True).close()


async def test_memory_of_callers_is_bounded(tmp_path: Path, authority: SiteAuthority) -> None:
    own = authority.write(tmp_path, service("data"))
    await own.wait(Readiness(), 1)
    for _ in range(site_files._CALLERS_MAX + 10):
        made = authority.write(tmp_path / "callers", service("control")).directory
        own.caller((made / CERTIFICATE).read_bytes())
        assert len(own._callers) <= site_files._CALLERS_MAX
