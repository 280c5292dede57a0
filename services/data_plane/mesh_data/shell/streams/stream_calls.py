"""What this site's callers ask about a stream, whoever leads it and through whichever port they came.

Leaves out: publishing (`publish_call`), reading (`read_call`), and the ports themselves (`data_api`, `client_session`).
"""

from __future__ import annotations

from typing import Final

from mesh_data.core.stream_requests import STORED_MAX, Method, decode_producer
from mesh_data.core.stream_state import ProducerReady
from mesh_data.core.view import Stream
from mesh_data.shell.groups.replica import Replica
from mesh_data.shell.streams.streams_asking import ask_leader
from mesh_data.shell.streams.streams_catalogue import StreamsCatalogue
from mesh_data.shell.streams.streams_serving import describe, init_producer
from meshapi.supervisor.v1 import data_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.peer_text import printable
from meshwire.entry import MAX_PRODUCER_NAME_BYTES
from meshwire.errors import WireError

_DESCRIBE_S: Final = 3.0
_MEMBERS_MAX: Final = 64
"""More than a stream has while its members change."""
_HASH_BYTES: Final = 32


async def begin_producer(catalogue: StreamsCatalogue, stream: Stream, name: str) -> ProducerReady:
    """Gives out a producer id, or the next epoch of a named one.

    Raises:
        MeshError: INVALID_ARGUMENT for a name that is too long; NO_QUORUM; what the catalogue and the leader raise.
    """
    encoded = name.encode()
    if len(encoded) > MAX_PRODUCER_NAME_BYTES:
        raise MeshError(
            ErrorCode.INVALID_ARGUMENT,
            f"The producer's name has {len(encoded)} bytes: use at most {MAX_PRODUCER_NAME_BYTES}.",
        )

    async def at_leader(replica: Replica) -> ProducerReady:
        return await init_producer(replica, name)

    return await ask_leader(
        catalogue,
        stream,
        Method.INIT_PRODUCER,
        encoded,
        at_leader=at_leader,
        decode=decode_producer,
        deadline_s=catalogue.groups.timing.publish_deadline_s,
    )


async def describe_live(catalogue: StreamsCatalogue, stream: Stream) -> data_pb2.DescribeStreamResponse:
    """Live state from the leader; from the local replica while there is none, then without members.

    Raises:
        MeshError: STREAM_UNAVAILABLE when neither answers; what the catalogue raises.
    """

    async def at_leader(replica: Replica) -> data_pb2.DescribeStreamResponse:
        return await describe(catalogue, replica)

    try:
        return await ask_leader(
            catalogue,
            stream,
            Method.DESCRIBE,
            b"",
            at_leader=at_leader,
            decode=lambda answer: _described(stream, answer),
            deadline_s=_DESCRIBE_S,
        )
    except MeshError as error:
        replica = catalogue.readable(stream.stream_id)
        if error.code != ErrorCode.NO_QUORUM:
            raise
        if replica is None:
            raise MeshError(
                ErrorCode.STREAM_UNAVAILABLE, f"No leader of {stream.name} answers: try again.", error.details
            ) from error
        return await describe(catalogue, replica)


def _described(stream: Stream, answer: bytes) -> data_pb2.DescribeStreamResponse:
    """What another node says of the stream, with text that can be shown.

    Raises:
        DecodeError, WireError: it is malformed.
    """
    found = data_pb2.DescribeStreamResponse.FromString(answer)
    numbers = (found.next_offset, found.term, found.applied_index, found.retained_bytes)
    if max(numbers) > STORED_MAX or found.floor_offset > found.next_offset:
        raise WireError("a number is out of range")
    if len(found.members) > _MEMBERS_MAX or len(found.state_hash) > _HASH_BYTES:
        raise WireError("it has too many members, or too long a hash")
    members = [
        data_pb2.MemberProgress(
            node=printable(member.node),
            is_voter=member.is_voter,
            matched_index=min(member.matched_index, STORED_MAX),
            quiet_ms=min(member.quiet_ms, STORED_MAX),
        )
        for member in found.members
    ]
    return data_pb2.DescribeStreamResponse(
        stream=stream.name,
        floor_offset=found.floor_offset,
        next_offset=found.next_offset,
        leader=printable(found.leader),
        term=found.term,
        applied_index=found.applied_index,
        state_hash=found.state_hash,
        members=members,
        retained_bytes=found.retained_bytes,
        change=printable(found.change),
        stream_id=stream.stream_id,
        reason=printable(found.reason),
    )
