"""Asking a stream's leader, wherever it is, until it answers or the time is up.

For requests that may be repeated: InitProducer and Describe. Leaves out: batches, which keep an order (`publish_call`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from mesh_data.core.stream_requests import Method, encode_stream_body
from mesh_data.core.view import Stream
from mesh_data.shell.replica import Replica
from mesh_data.shell.streams_catalogue import StreamsCatalogue
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NO_NODE, StreamId

T = TypeVar("T")

PAUSE_S: Final = 0.05
"""Between two tries when nobody knows the leader; a change at the local replica ends it."""
ELSEWHERE: Final = frozenset(
    {
        ErrorCode.NOT_LEADER,
        ErrorCode.UNKNOWN_GROUP,
        ErrorCode.STREAM_NOT_FORMED,
        ErrorCode.BACKPRESSURE,
        ErrorCode.DISK_PRESSURE,
        ErrorCode.NO_QUORUM,
        ErrorCode.STREAM_UNAVAILABLE,
        ErrorCode.NODE_STOPPED,
        ErrorCode.NOT_A_MEMBER,
    }
)
"""Refusals of one node, before anything was appended: another node, or a later try, may do it."""
UNKNOWN: Final = frozenset(
    {
        ErrorCode.OUTCOME_UNKNOWN,
        ErrorCode.DEADLINE_EXCEEDED,
        ErrorCode.NO_PATH,
        ErrorCode.UNAVAILABLE,
        ErrorCode.STORAGE_FAILED,
    }
)
"""Failures after which the request may or may not have taken effect."""


async def ask_leader(
    catalogue: StreamsCatalogue,
    stream_id: StreamId,
    method: Method,
    body: bytes,
    *,
    at_leader: Callable[[Replica], Awaitable[T]],
    decode: Callable[[bytes], T],
    deadline_s: float,
) -> T:
    """Asks the leader, again and again.

    Raises:
        MeshError: the leader's refusal; NO_QUORUM when no leader answered within `deadline_s`; what the catalogue raises.
    """
    loop = asyncio.get_running_loop()
    attempt_s = catalogue.groups.timing.attempt_s
    deadline = loop.time() + deadline_s
    while True:
        stream = catalogue.stream(stream_id)
        node = catalogue.leader(stream)
        remaining_s = deadline - loop.time()
        if remaining_s <= 0:
            raise no_quorum(stream, deadline_s)
        try:
            if node == catalogue.overlay.node_id:
                replica = catalogue.served(stream_id)
                async with asyncio.timeout(remaining_s):
                    return await at_leader(replica)
            if node != NO_NODE:
                timeout_s = min(attempt_s, remaining_s)
                request = encode_stream_body(stream_id, body)
                answer = decode(await catalogue.overlay.call(node, method, request, timeout_s))
                catalogue.learn(stream, node, None)
                return answer
        except TimeoutError:
            raise no_quorum(stream, deadline_s) from None
        except MeshError as error:
            if error.code not in ELSEWHERE and error.code not in UNKNOWN:
                raise
            if catalogue.learn(stream, node, error):
                continue
        await pause(catalogue, stream_id, min(PAUSE_S, max(0.0, deadline - loop.time())))


async def pause(catalogue: StreamsCatalogue, stream_id: StreamId, limit_s: float) -> None:
    """Waits for a change at the local replica, at most `limit_s`."""
    replica = catalogue.groups.replica(stream_id)
    if replica is None:
        await asyncio.sleep(limit_s)
        return
    await wait_set(replica.changed, limit_s)


async def wait_set(event: asyncio.Event, limit_s: float) -> bool:
    """Waits until `event` is set, at most `limit_s`; whether it is."""
    try:
        async with asyncio.timeout(limit_s):
            return await event.wait()
    except TimeoutError:
        return False


def no_quorum(stream: Stream, waited_s: float) -> MeshError:
    """No leader answered."""
    return MeshError(
        ErrorCode.NO_QUORUM,
        f"No leader of {stream.name} answered within {waited_s:g} s: a majority of its members has to be up and reachable; "
        "try again.",
        {"stream": stream.name},
    )
