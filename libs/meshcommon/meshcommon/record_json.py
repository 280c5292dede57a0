"""How bytes of a record appear in JSON, the same at the gateway and on the command line.

A value or key that is valid UTF-8 appears as text under its own name, anything else as base64 under NAME_base64. So the
common case reads well and nothing is lost; exactly one of the two names is present.
"""

from __future__ import annotations

import base64
from typing import TypedDict

from meshapi.supervisor.v1 import data_pb2


class RecordJson(TypedDict, total=False):
    """One record read. `offset`, `timestamp_ms` and one form of the value are always there."""

    offset: int
    timestamp_ms: int
    value: str
    value_base64: str
    key: str
    key_base64: str


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
    return result
