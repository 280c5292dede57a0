"""REST, WebSocket and gRPC over TLS: who is not trusted, what is no TLS, and bounds that hold as in clear (I6)."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.asyncio.client import connect

from meshcommon import grpc_server, http_server
from meshcommon.grpc_client import open_channel
from meshcommon.grpc_server import GrpcServer
from meshcommon.http_server import BoundedHttp, HttpLimits, serve_asgi
from meshcommon.socket_gate import GateLimits
from meshcommon.tls_contexts import fault_of, trusting
from meshcommon.tls_files import TlsFiles
from meshtest.certificates import Authority, CertificateFiles
from meshtest.ports import free_ports
from meshtest.waiting import eventually

LARGE = 16 * 1024 * 1024
SERVICE = "test.v1.Tls"


async def scheme(request: Request) -> Response:
    return PlainTextResponse(request.url.scheme)


async def large(_request: Request) -> Response:
    return Response(bytes(LARGE))


async def greet(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text(await websocket.receive_text())


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def pair(authority: Authority) -> CertificateFiles:
    return authority.issue("node")


@asynccontextmanager
async def rest(files: TlsFiles) -> AsyncIterator[int]:
    """Where a small application is served."""
    (port,) = free_ports(1)
    routes = [Route("/", scheme), Route("/large", large), WebSocketRoute("/socket", greet)]
    limits = HttpLimits(connections_max=8, has_sockets=True)
    serving = asyncio.create_task(
        serve_asgi(Starlette(routes=routes), f"127.0.0.1:{port}", "The test", limits=limits, tls=files.context)
    )

    async def is_open() -> bool:
        serving.done() and serving.result()
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        return True

    await eventually("it listens", is_open)
    yield port
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


async def asked(port: int, authority: Authority, host: str = "127.0.0.1") -> str:
    async with httpx.AsyncClient(verify=trusting(authority.file)) as client:
        return (await client.get(f"https://{host}:{port}/")).text


async def test_rest_and_websockets_are_served_over_tls(pair: CertificateFiles, authority: Authority) -> None:
    async with rest(pair.files()) as port:
        assert await asked(port, authority) == "https"
        async with connect(f"wss://localhost:{port}/socket", ssl=trusting(authority.file)) as greeting:
            await greeting.send("hello")
            assert await greeting.recv() == "hello"
        async with httpx.AsyncClient(verify=trusting(authority.file)) as client:
            assert len((await client.get(f"https://127.0.0.1:{port}/large")).content) == LARGE


async def test_certificate_that_is_not_to_be_trusted_is_named(tmp_path: Path, authority: Authority) -> None:
    """By the texts of Python's TLS library; `test_grpc_names_…` below pins those of gRPC."""
    other = Authority(tmp_path, "other")
    elsewhere = authority.issue("elsewhere", hosts=("mesh.example",))
    expired = authority.issue("expired", ends_in=-timedelta(minutes=1))
    for files, trusted, said in (
        (authority.issue("good").files(), other, "unknown authority"),
        (elsewhere.files(), authority, "another name"),
        (expired.files(-timedelta(minutes=3)), authority, "expired"),
    ):
        async with rest(files) as port:
            with pytest.raises(httpx.ConnectError) as refusal:
                await asked(port, trusted)
            assert said in (fault_of(str(refusal.value)) or "")


async def test_new_files_are_shown_to_new_connections_and_open_ones_go_on(
    pair: CertificateFiles, authority: Authority, tmp_path: Path
) -> None:
    files = pair.files()
    other = Authority(tmp_path, "other")
    async with rest(files) as port, httpx.AsyncClient(verify=trusting(authority.file)) as client:
        assert (await client.get(f"https://127.0.0.1:{port}/")).text == "https"
        other.issue("newer", ends_in=timedelta(days=30)).copy_to(pair)
        assert await files.look() == ""
        assert await asked(port, other) == "https"
        with pytest.raises(httpx.ConnectError):
            await asked(port, authority)
        assert (await client.get(f"https://127.0.0.1:{port}/")).text == "https", "the open connection goes on"


async def test_clear_text_at_the_tls_port_is_dropped(pair: CertificateFiles, authority: Authority) -> None:
    async with rest(pair.files()) as port:
        async with httpx.AsyncClient() as client:
            with pytest.raises(httpx.TransportError):
                await client.get(f"http://127.0.0.1:{port}/")
        assert await asked(port, authority) == "https"


