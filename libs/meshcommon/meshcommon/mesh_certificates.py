"""Certificates of the mesh CA: how root, intermediate and node certificates look, and the strict check of each.

Root signs intermediate, intermediate signs a node certificate, which certifies the key of that node's site issuer; the site's
services have theirs from there. Each names the mesh as a SPIFFE trust domain in exactly one URI. Pure: time and keys are passed
in. Leaves out who may have one (the committed view says so), certificates of services, and where keys are kept.
Source: docs/design/identity.md "Certificates"; RFC 5280; SPIFFE X.509-SVID.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from cryptography.x509.oid import NameOID

from meshcommon.errors import ErrorCode, MeshError

ROOT_LIFE: Final = timedelta(days=3650)
INTERMEDIATE_LIFE: Final = timedelta(days=365)
NODE_LIFE: Final = timedelta(hours=24)
BACKDATED: Final = timedelta(minutes=5)
"""A certificate begins so long before it is made: clocks of others may be behind."""
CERTIFICATE_BYTES_MAX: Final = 4096
"""DER; an RSA root of 4096 bits with its extensions takes 1,500."""
FINGERPRINT_BYTES: Final = 32
_ROOT_PATH_LENGTH: Final = 2
_INTERMEDIATE_PATH_LENGTH: Final = 1
_NODE_PATH_LENGTH: Final = 0
_RSA_BITS_MIN: Final = 2048

UNREADABLE: Final = (ValueError, TypeError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.InvalidVersion)
"""What the library raises for bytes that are no certificate."""
PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey
RootKey: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
"""Of an operator's own root it may be RSA."""


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: RootKey


def mesh_uri(mesh_id: str) -> str:
    """The URI of root and intermediate: the trust domain itself."""
    return f"spiffe://{mesh_id}"


def node_uri(mesh_id: str, name: str) -> str:
    """The URI of a node certificate."""
    return f"spiffe://{mesh_id}/node/{name}"


def issuer_name(public_key: ec.EllipticCurvePublicKey) -> x509.Name:
    """The name under which the site issuer with this key signs: it follows from the key."""
    return _name(f"mesh site issuer {x509.SubjectKeyIdentifier.from_public_key(public_key).digest[:8].hex()}")


def fingerprint(certificate: x509.Certificate) -> bytes:
    """SHA-256 of the certificate's DER."""
    return hashlib.sha256(der(certificate)).digest()


def der(certificate: x509.Certificate) -> bytes:
    """As it is kept and sent."""
    return certificate.public_bytes(Encoding.DER)


def pem(certificate: x509.Certificate) -> str:
    """As people and files have it."""
    return certificate.public_bytes(Encoding.PEM).decode()


