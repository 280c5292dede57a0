"""The operator's token at a client port that other machines reach, as `meshclient` meets it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest

from mesh_data.shell.clients.client_listener import ClientListener
from mesh_data.shell.streams.stream_budgets import StreamBudgets
from mesh_data.shell.streams.streams_catalogue import StreamsCatalogue
from meshclient import MeshClient
from meshclient.blocking import BlockingClient
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.frame_ports import DialRefused, dial
from meshcommon.frame_socket import SocketLimits
from meshcommon.operator_token import OperatorToken, hashed_line, new_token
from meshcommon.tls_contexts import trusting
from meshcommon.wrong_proofs import WRONG_PROOFS_MAX
from meshtest.certificates import Authority
from meshwire.client import MAX_FRAME_BYTES, SUBPROTOCOL


class NoStreams:
    """A catalogue without streams."""

    def __init__(self) -> None:
        self.closing = asyncio.Event()

    def named(self, stream: str, _stream_id: int) -> None:
        raise MeshError(ErrorCode.STREAM_NOT_FOUND, f"There is no stream {stream}.")


@pytest.fixture
def token() -> str:
    return new_token()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@asynccontextmanager
async def listening(tmp_path: Path, authority: Authority, token: str) -> AsyncIterator[str]:
    """A guarded listener over TLS, on an address that does not matter to the guard that it is given; its address."""
    (tmp_path / "token").write_text(hashed_line(token))
    guard = OperatorToken(tmp_path / "token", "MESH_TEST_FILE")
    catalogue = cast("StreamsCatalogue", NoStreams())
    listener = ClientListener("[::]:0", catalogue, StreamBudgets(), authority.issue("node").files(), guard)
    serving = asyncio.create_task(listener.run(), name="clients")
    yield f"wss://localhost:{listener.port}"
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


async def outcome(client: MeshClient) -> MeshError:
    async with client:
        with pytest.raises(MeshError) as refusal:
            await client.describe("demo/none")
    return refusal.value


async def test_clients_show_the_token(tmp_path: Path, authority: Authority, token: str) -> None:
    async with listening(tmp_path, authority, token) as address:
        for shown, code in (
            (token, ErrorCode.STREAM_NOT_FOUND),
            (None, ErrorCode.OPERATOR_TOKEN_REQUIRED),
            (new_token(), ErrorCode.OPERATOR_TOKEN_WRONG),
        ):
            error = await outcome(MeshClient(address, ca_file=authority.file, token=shown))
            assert error.code is code
            assert not error.retryable
            assert shown is None or shown not in error.message

        def describe() -> MeshError:
            with (
                BlockingClient(address, ca_file=authority.file, token=token) as client,
                pytest.raises(MeshError) as refusal,
            ):
                client.describe("demo/none")
            return refusal.value

        assert (await asyncio.to_thread(describe)).code is ErrorCode.STREAM_NOT_FOUND


async def test_the_answer_names_the_scheme_and_a_flood_is_turned_away(
    tmp_path: Path, authority: Authority, token: str
) -> None:
    async with listening(tmp_path, authority, token) as address:

        async def status(*headers: tuple[str, str]) -> int:
            limits = SocketLimits(frame_bytes_max=MAX_FRAME_BYTES)
            with pytest.raises(DialRefused) as refused:
                await dial(address, SUBPROTOCOL, limits, 5.0, tls=trusting(authority.file), headers=headers)
            return refused.value.status

        shown = ("Authorization", f"Bearer {token}")
        assert await status() == 401
        assert await status(shown, shown) == 400
        assert await status(("Authorization", "Bearer " + "a" * 8_000)) == 401
        for _ in range(WRONG_PROOFS_MAX - 1):
            assert await status(("Authorization", f"Bearer {new_token()}")) == 401
        assert await status(("Authorization", f"Bearer {new_token()}")) == 429
        error = await outcome(MeshClient(address, ca_file=authority.file, token=token))
        assert error.code is ErrorCode.STREAM_NOT_FOUND, "others behind the address do not lock the operator out"


@pytest.mark.parametrize("address", ["ws://192.0.2.1:1", "ws://mesh.example:1", "ws://[2001:db8::1]:1"])
def test_a_token_does_not_go_out_in_clear(address: str, token: str) -> None:
    with pytest.raises(MeshError, match="over TLS only") as refused:
        MeshClient("ws://[::1]:1", address, token=token)
    assert refused.value.code is ErrorCode.INVALID_ARGUMENT


@pytest.mark.parametrize("text", ["", "short", "a" * 50 + "\r\nX: y", "é" * 50])
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(MeshError, match="no operator's token"):
        MeshClient("ws://127.0.0.1:1", token=text)
