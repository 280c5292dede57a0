"""What is checked of a CA before it is proposed, and of what nodes ask each other about certificates.

A request for a node certificate is signed by the asking node's registered key, for one mesh, epoch, node, key and moment, so
it is worth nothing for another one. What comes back is checked against the committed roots and intermediate.
Source: docs/design/identity.md "Certificates"; join.proto.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from google.protobuf.message import DecodeError

from mesh_control.core.ca_state import CertificateAuthority
from mesh_control.core.mcg_state import McgState
from mesh_control.core.model import Node
from meshapi.control.v1 import join_pb2, mcg_pb2
from meshcommon import mesh_certificates as certificates
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId
from meshcommon.signed_parts import join_parts, number

REQUEST_BYTES_MAX: Final = 1024
ANSWER_BYTES_MAX: Final = 16 * 1024
SKEW_MS_MAX: Final = 5 * 60 * 1_000
"""A request that is older, or of a later time, is refused: so long may one be repeated, to the same effect."""
NUMBER_BYTES: Final = 32
"""Of r and of s in a signature."""
SIGNATURE_BYTES: Final = 2 * NUMBER_BYTES
_REQUEST: Final = b"mesh.v1 certificate request"
_ADMITTED: Final = b"mesh.v1 admitted by"
_SIGNATURE_TAG: Final = bytes((join_pb2.JoinResponse.SIGNATURE_FIELD_NUMBER << 3 | 2, SIGNATURE_BYTES))
"""Tag and length of JoinResponse.signature on the wire."""


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks for a certificate: the mesh as it knows it, and its place."""

    mesh_id: str
    epoch: int
    node_id: int


def moment(time_ms: int) -> datetime:
    """Milliseconds since 1970 as the certificates have it."""
    return datetime.fromtimestamp(time_ms / 1000, UTC)


def check_change(command: mcg_pb2.SetCa, mesh_id: str, now_ms: int) -> None:
    """The certificates of a change are what a mesh's CA has. Raises CERTIFICATE_INVALID, CLOCK_SKEW."""
    now, roots = moment(now_ms), [certificates.read_certificate(item) for item in command.roots]
    intermediate = certificates.read_certificate(command.intermediate)
    if not roots:
        raise certificates.invalid("there is no root")
    for root in roots:
        certificates.check_root(root, now)
    certificates.check_intermediate(intermediate, roots[0], mesh_id, now)


def request_statement(asker: Asker, issuer_key: bytes, time_ms: int) -> bytes:
    """What the asking node's identity key signs."""
    return join_parts(
        _REQUEST, asker.mesh_id.encode(), number(asker.epoch), number(asker.node_id), issuer_key, number(time_ms)
    )


def read_request(body: bytes, caller: NodeId, state: McgState, now_ms: int) -> tuple[Node, ec.EllipticCurvePublicKey]:
    """The member that asks, and the key that is to be certified.

    Raises:
        MeshError: INVALID_ARGUMENT, NOT_A_MEMBER, CERTIFICATE_INVALID, KEY_MISMATCH, CLOCK_SKEW.
    """
    node = state.nodes.get(caller)
    if not caller or node is None:
        raise MeshError(ErrorCode.NOT_A_MEMBER, "Only members get certificates: join first.")
    if len(body) > REQUEST_BYTES_MAX:
        raise MeshError(
            ErrorCode.INVALID_ARGUMENT, f"A request for a certificate has at most {REQUEST_BYTES_MAX} bytes."
        )
    try:
        request = join_pb2.CertifyRequest.FromString(body)
    except DecodeError:
        raise MeshError(ErrorCode.INVALID_ARGUMENT, "The request for a certificate cannot be read.") from None
    asker = Asker(state.mesh_id, state.mesh_epoch, node.node_id)
    try:
        # Of the committed key alone: what an earlier certificate says does not count.
        Ed25519PublicKey.from_public_bytes(node.public_key).verify(
            request.signature, request_statement(asker, request.issuer_key, request.time_ms)
        )
    except (InvalidSignature, ValueError):
        raise MeshError(
            ErrorCode.KEY_MISMATCH,
            f"The request for a certificate is not signed by the key that the mesh knows of {node.name!r}.",
        ) from None
    if abs(now_ms - request.time_ms) > SKEW_MS_MAX:
        raise MeshError(
            ErrorCode.CLOCK_SKEW,
            f"The request for a certificate says {moment(min(request.time_ms, 2**45)):%F %T} UTC, and the clock here "
            f"{moment(now_ms):%F %T} UTC: set the clocks right.",
        )
    return node, certificates.read_public_key(request.issuer_key)