def public_der(key: ec.EllipticCurvePublicKey) -> bytes:
    """SubjectPublicKeyInfo, DER."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def read_certificate(data: bytes) -> x509.Certificate:
    """A certificate from DER. Raises CERTIFICATE_INVALID."""
    if len(data) > CERTIFICATE_BYTES_MAX:
        raise invalid(f"it has {len(data)} bytes, and {CERTIFICATE_BYTES_MAX} is the most")
    try:
        certificate = x509.load_der_x509_certificate(data)
        # What is read lazily is read now, so that no check below meets a parser's error.
        _ = certificate.extensions, certificate.subject, certificate.issuer, certificate.public_key()
    except UNREADABLE:
        raise invalid("it cannot be read") from None
    return certificate


def read_pem(text: str) -> x509.Certificate:
    """Exactly one certificate from PEM. Raises CERTIFICATE_INVALID."""
    if len(text) > 2 * CERTIFICATE_BYTES_MAX:
        raise invalid(f"it has {len(text)} characters, and {2 * CERTIFICATE_BYTES_MAX} is the most")
    try:
        (certificate,) = x509.load_pem_x509_certificates(text.encode())
    except UNREADABLE:
        raise invalid("the text is not one certificate in PEM") from None
    return read_certificate(certificate.public_bytes(Encoding.DER))


def read_public_key(data: bytes) -> ec.EllipticCurvePublicKey:
    """A P-256 key from SubjectPublicKeyInfo, DER. Raises CERTIFICATE_INVALID."""
    try:
        key = load_der_public_key(data) if len(data) <= CERTIFICATE_BYTES_MAX else None
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise invalid("the key to be certified is no P-256 key")
    if public_der(key) != data:
        raise invalid("the key to be certified is written in another way than the usual one")
    return key


def make_root(mesh_id: str, key: PrivateKey, now: datetime) -> x509.Certificate:
    """A root of the mesh: signs itself."""
    name = _name(f"mesh {mesh_id} root")
    begun = _builder(name, key.public_key(), mesh_uri(mesh_id), (now - BACKDATED, now + ROOT_LIFE), _ROOT_PATH_LENGTH)
    return begun.issuer_name(name).sign(key, hashes.SHA256())


def make_intermediate(
    mesh_id: str, root: Authority, public_key: ec.EllipticCurvePublicKey, now: datetime
) -> x509.Certificate:
    """An intermediate under `root`; it does not outlive that."""
    times = now - BACKDATED, min(now + INTERMEDIATE_LIFE, root.certificate.not_valid_after_utc)
    name = _name(f"mesh {mesh_id} intermediate")
    return _signed(_builder(name, public_key, mesh_uri(mesh_id), times, _INTERMEDIATE_PATH_LENGTH), root)


def make_node_certificate(
    mesh_id: str, name: str, issuer: Authority, public_key: ec.EllipticCurvePublicKey, now: datetime
) -> x509.Certificate:
    """Certifies the key of the site issuer of node `name`; it does not outlive the intermediate.

    Its subject is that of the site issuer's own certificate, so that a service's certificate leads to either.
    """
    times = now - BACKDATED, min(now + NODE_LIFE, issuer.certificate.not_valid_after_utc)
    return _signed(
        _builder(issuer_name(public_key), public_key, node_uri(mesh_id, name), times, _NODE_PATH_LENGTH), issuer
    )


def make_request(mesh_id: str, key: PrivateKey) -> x509.CertificateSigningRequest:
    """A request for an intermediate, for an operator's own root."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(_name(f"mesh {mesh_id} intermediate"))
    return (
        builder.add_extension(_uri(mesh_uri(mesh_id)), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=_INTERMEDIATE_PATH_LENGTH), critical=True)
        .add_extension(_CA_USAGE, critical=True)
        .sign(key, hashes.SHA256())
    )


def sign_request(csr_pem: str, root: Authority, now: datetime) -> x509.Certificate:
    """What a root makes of such a request: for an operator whose root key lies elsewhere. Raises CERTIFICATE_INVALID."""
    try:
        request = x509.load_pem_x509_csr(csr_pem.encode())
        names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
        key = read_public_key(request.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
        is_signed = request.is_signature_valid
    except (*UNREADABLE, x509.ExtensionNotFound):
        raise invalid("the request cannot be read") from None
    if not is_signed or not uri.startswith("spiffe://"):
        raise invalid("the request is not signed by its key, or names no mesh")
    return make_intermediate(uri.removeprefix("spiffe://"), root, key, now)


def check_root(root: x509.Certificate, now: datetime) -> None:
    """A root signs itself and is a CA. An operator's own names no mesh. Raises CERTIFICATE_INVALID, CLOCK_SKEW."""
    key = root.public_key()
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < _RSA_BITS_MIN:
        raise invalid(f"the root's RSA key has fewer than {_RSA_BITS_MIN} bits")
    if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        raise invalid("the root's key is neither ECDSA nor RSA")
    _check_ca(root, "root", None)
    _check_issued(root, root, "root")
    _check_times(root, "root", now)


def check_intermediate(certificate: x509.Certificate, root: x509.Certificate, mesh_id: str, now: datetime) -> None:
    """An intermediate of the mesh, signed by `root`. Raises CERTIFICATE_INVALID, CLOCK_SKEW."""
    _check_ca(certificate, "intermediate", _INTERMEDIATE_PATH_LENGTH)
    _check_uri(certificate, "intermediate", mesh_uri(mesh_id))
    _check_p256(certificate, "intermediate")
    _check_issued(certificate, root, "intermediate")
    _check_times(certificate, "intermediate", now)


def check_node_certificate(
    certificate: x509.Certificate,
    intermediate: x509.Certificate,
    uri: str,
    public_key: bytes,
    now: datetime,
) -> None:
    """A node certificate for `uri` and the key `public_key` (DER), signed by `intermediate`.

    Raises:
        MeshError: CERTIFICATE_INVALID, CLOCK_SKEW.
    """
    check_names_node(certificate, intermediate, uri, now)
    if public_der(_check_p256(certificate, "node certificate")) != public_key:
        raise invalid("the node certificate is for another key than this site's")


def check_names_node(
    certificate: x509.Certificate, intermediate: x509.Certificate, uri: str, now: datetime
) -> ec.EllipticCurvePublicKey:
    """A node certificate for `uri`, signed by `intermediate`, whatever its key, which is returned."""
    _check_ca(certificate, "node certificate", _NODE_PATH_LENGTH)
    _check_uri(certificate, "node certificate", uri)
    _check_issued(certificate, intermediate, "node certificate")
    _check_times(certificate, "node certificate", now)
    key = _check_p256(certificate, "node certificate")
    if certificate.subject != issuer_name(key):
        raise invalid("the node certificate has another subject than its key's")
    return key


def life_left(certificate: x509.Certificate, now: datetime) -> float:
    """The share of its life that is left, 0 to 1."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return min(max((end - now) / (end - begin), 0.0), 1.0) if end > begin else 0.0


def uris(certificate: x509.Certificate) -> list[str]:
    """The URIs that the certificate names."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def invalid(why: str) -> MeshError:
    """What is wrong with a certificate."""
    return MeshError(
        ErrorCode.CERTIFICATE_INVALID, f"A certificate is refused: {why}. See `meshctl cert ls` for what is in force."
    )


_CA_USAGE: Final = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _uri(uri: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])


