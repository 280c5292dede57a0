"""How a record that was read appears as a message and in JSON, the same at the gateway and on the command line.

A value, key or header that is valid UTF-8 appears as text under its own name, anything else as base64 under NAME_base64. So
the common case reads well and nothing is lost; exactly one of the two names is present.
"""

from __future__ import annotations

import base64
from typing import TypedDict

from meshapi.supervisor.v1 import data_pb2
from meshwire.records import Record


class HeaderJson(TypedDict, total=False):
    """One header. The name and one form of the value are always there."""

    name: str
    value: str
    value_base64: str


class RecordJson(TypedDict, total=False):
    """One record read. `offset`, `timestamp_ms` and one form of the value are always there."""

    offset: int
    timestamp_ms: int
    value: str
    value_base64: str
    key: str
    key_base64: str
    headers: list[HeaderJson]


def read_record(offset: int, timestamp_ms: int, record: Record) -> data_pb2.ReadRecord:
    """A record of an opened batch as a message. `timestamp_ms`: the leader's clock at the append."""
    return data_pb2.ReadRecord(
        offset=offset,
        value=record.value,
        key=record.key,
        timestamp_ms=timestamp_ms,
        headers=(data_pb2.RecordHeader(name=name, value=value) for name, value in record.headers),
    )


def record_json(record: data_pb2.ReadRecord) -> RecordJson:
    """The record as a JSON object."""
    result: RecordJson = {"offset": record.offset, "timestamp_ms": record.timestamp_ms}
    try:
        result["value"] = record.value.decode()
    except UnicodeDecodeError:
        result["value_base64"] = base64.b64encode(record.value).decode()
    if record.HasField("key"):
        try:
            result["key"] = record.key.decode()
        except UnicodeDecodeError:
            result["key_base64"] = base64.b64encode(record.key).decode()
    if record.headers:
        result["headers"] = [_header_json(header) for header in record.headers]
    return result


def _header_json(header: data_pb2.RecordHeader) -> HeaderJson:
    try:
        return {"name": header.name, "value": header.value.decode()}
    except UnicodeDecodeError:
        return {"name": header.name, "value_base64": base64.b64encode(header.value).decode()}
