"""The profile of the mesh CA: what is made passes its own check, and what cannot be read is refused as one thing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from meshcommon import mesh_certificates as certificates
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.mesh_certificates import Authority

MESH: Final = "6f0d6c52-0000-4000-8000-000000000001"
NOW: Final = datetime(2030, 1, 1, tzinfo=UTC)
KEYS: Final = [ec.generate_private_key(ec.SECP256R1()) for _ in range(3)]
ROOT: Final = Authority(certificates.make_root(MESH, KEYS[0], NOW), KEYS[0])
INTERMEDIATE: Final = Authority(certificates.make_intermediate(MESH, ROOT, KEYS[1].public_key(), NOW), KEYS[1])


def test_what_is_made_passes_the_check_of_its_kind() -> None:
    certificates.check_root(ROOT.certificate, NOW)
    certificates.check_intermediate(INTERMEDIATE.certificate, ROOT.certificate, MESH, NOW)
    uri = certificates.node_uri(MESH, "a")
    node = certificates.make_node_certificate(MESH, "a", INTERMEDIATE, KEYS[2].public_key(), NOW)
    certificates.check_node_certificate(
        node, INTERMEDIATE.certificate, uri, certificates.public_der(KEYS[2].public_key()), NOW
    )
    assert certificates.read_certificate(certificates.der(node)) == node
    assert certificates.read_pem(certificates.pem(node)) == node


def test_nothing_outlives_what_signed_it() -> None:
    late = NOW + certificates.ROOT_LIFE - timedelta(hours=1)
    intermediate = Authority(certificates.make_intermediate(MESH, ROOT, KEYS[1].public_key(), late), KEYS[1])
    node = certificates.make_node_certificate(MESH, "a", intermediate, KEYS[2].public_key(), late)
    assert node.not_valid_after_utc == intermediate.certificate.not_valid_after_utc
    assert intermediate.certificate.not_valid_after_utc == ROOT.certificate.not_valid_after_utc


@pytest.mark.parametrize(
    ("then", "left"),
    [(NOW - timedelta(days=1), 1.0), (NOW + certificates.NODE_LIFE, 0.0), (NOW + timedelta(hours=12), 0.498)],
)
def test_share_of_life_that_is_left(then: datetime, left: float) -> None:
    node = certificates.make_node_certificate(MESH, "a", INTERMEDIATE, KEYS[2].public_key(), NOW)
    assert certificates.life_left(node, then) == pytest.approx(left, abs=0.002)


@pytest.mark.parametrize("data", [b"", b"x" * 5000, b"\x30\x03\x02\x01\x01", certificates.der(ROOT.certificate)[:-1]])
def test_bytes_that_are_no_certificate_are_refused(data: bytes) -> None:
    with pytest.raises(MeshError) as caught:
        certificates.read_certificate(data)
    assert caught.value.code is ErrorCode.CERTIFICATE_INVALID


@pytest.mark.parametrize("text", ["", "x" * 10_000, certificates.pem(ROOT.certificate) * 2])
def test_text_that_is_not_one_certificate_is_refused(text: str) -> None:
    with pytest.raises(MeshError) as caught:
        certificates.read_pem(text)
    assert caught.value.code is ErrorCode.CERTIFICATE_INVALID


def self_signed(
    key: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey, algorithm: hashes.SHA256 | None
) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "r")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=2))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(INTERMEDIATE.certificate.extensions.get_extension_for_class(x509.KeyUsage).value, critical=True)
        .sign(key, algorithm)
    )


def test_root_of_an_operator_may_be_rsa_of_enough_bits() -> None:
    certificates.check_root(self_signed(rsa.generate_private_key(65537, 2048), hashes.SHA256()), NOW)
    with pytest.raises(MeshError):
        certificates.check_root(self_signed(rsa.generate_private_key(65537, 1024), hashes.SHA256()), NOW)
    with pytest.raises(MeshError):
        certificates.check_root(self_signed(ed25519.Ed25519PrivateKey.generate(), None), NOW)


def test_request_that_is_not_ours_is_not_signed() -> None:
    request = certificates.make_request(MESH, KEYS[1]).public_bytes(Encoding.PEM).decode()
    signed = certificates.sign_request(request, ROOT, NOW)
    certificates.check_intermediate(signed, ROOT.certificate, MESH, NOW)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "r")])
    without = x509.CertificateSigningRequestBuilder().subject_name(name).sign(KEYS[1], hashes.SHA256())
    for text in ("", "garbage", without.public_bytes(Encoding.PEM).decode()):
        with pytest.raises(MeshError) as caught:
            certificates.sign_request(text, ROOT, NOW)
        assert caught.value.code is ErrorCode.CERTIFICATE_INVALID


@pytest.mark.parametrize(
    ("then", "said"), [(NOW - timedelta(hours=1), "not begun"), (NOW + timedelta(days=366), "ended")]
)
def test_a_clock_that_is_off_is_named_with_both_times(then: datetime, said: str) -> None:
    with pytest.raises(MeshError) as caught:
        certificates.check_intermediate(INTERMEDIATE.certificate, ROOT.certificate, MESH, then)
    assert caught.value.code is ErrorCode.CLOCK_SKEW
    assert said in caught.value.message
    assert f"{then:%F %T}" in caught.value.message
