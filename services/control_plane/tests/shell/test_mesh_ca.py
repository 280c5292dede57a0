"""The mesh's CA: made, sealed for voters, exchanged, and what nodes get by it."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from mesh_control.core.join_tokens import encode_token, parse_token
from mesh_control.core.model import JoinPolicy
from mesh_control.core.versions import MESH_VERSION
from mesh_control.shell.ca_keys import WrapKey
from mesh_control.shell.peer_calls import Method
from meshapi.control.v1 import join_pb2
from meshapi.supervisor.v1 import mesh_pb2
from meshcommon import mesh_certificates as certificates
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId
from meshcommon.mesh_certificates import Authority
from meshcommon.service_certificates import Service, key_usage

if TYPE_CHECKING:
    from tests.shell.conftest import OneNode, SmallMesh

OTHER: Final = ec.generate_private_key(ec.SECP256R1())


async def with_ca(mesh: SmallMesh, *names: str, policy: JoinPolicy = JoinPolicy.OPEN) -> list[OneNode]:
    nodes = await mesh.grow(*names, policy=policy)
    await nodes[0].ca.init()
    for node in nodes:
        await mesh.eventually(lambda node=node: bool(node.certificates.chain))  # type: ignore[misc]
    return nodes


async def test_every_node_gets_a_certificate_that_leads_to_the_root(mesh: SmallMesh) -> None:
    a, b, c = await with_ca(mesh, "a", "b", "c")
    state = a.node.require_mcg().state
    assert state.ca is not None
    (root,) = state.ca.roots
    for node in (a, b, c):
        certificate, intermediate = node.certificates.chain
        assert certificates.uris(certificate) == [f"spiffe://{state.mesh_id}/node/{node.name}"]
        node.issuer.mesh = state.mesh_id
        assert node.issuer.chain == node.certificates.chain
        certificate.verify_directly_issued_by(intermediate)
        intermediate.verify_directly_issued_by(certificates.read_certificate(root))


async def test_seed_tells_the_fingerprint_and_tokens_carry_it(mesh: SmallMesh) -> None:
    a = mesh.start("a")
    answer = await a.service.Seed(mesh_pb2.SeedRequest(), None)
    assert answer.ca_fingerprint == a.ca.show().root_fingerprints[0]
    assert answer.ca_root_key_file.endswith("ca/root.key")
    again = await a.service.Seed(mesh_pb2.SeedRequest(), None)
    assert again.ca_fingerprint == answer.ca_fingerprint
    b = mesh.start("b")
    await b.service.Join(mesh_pb2.JoinRequest(token=answer.token), None)
    await mesh.eventually(lambda: bool(b.certificates.chain))


async def test_voters_that_come_later_are_given_the_key(mesh: SmallMesh) -> None:
    (a,) = await with_ca(mesh, "a")
    assert a.ca.show().issuers == ["a"]
    for name in ("b", "c"):
        node = mesh.start(name)
        await node.lifecycle.join(a.peer_address, "", trust_first=True)
    await mesh.eventually(lambda: sorted(a.ca.show().issuers) == ["a", "b", "c"])
    assert not a.ca.show().voters_without_key


async def test_newcomer_trusts_an_open_mesh_by_its_fingerprint(mesh: SmallMesh) -> None:
    (a,) = await with_ca(mesh, "a")
    (fingerprint,) = a.ca.show().root_fingerprints
    b = mesh.start("b")
    await b.lifecycle.join(a.peer_address, "", fingerprint=fingerprint)
    c = mesh.start("c")
    with pytest.raises(MeshError) as caught:
        await c.lifecycle.join(a.peer_address, "", fingerprint="ab" * 32)
    assert caught.value.code is ErrorCode.KEY_MISMATCH
    assert c.node.membership is None


async def test_first_node_without_a_certificate_admits_nobody_by_fingerprint(mesh: SmallMesh) -> None:
    """A newcomer that could not be answered must not become a member."""
    (a,) = await mesh.grow("a")
    b = mesh.start("b")
    with pytest.raises(MeshError) as caught:
        await b.lifecycle.join(a.peer_address, "", fingerprint="ab" * 32)
    assert caught.value.code is ErrorCode.CA_MISSING
    assert len(a.node.require_mcg().state.nodes) == 1


@pytest.mark.parametrize("change", ["root", "chain", "signature", "view"])
async def test_man_in_the_middle_cannot_answer_for_the_mesh_of_a_fingerprint(mesh: SmallMesh, change: str) -> None:
    (a,) = await with_ca(mesh, "a")
    (fingerprint,) = a.ca.show().root_fingerprints
    b = mesh.start("b")
    call = b.calls.call

    async def changed(method: int, body: bytes, timeout_s: float, **where: Any) -> bytes:
        answer = join_pb2.JoinResponse.FromString(await call(method, body, timeout_s, **where))
        if change == "root":
            answer.roots[0] = bytes(reversed(answer.roots[0]))
        elif change == "chain":
            del answer.chain[:]
        elif change == "signature":
            answer.ClearField("signature")
        else:
            answer.view.nodes[0].public_key = b"m" * 32
        return answer.SerializeToString()

    b.calls.call = changed  # type: ignore[method-assign]
    with pytest.raises(MeshError) as caught:
        await b.lifecycle.join(a.peer_address, "", fingerprint=fingerprint)
    assert caught.value.code in {ErrorCode.KEY_MISMATCH, ErrorCode.CERTIFICATE_INVALID}
    assert b.node.membership is None


async def test_a_token_of_another_root_is_refused(mesh: SmallMesh) -> None:
    (a,) = await with_ca(mesh, "a", policy=JoinPolicy.KEY_REQUIRED)
    token, _ = await a.tokens.issue()
    other = encode_token(replace(parse_token(token), ca_fingerprint=b"f" * 32))
    b = mesh.start("b")
    with pytest.raises(MeshError) as caught:
        await b.lifecycle.join("", "", other)
    assert caught.value.code is ErrorCode.KEY_MISMATCH
    assert b.node.membership is None
    await b.lifecycle.join("", "", token)


async def issuing(mesh: SmallMesh) -> list[OneNode]:
    """A mesh of three whose voters can all issue certificates."""
    nodes = await with_ca(mesh, "a", "b", "c")
    await mesh.eventually(lambda: sorted(nodes[0].ca.show().issuers) == ["a", "b", "c"])
    return nodes


async def renewed(mesh: SmallMesh, nodes: list[OneNode]) -> None:
    """Every node has a certificate of the present intermediate."""

    def of_the_present(node: OneNode) -> bool:
        ca = node.node.require_mcg().state.ca
        chain = node.certificates.chain
        return ca is not None and bool(chain) and certificates.der(chain[1]) == ca.intermediate

    await mesh.eventually(lambda: all(map(of_the_present, nodes)))


async def test_runbook_voter_removed(mesh: SmallMesh) -> None:
    """docs/security.md "A voter was removed": due, warned of, rotated, over; nobody is without a certificate meanwhile."""
    a, b, c = await issuing(mesh)
    assert (await c.service.Leave(mesh_pb2.LeaveRequest(), None)) is not None
    await mesh.eventually(lambda: a.ca.show().is_rotation_due and b.ca.show().is_rotation_due)
    await mesh.eventually(lambda: any("Rotation of the CA is due" in text for text in b.readiness.warnings()))
    with pytest.raises(MeshError) as caught:
        await b.ca.rotate_intermediate(revoke=False)
    assert caught.value.code is ErrorCode.ROOT_KEY_MISSING, "the root's key is at a"
    before = a.certificates.chain
    await a.ca.rotate_intermediate(revoke=False)
    assert not a.ca.show().is_rotation_due
    assert a.certificates.chain, "the former one is accepted until its certificates end"
    await renewed(mesh, [a, b])
    assert a.certificates.chain != before
    await mesh.eventually(lambda: not any("Rotation" in text for text in b.readiness.warnings()))


async def test_runbook_intermediate_stolen(mesh: SmallMesh) -> None:
    """docs/security.md "The intermediate's key was stolen": what it signed is dropped at once, everywhere in the mesh."""
    a, b, c = await issuing(mesh)
    stolen = a.ca.show().intermediate_fingerprint
    mesh.cut_off = {"c"}  # it can ask nobody, so what it has is what it is left with
    await a.ca.rotate_intermediate(revoke=True)
    assert a.ca.show().intermediate_fingerprint != stolen
    await renewed(mesh, [a, b])
    mesh.cut_off = set()
    await renewed(mesh, [a, b, c])
    state = a.node.require_mcg().state
    assert state.ca is not None
    assert not state.ca.former


async def test_runbook_root_stolen(mesh: SmallMesh) -> None:
    """docs/security.md "The root's key was stolen": another root beside it, renewed, then it alone."""
    a, b, c = await issuing(mesh)
    (first,) = a.ca.show().root_fingerprints
    await a.ca.rotate_root(revoke=True)
    second, former = a.ca.show().root_fingerprints
    assert former == first
    await a.ca.rotate_root(revoke=True)
    assert list(a.ca.show().root_fingerprints) == [second, first], "repeated while it is under way it changes nothing"
    await renewed(mesh, [a, b, c])
    token, _ = await a.tokens.issue()
    assert parse_token(token).ca_fingerprint.hex() == second
    await a.ca.finish()
    await a.ca.finish()
    assert list(a.ca.show().root_fingerprints) == [second]
    await a.ca.rotate_intermediate(revoke=False)
    await renewed(mesh, [a, b, c])


async def test_runbook_root_lost(mesh: SmallMesh) -> None:
    """docs/security.md "The root's key was lost": nothing stops; any member makes another one."""
    a, b, c = await issuing(mesh)
    shutil.rmtree(a.ca.files.path("root.key").parent)
    with pytest.raises(MeshError) as caught:
        await a.ca.rotate_intermediate(revoke=False)
    assert caught.value.code is ErrorCode.ROOT_KEY_MISSING
    await b.ca.rotate_root(revoke=False)
    assert b.ca.show().root_key_file
    await renewed(mesh, [a, b, c])
    await b.ca.finish()
    await b.ca.rotate_intermediate(revoke=False)
    await renewed(mesh, [a, b, c])


async def test_new_root_is_carried_on_after_a_crash_between_the_commit_and_the_files(
    mesh: SmallMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    (a,) = await with_ca(mesh, "a")
    with monkeypatch.context() as patch:
        patch.setattr("mesh_control.shell.ca_files.CaFiles.take_next_root", _crash)
        with pytest.raises(RuntimeError):
            await a.ca.rotate_root(revoke=False)
    a = await mesh.restart("a")
    await mesh.eventually(lambda: len(a.ca.show().root_fingerprints) == 2)
    committed = list(a.ca.show().root_fingerprints)
    await a.ca.rotate_root(revoke=False)
    assert list(a.ca.show().root_fingerprints) == committed
    await a.ca.rotate_intermediate(revoke=False)


def _crash(_files: object) -> None:
    raise RuntimeError


async def test_root_of_the_operator_signs_the_intermediate(mesh: SmallMesh) -> None:
    a, b, c = await issuing(mesh)
    mesh_id, now = a.node.require_mcg().state.mesh_id, datetime.now(UTC)
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Root of the company")])
    root = Authority(
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1000))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(key_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256()),
        key,
    )
    signed = certificates.sign_request(b.ca.request(), root, now)
    with pytest.raises(MeshError) as caught:
        await a.ca.install(certificates.pem(signed), certificates.pem(root.certificate), revoke=False)
    assert caught.value.code is ErrorCode.CERTIFICATE_INVALID, "the key is at b"
    other = certificates.sign_request(
        b.ca.request(), Authority(certificates.make_root(mesh_id, OTHER, now), OTHER), now
    )
    with pytest.raises(MeshError) as caught:
        await b.ca.install(certificates.pem(other), certificates.pem(root.certificate), revoke=False)
    assert caught.value.code is ErrorCode.CERTIFICATE_INVALID, "not signed by that root"
    for _repeated in range(2):
        await b.ca.install(certificates.pem(signed), certificates.pem(root.certificate), revoke=False)
    assert b.ca.files.pending_key() is None
    await renewed(mesh, [a, b, c])
    assert b.ca.show().root_fingerprints[0] == certificates.fingerprint(root.certificate).hex()


def valid_after(node: OneNode, time: datetime) -> bool:
    return any(certificate.not_valid_after_utc > time for certificate in node.certificates.chain[:1])


async def test_node_that_was_away_for_a_month_renews_by_its_registered_key(mesh: SmallMesh) -> None:
    a, b, c = await issuing(mesh)
    before = c.certificates.chain
    await mesh.crash("c")
    mesh.clock_ahead_ms = 30 * 24 * 3600 * 1000
    await renewed(mesh, [a, b])
    await mesh.eventually(lambda: valid_after(a, datetime.now(UTC) + timedelta(days=29)))
    c = mesh.start("c")
    await mesh.eventually(lambda: valid_after(c, datetime.now(UTC) + timedelta(days=29)))
    assert c.certificates.chain != before


async def test_certificate_of_before_a_restart_is_shown_again(mesh: SmallMesh) -> None:
    a, _b, _c = await issuing(mesh)
    before = a.certificates.chain
    mesh.cut_off = {"a"}
    a = await mesh.restart("a")
    await mesh.eventually(lambda: bool(a.certificates.chain))
    assert a.certificates.chain == before
    a.issuer.mesh = a.node.require_mcg().place.mesh_id
    assert a.issuer.chain == before


async def test_certificate_is_renewed_at_half_its_life_and_warned_of_at_a_third(mesh: SmallMesh) -> None:
    a, _b, c = await issuing(mesh)
    before = c.certificates.chain[0]
    await asyncio.sleep(0.1)
    assert c.certificates.chain[0] == before
    mesh.cut_off = {"c"}
    mesh.clock_ahead_ms = 17 * 3600 * 1000
    c.node.wrap_key = WrapKey(b"\x05" * 32)  # so that it cannot issue its own
    await mesh.eventually(lambda: any("Certificates end: node on" in text for text in c.readiness.warnings()))
    await mesh.eventually(lambda: valid_after(a, before.not_valid_after_utc))


async def test_members_cannot_have_each_others_certificates_nor_a_stranger_any(mesh: SmallMesh) -> None:
    a, b, c = await issuing(mesh)
    recorded = c.certificates._request(c.node.require_mcg().state)
    with pytest.raises(MeshError) as caught:
        await b.calls.call(Method.CERTIFY, recorded, 5.0, peer=NodeId(1))
    assert caught.value.code is ErrorCode.KEY_MISMATCH
    stranger = mesh.start("x")
    lane = mesh.open_join_lane(stranger, a.peer_address)
    with stranger.calls.join_lane(lane.lane_id), pytest.raises(MeshError) as caught:
        await stranger.calls.call(Method.CERTIFY, recorded, 5.0, lane_id=lane.lane_id)
    assert caught.value.code is ErrorCode.NOT_A_MEMBER
    asked = [c.calls.call(Method.CERTIFY, recorded, 5.0, peer=NodeId(1)) for _ in range(20)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    refused = {answer.code for answer in answers if isinstance(answer, MeshError)}
    assert refused == {ErrorCode.BACKPRESSURE}, "one member cannot have as many certificates as it likes"


async def test_forged_change_of_the_ca_is_refused_by_the_leader(mesh: SmallMesh) -> None:
    nodes = await issuing(mesh)
    leader = mesh.leader()
    assert leader is not None
    member = next(node for node in nodes if node is not leader)
    ca = leader.node.require_mcg().state.ca
    assert ca is not None
    forged = certificates.make_root(leader.node.require_mcg().state.mesh_id, OTHER, datetime.now(UTC))
    request = join_pb2.ProposeRequest(proposal_id=7)
    request.command.set_ca.generation = ca.generation
    request.command.set_ca.roots.append(certificates.der(forged))
    request.command.set_ca.intermediate = ca.intermediate
    with pytest.raises(MeshError) as caught:
        await member.calls.call(Method.PROPOSE, request.SerializeToString(), 5.0, peer=leader.node.node_id)
    assert caught.value.code is ErrorCode.CERTIFICATE_INVALID
    assert leader.node.require_mcg().state.ca == ca


async def test_no_plaintext_key_is_in_the_log_or_the_state(mesh: SmallMesh) -> None:
    """The root's, the intermediate's and the wrap keys are searched for in every byte below the Raft directories."""
    a, b, _c = await issuing(mesh)
    state = a.node.require_mcg().state
    assert state.ca is not None
    secrets = [b.node.wrap_key._key.private_bytes_raw(), a.node.wrap_key._key.private_bytes_raw()]
    root, opened = a.ca.files.root(state.mesh_id), a.certificates.opened(state.ca, state)
    for authority in (root, opened):
        assert authority is not None
        assert isinstance(authority.key, ec.EllipticCurvePrivateKey)
        secrets.append(authority.key.private_numbers().private_value.to_bytes(32, "big"))
    stored = [path.read_bytes() for path in mesh.directory.rglob("raft/**/*") if path.is_file()]
    assert any(state.ca.intermediate in data for data in stored), "the search would find a key"
    assert not any(secret in data for secret in secrets for data in stored)
    modes = {path.name: path.stat().st_mode & 0o777 for path in mesh.directory.rglob("*.key")}
    assert modes.keys() >= {"root.key", "wrap.key", "issuer.key"}
    assert set(modes.values()) == {0o600}


async def test_node_that_left_has_no_certificate_and_keeps_the_root(mesh: SmallMesh) -> None:
    a, b = await with_ca(mesh, "a", "b")
    wrap_key = a.node.wrap_key.public_key
    await mesh.eventually(lambda: sorted(a.ca.show().issuers) == ["a", "b"] or len(a.ca.show().issuers) == 1)
    await a.lifecycle.leave()
    await mesh.eventually(lambda: not a.certificates.chain)
    assert a.ca.files.root_key_file
    assert a.node.wrap_key.public_key != wrap_key
    await mesh.eventually(lambda: b.ca.show().is_rotation_due)


async def test_mesh_of_version_2_gets_wrap_keys_and_a_ca_after_the_update(mesh: SmallMesh) -> None:
    mesh.supported = {"a": 2, "b": 2}
    a, b = await mesh.grow("a", "b")
    assert a.node.require_mcg().state.mesh_version == 2
    with pytest.raises(MeshError) as caught:
        await a.ca.init()
    assert caught.value.code is ErrorCode.UPDATE_REQUIRED
    assert not a.ca.files.root_key_file
    mesh.supported = {"b": 2}
    a = await mesh.restart("a")
    await mesh.eventually(lambda: a.node.require_mcg().state.nodes[NodeId(1)].mesh_version == MESH_VERSION)
    with pytest.raises(MeshError) as caught:
        await a.ca.init()
    assert caught.value.code is ErrorCode.MESH_VERSION_TOO_LOW
    mesh.supported = {}
    b = await mesh.restart("b")
    await mesh.eventually(lambda: all(node.wrap_key for node in a.node.require_mcg().state.nodes.values()))
    await a.ca.init()
    await mesh.eventually(lambda: bool(a.certificates.chain) and bool(b.certificates.chain))


async def test_root_alone_verifies_the_gateway_of_every_site(mesh: SmallMesh, tmp_path: Path) -> None:
    """What `meshctl ca root` prints is all that a client needs: a real TLS 1.3 handshake by OpenSSL, for each site."""
    nodes = await with_ca(mesh, "a", "b")
    key = ec.generate_private_key(ec.SECP256R1())
    roots = nodes[0].ca.show().roots_pem
    for node in nodes:
        mesh_id = node.node.require_mcg().state.mesh_id
        node.issuer.mesh = mesh_id
        leaf = node.issuer.issue(Service.GATEWAY, key.public_key(), ["gateway.example"], datetime.now(UTC))
        file = tmp_path / f"{node.name}.pem"
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        file.write_text("".join(map(certificates.pem, (leaf, *node.issuer.chain))) + private)
        assert shakes_hands(file, roots) == (("URI", f"spiffe://{mesh_id}/node/{node.name}/gateway"),)
        with pytest.raises(ssl.SSLCertVerificationError):
            shakes_hands(file, certificates.pem(certificates.make_root(mesh_id, OTHER, datetime.now(UTC))))


def shakes_hands(server_file: Path, roots: str) -> tuple[tuple[str, str], ...]:
    """The URIs of a server that a client with these roots has verified."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(server_file)
    client = ssl.create_default_context(cadata=roots)
    pipes = [ssl.MemoryBIO(), ssl.MemoryBIO()]
    ends = [
        server.wrap_bio(pipes[0], pipes[1], server_side=True),
        client.wrap_bio(pipes[1], pipes[0], server_hostname="gateway.example"),
    ]
    for _round in range(4):
        for end in reversed(ends):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    shown: Any = ends[1].getpeercert()
    return tuple(name for name in shown["subjectAltName"] if name[0] == "URI")
