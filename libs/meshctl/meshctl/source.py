"""Where published bytes come from: a file or standard input, in pieces as they are there, and cut into lines.

A pipe or terminal is read without blocking the event loop, so that Ctrl-C works and each line leaves as soon as it is
written. A regular file is read directly: a disk answers at once compared with a network.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncGenerator
from typing import BinaryIO, Final

PIECE_BYTES: Final = 256 * 1024


async def pieces(source: BinaryIO) -> AsyncGenerator[bytes]:
    """The bytes of `source` until its end, at most PIECE_BYTES at a time."""
    if not _is_waiting(source):
        while piece := source.read(PIECE_BYTES):
            yield piece
        return
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=PIECE_BYTES)
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), source)
    try:
        while piece := await reader.read(PIECE_BYTES):
            yield piece
    finally:
        transport.close()


def _is_waiting(source: BinaryIO) -> bool:
    """Whether a read may wait for somebody: a pipe, a socket or a terminal."""
    try:
        descriptor = source.fileno()
    except OSError:
        return False
    mode = os.fstat(descriptor).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(descriptor)


class LineSplitter:
    """Cuts bytes into lines that keep their terminator, so that the lines joined are the bytes again.

    Only LF ends a line; CRLF is thereby kept together. The last line may have no terminator.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self.pending_bytes = 0

    def feed(self, piece: bytes) -> list[bytes]:
        """Lines that `piece` completes."""
        first, separator, rest = piece.partition(b"\n")
        if not separator:
            self._parts.append(piece)
            self.pending_bytes += len(piece)
            return []
        lines = [b"".join((*self._parts, first, b"\n"))]
        more = rest.split(b"\n")
        last = more.pop()
        lines += [line + b"\n" for line in more]
        self._parts = [last] if last else []
        self.pending_bytes = len(last)
        return lines

    def finish(self) -> list[bytes]:
        """The last line, if it has no terminator."""
        last = b"".join(self._parts)
        self._parts = []
        self.pending_bytes = 0
        return [last] if last else []
