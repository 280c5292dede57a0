"""Requests for certificates, their answers and signed admissions: each change of each of them is refused, and named."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from control_plane_testing.mcg_commands import MESH_ID, accept, add, found
from mesh_control.core import ca_checks
from mesh_control.core.ca_checks import SKEW_MS_MAX, Asker, moment
from mesh_control.core.ca_state import CertificateAuthority
from mesh_control.core.mcg_state import McgState
from mesh_control.shell.ca_keys import WrapKey, seal
from meshapi.common.v1 import view_pb2
from meshapi.control.v1 import join_pb2, mcg_pb2
from meshcommon import mesh_certificates as certificates
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId
from meshcommon.mesh_certificates import Authority

NOW_MS: Final = 1_800_000_000_000
NOW: Final = moment(NOW_MS)
OTHER_MESH: Final = "6f0d6c52-0000-4000-8000-000000000002"
IDENTITIES: Final = {number: ed25519.Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2)}
ISSUER_KEY: Final = ec.generate_private_key(ec.SECP256R1())
SUBJECT: Final = certificates.issuer_name(ISSUER_KEY.public_key())
ISSUER: Final = certificates.public_der(ISSUER_KEY.public_key())


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def new_root(mesh_id: str = MESH_ID) -> Authority:
    key = new_key()
    return Authority(certificates.make_root(mesh_id, key, NOW), key)


def under(root: Authority, mesh_id: str = MESH_ID, now: datetime = NOW) -> Authority:
    key = new_key()
    return Authority(certificates.make_intermediate(mesh_id, root, key.public_key(), now), key)


ROOT: Final = new_root()
INTERMEDIATE: Final = under(ROOT)


def two_nodes() -> McgState:
    state, founding = McgState(), found()
    founding.found_mesh.node.public_key = IDENTITIES[1].public_key().public_bytes_raw()
    accept(state, founding)
    newcomer = add("b", 2)
    newcomer.add_node.public_key = IDENTITIES[2].public_key().public_bytes_raw()
    accept(state, newcomer)
    return state


def request(
    *,
    node_id: int = 2,
    signer: int = 2,
    mesh_id: str = MESH_ID,
    epoch: int = 1,
    time_ms: int = NOW_MS,
    key: bytes = ISSUER,
    issuer_key: bytes = b"",
    is_signed: bool = True,
) -> bytes:
    statement = ca_checks.request_statement(Asker(mesh_id, epoch, node_id), key, time_ms)
    signature = IDENTITIES[signer].sign(statement) if is_signed else b""
    return join_pb2.CertifyRequest(
        issuer_key=issuer_key or key, time_ms=time_ms, signature=signature
    ).SerializeToString()


def test_a_sound_request_names_the_member_and_its_key() -> None:
    node, key = ca_checks.read_request(request(), NodeId(2), two_nodes(), NOW_MS)
    assert (node.name, key) == ("b", ISSUER_KEY.public_key())
    for skew in (-SKEW_MS_MAX, SKEW_MS_MAX):
        ca_checks.read_request(request(time_ms=NOW_MS + skew), NodeId(2), two_nodes(), NOW_MS)


P384: Final = certificates.public_der(ec.generate_private_key(ec.SECP384R1()).public_key())


@pytest.mark.parametrize(
    ("body", "caller", "code"),
    [
        (request(), 1, ErrorCode.KEY_MISMATCH),
        (request(), 0, ErrorCode.NOT_A_MEMBER),
        (request(), 9, ErrorCode.NOT_A_MEMBER),
        (request(node_id=1), 2, ErrorCode.KEY_MISMATCH),
        (request(signer=1), 2, ErrorCode.KEY_MISMATCH),
        (request(mesh_id=OTHER_MESH), 2, ErrorCode.KEY_MISMATCH),
        (request(epoch=2), 2, ErrorCode.KEY_MISMATCH),
        (request(time_ms=NOW_MS - SKEW_MS_MAX - 1), 2, ErrorCode.CLOCK_SKEW),
        (request(time_ms=NOW_MS + SKEW_MS_MAX + 1), 2, ErrorCode.CLOCK_SKEW),
        (request(time_ms=2**64 - 1), 2, ErrorCode.CLOCK_SKEW),
        (request(time_ms=NOW_MS, issuer_key=P384), 2, ErrorCode.KEY_MISMATCH),
        (request(key=P384), 2, ErrorCode.CERTIFICATE_INVALID),
        (request(key=b"no key"), 2, ErrorCode.CERTIFICATE_INVALID),
        (request(key=ISSUER + b"\x00"), 2, ErrorCode.CERTIFICATE_INVALID),
        (request(is_signed=False), 2, ErrorCode.KEY_MISMATCH),
        (b"\xff\xff", 2, ErrorCode.INVALID_ARGUMENT),
        (b"\x0a\x80\x80\x40" + b"k" * 2**20, 2, ErrorCode.INVALID_ARGUMENT),
    ],
    ids=[
        "replayed by another node",
        "by a stranger",
        "by one that is not in the view",
        "for another node",
        "signed by another node",
        "wrong mesh",
        "wrong epoch",
        "too old",
        "of the future",
        "end of time",
        "key exchanged",
        "P-384",
        "no key",
        "key written otherwise",
        "unsigned",
        "garbage",
        "too long",
    ],
)
def test_a_request_that_is_not_the_members_own_is_refused(body: bytes, caller: int, code: ErrorCode) -> None:
    with pytest.raises(MeshError) as caught:
        ca_checks.read_request(body, NodeId(caller), two_nodes(), NOW_MS)
    assert caught.value.code is code


# What comes back: certificates that are almost right


@dataclass(frozen=True)
class Made:
    """How a certificate is made, each part to be changed by itself."""

    issuer: Authority = INTERMEDIATE
    subject: x509.Name = SUBJECT
    key: Any = None
    uris: tuple[str, ...] = (certificates.node_uri(MESH_ID, "b"),)
    dns: tuple[str, ...] = ()
    begin: datetime = NOW - timedelta(minutes=5)
    end: datetime = NOW + timedelta(hours=24)
    is_ca: bool = True
    path_length: int | None = 0
    signs: bool = True
    signing_key: Any = None
    critical: tuple[x509.ExtensionType, ...] = ()

    def certificate(self) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(self.subject)
            .issuer_name(self.issuer.certificate.subject)
            .public_key(self.key or ISSUER_KEY.public_key())
            .serial_number(5)
            .not_valid_before(self.begin)
            .not_valid_after(self.end)
            .add_extension(x509.BasicConstraints(self.is_ca, self.path_length if self.is_ca else None), critical=True)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=True,
                    content_commitment=False,
                    key_encipherment=False,
                    data_encipherment=False,
                    key_agreement=False,
                    key_cert_sign=self.signs,
                    crl_sign=False,
                    encipher_only=False,
                    decipher_only=False,
                ),
                critical=True,
            )
        )
        names = [*map(x509.UniformResourceIdentifier, self.uris), *map(x509.DNSName, self.dns)]
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        for extension in self.critical:
            builder = builder.add_extension(extension, critical=True)
        return builder.sign(self.signing_key or self.issuer.key, hashes.SHA256())


def the_ca(intermediate: Authority = INTERMEDIATE, root: Authority = ROOT) -> CertificateAuthority:
    return CertificateAuthority(
        1,
        (certificates.der(root.certificate),),
        certificates.der(intermediate.certificate),
        {},
        frozenset(),
    )


def answer(certificate: x509.Certificate, intermediate: Authority = INTERMEDIATE) -> bytes:
    return join_pb2.CertifyResponse(
        certificate=certificates.der(certificate), intermediate=certificates.der(intermediate.certificate)
    ).SerializeToString()


def read(body: bytes, ca: CertificateAuthority | None = None, now_ms: int = NOW_MS) -> None:
    ca_checks.read_answer(body, ca or the_ca(), (MESH_ID, "b"), ISSUER, now_ms)


def test_the_certificate_that_a_voter_makes_is_taken() -> None:
    made = certificates.make_node_certificate(MESH_ID, "b", INTERMEDIATE, ISSUER_KEY.public_key(), NOW)
    read(answer(made))
    read(answer(Made().certificate()))


URI: Final = certificates.node_uri(MESH_ID, "b")
FORGER: Final = under(new_root())


@pytest.mark.parametrize(
    ("made", "code"),
    [
        (Made(uris=()), ErrorCode.CERTIFICATE_INVALID),
        (Made(uris=(URI, URI + "x")), ErrorCode.CERTIFICATE_INVALID),
        (Made(uris=(URI, URI)), ErrorCode.CERTIFICATE_INVALID),
        (Made(uris=(certificates.node_uri(MESH_ID, "a"),)), ErrorCode.CERTIFICATE_INVALID),
        (Made(uris=(certificates.node_uri(OTHER_MESH, "b"),)), ErrorCode.CERTIFICATE_INVALID),
        (Made(uris=(URI + "/gateway",)), ErrorCode.CERTIFICATE_INVALID),
        (Made(is_ca=False), ErrorCode.CERTIFICATE_INVALID),
        (Made(signs=False), ErrorCode.CERTIFICATE_INVALID),
        (Made(path_length=1), ErrorCode.CERTIFICATE_INVALID),
        (Made(path_length=None), ErrorCode.CERTIFICATE_INVALID),
        (Made(begin=NOW + timedelta(hours=1)), ErrorCode.CLOCK_SKEW),
        (Made(end=NOW - timedelta(seconds=1)), ErrorCode.CLOCK_SKEW),
        (Made(signing_key=FORGER.key), ErrorCode.CERTIFICATE_INVALID),
        (Made(issuer=FORGER), ErrorCode.CERTIFICATE_INVALID),
        (Made(issuer=ROOT), ErrorCode.CERTIFICATE_INVALID),
        (Made(key=new_key().public_key()), ErrorCode.CERTIFICATE_INVALID),
        (Made(key=IDENTITIES[2].public_key()), ErrorCode.CERTIFICATE_INVALID),
        (Made(subject=ROOT.certificate.subject), ErrorCode.CERTIFICATE_INVALID),
        (Made(critical=(x509.OCSPNoCheck(),)), ErrorCode.CERTIFICATE_INVALID),
    ],
    ids=[
        "no URI",
        "two URIs",
        "one URI twice",
        "another node",
        "wrong trust domain",
        "a service's URI",
        "no CA",
        "may not sign",
        "path length 1",
        "any path length",
        "not begun",
        "ended",
        "forged signature",
        "forged chain",
        "signed by the root",
        "another key",
        "Ed25519",
        "another subject",
        "unknown critical extension",
    ],
)
def test_a_certificate_that_is_not_exactly_right_is_refused(made: Made, code: ErrorCode) -> None:
    with pytest.raises(MeshError) as caught:
        read(answer(made.certificate()))
    assert caught.value.code is code


@pytest.mark.parametrize(
    ("body", "ca", "code"),
    [
        (b"\xff\xff", the_ca(), ErrorCode.WRONG_PROTOCOL),
        (b"", the_ca(), ErrorCode.CA_CHANGED),
        (answer(Made().certificate(), FORGER), the_ca(), ErrorCode.CA_CHANGED),
        (answer(Made().certificate()), the_ca(root=new_root()), ErrorCode.CERTIFICATE_INVALID),
        (
            join_pb2.CertifyResponse(
                certificate=b"x", intermediate=certificates.der(INTERMEDIATE.certificate)
            ).SerializeToString(),
            the_ca(),
            ErrorCode.CERTIFICATE_INVALID,
        ),
    ],
    ids=["garbage", "empty", "another intermediate", "another root", "no certificate"],
)
def test_an_answer_that_does_not_lead_to_a_committed_root_is_refused(
    body: bytes, ca: CertificateAuthority, code: ErrorCode
) -> None:
    with pytest.raises(MeshError) as caught:
        read(body, ca)
    assert caught.value.code is code


def test_an_intermediate_that_has_ended_certifies_nothing() -> None:
    with pytest.raises(MeshError) as caught:
        read(answer(Made(end=NOW + timedelta(days=500)).certificate()), now_ms=NOW_MS + 366 * 24 * 3600 * 1000)
    assert caught.value.code is ErrorCode.CLOCK_SKEW


# A change of the CA, before it is proposed


@pytest.mark.parametrize(
    ("roots", "intermediate"),
    [
        ([], INTERMEDIATE.certificate),
        ([new_root().certificate], INTERMEDIATE.certificate),
        ([ROOT.certificate], under(ROOT, OTHER_MESH).certificate),
        ([ROOT.certificate], ROOT.certificate),
        ([ROOT.certificate], Made(issuer=ROOT, uris=(f"spiffe://{MESH_ID}",), path_length=None).certificate()),
        ([ROOT.certificate], Made(issuer=ROOT, uris=(f"spiffe://{MESH_ID}", URI), path_length=1).certificate()),
        ([ROOT.certificate, INTERMEDIATE.certificate], INTERMEDIATE.certificate),
    ],
    ids=["no root", "another root", "another mesh", "the root itself", "any path", "two URIs", "second root is none"],
)
def test_a_change_with_other_certificates_is_not_proposed(
    roots: list[x509.Certificate], intermediate: x509.Certificate
) -> None:
    change = mcg_pb2.SetCa(roots=map(certificates.der, roots), intermediate=certificates.der(intermediate))
    with pytest.raises(MeshError) as caught:
        ca_checks.check_change(change, MESH_ID, NOW_MS)
    assert caught.value.code is ErrorCode.CERTIFICATE_INVALID
    sound = mcg_pb2.SetCa(
        roots=[certificates.der(ROOT.certificate)], intermediate=certificates.der(INTERMEDIATE.certificate)
    )
    ca_checks.check_change(sound, MESH_ID, NOW_MS)


# Sealed keys


def test_a_sealed_key_is_opened_by_the_node_and_for_the_intermediate_it_is_meant_for_alone() -> None:
    own, other, key = WrapKey(b"\x01" * 32), WrapKey(b"\x02" * 32), new_key()
    place, digest = (MESH_ID, NodeId(2)), b"d" * 32
    sealed = seal(key, own.public_key, place, digest)
    assert own.open(sealed, place, digest, key.public_key()).private_numbers() == key.private_numbers()
    attempts: list[Callable[[], object]] = [
        lambda: other.open(sealed, place, digest, key.public_key()),
        lambda: own.open(sealed, (OTHER_MESH, NodeId(2)), digest, key.public_key()),
        lambda: own.open(sealed, (MESH_ID, NodeId(3)), digest, key.public_key()),
        lambda: own.open(sealed, place, b"e" * 32, key.public_key()),
        lambda: own.open(sealed, place, digest, new_key().public_key()),
        lambda: own.open(sealed[:-1], place, digest, key.public_key()),
        lambda: own.open(b"", place, digest, key.public_key()),
        *(
            (
                lambda at=at: own.open(
                    sealed[:at] + bytes((sealed[at] ^ 1,)) + sealed[at + 1 :], place, digest, key.public_key()
                )
            )
            for at in range(len(sealed))
        ),
    ]
    for attempt in attempts:
        with pytest.raises(MeshError) as caught:
            attempt()
        assert caught.value.code is ErrorCode.CA_MISSING
    assert seal(key, own.public_key, place, digest) != sealed, "each sealing has a key of its own"


# A signed admission

NEWCOMER: Final = b"n" * 32
FINGERPRINT: Final = hashlib.sha256(certificates.der(ROOT.certificate)).digest()


def admission(
    *,
    chain: tuple[x509.Certificate, ...] | None = None,
    roots: tuple[x509.Certificate, ...] = (ROOT.certificate,),
    names: tuple[str, ...] = ("a", "b"),
    mesh_id: str = MESH_ID,
    key: ec.EllipticCurvePrivateKey = ISSUER_KEY,
    newcomer: bytes = NEWCOMER,
) -> bytes:
    node = Made().certificate()
    response = join_pb2.JoinResponse(
        node_id=3,
        view=view_pb2.MeshView(mesh_id=mesh_id, nodes=[view_pb2.NodeView(name=name) for name in names]),
        roots=map(certificates.der, roots),
        chain=map(certificates.der, chain if chain is not None else (node, INTERMEDIATE.certificate)),
    ).SerializeToString()
    signature = key.sign(ca_checks.admitted_statement(newcomer, response), ec.ECDSA(hashes.SHA256()))
    return ca_checks.certify_answer(response, signature)


def test_an_answer_that_chains_to_the_fingerprint_is_taken() -> None:
    body = admission()
    covered = ca_checks.certified(body, NEWCOMER, FINGERPRINT, NOW_MS)
    assert body.startswith(covered)
    parsed = join_pb2.JoinResponse.FromString(body)
    assert len(parsed.signature) == 64, "it is a field of the message"


OTHER_ROOT: Final = new_root()


@pytest.mark.parametrize(
    "body",
    [
        admission(roots=(OTHER_ROOT.certificate,)),
        admission(roots=()),
        admission(chain=()),
        admission(chain=(Made().certificate(),)),
        admission(chain=(Made(issuer=FORGER).certificate(), FORGER.certificate)),
        admission(chain=(Made(uris=(certificates.node_uri(MESH_ID, "z"),)).certificate(), INTERMEDIATE.certificate)),
        admission(chain=(Made(uris=(URI, URI + "x")).certificate(), INTERMEDIATE.certificate)),
        admission(chain=(Made(end=NOW - timedelta(seconds=1)).certificate(), INTERMEDIATE.certificate)),
        admission(mesh_id=OTHER_MESH),
        admission(key=new_key()),
        admission(newcomer=b"m" * 32),
        admission()[:-1],
        b"",
        b"\xff" * 100,
    ],
    ids=range(14),
)
def test_an_answer_that_does_not_is_refused(body: bytes) -> None:
    with pytest.raises(MeshError) as caught:
        ca_checks.certified(body, NEWCOMER, FINGERPRINT, NOW_MS)
    assert caught.value.code in {ErrorCode.KEY_MISMATCH, ErrorCode.CERTIFICATE_INVALID, ErrorCode.CLOCK_SKEW}


def test_every_changed_byte_of_an_answer_is_noticed() -> None:
    body = admission()
    for at in range(0, len(body), 7):
        changed = body[:at] + bytes((body[at] ^ 1,)) + body[at + 1 :]
        with pytest.raises(MeshError):
            ca_checks.certified(changed, NEWCOMER, FINGERPRINT, NOW_MS)
