"""REST: the catalogue of streams, publish and read."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Final, Literal

import pydantic
from fastapi import APIRouter, Path, Query, Request, status
from fastapi.exceptions import RequestValidationError

from mesh_gateway.core.records import publish_record
from mesh_gateway.shell import models
from mesh_gateway.shell.calls import Calls
from mesh_gateway.shell.conversions import live_model, node_names, stream_model
from meshapi.common.v1 import view_pb2
from meshapi.supervisor.v1 import data_pb2, mesh_pb2
from meshcommon import ids
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.record_json import record_json
from meshcommon.stream_ids import stream_replaced

Namespace = Annotated[str, Path(description="Namespace of the stream.", examples=["demo"])]
Name = Annotated[str, Path(description="Name of the stream within its namespace.", examples=["lines"])]
From = Annotated[
    int | None,
    Query(alias="from", ge=0, lt=2**63, description="First offset; without it the first retained one."),
]
StreamId = Annotated[
    int,
    Query(
        ge=0,
        lt=2**63,
        description="Id of the stream that is meant: another one of that name refuses (STREAM_REPLACED). Without it "
        "whichever there is now.",
    ),
]

_JSON: Final = "application/json"
_OCTETS: Final = "application/octet-stream"
_PUBLISH_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            _JSON: {
                "schema": {"$ref": "#/components/schemas/PublishBody"},
                "example": {"wait": "committed", "records": [{"value": "hello"}]},
            },
            _OCTETS: {"schema": {"type": "string", "format": "binary", "description": "Value of one record."}},
        },
    },
    "parameters": [
        {
            "name": "wait",
            "in": "query",
            "description": "Needed with a binary body, which has no room for it.",
            "schema": {"type": "string", "enum": ["committed"]},
        }
    ],
}


def catalogue_router(calls: Calls) -> APIRouter:
    """Routes of the catalogue, answered by the control plane; live state comes from the data plane."""
    router = APIRouter(prefix="/v1/streams", tags=["streams"])

    @router.get("", summary="Streams")
    async def list_streams() -> models.Streams:
        """Streams of the catalogue, by name."""
        streams, node = await _both(calls.list_streams(), calls.status())
        names = node_names(node)
        return models.Streams(
            streams=[stream_model(stream, names) for stream in sorted(streams.streams, key=lambda item: item.name)]
        )

    @router.post("", summary="Create a stream", status_code=status.HTTP_201_CREATED)
    async def create_stream(body: models.CreateStreamBody) -> models.CreatedStream:
        """Creates a stream and answers when its group has formed.

        Errors: MEMBER_COUNT, UNKNOWN_NODE, STREAM_EXISTS, ILLEGAL_NAME, MESH_CRITICAL, NO_QUORUM, STREAM_NOT_FORMED
        (created, still forming: ask again).
        """
        request = mesh_pb2.CreateStreamRequest(
            name=body.name, members=body.members, retained_bytes_max=body.retained_bytes_max
        )
        answer = await calls.create_stream(request)
        stream = await _named(answer.stream)
        return models.CreatedStream(**stream.model_dump(), warnings=list(answer.warnings))

    @router.get("/{namespace}/{name}", summary="One stream")
    async def get_stream(namespace: Namespace, name: Name, stream_id: StreamId = 0) -> models.StreamInfo:
        """A stream of the catalogue with its live state. Errors: STREAM_NOT_FOUND, STREAM_REPLACED."""
        stream_name = f"{namespace}/{name}"
        found = await calls.get_stream(stream_name)
        if stream_id not in (0, found.stream.stream_id):
            raise _replaced((await calls.status()).view, found.stream, stream_id)
        stream = await _named(found.stream)
        live: models.StreamLive | None = None
        warnings: list[str] = []
        try:
            live = live_model(await calls.describe(stream_name, found.stream.stream_id))
        except MeshError as error:
            # The catalogue's part is worth having while the group has no leader.
            warnings.append(f"{error.code}: {error.message}")
        return models.StreamInfo(**stream.model_dump(), live=live, warnings=warnings)

    @router.delete("/{namespace}/{name}", summary="Delete a stream", status_code=status.HTTP_204_NO_CONTENT)
    async def delete_stream(namespace: Namespace, name: Name) -> None:
        """Deletes a stream and its data on every member. Errors: STREAM_NOT_FOUND, NO_QUORUM."""
        await calls.delete_stream(f"{namespace}/{name}")

    async def _named(stream: view_pb2.StreamView) -> models.Stream:
        return stream_model(stream, node_names(await calls.status()))

    return router


def records_router(calls: Calls) -> APIRouter:
    """Routes that publish and read, answered by the data plane."""
    router = APIRouter(prefix="/v1/streams/{namespace}/{name}", tags=["records"])
    _add_publishing(router, calls)
    _add_reading(router, calls)
    return router


def _add_publishing(router: APIRouter, calls: Calls) -> None:
    @router.post("/producers", summary="Get a producer id", status_code=status.HTTP_201_CREATED)
    async def init_producer(
        namespace: Namespace, name: Name, body: models.InitProducerBody | None = None
    ) -> models.Producer:
        """With a producer id a repeated publish is recognised for ever.

        The same non-empty name gets the same id with a higher epoch, which fences the earlier holder.
        Errors: STREAM_NOT_FOUND, STREAM_REPLACED, NO_QUORUM.
        """
        given = body or models.InitProducerBody()
        answer = await calls.init_producer(f"{namespace}/{name}", given.producer_name, given.stream_id)
        return models.Producer(
            producer_id=answer.producer_id,
            producer_epoch=answer.producer_epoch,
            next_sequence=answer.next_sequence,
            last_offset_next=answer.last_offset_next,
            stream_id=answer.stream_id,
        )

    @router.post("/records", summary="Publish", openapi_extra=_PUBLISH_BODY)
    async def publish(request: Request, namespace: Namespace, name: Name, stream_id: StreamId = 0) -> models.Published:
        """Publishes a batch of records (JSON) or one record (binary), and answers when it is complete.

        `wait` is required. Without a producer a publish is at-least-once: repeating it may double the records.
        `stream_id` may stand in the query or in a JSON body.
        Errors: WAIT_REQUIRED, STREAM_NOT_FOUND, STREAM_REPLACED, EMPTY_BATCH, MESSAGE_TOO_LARGE, BACKPRESSURE, STREAM_UNAVAILABLE,
        OUTCOME_UNKNOWN; with a producer also PRODUCER_FENCED, PRODUCER_EXPIRED, SEQUENCE_GAP.
        """
        message = await _publish_request(request)
        message.stream = f"{namespace}/{name}"
        message.wait = data_pb2.PUBLISH_WAIT_COMMITTED
        if stream_id and message.stream_id not in (0, stream_id):
            raise MeshError(
                ErrorCode.INVALID_ARGUMENT,
                f"The query names stream {stream_id}, the body stream {message.stream_id}: name one.",
                {"field": "stream_id"},
            )
        message.stream_id = message.stream_id or stream_id
        answer = await calls.publish(message)
        return models.Published(
            base_offset=answer.base_offset,
            count=answer.count,
            is_duplicate=answer.is_duplicate,
            stream_id=answer.stream_id,
        )


def _add_reading(router: APIRouter, calls: Calls) -> None:
    @router.get("/records", summary="Read", response_model_exclude_none=True)
    async def read(
        namespace: Namespace,
        name: Name,
        from_offset: From = None,
        records_max: Annotated[int, Query(alias="max", ge=1, le=1_000, description="Records at most.")] = 100,
        consistency: Annotated[
            Literal["linearizable", "stale_ok"],
            Query(
                description="`linearizable`: everything acknowledged before is in it, or STREAM_UNAVAILABLE when no leader "
                "confirms that in time. `stale_ok`: what this site's replica has; `view` says how old that is at most."
            ),
        ] = "linearizable",
        stream_id: StreamId = 0,
    ) -> models.Records:
        """Reads committed records in order; an empty page means that the end is reached.

        An offset belongs to one stream: give `stream_id` of the last page with its `continue_from`.
        Errors: STREAM_NOT_FOUND, STREAM_REPLACED, OFFSET_PAST_END, OFFSET_BELOW_FLOOR, STREAM_UNAVAILABLE, BATCH_UNREADABLE
        (`next_offset` in the details is where to go on).
        """
        stream = f"{namespace}/{name}"
        if from_offset is None:
            stream_id, first = await calls.beginning(stream, stream_id)
        else:
            first = from_offset
        page = await calls.read(stream, first, records_max, stream_id=stream_id, is_stale_ok=consistency == "stale_ok")
        return models.Records(
            records=[models.ReadRecord.model_validate(record_json(record)) for record in page.records],
            next_offset=page.next_offset,
            continue_from=page.records[-1].offset + 1 if page.records else first,
            stream_id=page.stream_id,
            view=None if page.view is None else _view(page.view),
        )


def _replaced(view: view_pb2.MeshView, stream: view_pb2.StreamView, expected: int) -> MeshError:
    names = {ids.StreamId(item.stream_id): item.name for item in view.streams}
    present = ids.StreamId(stream.stream_id)
    return stream_replaced(stream.name, present, ids.StreamId(expected), names, view.next_stream_id)


def _view(view: data_pb2.ReplicaView) -> models.ReplicaView:
    age_ms_max = view.age_ms_max if view.HasField("age_ms_max") else None
    return models.ReplicaView(applied_index=view.applied_index, age_ms_max=age_ms_max)


async def _publish_request(request: Request) -> data_pb2.PublishRequest:
    """The request's records and producer, by its media type; stream and wait are still missing."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = await request.body()
    if media_type == _OCTETS:
        _check_wait(request.query_params.get("wait"))
        return data_pb2.PublishRequest(records=[data_pb2.PublishRecord(value=body)])
    if media_type != _JSON:
        raise MeshError(
            ErrorCode.MEDIA_TYPE_NOT_SUPPORTED,
            f"Publish takes {_JSON} (records) or {_OCTETS} (the value of one record), not {media_type or 'nothing'!r}: "
            "set Content-Type.",
            {"content_type": media_type},
        )
    try:
        given = models.PublishBody.model_validate_json(body)
    except pydantic.ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False)) from None
    message = data_pb2.PublishRequest(
        records=[publish_record(record, position) for position, record in enumerate(given.records)],
        stream_id=given.stream_id,
    )
    if given.producer is not None:
        message.producer_id = given.producer.id
        message.producer_epoch = given.producer.epoch
        message.base_sequence = given.producer.base_sequence
    return message


def _check_wait(wait: str | None) -> None:
    if wait is None:
        raise MeshError(ErrorCode.WAIT_REQUIRED, "Say what the publish waits for: add ?wait=committed.")
    if wait != "committed":
        raise MeshError(
            ErrorCode.INVALID_ARGUMENT,
            f"wait={wait[:40]!r} is not known: `committed` is its only value for now.",
            {"field": "wait"},
        )


async def _both(left: Any, right: Any) -> tuple[Any, Any]:
    """Two calls at the same time; the first error ends both."""
    try:
        async with asyncio.TaskGroup() as tasks:
            one = tasks.create_task(left, name="first call")
            other = tasks.create_task(right, name="second call")
    except* MeshError as group:
        raise group.exceptions[0] from None
    return one.result(), other.result()
