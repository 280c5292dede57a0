"""Certificates of the mesh CA against a member that lies: it gets none but its own, and changes nothing of the CA."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from mesh_control.core.ca_checks import Asker, request_statement
from mesh_control.shell.peer_calls import Method
from meshapi.control.v1 import join_pb2
from meshapi.supervisor.v1 import ca_pb2
from meshcommon import mesh_certificates as certificates
from meshcommon.errors import ErrorCode
from meshcommon.key_signer import KeySigner
from meshwire.request import ErrorResponse, OkResponse
from tests.attacks.lanes import lane, new_key, stranger
from tests.attacks.mallory import NAME, Mallory
from tests.attacks.target import Target

KEY: Final = certificates.public_der(ec.generate_private_key(ec.SECP256R1()).public_key())


def request(mallory: Mallory, *, node_id: int = 0, late_ms: int = 0, signer: bytes = b"") -> bytes:
    own = Asker(mallory.local.mesh_id, mallory.local.mesh_epoch, node_id or int(mallory.local.node_id))
    time_ms = time.time_ns() // 1_000_000 - late_ms
    signature = KeySigner(signer or mallory.key).sign(request_statement(own, KEY, time_ms))
    return join_pb2.CertifyRequest(issuer_key=KEY, time_ms=time_ms, signature=signature).SerializeToString()


async def shown(target: Target) -> ca_pb2.ShowCaResponse:
    return await target.gateways["a"].ca.ShowCa(ca_pb2.ShowCaRequest(), timeout=20)


async def test_member_has_no_certificate_of_another_node(mallory: Mallory, target: Target) -> None:
    whole = request(mallory)
    wrong = {
        ErrorCode.KEY_MISMATCH: [request(mallory, node_id=mallory.ids["b"]), request(mallory, signer=new_key())],
        ErrorCode.CLOCK_SKEW: [request(mallory, late_ms=3_600_000), request(mallory, late_ms=-3_600_000)],
        ErrorCode.INVALID_ARGUMENT: [b"\xff\xff", b"\x0a\x80\x10" + b"k" * 2048, whole[:40]],
    }
    for code, bodies in wrong.items():
        for body in bodies:
            answer = await mallory.ask_control_plane("a", Method.CERTIFY, body)
            assert isinstance(answer, ErrorResponse)
            assert answer.code == code


async def test_member_is_certified_under_its_own_name_alone_and_not_without_end(
    mallory: Mallory, target: Target
) -> None:
    answers = await asyncio.gather(
        *(mallory.ask_control_plane("a", Method.CERTIFY, request(mallory)) for _ in range(25))
    )
    own = certificates.node_uri(mallory.local.mesh_id, NAME)
    codes = {answer.code for answer in answers if isinstance(answer, ErrorResponse)}
    given = [bytes(answer.body) for answer in answers if isinstance(answer, OkResponse)]
    assert codes == {ErrorCode.BACKPRESSURE}
    assert given
    for body in given:
        made = certificates.read_certificate(join_pb2.CertifyResponse.FromString(body).certificate)
        assert certificates.uris(made) == [own]


async def test_stranger_gets_no_certificate(mallory: Mallory, target: Target) -> None:
    async with lane(target.port("a", "peer"), stranger("nobody", new_key())) as found:
        answer = await found.ask(Method.CERTIFY, request(mallory))
    assert isinstance(answer, ErrorResponse)
    assert answer.code == ErrorCode.NOT_A_MEMBER


async def test_member_cannot_put_a_root_of_its_own_in_force(mallory: Mallory, target: Target) -> None:
    before = await shown(target)
    key = ec.generate_private_key(ec.SECP256R1())
    root = certificates.make_root(mallory.local.mesh_id, key, datetime.now(UTC))
    for intermediate in (b"no certificate", certificates.der(root)):
        proposal = join_pb2.ProposeRequest(proposal_id=11)
        proposal.command.set_ca.generation = before.generation
        proposal.command.set_ca.roots.append(certificates.der(root))
        proposal.command.set_ca.intermediate = intermediate
        for node in ("a", "b"):
            answer = await mallory.ask_control_plane(node, Method.PROPOSE, proposal.SerializeToString())
            assert isinstance(answer, ErrorResponse)
            assert answer.code in {ErrorCode.CERTIFICATE_INVALID, ErrorCode.NOT_LEADER}
    assert await shown(target) == before
