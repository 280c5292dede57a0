"""WebSocket: follow a stream, one JSON message a batch.

Message: `{"records": [...], "next_offset": N, "stream_id": N}`, records as REST reads them. With `stream_id=N` the offset is
one of that stream, and another one of its name refuses the follow. One that was followed to its deletion ends with
STREAM_NOT_FOUND or STREAM_REPLACED; at a batch that cannot be opened with BATCH_UNREADABLE, whose details tell where to
follow again. An error is one message with the problem document, then a close with 1008 (the request is wrong) or 1011 (try
again later). Nothing is queued here: the next batch
is taken from the data plane when the last one has been handed to the connection, so a slow reader slows only its own
read. What the client sends is dropped; its close ends the read.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Final

import orjson
from fastapi import APIRouter, WebSocket
from starlette.websockets import WebSocketDisconnect

from mesh_gateway.shell.calls import Calls
from mesh_gateway.shell.known_query import check_query
from mesh_gateway.shell.metrics import GatewayMetrics
from meshapi.supervisor.v1 import data_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.logging import correlation_id, get_logger
from meshcommon.problem import problem_of
from meshcommon.record_json import record_json

CLOSE_POLICY: Final = 1008
CLOSE_INTERNAL: Final = 1011

_QUERY: Final = frozenset({"from", "stream_id"})
_log = get_logger(__name__)


def follow_router(calls: Calls, metrics: GatewayMetrics) -> APIRouter:
    """The one WebSocket route."""
    router = APIRouter(tags=["records"])

    @router.websocket("/v1/streams/{namespace}/{name}/follow")
    async def follow(websocket: WebSocket, namespace: str, name: str) -> None:
        await websocket.accept()
        with metrics.followers.track_inprogress():
            await _Follower(websocket, calls, f"{namespace}/{name}").run()

    return router


class _Follower:
    """One WebSocket that follows one stream."""

    def __init__(self, websocket: WebSocket, calls: Calls, stream: str) -> None:
        self._websocket = websocket
        self._calls = calls
        self._stream = stream

    async def run(self) -> None:
        """Until the client goes, or the read fails."""
        async with asyncio.TaskGroup() as tasks:
            sender = tasks.create_task(self._send(), name=f"follow {self._stream}")
            watcher = tasks.create_task(self._wait_until_gone(), name=f"follower of {self._stream}")
            # Whoever ends first ends the other; a cancelled task does not fail the group.
            sender.add_done_callback(lambda _: watcher.cancel())
            watcher.add_done_callback(lambda _: sender.cancel())

    async def _send(self) -> None:
        try:
            await self._send_batches()
        except MeshError as error:
            _log.info("follow_failed", stream=self._stream, code=error.code)
            await self._refuse(error)
        except WebSocketDisconnect:
            _log.debug("follower_gone", stream=self._stream)

    async def _send_batches(self) -> None:
        query = self._websocket.query_params
        check_query(query, _QUERY)
        first = _first_offset(query.get("from"))
        stream_id = (
            _number(query.get("stream_id"), "stream_id", "a stream's id: give the number that an answer told") or 0
        )
        if first is None:
            stream_id, first = await self._calls.beginning(self._stream, stream_id)
        async with aclosing(self._calls.follow(self._stream, first, stream_id)) as batches:
            async for batch in batches:
                await self._websocket.send_text(_message(batch))
        raise MeshError(ErrorCode.UNAVAILABLE, "The data plane ended the read; follow again from the next offset.")

    async def _refuse(self, error: MeshError) -> None:
        try:
            await self._websocket.send_text(orjson.dumps(problem_of(error, correlation_id.get())).decode())
            code = CLOSE_INTERNAL if error.mapping.http >= 500 else CLOSE_POLICY
            await self._websocket.close(code, str(error.code))
        except WebSocketDisconnect:
            _log.debug("follower_gone", stream=self._stream)

    async def _wait_until_gone(self) -> None:
        while (await self._websocket.receive())["type"] != "websocket.disconnect":
            pass


def _message(batch: data_pb2.ReadResponse) -> str:
    records = [record_json(record) for record in batch.records]
    message = {"records": records, "next_offset": batch.next_offset, "stream_id": batch.stream_id}
    return orjson.dumps(message).decode()


def _first_offset(given: str | None) -> int | None:
    return _number(given, "from", "an offset: give a number from 0, or leave it out for the first retained one")


def _number(given: str | None, field: str, what: str) -> int | None:
    """A number of the query, None when it was not given. Raises INVALID_ARGUMENT."""
    if given is None:
        return None
    if not (given.isascii() and given.isdigit()) or int(given[:20]) >= 2**63:
        raise MeshError(ErrorCode.INVALID_ARGUMENT, f"{field}={given[:40]!r} is not {what}.", {"field": field})
    return int(given)
