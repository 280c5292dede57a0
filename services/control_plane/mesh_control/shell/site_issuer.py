"""The site issuer: the key that signs the certificates of this site's services, and of no others.

Made at the first start and kept for ever in the control plane's directory (`issuer.key`, 0600). Services of the site trust
its self-signed certificate alone, so a site that reaches no voter of the mesh keeps working. The mesh CA certifies the
same key under the same name (a node certificate), and then what services show leads to the mesh's root as well.
Leaves out files for services (`certificate_files`) and the mesh CA. Blocking, small files. Source: ADR 0020, RFC 5280.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from meshcommon.durable import write_durably
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.service_certificates import LIFE, UNJOINED, Service, ServiceIdentity, build, key_usage

ISSUER_KEY: Final = "issuer.key"
_BEGINS: Final = datetime(2000, 1, 1, tzinfo=UTC)
_NEVER_ENDS: Final = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
"""RFC 5280 §4.1.2.5: no well-defined end. No clock can make the pinned certificate invalid."""


class SiteIssuer:
    """Signs certificates of this node's services. Belongs to one event loop."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, node: str) -> None:
        """`key` is of P-256, `node` is the name of this node."""
        self._key = key
        self._node = node
        self.mesh = UNJOINED
        """Trust domain of the next certificates: the id of the mesh that the node is in, or UNJOINED."""
        self.certificate = _sign_itself(key)
        """Self-signed, authority with path length 0. Other certificates of this key must carry its subject, too."""
        self._chain: tuple[x509.Certificate, ...] = ()

    @classmethod
    def load_or_make(cls, directory: Path, node: str) -> SiteIssuer:
        """The issuer whose key is in `directory`, made and written durably if there is none.

        Raises:
            MeshError: DATA_DIR_INCOMPLETE when the file is damaged, DATA_DIR_UNWRITABLE.
        """
        path = directory / ISSUER_KEY
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            key = ec.generate_private_key(ec.SECP256R1())
            pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            try:
                write_durably(path, pem, 0o600)
            except OSError as error:
                text = f"Cannot write {path} ({error.strerror}): check owner, mount and free space."
                raise MeshError(ErrorCode.DATA_DIR_UNWRITABLE, text, {"path": str(path)}) from error
            return cls(key, node)
        return cls(_parse(content, path), node)

    @property
    def public_key(self) -> ec.EllipticCurvePublicKey:
        """What the mesh CA certifies, P-256."""
        return self._key.public_key()

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """What services show behind their own certificate: node certificate, intermediate.

        Empty without a mesh CA, and while the node certificate is of another mesh than `mesh`: a node that has left a mesh
        must not go on showing it.
        """
        return self._chain if self._chain and self._node_uri in _uris(self._chain[0]) else ()

    @property
    def _node_uri(self) -> str:
        return f"spiffe://{self.mesh}/node/{self._node}"

    def set_chain(self, chain: Sequence[x509.Certificate]) -> None:
        """Replaces the chain. The files of the services follow within a second.

        Args:
            chain: The node certificate, which is for this issuer's key, has its subject and the URI
                `spiffe://MESH/node/NAME`, then the intermediate; or nothing. The caller has verified it up to the mesh's root.

        Raises:
            ValueError: The first one is not for this key and name: no service's certificate would lead to it.
        """
        if chain and (chain[0].public_key() != self.public_key or chain[0].subject != self.certificate.subject):
            raise ValueError("the first certificate of the chain is not for the key and name of the site issuer")
        self._chain = tuple(chain)

    def issue(
        self,
        service: Service,
        public_key: ec.EllipticCurvePublicKey,
        names: Iterable[str],
        now: datetime,
        life: timedelta = LIFE,
    ) -> x509.Certificate:
        """A certificate of `service` of this node, in the mesh that the node is in (`service_certificates.build`)."""
        return build(
            ServiceIdentity(self.mesh, self._node, service),
            public_key,
            names,
            issuer=self.certificate.subject,
            issuer_key=self._key,
            now=now,
            life=life,
        )

    def sign(self, statement: bytes) -> bytes:
        """ECDSA over SHA-256 of a statement that names its context (docs/design/identity.md, ID3)."""
        return self._key.sign(statement, ec.ECDSA(hashes.SHA256()))


def _uris(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def _parse(content: bytes, path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(content, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise MeshError(
        ErrorCode.DATA_DIR_INCOMPLETE,
        f"{path} holds no key of P-256: restore it from a backup, or remove it and restart all services of this site, "
        "which then trust a new one.",
        {"path": str(path)},
    )


def _sign_itself(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    # The key's identifier is part of the name, so that issuers of two sites in one trust store are never mixed up.
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"mesh site issuer {identifier.digest[:8].hex()}")])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(int.from_bytes(identifier.digest[:16], "big") >> 1 or 1)
        .not_valid_before(_BEGINS)
        .not_valid_after(_NEVER_ENDS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(signs_certificates=True), critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )
