"""What a request says wrongly is refused, not ignored: parameters, framing, coding, size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest

from meshcommon.request_head import HEAD_BYTES_MAX

if TYPE_CHECKING:
    from tests.conftest import Gateway

RECORDS = "/v1/streams/demo/lines/records"


def refused(answer: httpx.Response, status: int, code: str) -> str:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    return str(answer.json()["detail"])


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"{RECORDS}?frm=3"),
        ("POST", f"{RECORDS}?streamid=99"),
        ("GET", "/v1/mesh?verbose=1"),
        ("DELETE", "/v1/streams/demo/lines?force=true"),
    ],
)
async def test_a_query_parameter_that_is_not_known_is_refused(gateway: Gateway, method: str, path: str) -> None:
    """`streamid` would switch the guard of `stream_id` off without a word."""
    answer = await gateway.http.request(method, path, json={"records": [{"value": "a"}]} if method == "POST" else None)
    name = path.partition("?")[2].partition("=")[0]
    assert f"Query parameter {name!r} is not known" in refused(answer, 400, "INVALID_ARGUMENT")


async def test_the_refusal_names_what_is_known(gateway: Gateway) -> None:
    assert "Known here: consistency, from, max, stream_id." in refused(
        await gateway.http.get(f"{RECORDS}?frm=3"), 400, "INVALID_ARGUMENT"
    )


@pytest.mark.parametrize("count", [1, 3000])
async def test_a_large_head_is_refused_and_the_connection_ends(gateway: Gateway, count: int) -> None:
    headers = {f"x-{at}": "v" * (HEAD_BYTES_MAX // count) for at in range(count)}
    answer = await gateway.http.get("/v1/mesh", headers=headers)
    refused(answer, 400, "INVALID_ARGUMENT")
    assert answer.headers["connection"] == "close"


async def test_a_body_that_is_framed_twice_is_refused(gateway: Gateway) -> None:
    headers = {"content-length": "2", "transfer-encoding": "chunked"}
    answer = await gateway.http.post(RECORDS, content=b"{}", headers=headers)
    assert "send one of them" in refused(answer, 400, "INVALID_ARGUMENT")


async def test_a_coded_body_is_refused(gateway: Gateway) -> None:
    headers = {"content-encoding": "gzip", "content-type": "application/octet-stream"}
    answer = await gateway.http.post(RECORDS, content=b"plain", headers=headers)
    assert "Content-Encoding 'gzip'" in refused(answer, 415, "MEDIA_TYPE_NOT_SUPPORTED")
