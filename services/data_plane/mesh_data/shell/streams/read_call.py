"""Reading a stream: from the local replica where there is one, else from a member, in chunks of a bounded size.

`core/read_plan` decides from where a read is served and what is done about a member that fails; here it is fetched and awaited.
A read is of one stream, by its id: when that is deleted, it ends, also if another stream gets the name. What a read holds
between two chunks is its offset; bytes of local logs under way for all readers of a node have a budget (`ByteRoom`).
Leaves out: gRPC, and what batches hold. Source: architecture §5 "Remote reads are cursors with byte credit", §8.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Final

from mesh_data.core.publish_flow import PAUSE_S
from mesh_data.core.read_plan import (
    ANSWER_S,
    GIVE_UP_S,
    Beginning,
    EndFrom,
    Failure,
    LocalView,
    ReadPlan,
    after_failure,
)
from mesh_data.core.stream_requests import (
    Fetch,
    Fetched,
    Method,
    StoredBatch,
    check_fetched,
    decode_fetched,
    encode_fetch,
)
from mesh_data.core.view import Stream
from mesh_data.shell.groups.replica import Replica
from mesh_data.shell.stream_errors import below_floor, malformed
from mesh_data.shell.streams.byte_room import ByteRoom
from mesh_data.shell.streams.streams_asking import wait_set
from mesh_data.shell.streams.streams_catalogue import StreamsCatalogue
from mesh_data.shell.streams_metrics import READ_RECORDS
from meshapi.supervisor.v1 import data_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NO_NODE
from meshraft import RaftError
from meshwire.batch import decode_header
from meshwire.errors import WireCode, WireError

FETCH_COST_BYTES: Final = 1024 * 1024
"""What one read of a local log holds at most for a moment: a step of the log, or the one batch that is larger."""
_BARRIER_RETRY_S: Final = 0.2


async def read_batches(
    catalogue: StreamsCatalogue,
    read_room: ByteRoom,
    stream: Stream,
    from_offset: int,
    records_max: int,
    *,
    follow: bool,
    is_stale_ok: bool = False,
) -> AsyncIterator[data_pb2.ReadBatchesResponse]:
    """Batches from the one that holds `from_offset` on; see `MeshDataService.ReadBatches`.

    Raises:
        MeshError: OFFSET_PAST_END, OFFSET_BELOW_FLOOR, STREAM_UNAVAILABLE, UPDATE_REQUIRED, and what the catalogue raises.
    """
    cursor, beginning = await ReadCursor.begin(
        catalogue, read_room, stream, from_offset, follow=follow, is_stale_ok=is_stale_ok
    )
    plan = cursor.plan
    if records_max:
        wanted_end = from_offset + records_max
        plan.end = wanted_end if plan.end is None else min(plan.end, wanted_end)
    is_silent = not follow
    if is_stale_ok:
        yield _view(stream, beginning)
        is_silent = False
    while not plan.is_at_end:
        fetched = await cursor.fetch()
        batches = _until(fetched.batches, plan.end)
        if batches:
            is_silent = False
            READ_RECORDS.labels(stream.name).inc(end_of(batches[-1]) - plan.offset)
            yield data_pb2.ReadBatchesResponse(
                batches=(
                    data_pb2.ReadBatch(base_offset=item.base_offset, timestamp_ms=item.time_ms, batch=bytes(item.batch))
                    for item in batches
                ),
                next_offset=fetched.next_offset,
                stream_id=stream.stream_id,
            )
        cursor.advance(fetched)
    if is_silent:
        yield data_pb2.ReadBatchesResponse(next_offset=beginning.next_offset, stream_id=stream.stream_id)


def _until(batches: Sequence[StoredBatch], end: int | None) -> Sequence[StoredBatch]:
    """Those of the batches that hold an offset below `end`."""
    return batches if end is None else [item for item in batches if item.base_offset < end]


class ReadCursor:
    """A read under way: where it is, and the next batches from there, unopened."""

    def __init__(self, catalogue: StreamsCatalogue, read_room: ByteRoom, stream: Stream, plan: ReadPlan) -> None:
        """`begin` makes one."""
        self._catalogue = catalogue
        self._read_room = read_room
        self._stream = stream
        self.plan = plan

    @classmethod
    async def begin(
        cls,
        catalogue: StreamsCatalogue,
        read_room: ByteRoom,
        stream: Stream,
        from_offset: int,
        *,
        follow: bool,
        is_stale_ok: bool = False,
    ) -> tuple[ReadCursor, Fetched]:
        """The cursor of a read that may begin, and where the stream begins and ends for it.

        Raises:
            MeshError: as `read_batches`.
        """
        plan = ReadPlan(from_offset, catalogue.groups.timing, follow=follow, is_stale_ok=is_stale_ok)
        replica = catalogue.readable(stream.stream_id)
        way = plan.end_from(_view_of(replica))
        if way is EndFrom.MEMBER or replica is None:
            seen = await _remote_end(catalogue, stream, plan)
        elif way is EndFrom.HERE:
            seen = Fetched((), replica.next_offset, replica.floor_offset)
        else:
            seen = await confirmed_end(replica, plan.confirm_s)
        match plan.begin(seen):
            case Beginning.BELOW_FLOOR:
                raise below_floor(stream.name, from_offset, seen.floor_offset)
            case Beginning.UNCONFIRMED:
                raise _unconfirmed(stream, plan.confirm_s)
            case Beginning.PAST_END:
                raise _past_end(stream, from_offset, seen.next_offset)
            case Beginning.BEGINS:
                return cls(catalogue, read_room, stream, plan), seen

    @property
    def offset(self) -> int:
        """Of the next record."""
        return self.plan.offset

    @property
    def is_at_end(self) -> bool:
        """Whether the read is over; never for one that follows."""
        return self.plan.is_at_end

    async def fetch(self, gate: AbstractAsyncContextManager[object] | None = None) -> Fetched:
        """The next batches; none when nothing new came within `FOLLOW_WAIT_S`. Does not move the cursor.

        Args:
            gate: what has to be entered while batches are on their way, not while there are none to come.

        Raises:
            MeshError: as `read_batches`.
        """
        stream_id, name = self._stream.stream_id, self._stream.name
        loop = asyncio.get_running_loop()
        deadline = loop.time() + GIVE_UP_S
        while True:
            stream = self._catalogue.stream(stream_id, name)
            try:
                fetched = await self._fetch_once(stream, gate or contextlib.nullcontext())
            except MeshError as error:
                failure = error
            else:
                self.plan.learn(fetched)
                return fetched
            match after_failure(failure, is_late=loop.time() >= deadline):
                case Failure.TELL:
                    raise failure
                case Failure.GIVE_UP:
                    raise _given_up(self._catalogue, stream, failure)
                case Failure.AGAIN:
                    await asyncio.sleep(PAUSE_S)

    async def _fetch_once(self, stream: Stream, gate: AbstractAsyncContextManager[object]) -> Fetched:
        offset = self.plan.offset
        replica = self._catalogue.readable(stream.stream_id)
        step = self.plan.next_fetch(_view_of(replica))
        if step.is_local and replica is not None:
            await wait_for_more(replica, offset, step.wait_s)
            async with gate:
                return await fetch_local(self._read_room, replica, offset, step.bytes_max)
        request = Fetch(stream.stream_id, offset, step.bytes_max, int(step.wait_s * 1000))
        async with gate if step.is_gated else contextlib.nullcontext():
            return await _fetch_remote(self._catalogue, stream, request)

    def advance(self, fetched: Fetched) -> None:
        """What `fetch` gave was used."""
        end_of_batches = end_of(fetched.batches[-1]) if fetched.batches else self.plan.offset
        if self.plan.advance(fetched, end_of_batches):
            self._catalogue.hints.pass_over(self._stream)


def _view_of(replica: Replica | None) -> LocalView | None:
    return None if replica is None else LocalView(replica.next_offset, replica.update_required is not None)


def end_of(stored: StoredBatch) -> int:
    """Offset after the batch's last record.

    Raises:
        MeshError: UPDATE_REQUIRED for a batch in a format of a later version, INTERNAL for a damaged one.
    """
    try:
        return stored.base_offset + decode_header(stored.batch).record_count
    except WireError as error:
        raise _unreadable(stored.base_offset, error) from error


async def wait_for_more(replica: Replica, offset: int, wait_s: float) -> None:
    """Waits at a local replica's end for a change, at most `wait_s`."""
    changed = replica.changed
    if wait_s > 0 and replica.is_open and offset >= replica.next_offset:
        # One wait, whatever ended it: the caller looks at the stream and the node again before the next.
        await wait_set(changed, wait_s)


