"""Records in JSON: text where it is text, base64 where it is not, nothing lost."""

from __future__ import annotations

import base64

from hypothesis import given
from hypothesis import strategies as st

from meshapi.supervisor.v1 import data_pb2
from meshcommon.record_json import read_record, record_json
from meshwire.records import Record

BYTES = st.binary(max_size=40) | st.text(max_size=20).map(str.encode)


@given(st.text(min_size=1, max_size=9), BYTES)
def test_headers_are_shown_alike(name: str, value: bytes) -> None:
    shown = record_json(read_record(3, 7, Record(b"v", None, ((name, value),))))
    (header,) = shown["headers"]
    assert header["name"] == name
    back = header["value"].encode() if "value" in header else base64.b64decode(header["value_base64"])
    assert back == value


@given(st.integers(0, 2**62), BYTES, st.none() | BYTES)
def test_bytes_can_be_had_back_from_exactly_one_name(offset: int, value: bytes, key: bytes | None) -> None:
    shown = record_json(data_pb2.ReadRecord(offset=offset, timestamp_ms=7, value=value, key=key))
    assert (shown["offset"], shown["timestamp_ms"]) == (offset, 7)
    assert ("value" in shown) != ("value_base64" in shown)
    back = shown["value"].encode() if "value" in shown else base64.b64decode(shown["value_base64"])
    assert back == value
    if key is None:
        assert not {"key", "key_base64"} & shown.keys()
    else:
        assert ("key" in shown) != ("key_base64" in shown)
        assert (shown["key"].encode() if "key" in shown else base64.b64decode(shown["key_base64"])) == key
