"""Fuzz targets of a site's edges: what a stranger shows as a token, the file of tokens, addresses and URLs of stores."""

from __future__ import annotations

import contextlib
import ipaddress
import tempfile
from pathlib import Path
from typing import Final

from meshcommon.address import host_group, is_loopback, parse_peer_address, split
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.operator_token import OperatorToken, hashed_line, parse_tokens
from meshcommon.store_urls import parse_postgres, parse_redis

_TOKEN: Final = "meshop1.AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
_REFUSALS: Final = frozenset(
    {
        ErrorCode.OPERATOR_TOKEN_REQUIRED,
        ErrorCode.OPERATOR_TOKEN_WRONG,
        ErrorCode.BACKPRESSURE,
        ErrorCode.INVALID_ARGUMENT,
    }
)


def _guard() -> OperatorToken:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "token"
        path.write_text(hashed_line(_TOKEN))
        return OperatorToken(path, "MESH_TEST_FILE")


_GUARD: Final = _guard()


def fuzz_operator_token(data: bytes) -> None:
    """Headers of a request, one a line: only the one token passes, whatever else is there."""
    shown = data.decode("utf-8", "surrogateescape").split("\n")
    refusal: MeshError | None = None
    try:
        _GUARD.admit(shown, shown[0])
    except MeshError as error:
        refusal = error
    scheme, _, token = shown[0].partition(" ")
    is_right = (len(shown), scheme.lower(), token) == (1, "bearer", _TOKEN)
    assert is_right == (refusal is None)
    assert refusal is None or (refusal.code in _REFUSALS and _TOKEN not in refusal.message)


def fuzz_token_file(data: bytes) -> None:
    """The file that says which tokens are accepted."""
    with contextlib.suppress(ValueError):
        digests = parse_tokens(data)
        assert 1 <= len(digests) <= 4
        assert {len(digest) for digest in digests} == {32}


def fuzz_address(data: bytes) -> None:
    """Addresses of both families: one canonical text, and loopback decisions by the address that is meant."""
    text = data.decode("latin-1")
    assert host_group(host_group(text)) == host_group(text)
    with contextlib.suppress(MeshError):
        address = parse_peer_address(text)
        assert parse_peer_address(str(address)) == address
        assert "%" not in str(address)
        assert not address.host.startswith("::ffff:")
    with contextlib.suppress(MeshError):
        host, _ = split(text)
        with contextlib.suppress(ValueError):
            found = ipaddress.ip_address(host)
            mapped = getattr(found, "ipv4_mapped", None)
            assert is_loopback(host) == (mapped or found).is_loopback


def fuzz_store_url(data: bytes) -> None:
    """URLs of stores: what is taken never has checks switched off by an option of Redis, nor a mode that can be undone."""
    text = data.decode("latin-1")
    with contextlib.suppress(ValueError):
        wanted = parse_postgres(text)
        assert wanted is None or not wanted.checks_name or wanted.checks_authority
    with contextlib.suppress(ValueError):
        wanted = parse_redis(text)
        assert wanted is None or (wanted.checks_authority and wanted.checks_name)


EDGE_TARGETS: Final = (
    (
        "operator_token",
        fuzz_operator_token,
        (f"Bearer {_TOKEN}".encode(), b"Basic dXNlcjpwYXNz", f"Bearer {_TOKEN}\nBearer {_TOKEN}".encode()),
    ),
    ("token_file", fuzz_token_file, (hashed_line(_TOKEN).encode(), f"{_TOKEN}\n\n{_TOKEN}\n".encode())),
    (
        "address",
        fuzz_address,
        (b"wss://[::1]:1", b"[::ffff:127.0.0.1]:80", b"wss://[2001:db8::1]:443", b"127.0.0.1:0", b"fe80::1%eth0"),
    ),
    (
        "store_url",
        fuzz_store_url,
        (
            b"postgresql+asyncpg://u:p@h:1/d?sslmode=verify-full&sslrootcert=/ca.pem",
            b"rediss://:p@h:1/0?ssl_ca_certs=/ca.pem",
        ),
    ),
)
"""Name, target and seeds."""
