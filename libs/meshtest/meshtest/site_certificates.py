"""Certificates of a site's services for tests: an issuer as the control plane has one, and files as it writes them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from meshcommon.service_certificates import LIFE, Service, ServiceIdentity, build, key_usage
from meshcommon.site_files import AUTHORITY, CERTIFICATE, KEY, SiteFiles


class SiteAuthority:
    """An issuer of certificates of services."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"issuer {id(self)}")])
        now = datetime.now(UTC)
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(self._name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(key_usage(signs_certificates=True), critical=True)
            .sign(self._key, hashes.SHA256())
        )

    def write(
        self,
        directory: Path,
        identity: ServiceIdentity,
        *,
        begun: timedelta = timedelta(),
        life: timedelta = LIFE,
        replaced: dict[type, x509.ExtensionType] | None = None,
    ) -> SiteFiles:
        """Writes the three files of `identity` below `directory`, and returns them unread.

        Args:
            directory: The folder of all services.
            identity: Of the certificate.
            begun: How long ago it was made; negative: in the future.
            life: From then on.
            replaced: Extensions that differ from those of a right certificate.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC) - begun
        right = build(
            identity, key.public_key(), ["127.0.0.1"], issuer=self._name, issuer_key=self._key, now=now, life=life
        )
        own = directory / identity.service.value
        own.mkdir(parents=True, exist_ok=True)
        (own / AUTHORITY).write_bytes(self.certificate.public_bytes(Encoding.PEM))
        (own / KEY).write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        (own / CERTIFICATE).write_bytes(self._resign(right, replaced or {}).public_bytes(Encoding.PEM))
        return SiteFiles(directory, identity.node, identity.service)

    def _resign(self, right: x509.Certificate, replaced: dict[type, x509.ExtensionType]) -> x509.Certificate:
        """The same certificate with other extensions, signed by this issuer."""
        public_key = right.public_key()
        if not replaced or not isinstance(public_key, ec.EllipticCurvePublicKey):
            return right
        builder = (
            x509.CertificateBuilder()
            .subject_name(right.subject)
            .issuer_name(right.issuer)
            .public_key(public_key)
            .serial_number(right.serial_number)
            .not_valid_before(right.not_valid_before_utc)
            .not_valid_after(right.not_valid_after_utc)
        )
        for extension in right.extensions:
            value = replaced.get(type(extension.value), extension.value)
            builder = builder.add_extension(value, extension.critical)
        return builder.sign(self._key, hashes.SHA256())


def service(name: str, mesh: str = "unjoined", node: str = "a") -> ServiceIdentity:
    """An identity, short."""
    return ServiceIdentity(mesh, node, Service(name))