async def test_handshakes_that_do_not_end_are_counted_and_dropped(
    pair: CertificateFiles, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "OPEN_TIMEOUT_S", 0.5)
    monkeypatch.setattr(http_server, "OPENING_LIMITS", GateLimits(sockets_max=4, reserved=0, per_address_max=4))
    async with rest(pair.files()) as port:
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(6)]
        ends = [asyncio.create_task(reader.read()) for reader, _ in silent]
        async with asyncio.timeout(10):
            assert await asyncio.gather(*ends) == [b""] * 6, "two are turned away, four have their time"

        async def is_free() -> bool:
            return await asked(port, authority) == "https"

        await eventually("there is room again", is_free, timeout_s=10)
        for _, writer in silent:
            writer.close()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_an_answer_that_is_not_read_is_counted_and_cut(
    run: Callable[[Coroutine[Any, Any, None]], None],
    pair: CertificateFiles,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_server, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(http_server, "QUIET_S", 0.5)
    unread: list[int] = []
    complete = BoundedHttp.on_response_complete

    def note(self: BoundedHttp) -> None:
        unread.append(self.transport.get_write_buffer_size())
        complete(self)

    monkeypatch.setattr(BoundedHttp, "on_response_complete", note)

    async def work() -> None:
        async with rest(pair.files()) as port:
            # The kernel would take most of it otherwise.
            small = socket.socket()
            small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
            small.setblocking(False)
            await asyncio.get_running_loop().sock_connect(small, ("127.0.0.1", port))
            reader, writer = await asyncio.open_connection(
                sock=small, ssl=trusting(authority.file), server_hostname="127.0.0.1", limit=1024
            )
            writer.write(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(2)
            with pytest.raises((ConnectionError, ssl.SSLError, asyncio.IncompleteReadError)):
                await reader.readexactly(LARGE)
            writer.transport.abort()

    run(work())
    # The kernel has taken the rest.
    assert unread[0] > 1024 * 1024, "the TLS layer's buffer counts"


@asynccontextmanager
async def calls(files: TlsFiles) -> AsyncIterator[int]:
    """Where a call `Echo` is served."""

    async def echo(request: bytes, _context: Any) -> bytes:
        return request

    server = GrpcServer()
    handlers: dict[str, Any] = {"Echo": grpc.unary_unary_rpc_method_handler(echo)}
    server.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    yield await server.start("127.0.0.1:0", "The test", tls=files)
    await server.stop()


def channel_to(port: int, trusted: Authority | None) -> grpc.aio.Channel:
    credentials = grpc.ssl_channel_credentials(trusted.file.read_bytes()) if trusted is not None else None
    return open_channel(f"127.0.0.1:{port}", credentials)


async def echoed(channel: grpc.aio.Channel) -> bytes:
    call: Any = channel.unary_unary(f"/{SERVICE}/Echo")
    answer: bytes = await call(b"hello", timeout=10)
    return answer


async def test_grpc_is_served_over_tls_and_follows_the_files(
    pair: CertificateFiles, authority: Authority, tmp_path: Path
) -> None:
    files = pair.files()
    other = Authority(tmp_path, "other")
    async with calls(files) as port, channel_to(port, authority) as before:
        assert await echoed(before) == b"hello"
        other.issue("newer", ends_in=timedelta(days=30)).copy_to(pair)
        assert await files.look() == ""
        async with channel_to(port, other) as after:
            assert await echoed(after) == b"hello"
        assert await echoed(before) == b"hello", "the open connection goes on"


async def test_grpc_names_what_is_wrong_and_takes_no_clear_text(tmp_path: Path, authority: Authority) -> None:
    other = Authority(tmp_path, "other")
    elsewhere = authority.issue("elsewhere", hosts=("mesh.example",))
    expired = authority.issue("expired", ends_in=-timedelta(minutes=1))
    for files, trusted, said in (
        (authority.issue("good").files(), other, "unknown authority"),
        (elsewhere.files(), authority, "another name"),
        (expired.files(-timedelta(minutes=3)), authority, "expired"),
        (authority.issue("good").files(), None, ""),
    ):
        async with calls(files) as port, channel_to(port, trusted) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await echoed(channel)
            assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
            assert said in (fault_of(refusal.value.details() or "") or "")


async def test_grpc_handshake_that_does_not_end_is_dropped(
    pair: CertificateFiles, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_server, "_HANDSHAKE_MS_MAX", 500)
    async with calls(pair.files()) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(4):
            assert await reader.read() == b""
        writer.close()
        async with channel_to(port, authority) as channel:
            assert await echoed(channel) == b"hello"
