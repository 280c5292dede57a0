"""Which requests a browser may have been made to send: those are refused, malformed ones are told so."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshcommon.admission import check_caller, own_names, parse_host
from meshcommon.errors import ErrorCode, MeshError

NAMES = frozenset({"mesh.example"})
OWN = "10.1.2.3"
BAD = ErrorCode.INVALID_ARGUMENT
HOST = ErrorCode.HOST_NOT_ALLOWED
ORIGIN = ErrorCode.ORIGIN_NOT_ALLOWED


def outcome(*headers: tuple[str, str], method: str = "POST", own_address: str = OWN) -> ErrorCode | None:
    """The code of the refusal, None when it is let in."""
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    try:
        check_caller(raw, method, own_address=own_address, names=NAMES)
    except MeshError as error:
        return error.code
    return None


def test_a_refusal_quotes_little() -> None:
    with pytest.raises(MeshError) as caught:
        check_caller([(b"host", b"\x01" * 60_000)], "GET", own_address=OWN, names=NAMES)
    assert len(caught.value.message) < 400


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1:7001", None),
        ("127.9.9.9", None),
        ("localhost", None),
        ("LocalHost:80", None),
        ("localhost.:80", None),
        ("[::1]:7001", None),
        ("[0:0:0:0:0:0:0:1]", None),
        ("mesh.example", None),
        ("MESH.example:7011", None),
        ("10.1.2.3:7001", None),
        ("10.1.2.4:7001", HOST),
        ("[::2]", HOST),
        ("evil.example:7001", HOST),
        ("localhost.evil.example", HOST),
        ("127.0.0.1.evil.example", HOST),
        ("mesh.example.evil", HOST),
        ("0x7f000001", HOST),
        ("", BAD),
        ("[::1", BAD),
        ("[::1]x", BAD),
        ("[::1%25lo]", BAD),
        ("[127.0.0.1]", BAD),
        ("[zz]", BAD),
        ("127.0.0.1:", BAD),
        ("127.0.0.1:0", BAD),
        ("127.0.0.1:99999", BAD),
        ("127.0.0.1:7001:7001", BAD),
        ("127.0.0.1:-1", BAD),
        ("user@127.0.0.1", BAD),
        ("evil.example@localhost", BAD),
        ("127.0.0.1/", BAD),
        ("127.0.0.1, evil", BAD),
        ("loc\xe4lhost", BAD),
        ("localhost\x00", BAD),
        (" localhost", BAD),
        ("a" * 254, BAD),
    ],
)
def test_host(host: str, expected: ErrorCode | None) -> None:
    """DNS rebinding: a foreign name that was made to point here is not ours."""
    assert outcome(("host", host)) is expected


def test_host_is_there_exactly_once() -> None:
    assert outcome() is BAD
    assert outcome(("host", "localhost"), ("host", "localhost")) is BAD
    assert outcome(("host", "localhost"), ("origin", "http://localhost"), ("origin", "http://localhost")) is BAD


def test_a_listener_of_both_families_knows_its_older_address() -> None:
    assert outcome(("host", OWN), own_address=f"::ffff:{OWN}") is None
    assert outcome(("host", OWN), own_address="") is HOST
    assert outcome(("host", OWN), own_address="/run/mesh/rest.sock") is HOST


@pytest.mark.parametrize(
    ("host", "origin", "expected"),
    [
        ("127.0.0.1:7001", "http://127.0.0.1:7001", None),
        ("localhost", "http://localhost", None),
        ("localhost:80", "http://localhost", None),
        ("localhost", "http://localhost:80", None),
        ("mesh.example", "https://mesh.example", None),
        ("[::1]:7001", "http://[::1]:7001", None),
        ("127.0.0.1:7001", "http://127.0.0.1:8000", ORIGIN),
        ("127.0.0.1:7001", "http://127.0.0.1", ORIGIN),
        ("127.0.0.1:7001", "http://localhost:7001", ORIGIN),
        ("127.0.0.1:7001", "http://evil.example", ORIGIN),
        ("127.0.0.1:7001", "null", ORIGIN),
        ("127.0.0.1:7001", "chrome-extension://abcdef", ORIGIN),
        ("127.0.0.1:7001", "http://[", BAD),
        ("127.0.0.1:7001", "http://", BAD),
        ("127.0.0.1:7001", "", BAD),
        ("127.0.0.1:7001", "127.0.0.1:7001", BAD),
        ("127.0.0.1:7001", "http://127.0.0.1:7001/", BAD),
        ("127.0.0.1:7001", "http://u@127.0.0.1:7001", BAD),
        ("127.0.0.1:7001", "http://127.0.0.1:99999", BAD),
        ("127.0.0.1:7001", "http://127.0.0.1:7001 http://evil", BAD),
    ],
)
def test_origin(host: str, origin: str, expected: ErrorCode | None) -> None:
    assert outcome(("host", host), ("origin", origin)) is expected


@pytest.mark.parametrize(
    ("site", "mode", "destination", "method", "expected"),
    [
        ("same-origin", "cors", "empty", "POST", None),
        ("none", "navigate", "document", "GET", None),
        ("same-site", "navigate", "document", "GET", None),
        ("same-site", "navigate", "document", "POST", ORIGIN),
        ("same-site", "navigate", "iframe", "GET", ORIGIN),
        ("same-site", "cors", "empty", "GET", ORIGIN),
        ("cross-site", "navigate", "document", "GET", ORIGIN),
        ("cross-site", "no-cors", "image", "GET", ORIGIN),
        ("cross-site", "cors", "empty", "POST", ORIGIN),
        ("a-later-word", "cors", "empty", "POST", ORIGIN),
        ("", "cors", "empty", "POST", ORIGIN),
    ],
)
def test_fetch_metadata(site: str, mode: str, destination: str, method: str, expected: ErrorCode | None) -> None:
    headers = [("sec-fetch-site", site), ("sec-fetch-mode", mode), ("sec-fetch-dest", destination)]
    assert outcome(("host", "localhost"), *headers, method=method) is expected


@pytest.mark.parametrize(
    ("listen", "expected"),
    [
        ("a-control.metrics:7102", {"a-control.metrics"}),
        ("Mesh-A:7001", {"mesh-a"}),
        ("0.0.0.0:7001", set()),
        ("[::]:7001", set()),
        ("10.1.2.3:7001", set()),
        ("unix:/run/mesh/rest.sock", set()),
    ],
)
def test_a_listener_has_the_name_by_which_it_listens(listen: str, expected: set[str]) -> None:
    assert own_names(listen) == expected


@given(st.text(max_size=40))
def test_a_host_that_passes_is_written_one_way(text: str) -> None:
    host = parse_host(text)
    if host is not None:
        name, port = host
        again = f"[{name}]" if ":" in name else name
        assert parse_host(again if port is None else f"{again}:{port}") == host
        assert name.isascii()


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"host", b"origin", b"sec-fetch-site", b"sec-fetch-mode", b"x-other"]),
            st.binary(max_size=60) | st.sampled_from([b"localhost", b"http://localhost", b"http://[", b"cross-site"]),
        ),
        max_size=6,
    )
)
def test_no_header_does_more_than_be_refused(headers: list[tuple[bytes, bytes]]) -> None:
    pairs = [(name.decode(), value.decode("latin-1")) for name, value in headers]
    assert outcome(*pairs) in {None, BAD, HOST, ORIGIN}
