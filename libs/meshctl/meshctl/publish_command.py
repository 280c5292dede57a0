"""`meshctl publish`: a file or standard input as records, each committed exactly once."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO, Final

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from meshcommon.errors import ErrorCode, MeshError
from meshctl.connection import Connection, run
from meshctl.options import STREAM_ID, MeshCommand, Options
from meshctl.output import print_json
from meshctl.publisher import BATCH_BYTES_MAX, Committed, Publisher, PublisherLimits
from meshctl.source import LineSplitter, pieces
from meshwire.batch import Codec
from meshwire.records import Record

_BATCH_BYTES: Final = 256 * 1024
_BATCH_RECORDS: Final = 1_000


@dataclass(slots=True)
class Tally:
    """Records sent, and what was committed of them so far. Offsets are -1 while nothing was."""

    sent: int = 0
    count: int = 0
    bytes: int = 0
    duplicates: int = 0
    first_offset: int = -1
    last_offset: int = -1
    stream_id: int = 0

    def add(self, committed: Committed, size: int) -> None:
        """Counts one batch."""
        self.count += committed.count
        self.bytes += size
        self.duplicates += committed.count if committed.is_duplicate else 0
        if self.first_offset < 0:
            self.first_offset = committed.base_offset
        self.last_offset = committed.base_offset + committed.count - 1


@click.command(cls=MeshCommand)
@click.argument("stream")
@click.argument("file", type=click.File("rb"), default="-")
@click.option("--lines", "mode", flag_value="lines", default="lines", help="Each line is a record.  [default]")
@click.option("--whole", "mode", flag_value="whole", help="All of it is one record.")
@click.option("--producer", default="", metavar="NAME", help="Publish under this name; fences its earlier holder.")
@click.option("--zstd", "is_zstd", is_flag=True, help="Compress batches on their way and on every member's disk.")
@STREAM_ID
@click.pass_obj
def publish(
    options: Options, stream: str, file: BinaryIO, *, mode: str, producer: str, is_zstd: bool, stream_id: int
) -> None:
    """Publish FILE (standard input if - or left out) to STREAM and wait until all of it is committed.

    A line keeps its terminator, so that what `meshctl subscribe` writes is the same file again, byte for byte.
    """
    tally = Tally(stream_id=stream_id)

    def publisher(connection: Connection) -> Publisher:
        return Publisher(
            connection.data,
            stream,
            producer_name=producer,
            stream_id=stream_id,
            limits=PublisherLimits(give_up_after_s=connection.options.timeout_s),
            codec=Codec.ZSTD if is_zstd else Codec.NONE,
        )

    try:
        run(options, lambda it: _publish(it.options, publisher(it), file, mode == "whole", tally))
    except (MeshError, KeyboardInterrupt):
        click.echo(_summary(stream, tally), err=True)
        raise
    if options.is_json:
        print_json(
            {
                "stream": stream,
                "stream_id": tally.stream_id,
                "count": tally.count,
                "bytes": tally.bytes,
                "duplicates": tally.duplicates,
                "first_offset": tally.first_offset if tally.count else None,
                "last_offset": tally.last_offset if tally.count else None,
            }
        )
    else:
        click.echo(_summary(stream, tally))


def _summary(stream: str, tally: Tally) -> str:
    unknown = tally.sent - tally.count
    open_end = f"; the outcome of {unknown} more is unknown" if unknown else ""
    if not tally.count:
        return (
            f"nothing is known to be committed to {stream}{open_end}"
            if unknown
            else f"nothing was committed to {stream}"
        )
    where = (
        f"offset {tally.first_offset}" if tally.count == 1 else f"offsets {tally.first_offset} to {tally.last_offset}"
    )
    records = "1 record" if tally.count == 1 else f"{tally.count} records"
    return f"committed {records} ({tally.bytes} bytes) to {stream} at {where}{open_end}"


async def _publish(options: Options, publisher: Publisher, file: BinaryIO, is_whole: bool, tally: Tally) -> None:
    with _progress(options, publisher.stream) as progress:
        task = progress.add_task(publisher.stream, total=_known_size(file), count=0)

        def count(answer: asyncio.Future[Committed], size: int) -> None:
            if not answer.cancelled() and answer.exception() is None:
                tally.add(answer.result(), size)
                progress.update(task, completed=tally.bytes, count=tally.count)

        async with publisher, aclosing(_batches(file, is_whole)) as batches:
            tally.stream_id = publisher.stream_id
            async for values in batches:
                answer = await publisher.send([Record(value) for value in values])
                tally.sent += len(values)
                answer.add_done_callback(partial(count, size=sum(map(len, values))))


def _known_size(file: BinaryIO) -> int | None:
    """Bytes of a regular file, None for anything else."""
    try:
        found = os.fstat(file.fileno())
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _progress(options: Options, stream: str) -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn(f"publishing to {stream}"),
        BarColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[count]} records"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=options.is_json or not console.is_terminal,
    )


async def _batches(file: BinaryIO, is_whole: bool) -> AsyncGenerator[Sequence[bytes]]:
    if is_whole:
        yield [await _whole(file)]
        return
    splitter = LineSplitter()
    number = 0
    async with aclosing(pieces(file)) as parts:
        async for piece in parts:
            lines = splitter.feed(piece)
            number += len(lines)
            _check(max(map(len, lines), default=0), splitter.pending_bytes, number)
            for batch in batched(lines):
                yield batch
    for batch in batched(splitter.finish()):
        yield batch


def _check(longest: int, pending: int, number: int) -> None:
    if max(longest, pending) > BATCH_BYTES_MAX:
        raise MeshError(
            ErrorCode.MESSAGE_TOO_LARGE,
            f"A line at or after line {max(number, 1)} is longer than the {BATCH_BYTES_MAX} bytes that a record may have.",
            {"limit": str(BATCH_BYTES_MAX)},
        )


async def _whole(file: BinaryIO) -> bytes:
    parts: list[bytes] = []
    size = 0
    async with aclosing(pieces(file)) as source:
        async for piece in source:
            parts.append(piece)
            size += len(piece)
            if size > BATCH_BYTES_MAX:
                raise MeshError(
                    ErrorCode.MESSAGE_TOO_LARGE,
                    f"The input is larger than the {BATCH_BYTES_MAX} bytes that a record may have: publish it by --lines.",
                    {"limit": str(BATCH_BYTES_MAX)},
                )
    return b"".join(parts)


def batched(lines: Sequence[bytes]) -> list[Sequence[bytes]]:
    """Cuts `lines` into batches of a good size: large enough to be cheap, small enough to be smooth."""
    batches: list[Sequence[bytes]] = []
    start = size = 0
    for position, line in enumerate(lines):
        is_full = size + len(line) > _BATCH_BYTES or position - start >= _BATCH_RECORDS
        if position > start and is_full:
            batches.append(lines[start:position])
            start, size = position, 0
        size += len(line)
    if start < len(lines):
        batches.append(lines[start:])
    return batches
