"""Addresses: the strict parser of peer addresses, and listen addresses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshcommon.address import ADDRESS_CHARACTERS_MAX, is_peer_address, parse_peer_address, split
from meshcommon.errors import ErrorCode, MeshError


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("ws://127.0.0.1:7301", "ws://127.0.0.1:7301"),
        ("wss://Mesh.Example.COM:443", "wss://mesh.example.com:443"),
        ("ws://data-a:1", "ws://data-a:1"),
        ("ws://[::1]:7301", "ws://[::1]:7301"),
        ("ws://[2001:DB8:0::1]:65535", "ws://[2001:db8::1]:65535"),
        ("ws://münchen.example:80", "ws://xn--mnchen-3ya.example:80"),
        ("ws://site_a.internal.:80", "ws://site_a.internal.:80"),
    ],
)
def test_an_address_has_one_canonical_text(text: str, canonical: str) -> None:
    assert str(parse_peer_address(text)) == canonical


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host:1",
        "http://host:1",
        "WS://host:1",
        "ws://host",
        "ws://host:",
        "ws://host:0",
        "ws://host:65536",
        "ws://host:99999",
        "ws://host:-1",
        "ws://host:1/",
        "ws://host:1/path",
        "ws://host:1?query",
        "ws://host:1#fragment",
        "ws://u@host:1",
        "ws://u@é:1",
        "ws://u:p@host:1",
        "ws://:1",
        "ws://host:1 ",
        " ws://host:1",
        "ws://ho st:1",
        "ws://host\n:1",
        "ws://host:1\n",
        "ws://host\x00:1",
        "ws://-host:1",
        "ws://host-:1",
        "ws://a..b:1",
        "ws://.:1",
        "ws://::1:80",
        "ws://[::1]",
        "ws://[fe80::1%eth0]:80",
        "ws://[127.0.0.1]:80",
        "ws://127.1:80",
        "ws://2130706433:80",
        "ws://0x7f.1:80",
        "ws://256.1.1.1:80",
        "ws://host:٣",
        "ws://xn--a\x80:1",
        "ws://" + "a" * 64 + ":1",
        "ws://" + ".".join(["a" * 60] * 5) + ":1",
        "ws://host:1" + "0" * 70_000,
    ],
)
def test_anything_else_is_refused_with_a_short_reason(text: str) -> None:
    with pytest.raises(MeshError) as refused:
        parse_peer_address(text)
    assert refused.value.code is ErrorCode.INVALID_ARGUMENT
    assert len(refused.value.message) < 600
    assert refused.value.message.isprintable()


@given(st.text(max_size=300) | st.builds("ws://{}:{}".format, st.text(max_size=80), st.integers(-5, 70_000)))
def test_no_text_raises_anything_else_and_the_canonical_text_is_stable(text: str) -> None:
    if is_peer_address(text):
        canonical = str(parse_peer_address(text))
        assert str(parse_peer_address(canonical)) == canonical
        assert len(canonical) <= ADDRESS_CHARACTERS_MAX
        assert canonical.isascii()


@pytest.mark.parametrize(("text", "parts"), [("127.0.0.1:0", ("127.0.0.1", 0)), ("[::1]:80", ("::1", 80))])
def test_a_listen_address_is_split(text: str, parts: tuple[str, int]) -> None:
    assert split(text) == parts


@pytest.mark.parametrize("text", ["", "host", "host:", ":80", "host:65536", "host:x", "u@host:1", "[::1:80", "a/b:1"])
def test_what_is_no_listen_address_is_refused(text: str) -> None:
    with pytest.raises(MeshError) as refused:
        split(text)
    assert refused.value.code is ErrorCode.SETTING_INVALID