async def fetch_local(room: ByteRoom, replica: Replica, offset: int, bytes_max: int) -> Fetched:
    """Batches of a local replica from `offset` on; none at its end.

    Raises:
        MeshError: OFFSET_BELOW_FLOOR, STORAGE_FAILED, or why the replica closed; UPDATE_REQUIRED at the end of what a
            replica applies that has to be updated.
    """
    if replica.failure is not None:
        raise replica.failure
    if offset >= replica.next_offset:
        if replica.update_required is not None:
            raise replica.update_required
        return Fetched((), replica.next_offset, replica.floor_offset)
    async with room.hold(FETCH_COST_BYTES):
        batches = await replica.read(offset, bytes_max)
    return Fetched(batches, replica.next_offset, replica.floor_offset)


async def confirmed_end(replica: Replica, limit_s: float) -> Fetched:
    """The replica's end of the stream, and whether the leader confirmed that nothing acknowledged before is beyond it."""
    is_confirmed = await _is_confirmed(replica, limit_s)
    return Fetched(
        (),
        replica.next_offset,
        replica.floor_offset,
        is_confirmed,
        replica.read_points.freshness(replica.state.applied_index),
    )


async def _is_confirmed(replica: Replica, limit_s: float) -> bool:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + limit_s
    while replica.is_open and (remaining_s := deadline - loop.time()) > 0:
        try:
            token, answer = replica.read_points.ask()
        except RaftError:
            return False
        # Raft drops the question without a word when there is no leader yet, so it is asked again.
        await asyncio.wait((answer,), timeout=min(_BARRIER_RETRY_S, remaining_s))
        replica.read_points.forget(token)
        if not answer.done():
            continue
        return not answer.cancelled() and await _is_applied(replica, answer.result(), deadline)
    return False


