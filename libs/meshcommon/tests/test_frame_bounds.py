"""What a stranger, or a peer that never reads, can make a process hold: measured over real sockets (invariant I6)."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from meshcommon.barrier import UNEXPECTED_ERRORS
from meshcommon.frame_ports import DialRefused, Opening, dial, serve
from meshcommon.frame_socket import FrameSocket, SocketClosed, SocketLimits
from meshcommon.listen import bind
from meshcommon.read_budget import ReadBudget
from meshcommon.socket_gate import GateLimits, SocketGate
from meshtest.waiting import eventually

PROTOCOL = "test.v1"
KIB, MIB = 1024, 1024 * 1024
MASK = bytes(4)
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Protocol: test.v1\r\n\r\n"
)
PING = b"\x89\xfd" + MASK + bytes(125)
LIMITS = SocketLimits(frame_bytes_max=4 * MIB)
STRANGERS = SocketLimits(frame_bytes_max=4 * MIB, unproven_bytes_max=64 * KIB)


def resident_bytes() -> int:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def head(size: int) -> bytes:
    """The head of a binary frame of `size` bytes, masked with zeros."""
    return b"\x82\xff" + size.to_bytes(8, "big") + MASK


class Port:
    """A listener that keeps what it accepts in `connections`."""

    def __init__(self, limits: SocketLimits, gate: SocketGate, budget: ReadBudget | None) -> None:
        self.connections: list[FrameSocket] = []
        self.handle: Callable[[FrameSocket], Awaitable[None]] = FrameSocket.wait_closed
        self.gate = gate
        self.socket = bind("0.0.0.0:0", "The test listener")
        self.number: int = self.socket.getsockname()[1]
        self.task = asyncio.create_task(
            serve(self.socket, PROTOCOL, lambda *_: None, self._handle, limits, Opening(0.5, gate), budget=budget)
        )

    async def _handle(self, connection: FrameSocket) -> None:
        self.connections.append(connection)
        await self.handle(connection)

    async def tcp(self, source: str = "127.0.0.1") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A bare connection."""
        return await asyncio.open_connection("127.0.0.1", self.number, local_addr=(source, 0))

    async def raw(self, source: str = "127.0.0.1") -> tuple[asyncio.StreamReader, asyncio.StreamWriter, FrameSocket]:
        """An open connection whose frames are written by hand, and its other end."""
        reader, writer = await self.tcp(source)
        writer.write(UPGRADE)
        assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
        known = len(self.connections)
        await until("the connection", lambda: len(self.connections) >= known and bool(self.connections))
        return reader, writer, self.connections[-1]

    async def is_serving(self, source: str = "127.0.0.1") -> bool:
        """Whether an honest peer gets through: its frame arrives."""
        _, writer, connection = await self.raw(source)
        writer.write(head(65_536)[:2].replace(b"\xff", b"\x85") + MASK + b"hello")
        try:
            async with asyncio.timeout(5):
                return await connection.receive() == b"hello"
        finally:
            writer.close()


@asynccontextmanager
async def serving(
    limits: SocketLimits = LIMITS, gate: SocketGate | None = None, budget: ReadBudget | None = None
) -> AsyncIterator[Port]:
    port = Port(limits, gate or SocketGate(), budget)
    try:
        async with asyncio.timeout(30):
            yield port
    finally:
        port.task.cancel()
        await asyncio.gather(port.task, return_exceptions=True)


