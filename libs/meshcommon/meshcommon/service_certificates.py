"""Certificates of a site's services: the profile, how one is built, and the strict check of one that is shown.

A service certificate names exactly one service of one node by one URI, `spiffe://MESH/node/NAME/SERVICE`. The trust domain
is the mesh id, or `unjoined` while the node is in no mesh. It also carries the DNS name `SERVICE.NAME.mesh.internal`, since
gRPC's clients compare names and know no URIs, and the names under which users reach the service. The check covers what a
TLS library does not: chain, signatures and times are the library's, but times are checked here again so that a wrong
clock is named. Pure. Leaves out keys, files and the issuer itself (`mesh_control.shell.site_issuer`).
Source: RFC 5280, SPIFFE X.509-SVID and SPIFFE-ID; ADR 0020.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import check_node_name
from meshcommon.peer_text import printable

UNJOINED: Final = "unjoined"
"""The trust domain of a node that is in no mesh."""
LIFE: Final = timedelta(hours=24)
BACKDATED: Final = timedelta(minutes=5)
"""How far a certificate begins before it is made, so that clocks of one site may differ a little."""
URI_CHARACTERS_MAX: Final = 255
NAMES_MAX: Final = 32
"""Names of users' listeners in one certificate. Cost: each handshake carries them all."""
_DNS_SUFFIX: Final = "mesh.internal"
_TRUST_DOMAIN: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,126}[a-z0-9])?", re.ASCII)
_PATH_PARTS: Final = 3
UNREADABLE: Final = (
    ValueError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What `cryptography` raises for a certificate or a key that is none."""


class Service(StrEnum):
    """The four services of a node. The value stands in the URI and is the name of the folder with the files."""

    CONTROL = "control"
    ROUTING = "routing"
    DATA = "data"
    GATEWAY = "gateway"


@dataclass(frozen=True, slots=True)
class ServiceIdentity:
    """Who a service certificate is for.

    Attributes:
        mesh: Mesh id, or UNJOINED.
        node: Name of the node.
        service: Which of its services.
    """

    mesh: str
    node: str
    service: Service

    @property
    def uri(self) -> str:
        """The SPIFFE id."""
        return f"spiffe://{self.mesh}/node/{self.node}/{self.service.value}"

    @property
    def dns_name(self) -> str:
        """The name that clients of the same site compare; it is resolved by nobody."""
        return dns_name(self.node, self.service)


def dns_name(node: str, service: Service) -> str:
    """See `ServiceIdentity.dns_name`."""
    return f"{service.value}.{node}.{_DNS_SUFFIX}"


def parse_identity(uri: str) -> ServiceIdentity:
    """The one parser of such URIs; takes what `ServiceIdentity.uri` writes and nothing else.

    Raises:
        MeshError: CERTIFICATE_REFUSED.
    """
    scheme, _, rest = uri.partition("://")
    domain, _, path = rest.partition("/")
    parts = path.split("/")
    is_shaped = scheme == "spiffe" and len(uri) <= URI_CHARACTERS_MAX and len(parts) == _PATH_PARTS
    if is_shaped and _TRUST_DOMAIN.fullmatch(domain) and parts[0] == "node" and parts[2] in set(Service):
        try:
            return ServiceIdentity(domain, check_node_name(parts[1]), Service(parts[2]))
        except MeshError:
            pass  # refused below, like everything else that has another form
    raise refused(f"its URI {printable(uri)!r} names no service of a node")


def build(
    identity: ServiceIdentity,
    public_key: ec.EllipticCurvePublicKey,
    names: Iterable[str],
    *,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    now: datetime,
    life: timedelta = LIFE,
) -> x509.Certificate:
    """A service certificate.

    Args:
        identity: Who it is for.
        public_key: P-256.
        names: DNS names and IP addresses of its listeners, for users; at most NAMES_MAX.
        issuer: Subject of the issuer's certificate.
        issuer_key: The issuer's key, P-256.
        now: With a time zone; the certificate begins BACKDATED before.
        life: From `now` on.
    """
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, identity.dns_name[:64])])
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    alternatives = [x509.UniformResourceIdentifier(identity.uri), x509.DNSName(identity.dns_name), *map(_name, names)]
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + life)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )


def key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    """The key usage of a service (signatures of TLS), or of an issuer (certificates and their revocation)."""
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def check(certificate: x509.Certificate, now: datetime) -> ServiceIdentity:
    """Who the certificate is for, if it follows the profile and is valid at `now`.

    Raises:
        MeshError: CERTIFICATE_REFUSED with what is wrong, or CLOCK_SKEW when it is not the time of the certificate.
    """
    identity = check_form(certificate)
    try:
        begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    except ValueError:
        raise refused("its times cannot be read") from None
    if not begins <= now <= ends:
        raise MeshError(
            ErrorCode.CLOCK_SKEW,
            f"The certificate of {identity.uri} is valid from {begins:%F %T} to {ends:%F %T} UTC, and it is {now:%F %T} "
            "here: set the clocks of this site right, and see that the control plane, which renews certificates, runs.",
            {"begins": begins.isoformat(), "ends": ends.isoformat(), "now": now.isoformat()},
        )
    return identity


def check_form(certificate: x509.Certificate) -> ServiceIdentity:
    """As `check`, without times. Raises MeshError(CERTIFICATE_REFUSED)."""
    try:
        return _identity_of(certificate)
    except UNREADABLE:
        raise refused("it cannot be read") from None


def _identity_of(certificate: x509.Certificate) -> ServiceIdentity:
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise refused("its key is not of P-256")
    extensions = certificate.extensions
    try:
        is_authority = extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
        extended = set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
        alternatives = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound as error:
        raise refused(f"it lacks the extension {error.oid.dotted_string}") from None
    if is_authority or usage.key_cert_sign:
        raise refused("it is the certificate of an authority, not of a service")
    if (
        not usage.digital_signature
        or not {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH} <= extended
    ):
        raise refused("its key may not be used at both ends of TLS")
    uris = alternatives.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise refused(f"it has {len(uris)} URIs instead of one")
    identity = parse_identity(uris[0])
    if identity.dns_name not in alternatives.get_values_for_type(x509.DNSName):
        raise refused(f"it lacks the DNS name {identity.dns_name}")
    return identity


def refused(why: str) -> MeshError:
    """A certificate that is not taken."""
    return MeshError(
        ErrorCode.CERTIFICATE_REFUSED,
        f"The certificate is refused, because {why}: give the service the files that its control plane wrote for it.",
    )


def _name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
