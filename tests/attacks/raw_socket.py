"""Connections made by hand, byte by byte: what no well-behaved library would send, and reading only when the test wants to.

Leaves out everything that a client should do (answering pings, closing politely). Everything that comes back is kept in
`captured` for the search for secrets. Source: RFC 6455 §5.2.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import struct
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from meshcommon.boot_certificate import any_server, certificate_digest

tls_ports: set[int] = set()
"""Ports of the attacked processes that speak TLS: connections to them do, too."""
captured: list[bytes] = []
"""Everything that the attacked processes answered on these connections."""

ANSWER_TIMEOUT_S: Final = 10.0
_STUCK_AFTER_S: Final = 0.5


class Opcode(IntEnum):
    """Kinds of WebSocket frames."""

    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


def websocket_frame(
    opcode: int, payload: bytes, *, is_final: bool = True, is_masked: bool = True, reserved: int = 0
) -> bytes:
    """One frame of a client; the mask is zero, which masks nothing and is allowed."""
    head = bytes([(0x80 if is_final else 0) | (reserved << 4) | opcode])
    mask_bit = 0x80 if is_masked else 0
    size = len(payload)
    if size < 126:
        head += bytes([mask_bit | size])
    elif size < 1 << 16:
        head += bytes([mask_bit | 126]) + struct.pack("!H", size)
    else:
        head += bytes([mask_bit | 127]) + struct.pack("!Q", size)
    return head + (bytes(4) if is_masked else b"") + payload


def upgrade_request(port: int, subprotocol: str, headers: Iterable[str] = (), path: str = "/") -> bytes:
    """The request that opens a WebSocket."""
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
        "Sec-WebSocket-Version: 13",
        *([f"Sec-WebSocket-Protocol: {subprotocol}"] if subprotocol else []),
        *headers,
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape")


@dataclass(slots=True)
class RawSocket:
    """One TCP connection. Nothing is read from the kernel beyond a small buffer unless the test reads."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @property
    def certificate_seen(self) -> bytes:
        """SHA-256 of the certificate that the other side shows, empty in clear."""
        return certificate_digest(self.writer.get_extra_info("ssl_object"))

    async def send(self, data: bytes) -> None:
        """Writes; returns when the other side has room or is gone."""
        with contextlib.suppress(ConnectionError):
            self.writer.write(data)
            await self.writer.drain()

    async def flood(self, data: bytes, bytes_max: int, seconds_max: float) -> int:
        """Sends `data` again and again until the other side stops reading or hangs up; returns how many bytes went out."""
        sent = 0
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds_max
        while sent < bytes_max and loop.time() < deadline:
            try:
                self.writer.write(data)
                async with asyncio.timeout(_STUCK_AFTER_S):
                    await self.writer.drain()
            except (ConnectionError, TimeoutError):
                break
            sent += len(data)
        return sent

    async def read_all(self, timeout_s: float = ANSWER_TIMEOUT_S) -> bytes:
        """Everything until the other side closes. Raises TimeoutError when it does not."""
        parts: list[bytes] = []
        async with asyncio.timeout(timeout_s):
            with contextlib.suppress(ConnectionError):
                while part := await self.reader.read(65_536):
                    parts.append(part)
        captured.append(b"".join(parts))
        return captured[-1]

    async def head(self, timeout_s: float = ANSWER_TIMEOUT_S) -> bytes:
        """The head of an HTTP answer, empty when the other side hung up."""
        try:
            async with asyncio.timeout(timeout_s):
                found = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            found = b""
        captured.append(found)
        return found

    async def is_closed(self, timeout_s: float = ANSWER_TIMEOUT_S) -> bool:
        """Whether the other side ends the connection in time; what it still says is read and kept."""
        try:
            await self.read_all(timeout_s)
        except TimeoutError:
            return False
        return True

    async def receive(self, timeout_s: float = ANSWER_TIMEOUT_S) -> tuple[int, bytes] | None:
        """The next WebSocket frame as (opcode, payload); None when the connection is gone."""
        try:
            async with asyncio.timeout(timeout_s):
                head = await self.reader.readexactly(2)
                size = head[1] & 0x7F
                if size == 126:
                    (size,) = struct.unpack("!H", await self.reader.readexactly(2))
                elif size == 127:
                    (size,) = struct.unpack("!Q", await self.reader.readexactly(8))
                payload = await self.reader.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        captured.append(payload)
        return head[0] & 0x0F, payload

    def end(self) -> None:
        """Says that nothing more will be sent, unless the other side has hung up."""
        with contextlib.suppress(OSError):
            if self.writer.can_write_eof():  # TLS cannot close one direction alone
                self.writer.write_eof()

    def abort(self) -> None:
        """Drops the connection."""
        self.writer.transport.abort()


@asynccontextmanager
async def connected(port: int, source: str = "127.0.0.1", *, is_clear: bool = False) -> AsyncIterator[RawSocket]:
    """A connection from `source` to a port of the loopback, dropped at the end; in TLS where the port speaks it."""
    tls = any_server() if port in tls_ports and not is_clear else None
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=65_536, local_addr=(source, 0), ssl=tls)
    socket = RawSocket(reader, writer)
    try:
        yield socket
    finally:
        socket.abort()


@asynccontextmanager
async def websocket(
    port: int, subprotocol: str, headers: Iterable[str] = (), source: str = "127.0.0.1"
) -> AsyncIterator[RawSocket]:
    """An opened WebSocket; fails the test when the port refuses it."""
    async with connected(port, source) as socket:
        await socket.send(upgrade_request(port, subprotocol, headers))
        head = await socket.head()
        assert b" 101 " in head.partition(b"\r\n")[0], head
        yield socket


@asynccontextmanager
async def websocket_or_refusal(port: int, subprotocol: str) -> AsyncIterator[RawSocket | None]:
    """An opened WebSocket, or None when the port has enough of them and refuses it in clear text, or drops it before TLS."""
    async with AsyncExitStack() as stack:
        try:
            socket = await stack.enter_async_context(connected(port))
        except ConnectionError:
            yield None
            return
        await socket.send(upgrade_request(port, subprotocol))
        status = status_of(await socket.head())
        assert status in {0, 101, 503}, status
        yield socket if status == 101 else None


async def answer(port: int, request: bytes, timeout_s: float = ANSWER_TIMEOUT_S) -> bytes:
    """What a port answers to bytes until it closes; empty when it only hangs up."""
    async with connected(port) as socket:
        await socket.send(request)
        return await socket.read_all(timeout_s)


def http_request(
    method: str, path: str, host: str, headers: Iterable[str] = (), body: bytes = b"", *, has_length: bool = True
) -> bytes:
    """One HTTP/1.1 request that asks to close afterwards."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close", *headers]
    if body and has_length:
        lines.append(f"Content-Length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape") + body


def status_of(answer_bytes: bytes) -> int:
    """Status code of an HTTP answer, 0 when there is none."""
    parts = answer_bytes.partition(b"\r\n")[0].split(b" ")
    return int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else 0
