"""A TCP proxy that can go silent, cut, or delay: the faults of a link, made without touching the kernel.

*Silent*: nothing is closed, bytes just stop, both ways, also for new connections – what a link that dies without a word
looks like. *Cut*: connections are reset and new ones too. *Delay*: each chunk waits before it goes on. Leaves out loss
inside a connection, which TCP would hide.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import deque
from types import TracebackType
from typing import Final, Self

_CHUNK_BYTES: Final = 65_536
_HELD_CHUNKS_MAX: Final = 64


class FaultProxy:
    """Forwards connections from `port` to `target_port` on the loopback. Use as an async context manager."""

    def __init__(self, port: int, target_port: int, scheme: str = "ws") -> None:
        """`scheme`: with which `address` is dialled; what passes is not looked at."""
        self.port = port
        self._scheme = scheme
        self._target_port = target_port
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._is_cut = False
        self._delay_s = 0.0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def address(self) -> str:
        """WebSocket address of the proxy."""
        return f"{self._scheme}://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def silence(self) -> None:
        """From now on bytes stop; nothing is closed."""
        self._flowing.clear()

    def cut(self) -> None:
        """Resets every connection and refuses new ones."""
        self._is_cut = True
        for writer in list(self._writers):
            _reset(writer)

    def delay(self, seconds: float) -> None:
        """Each chunk waits so long, both ways."""
        self._delay_s = seconds

    def heal(self) -> None:
        """Ends silence, cut and delay; what was held back flows on."""
        self._is_cut = False
        self._delay_s = 0.0
        self._flowing.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            if self._is_cut:
                _reset(writer)
                return
            await self._flowing.wait()
            await self._connect(reader, writer)
        except (OSError, asyncio.CancelledError):
            _reset(writer)
        finally:
            self._writers.discard(writer)
            self._tasks.discard(task)
            writer.close()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        self._writers.add(far_writer)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, far_writer), name="proxy forth")
                group.create_task(self._pump(far_reader, writer), name="proxy back")
        except* OSError:
            _reset(writer)
            _reset(far_writer)
        finally:
            self._writers.discard(far_writer)
            far_writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Moves bytes one way; the delay is per chunk and keeps order and throughput."""
        loop = asyncio.get_running_loop()
        held: deque[tuple[float, bytes]] = deque()
        arrived = asyncio.Event()
        room = asyncio.Event()

        async def deliver() -> None:
            while True:
                await arrived.wait()
                while held:
                    due, chunk = held[0]
                    if (wait_s := due - loop.time()) > 0:
                        await asyncio.sleep(wait_s)
                    await self._flowing.wait()
                    held.popleft()
                    room.set()
                    if not chunk:
                        with contextlib.suppress(OSError, RuntimeError):
                            writer.write_eof()
                        return
                    writer.write(chunk)
                    await writer.drain()
                arrived.clear()

        async def collect() -> None:
            while chunk := await reader.read(_CHUNK_BYTES):
                held.append((loop.time() + self._delay_s, chunk))
                arrived.set()
                while len(held) > _HELD_CHUNKS_MAX:
                    room.clear()
                    await room.wait()
            held.append((loop.time() + self._delay_s, b""))
            arrived.set()

        async with asyncio.TaskGroup() as group:
            group.create_task(deliver(), name="proxy deliver")
            group.create_task(collect(), name="proxy collect")


def _reset(writer: asyncio.StreamWriter) -> None:
    """Closes with RST instead of FIN, as a dead router or firewall does."""
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with contextlib.suppress(OSError, RuntimeError):
        writer.transport.abort()
