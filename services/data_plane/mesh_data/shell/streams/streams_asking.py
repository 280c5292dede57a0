"""Asking a stream's leader, wherever it is, until it answers or the time is up.

For requests that may be repeated: InitProducer and Describe. Leaves out: batches, which keep an order (`publish_call`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from google.protobuf.message import DecodeError

from mesh_data.core.publish_flow import PAUSE_S
from mesh_data.core.stream_requests import Method, encode_stream_body
from mesh_data.core.view import Stream
from mesh_data.shell.groups.replica import Replica
from mesh_data.shell.stream_errors import malformed
from mesh_data.shell.streams.streams_catalogue import StreamsCatalogue
from meshcommon.errors import ErrorCode, MeshError, Retry
from meshcommon.ids import NO_NODE, NodeId, StreamId
from meshwire.errors import WireError

T = TypeVar("T")


async def ask_leader(
    catalogue: StreamsCatalogue,
    asked: Stream,
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
    stream_id, name = asked.stream_id, asked.name
    loop = asyncio.get_running_loop()
    attempt_s = catalogue.groups.timing.attempt_s
    deadline = loop.time() + deadline_s
    has_followed = False
    while True:
        stream = catalogue.stream(stream_id, name)
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
                answer = await catalogue.overlay.call(node, method, request, timeout_s)
                decoded = _decoded(decode, node, answer)
                catalogue.hints.learn(stream, node, None)
                return decoded
        except TimeoutError:
            raise no_quorum(stream, deadline_s) from None
        except MeshError as error:
            if error.elsewhere is Retry.FINAL:
                raise
            # A second hint in a row waits: two nodes that name each other must not be asked in a tight loop.
            has_followed = catalogue.hints.learn(stream, node, error) and not has_followed
            if has_followed:
                continue
        await pause(catalogue, stream_id, min(PAUSE_S, max(0.0, deadline - loop.time())))


def _decoded(decode: Callable[[bytes], T], node: NodeId, answer: bytes) -> T:
    """Raises UNAVAILABLE for a response that cannot be read: another member may do better."""
    try:
        return decode(answer)
    except (WireError, DecodeError) as error:
        raise malformed(node, str(error)) from error


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
        "try again. `meshctl raft ls` says whom the group waits for; when a member is lost for good, `meshctl raft recover` is "
        "the way out.",
        {"stream": stream.name},
    )
