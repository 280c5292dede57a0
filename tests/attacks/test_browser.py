"""Kind 6: a web page in a browser of this machine is no program of this machine. The sites run with development mode on."""

from __future__ import annotations

import asyncio

import pytest

from meshwire import client
from tests.attacks.raw_socket import answer, connected, http_request, status_of, tls_ports, upgrade_request
from tests.attacks.target import Target

HTTP_PORTS = ("gateway_http", "gateway_admin", "control_admin", "routing_admin", "data_admin")
EVIL = "evil.example"
CREATE = b'{"name": "evil/stream", "members": ["a", "b", "c"]}'
JSON = "Content-Type: application/json"


def path_of(port: str) -> str:
    """Something that the port serves to its own."""
    return "/v1/mesh" if port == "gateway_http" else "/healthz"


@pytest.mark.parametrize("port", HTTP_PORTS)
async def test_dns_rebinding(target: Target, port: str) -> None:
    """A foreign name that resolves to the loopback sends its own name as Host, also in development mode."""
    number = target.port("a", port)
    assert status_of(await answer(number, http_request("GET", path_of(port), f"127.0.0.1:{number}"))) == 200
    assert status_of(await answer(number, http_request("GET", path_of(port), f"localhost:{number}"))) == 200
    for host in (f"{EVIL}:{number}", EVIL, "127.0.0.1.evil.example", "localhost.evil.example", "0x7f.1", ""):
        found = await answer(number, http_request("GET", path_of(port), host))
        assert status_of(found) in {400, 403, 421}, (host, found[:200])


async def test_dns_rebinding_cannot_change_the_mesh(target: Target) -> None:
    number = target.port("b", "gateway_http")
    for method, path, body in (
        ("POST", "/v1/mesh/leave", b""),
        ("POST", "/v1/mesh/stop", b""),
        ("POST", "/v1/streams", CREATE),
        ("DELETE", "/v1/streams/attacks/honest", b""),
    ):
        found = await answer(number, http_request(method, path, f"{EVIL}:{number}", [JSON], body))
        assert status_of(found) == 403, found[:200]
        same = await answer(
            number, http_request(method, path, f"{EVIL}:{number}", [JSON, f"Origin: http://{EVIL}:{number}"], body)
        )
        assert status_of(same) == 403, same[:200]


@pytest.mark.parametrize(
    "header",
    [
        "Sec-Fetch-Site: cross-site",
        "sec-fetch-site: Cross-Site",
        f"Origin: http://{EVIL}",
        "Origin: null",
        "Origin: http://127.0.0.1:1",
    ],
)
async def test_cross_site_requests(target: Target, header: str) -> None:
    number = target.port("a", "gateway_http")
    host = f"127.0.0.1:{number}"
    for method, path, body in (
        ("POST", "/v1/mesh/stop", b""),
        ("POST", "/v1/streams", CREATE),
        ("GET", "/v1/mesh", b""),
    ):
        found = await answer(number, http_request(method, path, host, [JSON, header], body))
        assert status_of(found) == 403, found[:300]


@pytest.mark.parametrize(
    "headers",
    [
        ["Origin: http://["],
        ["Origin: http://[::1"],
        ["Origin: \udcff\udcfe"],
        ["Origin: " + "x" * 8_000],
        ["Sec-Fetch-Site: \udcff"],
        ["Content-Length: -1"],
        ["Content-Length: 9999999999999999999999"],
        ["Content-Length: ٣"],
        ["Transfer-Encoding: chunked", "Content-Length: 5"],
        ["Transfer-Encoding: gzip, chunked"],
        ["Content-Encoding: gzip", "Content-Length: 0"],
        ["X-Correlation-Id: \udc80\udc81"],
        ["Content-Type: multipart/form-data; boundary="],
        ["Content-Type: \udcff/\udcff"],
        ["Range: bytes=0-99999999999999"],
    ],
    ids=lambda headers: headers[0].encode("ascii", "replace").decode()[:32],
)
async def test_malformed_headers_are_no_server_error(target: Target, headers: list[str]) -> None:
    number = target.port("a", "gateway_http")
    for method, path in (("GET", "/v1/mesh"), ("POST", "/v1/mesh/stop-not"), ("POST", "/v1/streams")):
        request = http_request(method, path, f"127.0.0.1:{number}", headers)
        async with connected(number) as socket:
            await socket.send(request)
            socket.end()
            found = await socket.read_all()
        assert status_of(found) < 500, found[:300]


@pytest.mark.parametrize(
    "host", ["[::1", "127.0.0.1:99999999", "a" * 9_000, "127.0.0.1:port", "\udcff", "a b", "127.0.0.1@evil"]
)
async def test_malformed_hosts(target: Target, host: str) -> None:
    for port in HTTP_PORTS:
        number = target.port("c", port)
        found = await answer(number, http_request("GET", path_of(port), host))
        assert status_of(found) in {0, 400, 403, 421, 431}, (port, found[:300])


async def test_websockets_of_foreign_pages(target: Target) -> None:
    """WebSockets know no same-origin policy: the server has to look."""
    number = target.port("a", "gateway_http")
    path = "/v1/streams/attacks/honest/follow?from=0"
    for port, subprotocol, where in (
        (number, "", path),
        (target.port("a", "data_client"), client.SUBPROTOCOL, "/"),
        (target.port("a", "peer"), "mesh.v1", "/"),
    ):
        async with connected(port) as socket:
            await socket.send(upgrade_request(port, subprotocol, [f"Origin: http://{EVIL}"], where))
            assert status_of(await socket.head()) in {400, 403}, (port, subprotocol)
    rebound = upgrade_request(number, "", (), path).replace(b"Host: 127.0.0.1", f"Host: {EVIL}".encode())
    async with connected(number) as socket:
        await socket.send(rebound)
        assert status_of(await socket.head()) == 403


async def test_form_posts_that_need_no_permission_of_a_browser(target: Target) -> None:
    """Simple requests of a page carry one of three media types; none of them may change anything, whatever they carry."""
    number = target.port("b", "gateway_http")
    host = f"127.0.0.1:{number}"
    for media_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        found = await answer(number, http_request("POST", "/v1/streams", host, [f"Content-Type: {media_type}"], CREATE))
        assert status_of(found) in {400, 415}, found[:300]


async def test_bytes_that_are_no_http(target: Target) -> None:
    requests = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x00" * 5_000,
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"X: y\r\n" * 30_000 + b"\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ]
    for port in (*HTTP_PORTS, "peer", "data_client", "gateway_grpc"):
        number = target.port("a", port)

        async def one(request: bytes, number: int = number, port: str = port, *, is_clear: bool = False) -> None:
            async with connected(number, is_clear=is_clear) as socket:
                await socket.send(request)
                socket.end()
                try:
                    found = await socket.read_all(8)
                except TimeoutError:
                    return
                assert status_of(found) < 500 or status_of(found) in {503, 505}, (port, found[:200])

        await asyncio.gather(*(one(request) for request in requests))
        if number in tls_ports:
            await asyncio.gather(*(one(request, is_clear=True) for request in requests))
