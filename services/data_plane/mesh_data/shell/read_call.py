"""Reading a stream: from the local replica where there is one, else from a member, in chunks of a bounded size.

A linearizable read ends at the stream's end as the leader confirms it after the read began, so that what anybody has seen
committed is in it (invariant I13); when nobody confirms it in time, the read fails and may be retried. A stale one takes what
a replica has and says how old that is at most. A follow read waits for more.
Leaves out: gRPC. Source: architecture §5 "Remote reads are cursors with byte credit", §8.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Final

from mesh_data.core.stream_requests import Fetch, Fetched, Method, decode_fetched, encode_fetch
from mesh_data.core.view import Stream
from mesh_data.shell.replica import Replica
from mesh_data.shell.stream_errors import below_floor
from mesh_data.shell.streams_asking import ELSEWHERE, PAUSE_S, UNKNOWN, wait_set
from mesh_data.shell.streams_catalogue import StreamsCatalogue
from mesh_data.shell.streams_metrics import READ_RECORDS
from meshapi.supervisor.v1 import data_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NO_NODE, StreamId
from meshraft import RaftError
from meshwire.batch import decode_header, decode_records
from meshwire.errors import WireError

CHUNK_BYTES: Final = 256 * 1024
CHUNK_RECORDS: Final = 1000
FOLLOW_WAIT_S: Final = 2.0
"""A follow read looks this often whether its stream and node are still there; new records end the wait."""
_ANSWER_S: Final = 2.0
_GIVE_UP_S: Final = 10.0
_BARRIER_RETRY_S: Final = 0.2


async def read_stream(
    catalogue: StreamsCatalogue,
    stream_id: StreamId,
    from_offset: int,
    records_max: int,
    *,
    follow: bool,
    is_stale_ok: bool = False,
) -> AsyncIterator[data_pb2.ReadResponse]:
    """Records from `from_offset` on; see `MeshDataService.Read`.

    Raises:
        MeshError: OFFSET_PAST_END, OFFSET_BELOW_FLOOR, STREAM_UNAVAILABLE, and what the catalogue raises.
    """
    name = catalogue.stream(stream_id).name
    remaining = records_max or None
    offset = from_offset
    batches = read_batches(catalogue, stream_id, from_offset, follow=follow, is_stale_ok=is_stale_ok)
    async for fetched, end in batches:
        if not fetched.batches:
            yield _view(fetched)
        for response in _responses(fetched, offset, remaining, end):
            count = len(response.records)
            offset = response.records[-1].offset + 1
            if remaining is not None:
                remaining -= count
            READ_RECORDS.labels(name).inc(count)
            yield response
        if remaining == 0:
            return


async def read_batches(
    catalogue: StreamsCatalogue, stream_id: StreamId, from_offset: int, *, follow: bool, is_stale_ok: bool = False
) -> AsyncIterator[tuple[Fetched, int | None]]:
    """Batches from the one that holds `from_offset` on, unopened; and the end at which to stop, None to follow.

    There are always some, except first of all in a read that may be stale: that one begins with the view it is of.

    Raises:
        MeshError: as `read_stream`.
    """
    stream = catalogue.stream(stream_id)
    beginning = await _beginning(catalogue, stream, from_offset, follow=follow, is_stale_ok=is_stale_ok)
    end = beginning.next_offset
    if is_stale_ok:
        yield beginning, None if follow else end
    offset = from_offset
    while follow or offset < end:
        # Also without `follow`: the member that answers may not have all that another one confirmed as the end.
        fetched = await fetch(catalogue, stream_id, offset, FOLLOW_WAIT_S)
        if fetched.batches:
            last = fetched.batches[-1]
            offset = last.base_offset + decode_header(last.batch).record_count
            yield fetched, None if follow else end
            continue
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
    batches = await replica.read(offset, bytes_max) if offset < replica.next_offset else []
    return Fetched(batches, replica.next_offset, replica.floor_offset)


async def confirmed_end(replica: Replica, limit_s: float) -> Fetched:
    """The replica's end of the stream, and whether the leader confirmed that nothing acknowledged before is beyond it."""
    is_confirmed = await _is_confirmed(replica, limit_s)
    return Fetched((), replica.next_offset, replica.floor_offset, is_confirmed, replica.freshness())