def read_answer(
    body: bytes, ca: CertificateAuthority, place: tuple[str, str], issuer_key: bytes, now_ms: int
) -> tuple[x509.Certificate, x509.Certificate]:
    """The node certificate for node `place` (mesh id, name) and the intermediate, checked up to a committed root.

    Raises:
        MeshError: WRONG_PROTOCOL, CERTIFICATE_INVALID, CLOCK_SKEW; CA_CHANGED when this node or the other is behind.
    """
    try:
        answer = join_pb2.CertifyResponse.FromString(body if len(body) <= ANSWER_BYTES_MAX else b"\xff")
    except DecodeError:
        raise MeshError(ErrorCode.WRONG_PROTOCOL, "The answer with a certificate cannot be read.") from None
    if answer.intermediate != ca.intermediate:
        raise MeshError(
            ErrorCode.CA_CHANGED, "The certificate is of another intermediate than this node knows: asked again soon."
        )
    mesh_id, name = place
    now = moment(now_ms)
    intermediate = certificates.read_certificate(ca.intermediate)
    certificates.check_intermediate(intermediate, certificates.read_certificate(ca.roots[0]), mesh_id, now)
    certificate = certificates.read_certificate(answer.certificate)
    uri = certificates.node_uri(mesh_id, name)
    certificates.check_node_certificate(certificate, intermediate, uri, issuer_key, now)
    return certificate, intermediate


def admitted_statement(public_key: bytes, response: bytes) -> bytes:
    """What the admitting member's site issuer signs."""
    return join_parts(_ADMITTED, public_key, response)


def certify_answer(response: bytes, der_signature: bytes) -> bytes:
    """`response`, an encoded JoinResponse, with its signature behind it, in a form of one length."""
    r, s = decode_dss_signature(der_signature)
    return response + _SIGNATURE_TAG + r.to_bytes(NUMBER_BYTES, "big") + s.to_bytes(NUMBER_BYTES, "big")


def certified(body: bytes, public_key: bytes, fingerprint: bytes, now_ms: int) -> bytes:
    """The part of an answer that its signature covers: by a member of the mesh whose root has this fingerprint.

    Raises:
        MeshError: KEY_MISMATCH, CERTIFICATE_INVALID, CLOCK_SKEW.
    """
    covered, end = body[: -SIGNATURE_BYTES - 2], body[-SIGNATURE_BYTES - 2 :]
    try:
        answer = join_pb2.JoinResponse.FromString(covered)
    except DecodeError:
        raise _not_certified() from None
    if not end.startswith(_SIGNATURE_TAG) or len(answer.chain) != 2:
        raise _not_certified()
    root = _pinned(answer.roots, fingerprint)
    key = _admitter(answer, root, moment(now_ms))
    r, s = (int.from_bytes(end[at : at + NUMBER_BYTES], "big") for at in (2, 2 + NUMBER_BYTES))
    try:
        key.verify(encode_dss_signature(r, s), admitted_statement(public_key, covered), ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError):
        raise _not_certified() from None
    return covered


def check_pinned(roots: Sequence[bytes], fingerprint: bytes) -> None:
    """One of the roots in an answer that is authentic has the fingerprint that a token names. Raises KEY_MISMATCH."""
    _pinned(roots, fingerprint)


def _pinned(roots: Sequence[bytes], fingerprint: bytes) -> x509.Certificate:
    for item in roots[:2]:
        root = certificates.read_certificate(item)
        if certificates.fingerprint(root) == fingerprint:
            return root
    raise MeshError(
        ErrorCode.KEY_MISMATCH,
        "The mesh that answered has another root than the one with this fingerprint: check the address and the fingerprint "
        "(`meshctl ca show` at a member), and who can change what passes between here and there.",
    )


def _admitter(answer: join_pb2.JoinResponse, root: x509.Certificate, now: datetime) -> ec.EllipticCurvePublicKey:
    """The certified key of a node that the answer's own view lists."""
    certificate, intermediate = map(certificates.read_certificate, answer.chain)
    mesh_id = answer.view.mesh_id
    certificates.check_root(root, now)
    certificates.check_intermediate(intermediate, root, mesh_id, now)
    uris = certificates.uris(certificate)
    listed = {certificates.node_uri(mesh_id, node.name) for node in answer.view.nodes}
    if len(uris) != 1 or uris[0] not in listed:
        raise certificates.invalid("it names no member of the mesh that answered")
    return certificates.check_names_node(certificate, intermediate, uris[0], now)


def _not_certified() -> MeshError:
    return MeshError(
        ErrorCode.KEY_MISMATCH,
        "The answer is not signed by a member of the mesh with this fingerprint: check the address, and who can read and "
        "change what passes between here and there.",
    )