async def until(what: str, condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    async def look() -> bool:
        return condition()

    await eventually(what, look, timeout_s=timeout_s, poll_s=0.01)


async def fill(connection: FrameSocket) -> None:
    """Sends until the connection is gone, as fast as the peer takes it."""
    while True:
        await connection.send(bytes(64 * KIB))


async def repeat(act: Callable[[], None]) -> None:
    while True:
        act()
        await asyncio.sleep(0.01)


def flood_unread(number: int, data: bytes, times: int) -> None:
    """Upgrades, writes `data` so many times, unless the other side hangs up, reads nothing, and closes."""
    with suppress(ConnectionError), socket.create_connection(("127.0.0.1", number)) as connection:
        connection.settimeout(20)
        connection.sendall(UPGRADE)
        for _ in range(times):
            connection.sendall(data)


async def test_pings_of_a_peer_that_reads_nothing_leave_memory_flat() -> None:
    """With the library's own answers each of them would wait in memory: 26 MiB of pings grew a process by as much."""
    load = PING * 1_000
    async with serving() as port:
        await asyncio.to_thread(flood_unread, port.number, load, 20)
        before = resident_bytes()
        attack = asyncio.create_task(asyncio.to_thread(flood_unread, port.number, load, 200), name="attack")
        most = 0
        while not attack.done():
            most = max(most, resident_bytes())
            await asyncio.sleep(0.02)
        assert most - before < 8 * MIB
        assert await port.is_serving()


async def test_a_ping_is_answered_and_of_many_unread_ones_the_latest() -> None:
    async with serving(SocketLimits(frame_bytes_max=4 * MIB, write_buffer_bytes=4 * KIB)) as port:
        reader, writer, connection = await port.raw()
        writer.write(b"\x89\x82" + MASK + b"hi")
        assert await reader.readexactly(4) == b"\x8a\x02hi"
        # Fill the way to a peer that does not read, then ping: the answers wait in one place.
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(fill(connection), 0.2)
        assert not connection.is_writable
        for number in range(100):
            writer.write(b"\x89\x82" + MASK + number.to_bytes(2, "big"))
        await until("the pings are read", lambda: connection._pong_due == (99).to_bytes(2, "big"))
        assert connection._transport is not None
        assert connection._transport.underlying_transport.get_write_buffer_size() < 128 * KIB
        seen = bytearray()
        async with asyncio.timeout(10):
            while not seen.endswith(b"\x8a\x02" + (99).to_bytes(2, "big")):
                seen += await reader.read(MIB)
        assert seen.count(b"\x8a\x02\x00") < 10


@pytest.mark.parametrize("kind", [0x9, 0xA, 0x8], ids=["pings", "pongs", "closes"])
async def test_a_flood_of_the_smallest_frames_stops_nobody_else(kind: int) -> None:
    """A read of 256 KiB held 43,000 pings, each with an answer: one stranger stopped the loop for two seconds at a time."""
    load = (bytes((0x80 | kind, 0x80)) + MASK) * 20_000
    async with serving(STRANGERS) as port:
        attack = asyncio.create_task(asyncio.to_thread(flood_unread, port.number, load, 100), name="attack")
        # In processor time of the loop's thread: other programs may stop the loop, too.
        longest_s = 0.0
        while not attack.done():
            began_s = time.thread_time()
            await asyncio.sleep(0.01)
            longest_s = max(longest_s, time.thread_time() - began_s)
        assert longest_s < 0.5
        await until("the end of the connection", lambda: all(item.is_gone for item in port.connections))
        assert await port.is_serving()


async def test_a_peer_that_reads_nothing_of_what_waits_is_dropped() -> None:
    async with serving(SocketLimits(frame_bytes_max=4 * MIB, stall_s=0.2)) as port:
        _, writer, connection = await port.raw()
        pinging = asyncio.create_task(
            repeat(lambda: writer.write(PING)), name="it is not silent: that must not keep it"
        )
        with pytest.raises(SocketClosed, match="reads nothing"):
            await fill(connection)
        pinging.cancel()


async def test_a_peer_that_reads_slowly_is_kept() -> None:
    async with serving(SocketLimits(frame_bytes_max=4 * MIB, stall_s=0.2, unsent_bytes_max=64 * KIB)) as port:
        reader, writer, connection = await port.raw()
        filling = asyncio.create_task(fill(connection), name="fill")
        for _ in range(40):
            await reader.readexactly(64 * KIB)
            await asyncio.sleep(0.02)
        assert not connection.is_gone
        filling.cancel()
        writer.close()


async def test_of_an_unproven_peer_little_is_read_before_somebody_asks() -> None:
    async with serving(STRANGERS) as port:
        _, writer, connection = await port.raw()
        writer.write(head(4 * MIB) + bytes(3 * MIB))
        await until("reading stops", lambda: not connection._is_reading)
        await asyncio.sleep(0.05)
        assert connection.partial_bytes <= 64 * KIB + 16 * KIB + 64 * KIB
        with pytest.raises(SocketClosed, match="65536 bytes"):
            await connection.receive()


async def test_small_frames_of_an_unproven_peer_are_bounded_together() -> None:
    async with serving(STRANGERS) as port:
        _, writer, connection = await port.raw()
        writer.write((b"\x82\x80" + MASK) * 100_000)
        await until("reading stops", lambda: not connection._is_reading)
        await asyncio.sleep(0.05)
        # The limit, and what one read may hold of the smallest frames.
        assert len(connection._frames) < 64 * KIB // 64 + 128 * KIB // 6
        for _ in range(100_000):
            assert await connection.receive() == b""


async def test_sixty_four_strangers_cost_a_few_mib() -> None:
    """Each promises 4 MiB and sends as much of it as is read."""
    gate = SocketGate(GateLimits(sockets_max=64, reserved=0, per_address_max=64))
    async with serving(STRANGERS, gate) as port:
        before = resident_bytes()
        writers = []
        for _ in range(64):
            _, writer, _ = await port.raw()
            writers.append(writer)
        data = head(4 * MIB) + bytes(256 * KIB)
        for writer in writers:
            writer.write(data)
        await until("reading stops", lambda: not any(item._is_reading for item in port.connections))
        # Their side of it is in this process too: what it has not sent.
        unsent = sum(writer.transport.get_write_buffer_size() for writer in writers)
        assert resident_bytes() - before < 64 * 256 * KIB + unsent
        for writer in writers:
            writer.close()


async def test_a_peer_that_goes_on_right_after_its_proof_is_not_taken_for_a_stranger() -> None:
    """What follows the handshake may arrive with its last frame, before anybody has looked at it."""
    async with serving(STRANGERS) as port:
        near = await dial(f"ws://127.0.0.1:{port.number}", PROTOCOL, LIMITS, 5.0)
        await until("the connection", lambda: bool(port.connections))
        connection = port.connections[0]
        near.write(b"proof")
        large = asyncio.create_task(near.send(bytes(2 * MIB)), name="large frame")
        assert await connection.receive() == b"proof"
        await asyncio.sleep(0.05)
        connection.prove()
        assert await connection.receive() == bytes(2 * MIB)
        await large
        assert port.gate.unproven == 0


async def test_a_bounded_peer_that_is_proved_keeps_the_small_limits() -> None:
    async with serving(STRANGERS) as port:
        _, writer, connection = await port.raw()
        connection.prove(is_bounded=True)
        assert port.gate.unproven == 0
        writer.write(head(128 * KIB) + bytes(128 * KIB))
        with pytest.raises(SocketClosed, match="65536 bytes"):
            await connection.receive()


async def test_sockets_before_the_upgrade_are_counted_and_end_in_time() -> None:
    async with serving(STRANGERS, SocketGate(GateLimits(sockets_max=12, reserved=4, per_address_max=4))) as port:
        port.gate.remember("127.0.0.9")
        silent = [await port.tcp("127.0.0.2") for _ in range(6)]
        await until("the first four count", lambda: (port.gate.unproven, port.gate.refused) == (4, 2))
        assert (await silent[4][0].read()).startswith(b"HTTP/1.1 503 ")
        silent += [await port.tcp("127.0.0.3") for _ in range(4)]
        stranger, _ = await port.tcp("127.0.0.4")
        assert (await stranger.read()).startswith(b"HTTP/1.1 503 ")
        # A member's address still gets in, and the service goes on.
        assert await port.is_serving("127.0.0.9")
        await until("the slow ones are closed", lambda: port.gate.unproven == 0)
        assert await silent[0][0].read() == b""
        assert await port.is_serving("127.0.0.2")


async def test_a_dialler_that_is_turned_away_is_told_to_try_again() -> None:
    async with serving(STRANGERS, SocketGate(GateLimits(sockets_max=1, reserved=1))) as port:
        with pytest.raises(DialRefused) as refused:
            await dial(f"ws://127.0.0.1:{port.number}", PROTOCOL, LIMITS, 5.0)
        assert refused.value.status in {0, 503}


async def test_a_head_without_end_is_cut_off() -> None:
    async with serving(STRANGERS) as port:
        reader, writer = await port.tcp()
        writer.write(b"GET / HTTP/1.1\r\nX: " + b"x" * 64 * KIB)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        await until("it is forgotten", lambda: port.gate.unproven == 0)


async def test_a_failure_while_serving_one_connection_ends_that_one_only() -> None:
    async with serving() as port:

        async def fail(_connection: FrameSocket) -> None:
            raise ZeroDivisionError("a fault of ours")

        counter = UNEXPECTED_ERRORS.labels("connection")
        before = counter._value.get()
        port.handle = fail
        reader, writer = await port.tcp()
        writer.write(UPGRADE)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(10_000)
        assert counter._value.get() == before + 1
        port.handle = FrameSocket.wait_closed
        assert await port.is_serving()


def promise(number: int, size: int) -> None:
    """Twenty connections send so much of a frame of 4 MiB, which never becomes whole."""
    sockets = [socket.create_connection(("127.0.0.1", number)) for _ in range(20)]
    for item in sockets:
        item.settimeout(5)
        with suppress(OSError):  # it is ended to make room
            item.sendall(UPGRADE + head(4 * MIB) + bytes(size))
    threading.Event().wait(0.5)
    for item in sockets:
        item.close()


async def test_unfinished_frames_of_all_connections_are_bounded_together() -> None:
    budget = ReadBudget(limit_bytes=4 * MIB, share_bytes=256 * KIB)
    gate = SocketGate(GateLimits(sockets_max=128, reserved=0, per_address_max=128))
    async with serving(LIMITS, gate, budget) as port:
        _, quiet, connection = await port.raw()
        most = [0, 0]
        for round_number, size in enumerate((200 * KIB, 3_900 * KIB)):
            attack = asyncio.create_task(asyncio.to_thread(promise, port.number, size), name="attack")
            while not attack.done():
                assert budget.held_bytes <= 4 * MIB
                unfinished = sum(item.partial_bytes for item in port.connections if not item.is_gone)
                # The limit, the shares, and what may come before an unfinished frame is measured again.
                assert unfinished <= 4 * MIB + len(port.connections) * 512 * KIB
                most[round_number] = max(most[round_number], resident_bytes())
                await asyncio.sleep(0.01)
        assert budget.evicted
        # Not the 72 MiB more that were sent.
        assert most[1] - most[0] < 36 * MIB
        # One that holds no more than its share is not concerned.
        quiet.write(b"\x82\x82" + MASK + b"ok")
        assert await connection.receive() == b"ok"
        await until("all is given back", lambda: budget.held_bytes == 0)
        assert await port.is_serving()


async def test_what_a_dial_leads_to_is_a_stranger_too() -> None:
    async with serving() as port:
        near = await dial(f"ws://127.0.0.1:{port.number}", PROTOCOL, STRANGERS, 5.0)
        await until("the connection", lambda: bool(port.connections))
        flooding = asyncio.create_task(port.connections[0].send(bytes(4 * MIB)), name="flood")
        await until("reading stops", lambda: not near._is_reading)
        assert near.partial_bytes <= 64 * KIB + 256 * KIB
        with pytest.raises(SocketClosed, match="65536 bytes"):
            await near.receive()
        await asyncio.gather(flooding, return_exceptions=True)
