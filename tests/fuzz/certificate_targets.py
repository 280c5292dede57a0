"""Fuzz targets of the certificates that services show each other, and of the URI in them (`meshcommon.service_certificates`)."""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from cryptography import x509

from meshcommon.errors import ErrorCode, MeshError
from meshcommon.service_certificates import UNREADABLE, ServiceIdentity, check, parse_identity

_NOW: Final = datetime(2026, 11, 29, 12, tzinfo=UTC)
_CERTIFICATE: Final = base64.b64decode(
    b"MIICMjCCAdigAwIBAgIUVEc/1J1Xe3UJTC3EcMZnz30DCLUwCgYIKoZIzj0EAwIwETEPMA0GA1UEAwwGaXNzdWVyMB4XDTI2MTEy"
    b"OTExNTUwMFoXDTI2MTEzMDEyMDAwMFowHzEdMBsGA1UEAwwUZGF0YS5hLm1lc2guaW50ZXJuYWwwWTATBgcqhkjOPQIBBggqhkjO"
    b"PQMBBwNCAAQO26QNZmmG33bdcVFUOdg+c92/79kvlW6kevZKtvZoI8KkjOLOCf9YOqp+2rLl69c1+QkiIiIWyXY98iaAj14Eo4H/"
    b"MIH8MAwGA1UdEwEB/wQCMAAwDgYDVR0PAQH/BAQDAgeAMB0GA1UdJQQWMBQGCCsGAQUFBwMBBggrBgEFBQcDAjB9BgNVHREEdjB0"
    b"hjlzcGlmZmU6Ly8wYjZiNWE0NC03ZjVkLTRkMGUtOWEzYy0xMTExMTExMTExMTEvbm9kZS9hL2RhdGGCFGRhdGEuYS5tZXNoLmlu"
    b"dGVybmFsgglsb2NhbGhvc3SHBH8AAAGHEAAAAAAAAAAAAAAAAAAAAAEwHQYDVR0OBBYEFPQVtPisklUBEsMMs8PENQgxHRYzMB8G"
    b"A1UdIwQYMBaAFPQVtPisklUBEsMMs8PENQgxHRYzMAoGCCqGSM49BAMCA0gAMEUCIDJ6p3uslu/WHOBBjqgyvP4zh2c3/I5Np1dk"
    b"TU4v0C3SAiEAm1+oN+Ua2E8Iy3AkBiFVWWhyRkmVY+8bKgM+aAQsZc4="
)
"""Of the data plane of node a, made by `service_certificates.build`."""
_REFUSALS: Final = {ErrorCode.CERTIFICATE_REFUSED, ErrorCode.CLOCK_SKEW}


def fuzz_service_certificate(data: bytes) -> None:
    """Whatever is shown is refused with a code, or names a service by one text."""
    try:
        certificate = x509.load_der_x509_certificate(data)
    except UNREADABLE:
        return
    _holds_or_refused(lambda: check(certificate, _NOW))


def fuzz_service_uri(data: bytes) -> None:
    """A URI that is accepted is the one text of its identity."""
    text = data.decode("utf-8", errors="replace")
    identity = _holds_or_refused(lambda: parse_identity(text))
    assert identity is None or identity.uri == text


def _holds_or_refused(read: Callable[[], ServiceIdentity]) -> ServiceIdentity | None:
    refusal: ErrorCode | None = None
    identity: ServiceIdentity | None = None
    try:
        identity = read()
    except MeshError as error:
        refusal = error.code
    if identity is None:
        assert refusal in _REFUSALS
        return None
    assert parse_identity(identity.uri) == identity
    assert not set(identity.dns_name) & set("*/: ")
    return identity


CERTIFICATE_TARGETS: Final[tuple[tuple[str, Callable[[bytes], None], tuple[bytes, ...]], ...]] = (
    ("service_certificate", fuzz_service_certificate, (_CERTIFICATE,)),
    ("service_uri", fuzz_service_uri, (b"spiffe://unjoined/node/a/data", b"spiffe://0b6b5a44/node/a-1/gateway")),
)
