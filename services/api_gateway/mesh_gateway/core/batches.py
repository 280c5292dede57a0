"""Records into batches and back, for callers that do not do that themselves: REST, and gRPC calls that speak of records.

Purpose: between the gateway and the data plane travel batches as bytes (docs/design/batches.md). Pure. Leaves out: calls
and streams (shell), JSON (`records`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from mesh_gateway.core.byte_budget import Share
from meshapi.supervisor.v1 import data_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.record_batches import open_batch
from meshcommon.record_json import read_record
from meshwire.batch import MAX_BODY_BYTES, MAX_RECORD_BYTES, MAX_RECORDS, decode_header
from meshwire.errors import WireCode, WireError
from meshwire.records import Headers, Record, encode_batch

KEY_BYTES_MAX: Final = 32 * 1024
CHUNK_BYTES: Final = 256 * 1024
CHUNK_RECORDS: Final = 1000
"""An answer with records holds no more than these, except for one record that is larger."""


def encode_request(request: data_pb2.PublishRequest, context: Headers, now_ms: int) -> bytes:
    """The batch of a request.

    Args:
        request: Records and producer.
        context: Headers of the call, its trace for instance. Each record gets those that it does not have; a batch that
            would become too large by them goes without.
        now_ms: Milliseconds since 1970.

    Raises:
        MeshError: EMPTY_BATCH, MESSAGE_TOO_LARGE, INVALID_ARGUMENT.
    """
    if not request.records:
        raise MeshError(ErrorCode.EMPTY_BATCH, "The batch has no records: send at least one.")
    records = [_record(item) for item in request.records]
    for record in records:
        key_bytes = len(record.key) if record.key is not None else 0
        if key_bytes > KEY_BYTES_MAX:
            raise _too_large("A key", key_bytes, KEY_BYTES_MAX, "bytes")
        if len(record.value) + key_bytes > MAX_RECORD_BYTES:
            raise _too_large("A record", len(record.value) + key_bytes, MAX_RECORD_BYTES, "bytes")
    if len(records) > MAX_RECORDS:
        raise _too_large("The batch", len(records), MAX_RECORDS, "records")
    producer = (request.producer_id, request.producer_epoch, request.base_sequence)
    try:
        return encode_batch([_within(record, context) for record in records], *producer, timestamps_ms=(now_ms, now_ms))
    except WireError:
        # With the context's headers it is too large, or has too many; if it is wrong by itself, the next call says how.
        pass
    try:
        return encode_batch(records, *producer, timestamps_ms=(now_ms, now_ms))
    except WireError as error:
        if error.code != WireCode.TOO_LARGE:
            raise MeshError(ErrorCode.INVALID_ARGUMENT, f"The batch cannot be encoded: {error.reason}.") from error
        raise MeshError(
            ErrorCode.MESSAGE_TOO_LARGE,
            f"The batch is too large: {error.reason}. Split it.",
            {"limit": str(MAX_BODY_BYTES)},
        ) from error


class RecordSpan:
    """The records that a read still wants: those from `next_offset` on, `remaining` of them (None: all)."""

    def __init__(self, from_offset: int, records_max: int) -> None:
        self.next_offset = from_offset
        self.remaining = records_max or None

    @property
    def is_complete(self) -> bool:
        """Whether nothing more is wanted."""
        return self.remaining == 0

    def responses(self, answer: data_pb2.ReadBatchesResponse, share: Share) -> Iterator[data_pb2.ReadResponse]:
        """The wanted records of an answer, in answers of a bounded size. `share` bounds the large batches that are open.

        Raises:
            MeshError: BATCH_UNREADABLE once the records before that batch were given; BACKPRESSURE.
        """
        if not answer.batches:
            yield data_pb2.ReadResponse(
                next_offset=answer.next_offset,
                stream_id=answer.stream_id,
                view=answer.view if answer.HasField("view") else None,
            )
        records: list[data_pb2.ReadRecord] = []
        size_bytes = 0
        failure: MeshError | None = None
        for batch in answer.batches:
            try:
                opened = self._opened(batch, share)
            except MeshError as error:
                failure = error
                break
            for record in opened:
                record_bytes = record.ByteSize()
                if records and (len(records) >= CHUNK_RECORDS or size_bytes + record_bytes > CHUNK_BYTES):
                    yield _response(answer, records)
                    records, size_bytes = [], 0
                records.append(record)
                size_bytes += record_bytes
            if self.is_complete:
                break
        if records:
            yield _response(answer, records)
        if failure is not None:
            raise failure

    def _opened(self, batch: data_pb2.ReadBatch, share: Share) -> Iterator[data_pb2.ReadRecord]:
        opened_bytes = _opened_bytes(batch.batch)
        share.take(opened_bytes)
        records = open_batch(batch.base_offset, batch.batch)
        return self._wanted(batch, records, share, opened_bytes)

    def _wanted(
        self, batch: data_pb2.ReadBatch, records: Sequence[Record], share: Share, opened_bytes: int
    ) -> Iterator[data_pb2.ReadRecord]:
        for offset, record in enumerate(records, batch.base_offset):
            if offset < self.next_offset:
                continue
            if self.is_complete:
                break
            if self.remaining is not None:
                self.remaining -= 1
            self.next_offset = offset + 1
            yield read_record(offset, batch.timestamp_ms, record)
        share.give_back(opened_bytes)


def _opened_bytes(batch: bytes) -> int:
    """What the batch takes of the budget once it is open: nothing, if that is no more than the largest that is not compressed.

    Any read may hold so much. Otherwise readers of a few hostile batches, who take nothing, would hold up all others.
    """
    try:
        size_bytes = decode_header(batch).uncompressed_bytes
    except WireError:
        return 0  # nothing is opened
    return size_bytes if size_bytes > MAX_BODY_BYTES else 0


def _response(answer: data_pb2.ReadBatchesResponse, records: list[data_pb2.ReadRecord]) -> data_pb2.ReadResponse:
    return data_pb2.ReadResponse(records=records, next_offset=answer.next_offset, stream_id=answer.stream_id)


def _record(item: data_pb2.PublishRecord) -> Record:
    headers = tuple((header.name, header.value) for header in item.headers)
    return Record(item.value, item.key if item.HasField("key") else None, headers)


def _within(record: Record, context: Headers) -> Record:
    own = {name for name, _ in record.headers}
    added = tuple((name, value) for name, value in context if name not in own)
    return Record(record.value, record.key, record.headers + added) if added else record


def _too_large(what: str, size: int, limit: int, unit: str) -> MeshError:
    return MeshError(
        ErrorCode.MESSAGE_TOO_LARGE,
        f"{what} has {size} {unit}, the limit is {limit}: split it.",
        {"size": str(size), "limit": str(limit)},
    )
