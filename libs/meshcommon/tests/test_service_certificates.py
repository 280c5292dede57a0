"""The profile of service certificates: what is built passes, and each deviation is refused by name (ADR 0020)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from meshcommon.errors import ErrorCode, MeshError
from meshcommon.service_certificates import (
    BACKDATED,
    LIFE,
    UNJOINED,
    Service,
    ServiceIdentity,
    build,
    check,
    key_usage,
    parse_identity,
)

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
MESH = "0b6b5a44-7f5d-4d0e-9a3c-111111111111"
IDENTITY = ServiceIdentity(MESH, "a", Service.DATA)
KEY = ec.generate_private_key(ec.SECP256R1())
ISSUER = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "issuer")])
Extensions = dict[type, x509.ExtensionType]


def issued(names: tuple[str, ...] = ()) -> x509.Certificate:
    return build(IDENTITY, KEY.public_key(), names, issuer=ISSUER, issuer_key=KEY, now=NOW)


def minted(
    change: Callable[[Extensions], None], key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey = KEY
) -> x509.Certificate:
    """A certificate with the extensions of a right one, after `change`."""
    good = issued()
    extensions: Extensions = {type(extension.value): extension.value for extension in good.extensions}
    change(extensions)
    builder = (
        x509.CertificateBuilder()
        .subject_name(good.subject)
        .issuer_name(ISSUER)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + LIFE)
    )
    for extension in extensions.values():
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(KEY, hashes.SHA256())


def san(*names: x509.GeneralName) -> Callable[[Extensions], None]:
    return lambda extensions: extensions.update({x509.SubjectAlternativeName: x509.SubjectAlternativeName(names)})


def uri(text: str) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(text)


def without(kind: type) -> Callable[[Extensions], None]:
    def remove(extensions: Extensions) -> None:
        del extensions[kind]

    return remove


def with_(value: x509.ExtensionType) -> Callable[[Extensions], None]:
    return lambda extensions: extensions.update({type(value): value})


OWN_NAME = x509.DNSName(IDENTITY.dns_name)


def test_a_certificate_names_its_service_and_lasts_a_day() -> None:
    certificate = issued(("gateway.example.com", "10.0.0.7", "::1"))
    assert check(certificate, NOW) == IDENTITY
    assert (certificate.not_valid_before_utc, certificate.not_valid_after_utc) == (NOW - BACKDATED, NOW + LIFE)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [f"spiffe://{MESH}/node/a/data"]
    assert names.get_values_for_type(x509.DNSName) == ["data.a.mesh.internal", "gateway.example.com"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.7", "::1"]


@pytest.mark.parametrize(
    ("certificate", "says"),
    [
        (minted(san(uri(IDENTITY.uri), uri(IDENTITY.uri + "x"), OWN_NAME)), "2 URIs"),
        (minted(san(OWN_NAME)), "0 URIs"),
        (minted(san(uri(IDENTITY.uri))), "DNS name data.a.mesh.internal"),
        (minted(san(uri(IDENTITY.uri), x509.DNSName("data.b.mesh.internal"))), "DNS name data.a.mesh.internal"),
        (minted(san(uri("https://example.com/"), OWN_NAME)), "names no service"),
        (minted(with_(x509.BasicConstraints(ca=True, path_length=0))), "authority"),
        (minted(with_(key_usage(signs_certificates=True))), "authority"),
        (minted(with_(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]))), "both ends"),
        (minted(without(x509.BasicConstraints)), "extension 2.5.29.19"),
        (minted(without(x509.SubjectAlternativeName)), "extension 2.5.29.17"),
        (minted(lambda _: None, rsa.generate_private_key(65537, 2048)), "P-256"),
    ],
)  # fmt: skip
def test_a_deviation_from_the_profile_is_refused_by_name(certificate: x509.Certificate, says: str) -> None:
    with pytest.raises(MeshError, match=says) as caught:
        check(certificate, NOW)
    assert caught.value.code is ErrorCode.CERTIFICATE_REFUSED


@pytest.mark.parametrize("now", [NOW - timedelta(hours=1), NOW + LIFE + timedelta(seconds=1)])
def test_a_wrong_clock_is_named(now: datetime) -> None:
    with pytest.raises(MeshError, match="set the clocks") as caught:
        check(issued(), now)
    assert caught.value.code is ErrorCode.CLOCK_SKEW
    assert f"{now:%F %T}" in caught.value.message


@pytest.mark.parametrize("identity", [IDENTITY, ServiceIdentity(UNJOINED, "a-1", Service.CONTROL)])
def test_an_identity_survives_its_text(identity: ServiceIdentity) -> None:
    assert parse_identity(identity.uri) == identity


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiffe://",
        "spiffe:///node/a/data",
        f"spiffe://{MESH}/node/a/data/",
        f"spiffe://{MESH}/node/a",
        f"spiffe://{MESH}/node//data",
        f"spiffe://{MESH}/node/A/data",
        f"spiffe://{MESH}/nodes/a/data",
        f"spiffe://{MESH}/node/a/worker",
        f"spiffe://{MESH}/node/a/data?x=1",
        f"spiffe://user@{MESH}/node/a/data",
        f"spiffe://{MESH}:80/node/a/data",
        f"SPIFFE://{MESH}/node/a/data",
        f"spiffe://{MESH.upper().replace('0', 'X')}/node/a/data",
        f"spiffe://{'a' * 300}/node/a/data",
    ],
)
def test_another_uri_names_nobody(text: str) -> None:
    with pytest.raises(MeshError, match="names no service"):
        parse_identity(text)
