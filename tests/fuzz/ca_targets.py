"""Fuzz targets of the mesh CA: what members ask and answer about certificates, and what a newcomer by fingerprint is answered."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.message import DecodeError

from control_plane_testing.mcg_commands import MESH_ID, accept, found
from mesh_control.core import ca_checks
from mesh_control.core.ca_checks import Asker, moment
from mesh_control.core.ca_state import CertificateAuthority
from mesh_control.core.mcg_state import McgState
from meshapi.common.v1 import view_pb2
from meshapi.control.v1 import join_pb2, mcg_pb2
from meshcommon import mesh_certificates as certificates
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId
from meshcommon.mesh_certificates import Authority

_NOW_MS: Final = 1_800_000_000_000
_NOW: Final = moment(_NOW_MS)
_NEWCOMER: Final = bytes(range(32))
_IDENTITY: Final = Ed25519PrivateKey.from_private_bytes(bytes(32))
# Numbers instead of random keys: a failing input fails again.
_ROOT_KEY, _INTERMEDIATE_KEY, _ISSUER_KEY = (ec.derive_private_key(number, ec.SECP256R1()) for number in (3, 5, 7))
_ROOT: Final = Authority(certificates.make_root(MESH_ID, _ROOT_KEY, _NOW), _ROOT_KEY)
_INTERMEDIATE: Final = Authority(
    certificates.make_intermediate(MESH_ID, _ROOT, _INTERMEDIATE_KEY.public_key(), _NOW), _INTERMEDIATE_KEY
)
_ISSUER: Final = certificates.public_der(_ISSUER_KEY.public_key())
_NODE: Final = certificates.make_node_certificate(MESH_ID, "a", _INTERMEDIATE, _ISSUER_KEY.public_key(), _NOW)
_CA: Final = CertificateAuthority(
    1, (certificates.der(_ROOT.certificate),), certificates.der(_INTERMEDIATE.certificate), {}, frozenset()
)
_REFUSALS: Final = frozenset(
    {
        ErrorCode.INVALID_ARGUMENT,
        ErrorCode.KEY_MISMATCH,
        ErrorCode.CLOCK_SKEW,
        ErrorCode.CERTIFICATE_INVALID,
        ErrorCode.WRONG_PROTOCOL,
        ErrorCode.CA_CHANGED,
    }
)


def fuzz_certificate_request(data: bytes) -> None:
    """What a member asks for a certificate with: nothing but the key that it signed is certified."""
    try:
        node, key = ca_checks.read_request(data, NodeId(1), _STATE, _NOW_MS)
    except MeshError as error:
        _expect(error)
        return
    assert (node.name, certificates.public_der(key)) == ("a", _ISSUER)


def fuzz_certificate_answer(data: bytes) -> None:
    """What a member is answered: only a certificate of the committed intermediate, for itself."""
    try:
        certificate, _intermediate = ca_checks.read_answer(data, _CA, (MESH_ID, "a"), _ISSUER, _NOW_MS)
    except MeshError as error:
        _expect(error)
        return
    certificate.verify_directly_issued_by(_INTERMEDIATE.certificate)
    assert certificate.not_valid_after_utc - _NOW <= timedelta(hours=24)


def fuzz_certified_admission(data: bytes) -> None:
    """What a newcomer that knows the root's fingerprint is answered."""
    try:
        covered = ca_checks.certified(data, _NEWCOMER, certificates.fingerprint(_ROOT.certificate), _NOW_MS)
    except MeshError as error:
        _expect(error)
        return
    # ECDSA takes a second s for each signature: what is covered is what was signed.
    assert covered == _RESPONSE


def fuzz_ca_change(data: bytes) -> None:
    """A change of the CA that a member proposes to the leader."""
    try:
        change = mcg_pb2.SetCa.FromString(data)
    except DecodeError:
        return
    try:
        ca_checks.check_change(change, MESH_ID, _NOW_MS)
    except MeshError as error:
        _expect(error)
        return
    intermediate = certificates.read_certificate(change.intermediate)
    intermediate.verify_directly_issued_by(certificates.read_certificate(change.roots[0]))


def _expect(error: MeshError) -> None:
    if error.code not in _REFUSALS:
        raise error


def _state() -> McgState:
    state, founding = McgState(), found()
    founding.found_mesh.node.public_key = _IDENTITY.public_key().public_bytes_raw()
    accept(state, founding)
    return state


def _request() -> bytes:
    statement = ca_checks.request_statement(Asker(MESH_ID, 1, 1), _ISSUER, _NOW_MS)
    return join_pb2.CertifyRequest(
        issuer_key=_ISSUER, time_ms=_NOW_MS, signature=_IDENTITY.sign(statement)
    ).SerializeToString()


def _answer() -> bytes:
    return join_pb2.CertifyResponse(
        certificate=certificates.der(_NODE), intermediate=_CA.intermediate
    ).SerializeToString()


_RESPONSE: Final = join_pb2.JoinResponse(
    node_id=2,
    view=view_pb2.MeshView(mesh_id=MESH_ID, nodes=[view_pb2.NodeView(name="a")]),
    roots=_CA.roots,
    chain=[certificates.der(_NODE), _CA.intermediate],
).SerializeToString()


def _admission() -> bytes:
    statement = ca_checks.admitted_statement(_NEWCOMER, _RESPONSE)
    return ca_checks.certify_answer(_RESPONSE, _ISSUER_KEY.sign(statement, ec.ECDSA(hashes.SHA256())))


def _change() -> bytes:
    return mcg_pb2.SetCa(generation=1, roots=_CA.roots, intermediate=_CA.intermediate).SerializeToString()


_STATE: Final = _state()
CA_TARGETS: Final = (
    ("certificate_request", fuzz_certificate_request, (_request(),)),
    ("certificate_answer", fuzz_certificate_answer, (_answer(),)),
    ("certified_admission", fuzz_certified_admission, (_admission(),)),
    ("ca_change", fuzz_ca_change, (_change(),)),
)
"""Name, what to call, and the inputs to start from."""
