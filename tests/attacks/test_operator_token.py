"""The operator's token at a gateway that other machines reach: no request without it changes or tells anything.

A second gateway process of site b listens on all addresses, over TLS; the attacks come over the loopback.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from meshapi.supervisor.v1 import mesh_pb2, mesh_pb2_grpc
from meshcommon.errors import ErrorCode
from meshcommon.grpc_client import mesh_error, open_channel
from meshcommon.operator_token import TOKEN_CHARACTERS_MAX, hashed_line, new_token
from meshcommon.wrong_proofs import WRONG_PROOFS_MAX
from meshtest.certificates import Authority
from meshtest.ports import free_ports
from meshtest.processes import Child, start
from meshtest.waiting import eventually
from tests.attacks.raw_socket import answer, connected, http_request, status_of, tls_ports, upgrade_request
from tests.attacks.target import Target

FLOOD = 300
JSON = "Content-Type: application/json"
CREATE = b'{"name": "evil/stream", "members": ["a", "b", "c"]}'
REQUESTS = (
    ("GET", "/v1/mesh", b""),
    ("GET", "/docs", b""),
    ("GET", "/openapi.json", b""),
    ("GET", "/none", b""),
    ("POST", "/v1/mesh/stop", b""),
    ("POST", "/v1/mesh/leave", b""),
    ("POST", "/v1/mesh/tokens", b"{}"),
    ("POST", "/v1/streams", CREATE),
    ("DELETE", "/v1/streams/attacks/honest", b""),
)


@dataclass(frozen=True, slots=True)
class Guarded:
    """The gateway under attack."""

    rest_port: int
    grpc_port: int
    token: str
    authority: Authority
    child: Child

    async def ask(self, method: str, path: str, headers: Sequence[str] = (), body: bytes = b"") -> bytes:
        host = f"127.0.0.1:{self.rest_port}"
        return await answer(self.rest_port, http_request(method, path, host, [JSON, *headers], body))

    def channel(self, token: str = "") -> grpc.aio.Channel:
        credentials = grpc.ssl_channel_credentials(self.authority.file.read_bytes())
        return open_channel(f"localhost:{self.grpc_port}", credentials, token)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def guarded(running: Target, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Guarded]:
    folder: Path = tmp_path_factory.mktemp("guarded")
    token, authority = new_token(), Authority(folder)
    running.operator_tokens.append(token)
    pair = authority.issue("node")
    (folder / "token").write_text(hashed_line(token))
    rest, grpc_port, admin = free_ports(3)
    site = running.sites["b"].config
    settings = site.environment("", "") | {
        "MESH_GATEWAY_HTTP_LISTEN": f"0.0.0.0:{rest}",
        "MESH_GATEWAY_GRPC_LISTEN": f"0.0.0.0:{grpc_port}",
        "MESH_GATEWAY_ADMIN_LISTEN": f"127.0.0.1:{admin}",
        "MESH_GATEWAY_TLS_CERTIFICATE": str(pair.certificate),
        "MESH_GATEWAY_TLS_KEY": str(pair.key),
        "MESH_GATEWAY_OPERATOR_TOKEN_FILE": str(folder / "token"),
        "MESH_NODE_LOG_LEVEL": "debug",
    }
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("MESH_", "COVERAGE"))}
    log = site.directory / "log" / "guarded-gateway.log"
    child = start([sys.executable, "-m", "mesh_gateway"], log=log, environment=inherited | settings)
    tls_ports.update({rest, grpc_port})
    found = Guarded(rest, grpc_port, token, authority, child)
    try:

        async def answers() -> bool:
            assert child.exit_status is None, child.log_tail()
            try:
                return status_of(await found.ask("GET", "/v1/mesh", [f"Authorization: Bearer {token}"])) == 200
            except OSError:
                return False

        await eventually("the guarded gateway answers", answers, timeout_s=60)
        yield found
        assert child.exit_status is None, "it has lived through all of it"
    finally:
        await asyncio.to_thread(child.stop)


def not_the_token(token: str) -> dict[str, tuple[list[str], set[int]]]:
    """Headers that show everything but the token, and what they may be answered with."""
    refused = {401, 429}
    return {
        "nothing": ([], {401}),
        "another one": ([f"Authorization: Bearer {new_token()}"], refused),
        "a part": ([f"Authorization: Bearer {token[:-1]}"], refused),
        "its hash": ([f"Authorization: Bearer {hashed_line(token).strip()}"], refused),
        "empty": (["Authorization: Bearer "], {401, 429}),
        "another scheme": ([f"Authorization: Basic {token}"], {401}),
        "no scheme": ([f"Authorization: {token}"], {401}),
        "long": ([f"Authorization: Bearer {'a' * (TOKEN_CHARACTERS_MAX + 1)}"], refused),
        "very long": ([f"Authorization: Bearer {'a' * 60_000}"], {0, 400, 431}),
        "twice": ([f"Authorization: Bearer {token}"] * 2, {400}),
        "twice, one wrong": ([f"Authorization: Bearer {new_token()}", f"Authorization: Bearer {token}"], {400}),
        "bytes": (["Authorization: Bearer \udcff\udcfe"], refused),
        "another header": ([f"X-Authorization: Bearer {token}", f"Proxy-Authorization: Bearer {token}"], {401}),
        "a cookie": ([f"Cookie: token={token}; access_token={token}"], {401}),
    }


async def test_rest_without_the_token(guarded: Guarded, target: Target) -> None:
    assert target.mesh_id
    for shown, (headers, statuses) in not_the_token(guarded.token).items():
        for method, path, body in REQUESTS:
            found = await guarded.ask(method, path, headers, body)
            assert status_of(found) in statuses, (shown, method, path, found[:300])
            assert b"mesh_id" not in found
            if status_of(found) == 401:
                assert b'www-authenticate: Bearer realm="mesh"' in found


async def test_token_in_the_url(guarded: Guarded, target: Target) -> None:
    assert target.mesh_id
    for path in (f"/v1/mesh?access_token={guarded.token}", f"/v1/mesh?token={guarded.token}", f"/{guarded.token}"):
        assert status_of(await guarded.ask("GET", path)) == 401


async def test_websocket_without_the_token(guarded: Guarded, target: Target) -> None:
    assert target.mesh_id
    path = "/v1/streams/attacks/honest/follow?from=0"
    for shown, (headers, statuses) in not_the_token(guarded.token).items():
        async with connected(guarded.rest_port) as socket:
            await socket.send(upgrade_request(guarded.rest_port, "", headers, path))
            assert status_of(await socket.head()) in statuses, shown


async def test_grpc_without_the_token(guarded: Guarded, target: Target) -> None:
    assert target.mesh_id
    wrong = (ErrorCode.OPERATOR_TOKEN_WRONG, ErrorCode.BACKPRESSURE)
    for metadata, codes in (
        ((), (ErrorCode.OPERATOR_TOKEN_REQUIRED,)),
        ((("authorization", f"Bearer {new_token()}"),), wrong),
        ((("authorization", f"Bearer {'a' * 8_000}"),), wrong),
        ((("authorization", f"Bearer {guarded.token}"),) * 2, (ErrorCode.INVALID_ARGUMENT,)),
        ((("authorization-bin", f"Bearer {guarded.token}".encode()),), (ErrorCode.OPERATOR_TOKEN_REQUIRED,)),
    ):
        async with guarded.channel() as channel:
            mesh = mesh_pb2_grpc.MeshServiceStub(channel)
            for call in (
                mesh.GetStatus(mesh_pb2.GetStatusRequest(), timeout=10, metadata=metadata),
                mesh.Stop(mesh_pb2.StopRequest(), timeout=10, metadata=metadata),
                mesh.IssueToken(mesh_pb2.IssueTokenRequest(), timeout=10, metadata=metadata),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await call
                assert mesh_error(refused.value, "gateway").code in codes


async def test_flood_of_wrong_tokens_does_not_keep_the_operator_out(guarded: Guarded, target: Target) -> None:
    assert target.mesh_id
    statuses: Counter[int] = Counter()

    async def guess() -> None:
        for _ in range(FLOOD // 10):
            statuses[status_of(await guarded.ask("GET", "/v1/mesh", [f"Authorization: Bearer {new_token()}"]))] += 1

    async def operate() -> None:
        for _ in range(10):
            found = await guarded.ask("GET", "/v1/mesh", [f"Authorization: Bearer {guarded.token}"])
            assert status_of(found) == 200, found[:300]

    await asyncio.gather(operate(), *(guess() for _ in range(10)))
    assert statuses.keys() <= {401, 429}
    assert statuses[401] <= WRONG_PROOFS_MAX
    async with guarded.channel(guarded.token) as channel:
        status = await mesh_pb2_grpc.MeshServiceStub(channel).GetStatus(mesh_pb2.GetStatusRequest(), timeout=10)
    assert status.view.mesh_id == target.mesh_id
