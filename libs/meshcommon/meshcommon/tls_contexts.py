"""TLS contexts of both ends, and what went wrong with TLS by name.

Leaves out: where a certificate comes from (`boot_certificate`, `tls_files`). Source: RFC 8446, RFC 6125.
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Final

from meshcommon.errors import ErrorCode, MeshError
from meshcommon.peer_text import printable

_FAULTS: Final = (
    (("expired",), "its certificate has expired: the operator has to renew it, or this machine's clock is wrong"),
    (("not yet valid",), "its certificate is not valid yet: its clock or this machine's is wrong"),
    (
        ("mismatch", "hostname verification"),
        "its certificate is for another name: use a name or an address that the certificate has",
    ),
    (
        ("issuer", "self-signed", "self signed"),
        "an unknown authority signed its certificate: name the file of the authority to trust",
    ),
    (("wrong_version_number",), "it speaks no TLS there"),
)
"""What OpenSSL (Python) and BoringSSL (gRPC) write, in lower case, and what that means."""


def server_context(pem: bytes) -> ssl.SSLContext:
    """A listener's context of a certificate chain and its key: TLS 1.3, and no certificate is asked of the other end.

    Raises:
        ssl.SSLError: they are no pair.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # The library takes files only; this one is in memory, so the key meets no disk, and a full one does not matter.
    with os.fdopen(os.memfd_create("mesh-certificate"), "wb") as file:
        file.write(pem)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
    return context


def trusting(ca_file: str | Path) -> ssl.SSLContext:
    """A dialler's context: TLS 1.3, trusts the authorities in this PEM file alone, and checks the name that is dialled.

    Raises:
        MeshError: INVALID_ARGUMENT: the file cannot be read or holds no certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(cafile=ca_file)
    except ssl.SSLError:  # first, for it is an OSError as well
        raise MeshError(
            ErrorCode.INVALID_ARGUMENT, f"{ca_file} holds no certificate: name a PEM file of the authority to trust."
        ) from None
    except OSError as error:
        raise MeshError(
            ErrorCode.INVALID_ARGUMENT,
            f"{ca_file} cannot be read ({error.strerror}): name a PEM file of the authority to trust.",
        ) from None
    return context


def fault_of(said: str) -> str | None:
    """What a text of a TLS library means, as the end of a sentence; None when it names none of the known faults."""
    lower = said.lower()
    return next((meaning for texts, meaning in _FAULTS if any(text in lower for text in texts)), None)


def tls_failed(whom: str, said: str) -> MeshError:
    """TLS with `whom`, an address or a service, failed, as the library says in `said`."""
    return MeshError(ErrorCode.TLS_FAILED, f"TLS with {whom} failed: {fault_of(said) or printable(said)}.")
