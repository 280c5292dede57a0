"""Reading a stream: from the local replica where there is one, else from a member, in chunks of a bounded size.

A read without `follow` ends at the stream's end as the leader confirms it when the read begins, so that what anybody has
seen committed is in it (invariant I13). Without a leader it ends at what is committed here. A follow read waits for more.
Leaves out: gRPC. Source: architecture §5 "Remote reads are cursors with byte credit", §8.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Final

from mesh_data.core.stream_requests import Fetch, Fetched, Method, decode_fetched, encode_fetch
from mesh_data.core.view import Stream
from mesh_data.shell.replica import Replica, below_floor
from mesh_data.shell.streams_asking import ELSEWHERE, PAUSE_S, UNKNOWN, wait_set
from mesh_data.shell.streams_catalogue import StreamsCatalogue
from mesh_data.shell.streams_metrics import READ_RECORDS
from meshapi.supervisor.v1 import data_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NO_NODE, StreamId
from meshraft import RaftError
from meshwire.batch import decode_records
from meshwire.errors import WireError

CHUNK_BYTES: Final = 256 * 1024
CHUNK_RECORDS: Final = 1000
FOLLOW_WAIT_S: Final = 2.0
"""A follow read looks this often whether its stream and node are still there; new records end the wait."""
_ANSWER_S: Final = 2.0
_GIVE_UP_S: Final = 10.0
_BARRIER_RETRY_S: Final = 0.2


async def read_stream(
    catalogue: StreamsCatalogue, stream_id: StreamId, from_offset: int, records_max: int, *, follow: bool
) -> AsyncIterator[data_pb2.ReadResponse]:
    """Records from `from_offset` on; see `MeshDataService.Read`.

    Raises:
        MeshError: OFFSET_PAST_END, OFFSET_BELOW_FLOOR, STREAM_UNAVAILABLE, and what the catalogue raises.
    """
    stream = catalogue.stream(stream_id)
    end = await _end(catalogue, stream, from_offset, is_exact=not follow)
    offset = from_offset
    remaining = records_max or None
    while remaining != 0 and (follow or offset < end):
        # Also without `follow`: the member that answers may not have all that another one confirmed as the end.
        fetched = await fetch(catalogue, stream_id, offset, FOLLOW_WAIT_S)
        for response in _responses(fetched, offset, remaining, None if follow else end):
            count = len(response.records)
            offset = response.records[-1].offset + 1
            if remaining is not None:
                remaining -= count
            READ_RECORDS.labels(stream.name).inc(count)
            yield response
        if not fetched.batches:
            if not follow and fetched.next_offset <= offset:
                catalogue.pass_over(stream)
            await asyncio.sleep(0)


async def fetch(catalogue: StreamsCatalogue, stream_id: StreamId, offset: int, wait_s: float) -> Fetched:
    """Batches from `offset` on, local or from a member; none when nothing is new after a wait of at most `wait_s`.

    Raises:
        MeshError: as `read_stream`.
    """
    deadline = asyncio.get_running_loop().time() + _GIVE_UP_S
    while True:
        stream = catalogue.stream(stream_id)
        replica = catalogue.readable(stream_id)
        try:
            if replica is not None:
                return await fetch_local(replica, offset, CHUNK_BYTES, wait_s)
            return await _fetch_remote(catalogue, stream, Fetch(stream_id, offset, CHUNK_BYTES, int(wait_s * 1000)))
        except MeshError as error:
            if error.code not in ELSEWHERE and error.code not in UNKNOWN:
                raise
        if asyncio.get_running_loop().time() >= deadline:
            raise _unavailable(stream)
        await asyncio.sleep(PAUSE_S)


async def fetch_local(replica: Replica, offset: int, bytes_max: int, wait_s: float) -> Fetched:
    """Batches of a local replica from `offset` on; at the end it waits for a change, at most `wait_s`.

    Raises:
        MeshError: OFFSET_BELOW_FLOOR, STORAGE_FAILED, or why the replica closed.
    """
    changed = replica.changed
    if wait_s > 0 and replica.is_open and offset >= replica.next_offset:
        # One wait, whatever ended it: the caller looks at the stream and the node again before the next.
        await wait_set(changed, wait_s)
    if replica.failure is not None:
        raise replica.failure
    batches = replica.read(offset, bytes_max) if offset < replica.next_offset else []
    return Fetched(batches, replica.next_offset, replica.floor_offset)


async def confirmed_end(replica: Replica, limit_s: float) -> tuple[int, bool]:
    """The end of the stream, and whether the leader confirmed that nothing acknowledged before is beyond it."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + limit_s
    while replica.is_open and (remaining_s := deadline - loop.time()) > 0:
        try:
            token, answer = replica.ask_read_index()
        except RaftError:
            break
        # Raft drops the question without a word when there is no leader yet, so it is asked again.
        await asyncio.wait((answer,), timeout=min(_BARRIER_RETRY_S, remaining_s))
        replica.forget_read(token)
        if not answer.done():
            continue
        if answer.cancelled():
            break
        is_confirmed = await _is_applied(replica, answer.result(), deadline)
        return replica.next_offset, is_confirmed
    return replica.next_offset, False