async def _is_confirmed(replica: Replica, limit_s: float) -> bool:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + limit_s
    while replica.is_open and (remaining_s := deadline - loop.time()) > 0:
        try:
            token, answer = replica.ask_read_index()
        except RaftError:
            return False
        # Raft drops the question without a word when there is no leader yet, so it is asked again.
        await asyncio.wait((answer,), timeout=min(_BARRIER_RETRY_S, remaining_s))
        replica.forget_read(token)
        if not answer.done():
            continue
        return not answer.cancelled() and await _is_applied(replica, answer.result(), deadline)
    return False


async def _is_applied(replica: Replica, index: int, deadline: float) -> bool:
    """Whether the replica applies the entry at `index` before `deadline` (loop time)."""
    loop = asyncio.get_running_loop()
    while replica.is_open and replica.state.applied_index < index:
        if not await wait_set(replica.changed, deadline - loop.time()):
            return False
    return replica.is_open


async def _beginning(
    catalogue: StreamsCatalogue, stream: Stream, from_offset: int, *, follow: bool, is_stale_ok: bool
) -> Fetched:
    """Where the stream begins and ends for this read, after `from_offset` was checked against it."""
    timing = catalogue.groups.timing
    limit_s = timing.stale_wait_s if is_stale_ok else timing.read_barrier_s
    must_be_exact = not follow and not is_stale_ok
    replica = catalogue.readable(stream.stream_id)
    if replica is None:
        seen = await _remote_end(catalogue, stream, limit_s, must_be_exact=must_be_exact)
    elif follow and not is_stale_ok and from_offset <= replica.next_offset:
        seen = Fetched((), replica.next_offset, replica.floor_offset)
    else:
        seen = await confirmed_end(replica, limit_s)
    if from_offset < seen.floor_offset:
        raise below_floor(stream.name, from_offset, seen.floor_offset)
    if not seen.is_confirmed and (must_be_exact or from_offset > seen.next_offset):
        raise _unconfirmed(stream, limit_s)
    if from_offset > seen.next_offset:
        raise MeshError(
            ErrorCode.OFFSET_PAST_END,
            f"Offset {from_offset} of {stream.name} does not exist yet: the next record will have offset "
            f"{seen.next_offset}.",
            {"offset": str(from_offset), "next_offset": str(seen.next_offset)},
        )
    return seen


async def _remote_end(catalogue: StreamsCatalogue, stream: Stream, limit_s: float, *, must_be_exact: bool) -> Fetched:
    """The end as a member tells it; one that cannot have it confirmed is passed over while there is time."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + max(limit_s, _GIVE_UP_S)
    while True:
        asked_at = loop.time()
        try:
            # Half of the time, so that another member can be asked in the other half.
            seen = await _fetch_remote(catalogue, stream, Fetch(stream.stream_id, 0, 0, int(limit_s * 500)))
        except MeshError as error:
            if error.code not in ELSEWHERE and error.code not in UNKNOWN:
                raise
        else:
            if seen.is_confirmed or not must_be_exact:
                return _aged(seen, loop.time() - asked_at)
            catalogue.pass_over(stream)
        if loop.time() >= deadline:
            raise _unavailable(stream)
        await asyncio.sleep(PAUSE_S)


def _aged(seen: Fetched, seconds: float) -> Fetched:
    """The same after so long on the way."""
    age_ms = seen.freshness.age_ms_max
    if age_ms is None:
        return seen
    return replace(seen, freshness=replace(seen.freshness, age_ms_max=age_ms + math.ceil(seconds * 1000)))


async def _fetch_remote(catalogue: StreamsCatalogue, stream: Stream, request: Fetch) -> Fetched:
    node = catalogue.other_member(stream)
    if node == NO_NODE:
        raise _unavailable(stream)
    timeout_s = _ANSWER_S + request.wait_ms / 1000
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
            if remaining == 0 or (end is not None and at >= end):
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


def _view(fetched: Fetched) -> data_pb2.ReadResponse:
    freshness = fetched.freshness
    view = data_pb2.ReplicaView(applied_index=freshness.applied_index, age_ms_max=freshness.age_ms_max)
    return data_pb2.ReadResponse(next_offset=fetched.next_offset, view=view)


def _unconfirmed(stream: Stream, limit_s: float) -> MeshError:
    return MeshError(
        ErrorCode.STREAM_UNAVAILABLE,
        f"The leader of {stream.name} did not confirm the end of the stream within {limit_s:g} s: try again, or read what "
        "a member has, as it may be stale.",
        {"stream": stream.name},
    )


def _unavailable(stream: Stream) -> MeshError:
    return MeshError(
        ErrorCode.STREAM_UNAVAILABLE,
        f"No member of {stream.name} that is up to date can be reached now: try again.",
        {"stream": stream.name},
    )
