"""Certificates for tests: an authority and what it signs, a certificate that signs itself, and TLS contexts of both sides."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from meshcommon.tls_files import TlsFiles

_HOUR = timedelta(hours=1)
_LOOPBACK = ("127.0.0.1",)


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """A certificate and its key, as PEM files."""

    certificate: Path
    key: Path

    @classmethod
    def write(cls, directory: Path, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Self:
        """Writes NAME.pem and NAME.key."""
        made = cls(directory / f"{name}.pem", directory / f"{name}.key")
        made.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        private = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        made.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, *private))
        return made

    def files(self, after: timedelta = timedelta()) -> TlsFiles:
        """What a listener shows that was started so long after now, or before: then it may have expired by now."""
        now = lambda: datetime.now(UTC) + after  # noqa: E731
        return TlsFiles(str(self.certificate), str(self.key), "MESH_TEST_TLS", now=now)

    def copy_to(self, other: CertificateFiles) -> None:
        """Writes this pair over another one."""
        other.certificate.write_bytes(self.certificate.read_bytes())
        other.key.write_bytes(self.key.read_bytes())


@dataclass(frozen=True, slots=True)
class SelfSigned(CertificateFiles):
    """A certificate for 127.0.0.1 that is its own authority."""

    @classmethod
    def make(cls, directory: Path, name: str) -> SelfSigned:
        """Makes one that is valid for an hour."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _sign(name, key, _named(name), key, ends_in=_HOUR, hosts=_LOOPBACK, is_authority=True)
        return cls.write(directory, name, certificate, key)

    def server(self, trusted: SelfSigned | None = None) -> ssl.SSLContext:
        """A listener's context, which shows this certificate and wants one that is signed by `trusted`, or none."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(self.certificate, self.key)
        if trusted is not None:
            context.load_verify_locations(trusted.certificate)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def client(self, trusted: SelfSigned) -> ssl.SSLContext:
        """A dialler's context, which shows this certificate and trusts only `trusted`."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(self.certificate, self.key)
        context.load_verify_locations(trusted.certificate)
        return context


class Authority:
    """A certificate authority of a test. Its own certificate is in `file`."""

    def __init__(self, directory: Path, name: str = "authority") -> None:
        self._directory = directory
        self._name = name
        self._key = ec.generate_private_key(ec.SECP256R1())
        own = _sign(name, self._key, _named(name), self._key, ends_in=_HOUR, hosts=(), is_authority=True)
        self.file = directory / f"{name}.ca.pem"
        self.file.write_bytes(own.public_bytes(serialization.Encoding.PEM))

    def issue(
        self, name: str, *, hosts: Iterable[str] = ("127.0.0.1", "localhost"), ends_in: timedelta = _HOUR
    ) -> CertificateFiles:
        """A certificate for these names and addresses; with a negative `ends_in` it has expired."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _sign(name, key, _named(self._name), self._key, ends_in=ends_in, hosts=hosts, is_authority=False)
        return CertificateFiles.write(self._directory, name, certificate, key)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _sign(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    ends_in: timedelta,
    hosts: Iterable[str],
    is_authority: bool,
) -> x509.Certificate:
    now = datetime.now(UTC)
    length = 0 if is_authority else None
    builder = (
        x509.CertificateBuilder()
        .subject_name(_named(name))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, now + ends_in) - timedelta(minutes=5))
        .not_valid_after(now + ends_in)
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=length), critical=True)
    )
    names = [_general_name(host) for host in hosts]
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), False)
    return builder.sign(issuer_key, hashes.SHA256())


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
