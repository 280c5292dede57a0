"""`meshctl subscribe`: records of a stream on standard output."""

from __future__ import annotations

import asyncio
import sys
from typing import BinaryIO, Final, TypedDict, Unpack

import click
import grpc.aio

from meshapi.supervisor.v1 import data_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.grpc_client import call_metadata
from meshcommon.record_batches import open_batch
from meshcommon.record_json import read_record, record_json
from meshctl.connection import Connection, run
from meshctl.options import STREAM_ID, MeshCommand, Options
from meshctl.output import print_json_line

_RETRY_S: Final = 0.5
_REFUSED_AT_ONCE_S: Final = 1.0


class _Choices(TypedDict):
    """What the user chose to read, and how to write it."""

    first: int | None
    follow: bool
    records_max: int | None
    with_offsets: bool
    is_stale_ok: bool
    skips_unreadable: bool
    stream_id: int


@click.command(cls=MeshCommand)
@click.argument("stream")
@click.option("--from", "first", type=click.IntRange(0, 2**63 - 1), metavar="N", help="Begin at this offset.")
@click.option("--earliest", is_flag=True, help="Begin at the first retained record.  [default]")
@click.option("--follow", is_flag=True, help="Wait for more at the end instead of finishing.")
@click.option("--max", "records_max", type=click.IntRange(min=1), metavar="N", help="End after so many records.")
@click.option("--offsets", "with_offsets", is_flag=True, help="Write each record's offset and a tab before its value.")
@click.option("--stale-ok", "is_stale_ok", is_flag=True, help="Read what the site's replica has, without its leader.")
@click.option(
    "--skip-unreadable",
    "skips_unreadable",
    is_flag=True,
    help="Go on behind a batch that cannot be opened, and say so.",
)
@STREAM_ID
@click.pass_obj
def subscribe(options: Options, stream: str, *, earliest: bool, **choices: Unpack[_Choices]) -> None:
    """Write the records of STREAM to standard output, values as they are, without anything between them.

    With --json each record is a JSON object on a line of its own. An offset belongs to one stream: with --stream-id another
    one that was made under the name of a deleted one is refused, and never followed. Everything acknowledged before is read, or the command
    fails when no leader confirms that in time; with --stale-ok it says on standard error how old the view is at most.
    """
    if earliest and choices["first"] is not None:
        raise click.UsageError("--earliest and --from exclude each other.")
    reader = _Reader(stream, choices, is_json=options.is_json)
    run(options, reader.read)


class _Reader:
    """Reads, and goes on where it was when a read that had begun breaks."""

    def __init__(self, stream: str, choices: _Choices, *, is_json: bool) -> None:
        self._stream = stream
        self._next = choices["first"]
        self._stream_id = choices["stream_id"]
        self._follow = choices["follow"]
        self._left = choices["records_max"]
        self._with_offsets = choices["with_offsets"]
        self._is_stale_ok = choices["is_stale_ok"]
        self._skips_unreadable = choices["skips_unreadable"]
        self._is_json = is_json
        self._output: BinaryIO = sys.stdout.buffer
        self._has_begun = False

    async def read(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        if self._next is None:
            request = data_pb2.DescribeStreamRequest(stream=self._stream, stream_id=self._stream_id)
            found = await connection.call(connection.data.DescribeStream, request)
            self._next, self._stream_id = found.floor_offset, found.stream_id
        while True:
            started = loop.time()
            try:
                await self._read_once(connection, self._next)
                return
            except MeshError as error:
                # What is refused at once at the first try is told at once; a read that ran may break and go on.
                self._has_begun = self._has_begun or loop.time() - started > _REFUSED_AT_ONCE_S
                if not (error.retryable and self._has_begun):
                    raise
                broken_at = loop.time()
            await self._wait_for_gateway(connection, broken_at)

    async def _wait_for_gateway(self, connection: Connection, broken_at: float) -> None:
        """Until the stream can be asked about again, at most as long as the user's time limit."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_RETRY_S)
            try:
                request = data_pb2.DescribeStreamRequest(stream=self._stream, stream_id=self._stream_id)
                await connection.call(connection.data.DescribeStream, request)
                return
            except MeshError as error:
                if not error.retryable or loop.time() - broken_at > connection.options.timeout_s:
                    raise

    async def _read_once(self, connection: Connection, first: int) -> None:
        request = data_pb2.ReadBatchesRequest(
            stream=self._stream,
            from_offset=first,
            records_max=self._left or 0,
            follow=self._follow,
            stream_id=self._stream_id,
        )
        if self._is_stale_ok:
            request.consistency = data_pb2.READ_CONSISTENCY_STALE_OK
        call = connection.data.ReadBatches(request, metadata=call_metadata())
        try:
            async for answer in call:
                self._has_begun = True
                self._write(answer)
                if self._left == 0:
                    return
        except grpc.aio.AioRpcError as error:
            raise connection.explain(error) from error
        finally:
            call.cancel()

    def _write(self, answer: data_pb2.ReadBatchesResponse) -> None:
        self._stream_id = answer.stream_id or self._stream_id
        if answer.HasField("view"):
            view = answer.view
            age = f"at most {view.age_ms_max} ms old" if view.HasField("age_ms_max") else "of unknown age"
            click.echo(f"The view is {age} (log index {view.applied_index}).", err=True)
        try:
            for batch in answer.batches:
                self._write_batch(batch)
        finally:
            self._output.flush()

    def _write_batch(self, batch: data_pb2.ReadBatch) -> None:
        try:
            records = open_batch(batch.base_offset, batch.batch)
        except MeshError as error:
            if error.code is not ErrorCode.BATCH_UNREADABLE or not self._skips_unreadable:
                raise
            click.echo(f"{error.code}: {error.message}", err=True)
            self._next = int(error.details["next_offset"])
            return
        for offset, record in enumerate(records, batch.base_offset):
            if self._next is not None and offset < self._next:
                continue
            if self._left == 0:
                return
            if self._is_json:
                print_json_line(record_json(read_record(offset, batch.timestamp_ms, record)))
            else:
                prefix = f"{offset}\t".encode() if self._with_offsets else b""
                self._output.write(prefix + record.value)
            self._next = offset + 1
            if self._left is not None:
                self._left -= 1
