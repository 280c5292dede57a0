"""What this site's callers ask about a stream, whoever leads it and through whichever port they came.

Leaves out: publishing (`publish_call`), reading (`read_call`), and the ports themselves (`data_api`, `client_session`).
"""

from __future__ import annotations

from typing import Final

from mesh_data.core.stream_requests import Method, decode_producer
from mesh_data.core.stream_state import ProducerReady
from mesh_data.core.view import Stream
from mesh_data.shell.replica import Replica
from mesh_data.shell.streams_asking import ask_leader
from mesh_data.shell.streams_catalogue import StreamsCatalogue
from mesh_data.shell.streams_serving import describe, init_producer
from meshapi.supervisor.v1 import data_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshwire.entry import MAX_PRODUCER_NAME_BYTES

_DESCRIBE_S: Final = 3.0


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
        stream.stream_id,
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
            stream.stream_id,
            Method.DESCRIBE,
            b"",
            at_leader=at_leader,
            decode=data_pb2.DescribeStreamResponse.FromString,
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