async def _is_applied(replica: Replica, index: int, deadline: float) -> bool:
    """Whether the replica applies the entry at `index` before `deadline` (loop time)."""
    loop = asyncio.get_running_loop()
    while replica.is_open and replica.state.applied_index < index:
        if not await wait_set(replica.changed, deadline - loop.time()):
            return False
    return replica.is_open


async def _end(catalogue: StreamsCatalogue, stream: Stream, from_offset: int, *, is_exact: bool) -> int:
    """Checks `from_offset` against the stream, and tells its end (exactly only when asked)."""
    replica = catalogue.readable(stream.stream_id)
    if replica is not None:
        end, floor_offset, is_confirmed = replica.next_offset, replica.floor_offset, False
        if is_exact or from_offset > end:
            end, is_confirmed = await confirmed_end(replica, catalogue.groups.timing.read_barrier_s)
    else:
        fetched = await _remote_end(catalogue, stream)
        end, floor_offset, is_confirmed = fetched.next_offset, fetched.floor_offset, fetched.is_confirmed
    if from_offset < floor_offset:
        raise below_floor(stream.name, from_offset, floor_offset)
    if from_offset > end:
        if not is_confirmed:
            raise _unavailable(stream)
        raise MeshError(
            ErrorCode.OFFSET_PAST_END,
            f"Offset {from_offset} of {stream.name} does not exist yet: the next record will have offset {end}.",
            {"offset": str(from_offset), "next_offset": str(end)},
        )
    return end


async def _remote_end(catalogue: StreamsCatalogue, stream: Stream) -> Fetched:
    deadline = asyncio.get_running_loop().time() + _GIVE_UP_S
    while True:
        try:
            return await _fetch_remote(catalogue, stream, Fetch(stream.stream_id, 0, 0, 0))
        except MeshError as error:
            if error.code not in ELSEWHERE and error.code not in UNKNOWN:
                raise
        if asyncio.get_running_loop().time() >= deadline:
            raise _unavailable(stream)
        await asyncio.sleep(PAUSE_S)


async def _fetch_remote(catalogue: StreamsCatalogue, stream: Stream, request: Fetch) -> Fetched:
    node = catalogue.other_member(stream)
    if node == NO_NODE:
        raise _unavailable(stream)
    timeout_s = _ANSWER_S + request.wait_ms / 1000
    if not request.bytes_max:
        timeout_s += catalogue.groups.timing.read_barrier_s
    try:
        return decode_fetched(await catalogue.overlay.call(node, Method.FETCH, encode_fetch(request), timeout_s))
    except MeshError as error:
        catalogue.learn(stream, node, error)
        raise
    except WireError as error:
        raise MeshError(ErrorCode.UNAVAILABLE, f"Node {node} answered nonsense: {error.reason}.") from error


def _responses(
    fetched: Fetched, offset: int, remaining: int | None, end: int | None
) -> Iterator[data_pb2.ReadResponse]:
    """Records of the batches from `offset` up to `end`, at most `remaining`, in answers of a bounded size."""
    records: list[data_pb2.ReadRecord] = []
    size_bytes = 0
    record_type = data_pb2.ReadRecord
    for stored in fetched.batches:
        time_ms = stored.time_ms
        for at, record in enumerate(decode_records(stored.batch), stored.base_offset):
            if at < offset:
                continue
            if remaining == 0 or at == end:
                break
            if records and (len(records) >= CHUNK_RECORDS or size_bytes + len(record.value) > CHUNK_BYTES):
                yield data_pb2.ReadResponse(records=records, next_offset=fetched.next_offset)
                records, size_bytes = [], 0
            records.append(record_type(offset=at, value=record.value, key=record.key, timestamp_ms=time_ms))
            size_bytes += len(record.value) + len(record.key or b"")
            if remaining is not None:
                remaining -= 1
    if records:
        yield data_pb2.ReadResponse(records=records, next_offset=fetched.next_offset)


def _unavailable(stream: Stream) -> MeshError:
    return MeshError(
        ErrorCode.STREAM_UNAVAILABLE,
        f"No member of {stream.name} that is up to date can be reached now: try again.",
        {"stream": stream.name},
    )
