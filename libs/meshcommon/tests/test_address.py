"""Addresses: the strict parser of peer addresses, and listen addresses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshcommon.address import (
    ADDRESS_CHARACTERS_MAX,
    check_listen,
    host_group,
    is_loopback,
    is_peer_address,
    parse_peer_address,
    split,
)
from meshcommon.errors import ErrorCode, MeshError


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("ws://127.0.0.1:7301", "ws://127.0.0.1:7301"),
        ("wss://Mesh.Example.COM:443", "wss://mesh.example.com:443"),
        ("ws://data-a:1", "ws://data-a:1"),
        ("ws://[::1]:7301", "ws://[::1]:7301"),
        ("ws://[2001:DB8:0::1]:65535", "ws://[2001:db8::1]:65535"),
        ("ws://[::FFFF:192.0.2.1]:1", "ws://192.0.2.1:1"),
        ("ws://[::ffff:7f00:1]:1", "ws://127.0.0.1:1"),
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


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        "host:",
        ":80",
        "host:65536",
        "host:x",
        "u@host:1",
        "[::1:80",
        "a/b:1",
        "::1:80",
        "[a]:80",
        "[127.0.0.1]:80",
        "[fe80::1%eth0]:80",
        "a%b:80",
    ],
)
def test_what_is_no_listen_address_is_refused(text: str) -> None:
    with pytest.raises(MeshError) as refused:
        split(text)
    assert refused.value.code is ErrorCode.SETTING_INVALID


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:192.0.2.1", False),
        ("::", False),
        ("0.0.0.0", False),
        ("fe80::1", False),
        ("2001:db8::1", False),
        ("127.0.0.1.example", False),
    ],
)
def test_loopback_is_decided_by_the_address_that_is_meant(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("remote", "group"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:ffff", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("2001:db8::/64", "2001:db8::/64"),
        ("", ""),
        ("name", "name"),
    ],
)
def test_a_host_counts_once_whatever_address_it_takes(remote: str, group: str) -> None:
    assert host_group(remote) == group


@pytest.mark.parametrize("listen", ["0.0.0.0:1", "[::]:1", "mesh.example:1", "[::ffff:192.0.2.1]:1"])
def test_other_machines_reach_only_what_is_encrypted_and_authenticates(listen: str) -> None:
    check_listen(listen, "It", is_insecure_dev=False, is_encrypted=True, is_authenticated=True)
    check_listen(listen, "It", is_insecure_dev=True)
    for is_encrypted, is_authenticated, said in (
        (False, True, "without TLS: "),
        (True, False, "without authentication of callers:"),
        (False, False, "without TLS and without authentication of callers:"),
    ):
        with pytest.raises(MeshError) as refused:
            check_listen(
                listen, "It", is_insecure_dev=False, is_encrypted=is_encrypted, is_authenticated=is_authenticated
            )
        assert refused.value.code is ErrorCode.INSECURE_NOT_ALLOWED
        assert said in refused.value.message
