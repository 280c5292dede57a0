"""TLS on lanes: a key and certificate of one process start, and contexts for both ends.

The certificate signs itself and says nothing of who shows it. Who it is is settled in the lane's handshake behind it: each
side names the certificate that it shows and the one that it saw in what it signs, so whoever ends TLS in between is found
out (`mesh_data.core.handshake`). The key lies in memory only. Leaves out certificates of an authority.
Source: RFC 5929 §4 (endpoint binding), RFC 8446.
"""

from __future__ import annotations

import hashlib
import ssl
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from meshcommon.tls_contexts import server_context

_NAME: Final = "mesh node"
_LIFE: Final = timedelta(days=3650)
"""Longer than any process runs: nobody checks it, and a clock that is off must not matter."""


class BootCertificate:
    """A P-256 key and its certificate. Cost: 1 ms to make."""

    def __init__(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _NAME)])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _LIFE)
            .not_valid_after(now + _LIFE)
            .sign(key, hashes.SHA256())
        )
        self.digest = hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).digest()
        """SHA-256 of the certificate, 32 bytes: what `certificate_digest` finds at the other end."""
        self._pem = certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def server(self) -> ssl.SSLContext:
        """A listener's context: TLS 1.3, and no certificate is asked of the other end."""
        return server_context(self._pem)


def any_server() -> ssl.SSLContext:
    """A dialler's context: TLS 1.3, whatever certificate is shown. The lane's handshake must bind it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def certificate_digest(tls: ssl.SSLObject | None) -> bytes:
    """SHA-256 of the certificate that the other end has shown, empty when there was none or no TLS."""
    shown = tls.getpeercert(binary_form=True) if tls is not None else None
    return hashlib.sha256(shown).digest() if shown else b""
