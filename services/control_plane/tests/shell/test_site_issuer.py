"""The site issuer: one key for ever, certificates that its own certificate verifies, and a chain to the mesh's root."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from cryptography.x509.verification import PolicyBuilder, Store

from mesh_control.shell.site_issuer import ISSUER_KEY, SiteIssuer
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.service_certificates import UNJOINED, Service, ServiceIdentity, check, key_usage

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
MESH = "4a1c1e0e-0000-4000-8000-000000000000"
NODE_URI = f"spiffe://{MESH}/node/a"


def leaf_of(issuer: SiteIssuer) -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    return issuer.issue(Service.GATEWAY, key.public_key(), ["gateway.example.com"], NOW)


def verify(leaf: x509.Certificate, root: x509.Certificate, between: tuple[x509.Certificate, ...] = ()) -> None:
    policy = PolicyBuilder().store(Store([root])).time(NOW)
    policy.build_server_verifier(x509.DNSName("gateway.example.com")).verify(leaf, list(between))
    policy.build_client_verifier().verify(leaf, list(between))


def certified(issuer: SiteIssuer, subject: x509.Name | None = None) -> tuple[x509.Certificate, x509.Certificate]:
    """A root of a mesh, and the certificate that it signed for the issuer's key."""
    key = ec.generate_private_key(ec.SECP256R1())
    root_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "root")])

    def sign(name: x509.Name, public_key: ec.EllipticCurvePublicKey, length: int) -> x509.Certificate:
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(root_name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - timedelta(hours=1))
            .not_valid_after(NOW + timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=length), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(NODE_URI)]), critical=False)
            .add_extension(key_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )

    return sign(root_name, key.public_key(), 1), sign(subject or issuer.certificate.subject, issuer.public_key, 0)


def test_the_key_is_made_once_and_is_private(tmp_path: Path) -> None:
    first = SiteIssuer.load_or_make(tmp_path, "a")
    again = SiteIssuer.load_or_make(tmp_path, "a")
    assert first.public_key == again.public_key
    assert (tmp_path / ISSUER_KEY).stat().st_mode & 0o777 == 0o600
    verify(leaf_of(first), again.certificate)


def test_a_certificate_is_of_the_mesh_that_the_node_is_in(tmp_path: Path) -> None:
    issuer = SiteIssuer.load_or_make(tmp_path, "a")
    assert check(leaf_of(issuer), NOW) == ServiceIdentity(UNJOINED, "a", Service.GATEWAY)
    issuer.mesh = MESH
    assert check(leaf_of(issuer), NOW).mesh == MESH


def test_another_site_verifies_nothing_of_this_one(tmp_path: Path) -> None:
    one, other = (SiteIssuer(ec.generate_private_key(ec.SECP256R1()), "a") for _ in range(2))
    with pytest.raises(x509.verification.VerificationError):
        verify(leaf_of(one), other.certificate)


def test_a_chain_leads_to_the_root_of_the_mesh() -> None:
    issuer = SiteIssuer(ec.generate_private_key(ec.SECP256R1()), "a")
    root, node = certified(issuer)
    issuer.mesh = MESH
    issuer.set_chain([node])
    assert issuer.chain == (node,)
    verify(leaf_of(issuer), root, issuer.chain)
    verify(leaf_of(issuer), issuer.certificate, issuer.chain)


def test_the_chain_of_a_mesh_that_the_node_has_left_is_not_shown() -> None:
    issuer = SiteIssuer(ec.generate_private_key(ec.SECP256R1()), "a")
    issuer.mesh = MESH
    issuer.set_chain([certified(issuer)[1]])
    issuer.mesh = UNJOINED
    assert issuer.chain == ()


def test_a_chain_for_another_key_or_name_is_refused() -> None:
    issuer = SiteIssuer(ec.generate_private_key(ec.SECP256R1()), "a")
    other = SiteIssuer(ec.generate_private_key(ec.SECP256R1()), "b")
    for chain in (certified(other)[1], certified(issuer, other.certificate.subject)[1]):
        with pytest.raises(ValueError, match="not for the key"):
            issuer.set_chain([chain])
    assert issuer.chain == ()


@pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_damaged_key_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ISSUER_KEY).write_bytes(content)
    with pytest.raises(MeshError) as caught:
        SiteIssuer.load_or_make(tmp_path, "a")
    assert caught.value.code is ErrorCode.DATA_DIR_INCOMPLETE
    assert str(tmp_path) in caught.value.message
