"""What this node answers other nodes about the streams it holds: publish, init producer, fetch, describe.

Leaves out: the overlay's request machinery, and this site's own callers (`data_api`). Source: architecture §5.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from mesh_data.core.publish_flow import QUEUED_BYTES_MAX
from mesh_data.core.publish_window import MESSAGE_COST_BYTES
from mesh_data.core.stream_requests import (
    Method,
    decode_fetch,
    decode_stream_body,
    encode_fetched,
    encode_producer,
    encode_published,
)
from mesh_data.core.stream_state import ProducerReady, Refused
from mesh_data.shell.groups.proposals import Answer
from mesh_data.shell.groups.replica import Replica
from mesh_data.shell.stream_errors import bad_batch, storage_failed
from mesh_data.shell.streams.byte_room import ByteCount, ByteRoom
from mesh_data.shell.streams.read_call import confirmed_end, fetch_local, wait_for_more
from mesh_data.shell.streams.streams_catalogue import StreamsCatalogue
from meshapi.supervisor.v1 import data_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NO_NODE, NodeId
from meshcommon.peer_text import printable
from meshraft import RaftError
from meshwire.batch import decode_header
from meshwire.entry import MAX_PRODUCER_NAME_BYTES
from meshwire.errors import WireError

_FETCH_BYTES_MAX: Final = 512 * 1024
"""One answer; a single larger batch still goes as a whole and fits a packet."""
_FETCH_WAIT_S_MAX: Final = 10.0
PUBLISHES_BYTES_MAX: Final = 192 * 1024 * 1024
"""Batches of other nodes that wait here for their quorum; no node may take more than a quarter of what is left."""
_PUBLISHES_BYTES_OF_ONE: Final = 48 * 1024 * 1024


class StreamsServing:
    """Handlers of overlay requests; construction binds them."""

    def __init__(self, catalogue: StreamsCatalogue, read_room: ByteRoom) -> None:
        self._catalogue = catalogue
        self._read_room = read_room
        self._publishes = ByteCount(PUBLISHES_BYTES_MAX)
        self._publishes_of: Counter[NodeId] = Counter()
        overlay = catalogue.overlay
        overlay.serve(Method.PUBLISH, self._publish)
        overlay.serve(Method.INIT_PRODUCER, self._init_producer)
        overlay.serve(Method.FETCH, self._fetch)
        overlay.serve(Method.DESCRIBE, self._describe)

    async def _publish(self, source: NodeId, body: bytes) -> bytes:
        cost_bytes = len(body) + MESSAGE_COST_BYTES
        held_bytes = self._publishes_of[source]
        share_bytes = self._publishes.share_bytes(_PUBLISHES_BYTES_OF_ONE)
        if self._publishes.is_full or (held_bytes and held_bytes + cost_bytes > share_bytes):
            raise MeshError(
                ErrorCode.BACKPRESSURE, f"Node {source} waits for {held_bytes} bytes of batches here: wait a moment."
            )
        self._publishes.used_bytes += cost_bytes
        self._publishes_of[source] += cost_bytes
        try:
            return await self._published(body)
        finally:
            self._publishes.used_bytes -= cost_bytes
            self._publishes_of[source] -= cost_bytes
            if not self._publishes_of[source]:
                del self._publishes_of[source]

    async def _published(self, body: bytes) -> bytes:
        try:
            stream_id, batch = decode_stream_body(body)
            header = decode_header(batch, verify=True)
        except WireError as error:
            raise bad_batch(error) from error
        replica = self._catalogue.served(stream_id)
        answer = await replica.publish(batch, header, is_request=True)
        return encode_published(await replica.published(answer, header))

    async def _init_producer(self, _source: NodeId, body: bytes) -> bytes:
        try:
            stream_id, name = decode_stream_body(body)
            text = name.decode()
        except ValueError as error:
            raise MeshError(
                ErrorCode.INVALID_ARGUMENT, f"The request cannot be read: {printable(str(error))}."
            ) from error
        if len(name) > MAX_PRODUCER_NAME_BYTES:
            raise MeshError(ErrorCode.INVALID_ARGUMENT, f"The producer's name has {len(name)} bytes.")
        return encode_producer(await init_producer(self._catalogue.served(stream_id), text))

    async def _fetch(self, source: NodeId, body: bytes) -> bytes:
        try:
            request = decode_fetch(body)
        except WireError as error:
            raise MeshError(ErrorCode.INVALID_ARGUMENT, f"The request cannot be read: {error.reason}.") from error
        replica = self._catalogue.served(request.stream_id)
        if replica.is_blank:
            raise MeshError(
                ErrorCode.STREAM_UNAVAILABLE, f"{replica.stream.name} has not reached this member yet: ask another one."
            )
        if not request.bytes_max:
            return encode_fetched(await confirmed_end(replica, min(request.wait_ms / 1000, _FETCH_WAIT_S_MAX)))
        if self._catalogue.queued_bytes(source) > QUEUED_BYTES_MAX:
            raise MeshError(ErrorCode.BACKPRESSURE, f"The way to node {source} is full: wait a moment.")
        bytes_max = min(request.bytes_max, _FETCH_BYTES_MAX)
        wait_s = min(request.wait_ms / 1000, _FETCH_WAIT_S_MAX)
        await wait_for_more(replica, request.offset, wait_s)
        return encode_fetched(await fetch_local(self._read_room, replica, request.offset, bytes_max))

    async def _describe(self, _source: NodeId, body: bytes) -> bytes:
        try:
            stream_id, _ = decode_stream_body(body)
        except WireError as error:
            raise MeshError(ErrorCode.INVALID_ARGUMENT, f"The request cannot be read: {error.reason}.") from error
        replica = self._catalogue.served(stream_id)
        if not replica.is_leading:
            raise replica.not_leader()
        return (await describe(self._catalogue, replica)).SerializeToString()


async def init_producer(replica: Replica, name: str) -> ProducerReady:
    """Proposes an InitProducer at the leader and waits for it."""
    return _producer_ready(await replica.init_producer(name))


def _producer_ready(answer: Answer) -> ProducerReady:
    """The answer to an InitProducer. Raises MeshError."""
    match answer:
        case ProducerReady() as ready:
            return ready
        case Refused(code, message, details):
            raise MeshError(code, message, details)
        case MeshError() as error:
            raise error
        case other:
            raise AssertionError(f"an InitProducer came to {other}")


async def describe(catalogue: StreamsCatalogue, replica: Replica) -> data_pb2.DescribeStreamResponse:
    """The stream as this replica sees it; members only where it leads."""
    try:
        status = replica.status()
    except RaftError as error:
        raise storage_failed(replica.stream.name, str(error)) from error
    view = catalogue.view()
    state = replica.state
    tick_ms = catalogue.groups.timing.tick_s * 1000
    members = [
        data_pb2.MemberProgress(
            node=view.name_of(NodeId(item.peer)),
            is_voter=item.voter,
            matched_index=item.matched,
            quiet_ms=int(item.quiet_ticks * tick_ms),
        )
        for item in status.progress
    ]
    return data_pb2.DescribeStreamResponse(
        stream=replica.stream.name,
        floor_offset=replica.floor_offset,
        next_offset=replica.next_offset,
        leader=view.name_of(replica.leader_node) if replica.leader_node != NO_NODE else "",
        term=status.term,
        applied_index=state.applied_index,
        state_hash=state.chain,
        members=sorted(members, key=lambda member: member.node),
        retained_bytes=state.retained_bytes,
        change=replica.leader.change,
        stream_id=replica.stream.stream_id,
        reason=replica.update_required.message if replica.update_required is not None else "",
    )
