"""The fault proxy: what it holds back comes later, what it cuts is reset."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from meshtest.proxy import FaultProxy


@pytest.fixture
async def echo_port() -> AsyncIterator[int]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(4096):
                writer.write(data)
        except OSError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def connect(proxy: FaultProxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", proxy.port)


async def test_bytes_pass_both_ways(echo_port: int) -> None:
    async with FaultProxy(0, echo_port) as proxy:
        reader, writer = await connect(proxy)
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        writer.close()


async def test_silence_holds_bytes_back_without_closing_until_healed(echo_port: int) -> None:
    async with FaultProxy(0, echo_port) as proxy:
        reader, writer = await connect(proxy)
        writer.write(b"a")
        await reader.readexactly(1)
        proxy.silence()
        writer.write(b"b")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.readexactly(1), 0.2)
        late_reader, late_writer = await connect(proxy)
        late_writer.write(b"c")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(late_reader.readexactly(1), 0.2)
        proxy.heal()
        assert await reader.readexactly(1) == b"b"
        assert await late_reader.readexactly(1) == b"c"
        writer.close()
        late_writer.close()


async def test_cut_resets_connections_and_refuses_new_ones(echo_port: int) -> None:
    async with FaultProxy(0, echo_port) as proxy:
        reader, writer = await connect(proxy)
        writer.write(b"a")
        await reader.readexactly(1)
        proxy.cut()
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        late_reader, _ = await connect(proxy)
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await late_reader.readexactly(1)
        writer.close()


async def test_delay_keeps_order(echo_port: int) -> None:
    async with FaultProxy(0, echo_port) as proxy:
        proxy.delay(0.05)
        reader, writer = await connect(proxy)
        for number in range(20):
            writer.write(bytes([number]))
            await asyncio.sleep(0)
        assert await reader.readexactly(20) == bytes(range(20))
        writer.close()
