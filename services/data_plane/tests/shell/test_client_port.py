"""What applications can make the client port hold before and besides their requests (invariant I6)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import CloseCode
from websockets.typing import Subprotocol

from mesh_data.shell.clients import client_listener
from mesh_data.shell.clients.client_listener import ClientListener
from mesh_data.shell.clients.client_session import ClientSession
from mesh_data.shell.streams.stream_budgets import StreamBudgets
from mesh_data.shell.streams.streams_catalogue import StreamsCatalogue
from meshcommon.socket_gate import GateLimits
from meshtest.waiting import eventually
from meshwire.client import SUBPROTOCOL, Kind, decode_messages, encode_message


class NoStreams:
    """A catalogue that is never asked."""

    def __init__(self) -> None:
        self.closing = asyncio.Event()


class Port:
    """A client port."""

    def __init__(self) -> None:
        self.listener = ClientListener("127.0.0.1:0", cast("StreamsCatalogue", NoStreams()), StreamBudgets())
        self.task = asyncio.create_task(self.listener.run(), name="clients")

    def dial(self) -> connect:
        return connect(
            f"ws://127.0.0.1:{self.listener.port}",
            subprotocols=[Subprotocol(SUBPROTOCOL)],
            compression=None,
            proxy=None,
            max_size=None,
        )


@pytest.fixture
async def port(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Port]:
    monkeypatch.setattr(client_listener, "CONNECTIONS_MAX", 3)
    monkeypatch.setattr(client_listener, "OPEN_TIMEOUT_S", 0.5)
    monkeypatch.setattr(client_listener, "OPENING_LIMITS", GateLimits(sockets_max=8, reserved=0, per_address_max=8))
    started = Port()
    yield started
    started.task.cancel()
    await asyncio.gather(started.task, return_exceptions=True)


async def speaks(connection: ClientConnection) -> bool:
    """Whether the session answers: here, that a response is no request."""
    await connection.send(encode_message(Kind.PUBLISHED, 7, b""))
    frame = await connection.recv()
    assert isinstance(frame, bytes)
    return [message.kind for message in decode_messages(frame)] == [Kind.ERROR]


async def test_sockets_that_are_not_open_are_counted_and_end_in_time(port: Port) -> None:
    silent = [await asyncio.open_connection("127.0.0.1", port.listener.port) for _ in range(10)]
    gate = port.listener.gate

    async def is_full() -> bool:
        return (gate.unproven, gate.refused) == (8, 2)

    async def is_empty() -> bool:
        return gate.unproven == 0

    await eventually("they are counted", is_full, timeout_s=10, poll_s=0.01)
    assert (await silent[-1][0].read()).startswith(b"HTTP/1.1 503 ")
    await eventually("their time is over", is_empty, timeout_s=10)
    async with port.dial() as connection:
        assert await speaks(connection)
    for _, writer in silent:
        writer.close()


async def test_open_connections_are_counted_and_no_longer_as_strangers(port: Port) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(port.dial())
        assert port.listener.gate.unproven == 0
        with pytest.raises(InvalidStatus) as refusal:
            await stack.enter_async_context(port.dial())
        assert refusal.value.response.status_code == 503
    async with port.dial() as connection:
        assert await speaks(connection)


async def test_frames_that_are_not_masked_are_refused(port: Port) -> None:
    async with port.dial() as connection:
        connection.transport.write(b"\x82\x05hello")
        with pytest.raises(ConnectionClosed):
            await connection.recv()
        assert connection.close_code == CloseCode.PROTOCOL_ERROR


async def test_fault_in_one_session_ends_that_one_only(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:

        async def fail(_session: Any) -> None:
            raise ZeroDivisionError("a fault of ours")

        patch.setattr(ClientSession, "run", fail)
        async with port.dial() as connection:
            with pytest.raises(ConnectionClosed):
                await connection.recv()
    async with port.dial() as connection:
        assert await speaks(connection)
    assert not port.task.done()
