"""The client port over TLS, as `meshclient` meets it: what is trusted, what is named, and bounds before the handshake (I6)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import cast

import pytest

from mesh_data.shell.clients import client_listener
from mesh_data.shell.clients.client_listener import ClientListener
from mesh_data.shell.streams.stream_budgets import StreamBudgets
from mesh_data.shell.streams.streams_catalogue import StreamsCatalogue
from meshclient import MeshClient
from meshclient.blocking import BlockingClient
from meshclient.connection import Connection
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.socket_gate import GateLimits
from meshcommon.tls_contexts import trusting
from meshcommon.tls_files import TlsFiles
from meshtest.certificates import Authority, CertificateFiles
from meshtest.waiting import eventually
from meshwire.client import Kind


class NoStreams:
    """A catalogue without streams."""

    def __init__(self) -> None:
        self.closing = asyncio.Event()

    def named(self, stream: str, _stream_id: int) -> None:
        raise MeshError(ErrorCode.STREAM_NOT_FOUND, f"There is no stream {stream}.")


@asynccontextmanager
async def listening(tls: TlsFiles | None) -> AsyncIterator[ClientListener]:
    listener = ClientListener("127.0.0.1:0", cast("StreamsCatalogue", NoStreams()), StreamBudgets(), tls)
    serving = asyncio.create_task(listener.run(), name="clients")
    yield listener
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def pair(authority: Authority) -> CertificateFiles:
    return authority.issue("node")


async def answers(connection: Connection) -> bool:
    """Whether the session answers: here, that a response is no request."""
    with pytest.raises(MeshError) as refusal:
        await connection.ask(Kind.PUBLISHED, b"", 10)
    return refusal.value.code is ErrorCode.WRONG_PROTOCOL


async def refusal_of(client: MeshClient) -> MeshError:
    async with client:
        with pytest.raises(MeshError) as refusal:
            await client.connection()
    return refusal.value


async def test_clients_speak_tls_with_a_file_or_a_context(pair: CertificateFiles, authority: Authority) -> None:
    async with listening(pair.files()) as listener:
        for client in (
            MeshClient(f"wss://127.0.0.1:{listener.port}", ca_file=authority.file),
            MeshClient(f"wss://localhost:{listener.port}", tls=trusting(authority.file)),
        ):
            async with client:
                assert await answers(await client.connection())


async def test_blocking_clients_do_as_well(pair: CertificateFiles, authority: Authority) -> None:
    async with listening(pair.files()) as listener:

        def describe() -> MeshError:
            address = f"wss://127.0.0.1:{listener.port}"
            with BlockingClient(address, ca_file=authority.file) as client, pytest.raises(MeshError) as refusal:
                client.describe("demo/none")
            return refusal.value

        assert (await asyncio.to_thread(describe)).code is ErrorCode.STREAM_NOT_FOUND


async def test_what_is_wrong_with_a_certificate_is_named(tmp_path: Path, authority: Authority) -> None:
    other = Authority(tmp_path, "other")
    elsewhere = authority.issue("elsewhere", hosts=("mesh.example",))
    expired = authority.issue("expired", ends_in=-timedelta(minutes=1))
    for files, trusted, said in (
        (authority.issue("good").files(), other, "unknown authority"),
        (elsewhere.files(), authority, "another name"),
        (expired.files(-timedelta(minutes=3)), authority, "expired"),
    ):
        async with listening(files) as listener:
            error = await refusal_of(MeshClient(f"wss://127.0.0.1:{listener.port}", ca_file=trusted.file))
            assert (error.code, error.retryable) == (ErrorCode.TLS_FAILED, False)
            assert said in error.message


async def test_the_authorities_of_the_system_are_trusted_where_none_is_named(pair: CertificateFiles) -> None:
    """And this one is none of them."""
    async with listening(pair.files()) as listener:
        error = await refusal_of(MeshClient(f"wss://127.0.0.1:{listener.port}"))
        assert error.code is ErrorCode.TLS_FAILED
        assert "unknown authority" in error.message


async def test_clear_text_and_tls_do_not_meet(
    pair: CertificateFiles, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshclient.client._CONNECT_TIMEOUT_S", 0.5)
    async with listening(pair.files()) as listener:
        error = await refusal_of(MeshClient(f"ws://127.0.0.1:{listener.port}"))
        assert error.code is ErrorCode.ADDRESS_UNREACHABLE
        assert "wss://" in error.message
    async with listening(None) as listener:
        error = await refusal_of(MeshClient(f"wss://127.0.0.1:{listener.port}", ca_file=authority.file))
        assert error.code is ErrorCode.ADDRESS_UNREACHABLE
        assert "only ws://" in error.message


async def test_address_in_clear_is_refused_with_an_authority(authority: Authority) -> None:
    """Nobody may turn TLS off by a changed address."""
    error = await refusal_of(MeshClient("ws://127.0.0.1:1", ca_file=authority.file))
    assert error.code is ErrorCode.INVALID_ARGUMENT
    with pytest.raises(MeshError, match="not both"):
        MeshClient("wss://127.0.0.1:1", ca_file=authority.file, tls=trusting(authority.file))


async def test_new_files_are_shown_and_open_connections_go_on(
    pair: CertificateFiles, authority: Authority, tmp_path: Path
) -> None:
    files, other = pair.files(), Authority(tmp_path, "other")
    async with listening(files) as listener:
        address = f"wss://127.0.0.1:{listener.port}"
        async with MeshClient(address, ca_file=authority.file) as before:
            connection = await before.connection()
            other.issue("newer", ends_in=timedelta(days=30)).copy_to(pair)
            assert await files.look() == ""
            async with MeshClient(address, ca_file=other.file) as after:
                assert await answers(await after.connection())
            assert (await refusal_of(MeshClient(address, ca_file=authority.file))).code is ErrorCode.TLS_FAILED
            assert await answers(connection)


async def test_handshakes_that_do_not_end_are_counted_and_dropped(
    pair: CertificateFiles, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_listener, "OPEN_TIMEOUT_S", 0.5)
    monkeypatch.setattr(client_listener, "OPENING_LIMITS", GateLimits(sockets_max=4, reserved=0, per_address_max=4))
    async with listening(pair.files()) as listener:
        silent = [await asyncio.open_connection("127.0.0.1", listener.port) for _ in range(6)]

        async def is_full() -> bool:
            return (listener.gate.unproven, listener.gate.refused) == (4, 2)

        async def is_empty() -> bool:
            return listener.gate.unproven == 0

        await eventually("they are counted", is_full, timeout_s=10, poll_s=0.01)
        await eventually("their time is over", is_empty, timeout_s=10, poll_s=0.01)
        async with MeshClient(f"wss://127.0.0.1:{listener.port}", ca_file=authority.file) as client:
            assert await answers(await client.connection())
        for _, writer in silent:
            writer.close()
