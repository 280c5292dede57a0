"""Records of a JSON body as a publish request."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Protocol

from meshapi.supervisor.v1 import data_pb2
from meshcommon.errors import ErrorCode, MeshError


class HeaderIn(Protocol):
    """One header as it was given."""

    name: str
    value: str | None
    value_base64: str | None


class RecordIn(Protocol):
    """One record as it was given."""

    value: str | None
    value_base64: str | None
    key: str | None
    key_base64: str | None

    @property
    def headers(self) -> Sequence[HeaderIn]:
        """In the order given."""


def publish_record(record: RecordIn, position: int) -> data_pb2.PublishRecord:
    """The record as a message.

    Args:
        record: The record as it was given.
        position: Its place in the list, for the text of an error.

    Raises:
        MeshError: INVALID_ARGUMENT when it, or a header, has no value or two, two keys, or something that is not base64.
    """
    where = f"records[{position}]"
    value = _value(record, where)
    headers = [
        data_pb2.RecordHeader(name=header.name, value=_value(header, f"{where}.headers[{number}]"))
        for number, header in enumerate(record.headers)
    ]
    return data_pb2.PublishRecord(
        value=value, key=_bytes(record.key, record.key_base64, f"{where}.key"), headers=headers
    )


def _value(given: RecordIn | HeaderIn, where: str) -> bytes:
    value = _bytes(given.value, given.value_base64, f"{where}.value")
    if value is None:
        raise MeshError(
            ErrorCode.INVALID_ARGUMENT,
            f"{where} has no value: give it value (text) or value_base64.",
            {"field": where},
        )
    return value


def _bytes(text: str | None, encoded: str | None, field: str) -> bytes | None:
    if text is not None and encoded is not None:
        raise MeshError(
            ErrorCode.INVALID_ARGUMENT,
            f"{field} and {field}_base64 are both given: give one of them.",
            {"field": field},
        )
    if text is not None:
        try:
            return text.encode()
        except UnicodeEncodeError:
            raise MeshError(
                ErrorCode.INVALID_ARGUMENT,
                f"{field} is not valid Unicode text: send such bytes as {field}_base64.",
                {"field": field},
            ) from None
    if encoded is None:
        return None
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise MeshError(
            ErrorCode.INVALID_ARGUMENT,
            f"{field}_base64 is not valid base64: use the standard alphabet with padding.",
            {"field": f"{field}_base64"},
        ) from None