def _builder(
    subject: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    uri: str,
    times: tuple[datetime, datetime],
    path_length: int,
) -> x509.CertificateBuilder:
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(times[0])
        .not_valid_after(times[1])
    )
    return (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_CA_USAGE, critical=True)
        .add_extension(_uri(uri), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _signed(builder: x509.CertificateBuilder, issuer: Authority) -> x509.Certificate:
    try:
        own = issuer.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        identifier = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)
    except x509.ExtensionNotFound:
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key())
    named = builder.issuer_name(issuer.certificate.subject).add_extension(identifier, critical=False)
    return named.sign(issuer.key, hashes.SHA256())


def _check_ca(certificate: x509.Certificate, what: str, path_length: int | None) -> None:
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        raise invalid(f"the {what} does not say that it may sign certificates") from None
    if not constraints.critical or not constraints.value.ca or not usage.key_cert_sign:
        raise invalid(f"the {what} may not sign certificates")
    if path_length is not None and constraints.value.path_length != path_length:
        raise invalid(f"the {what} has the path length {constraints.value.path_length}, and it must be {path_length}")
    known = {x509.BasicConstraints.oid, x509.KeyUsage.oid, x509.NameConstraints.oid}
    if any(item.critical and item.oid not in known for item in certificate.extensions):
        raise invalid(f"the {what} has a critical extension that is not known here")


def _check_uri(certificate: x509.Certificate, what: str, uri: str) -> None:
    found = uris(certificate)
    if found != [uri]:
        raise invalid(f"the {what} must name exactly the URI {uri}, and names {len(found)} URIs")


def _check_p256(certificate: x509.Certificate, what: str) -> ec.EllipticCurvePublicKey:
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise invalid(f"the {what} is for a key that is not P-256")
    return key


def _check_issued(certificate: x509.Certificate, issuer: x509.Certificate, what: str) -> None:
    try:
        if not isinstance(certificate.signature_hash_algorithm, hashes.SHA256 | hashes.SHA384 | hashes.SHA512):
            raise invalid(f"the {what} is signed with a hash that is not of the SHA-2 family")
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        raise invalid(f"the {what} is not signed by its issuer") from None


def _check_times(certificate: x509.Certificate, what: str, now: datetime) -> None:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if begin <= now < end:
        return
    state = "has ended" if now >= end else "has not begun"
    raise MeshError(
        ErrorCode.CLOCK_SKEW,
        f"The {what} {state}: it is valid from {begin:%F %T} until {end:%F %T} UTC, and the clock here says "
        f"{now.astimezone(UTC):%F %T}: set the clocks right, or have it renewed.",
    )