async def _is_applied(replica: Replica, index: int, deadline: float) -> bool:
    """Whether the replica applies the entry at `index` before `deadline` (loop time)."""
    loop = asyncio.get_running_loop()
    while replica.is_open and replica.state.applied_index < index:
        if replica.update_required is not None:
            return False
        if not await wait_set(replica.changed, deadline - loop.time()):
            return False
    return replica.is_open


async def _remote_end(catalogue: StreamsCatalogue, stream: Stream, plan: ReadPlan) -> Fetched:
    """The end as a member tells it; one that cannot have it confirmed is passed over while there is time."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + max(plan.confirm_s, GIVE_UP_S)
    # Half of the time, so that another member can be asked in the other half.
    request = Fetch(stream.stream_id, 0, 0, int(plan.confirm_s * 500))
    while True:
        asked_at = loop.time()
        try:
            seen = await _fetch_remote(catalogue, stream, request)
        except MeshError as error:
            if after_failure(error, is_late=False) is Failure.TELL:
                raise
        else:
            if plan.takes_end(seen):
                return _aged(seen, loop.time() - asked_at)
            catalogue.hints.pass_over(stream)
        if loop.time() >= deadline:
            raise _given_up(catalogue, stream)
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
    timeout_s = ANSWER_S + request.wait_ms / 1000
    try:
        body = await catalogue.overlay.call(node, Method.FETCH, encode_fetch(request), timeout_s)
        return check_fetched(decode_fetched(body), request.offset)
    except MeshError as error:
        catalogue.hints.learn(stream, node, error)
        raise
    except WireError as error:
        if error.code is WireCode.BAD_VERSION:
            raise _unreadable(request.offset, error) from error
        failure = malformed(node, error.reason)
        catalogue.hints.learn(stream, node, failure)
        raise failure from error


def _view(stream: Stream, fetched: Fetched) -> data_pb2.ReadBatchesResponse:
    freshness = fetched.freshness
    view = data_pb2.ReplicaView(applied_index=freshness.applied_index, age_ms_max=freshness.age_ms_max)
    return data_pb2.ReadBatchesResponse(next_offset=fetched.next_offset, view=view, stream_id=stream.stream_id)


def _unreadable(offset: int, error: WireError) -> MeshError:
    if error.code is WireCode.BAD_VERSION:
        return MeshError(
            ErrorCode.UPDATE_REQUIRED,
            f"The batch at or after offset {offset} has a format that this version does not know: update the node's "
            "software.",
        )
    return MeshError(
        ErrorCode.INTERNAL, f"The batch at or after offset {offset} cannot be read: {error.reason}. Audit the stream."
    )


def _given_up(catalogue: StreamsCatalogue, stream: Stream, failure: MeshError | None = None) -> MeshError:
    """Why no member answers: the local replica's reason says more than that nobody else is there."""
    replica = catalogue.readable(stream.stream_id)
    if replica is not None and replica.update_required is not None:
        return replica.update_required
    if failure is not None and failure.code is ErrorCode.UPDATE_REQUIRED:
        return failure
    return _unavailable(stream)


def _past_end(stream: Stream, from_offset: int, next_offset: int) -> MeshError:
    return MeshError(
        ErrorCode.OFFSET_PAST_END,
        f"Offset {from_offset} of {stream.name} does not exist yet: the next record will have offset {next_offset}.",
        {"offset": str(from_offset), "next_offset": str(next_offset)},
    )


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
