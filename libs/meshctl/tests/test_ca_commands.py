"""Commands about the mesh's CA: what they ask and print, and that a root's key stays in the program."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from meshapi.supervisor.v1 import ca_pb2, mesh_pb2
from meshcommon import mesh_certificates as certificates
from meshcommon.errors import ErrorCode, MeshError

if TYPE_CHECKING:
    from meshtest.fake_services import FakeServer
    from tests.conftest import Program

MESH_ID = "6f0d6c52-0000-4000-8000-000000000001"
SHOWN = ca_pb2.ShowCaResponse(
    exists=True,
    generation=2,
    root_fingerprints=["aa", "bb"],
    roots_pem="PEM\n",
    intermediate_fingerprint="cc",
    issuers=["a"],
    voters_without_key=["b"],
    is_rotation_due=True,
    root_key_file="/x/root.key",
)


async def test_ca_is_shown_with_what_is_to_be_done(gateway: FakeServer, meshctl: Program) -> None:
    gateway.answer("ShowCa", SHOWN)
    said = (await meshctl.run("ca", "show")).stdout
    for part in ("aa", "bb (until", "cc (generation 2)", "without key   b", "rotation due  yes", "/x/root.key"):
        assert part in said
    assert json.loads((await meshctl.run("ca", "show", "--json")).stdout)["issuers"] == ["a"]
    gateway.answer("ShowCa", ca_pb2.ShowCaResponse())
    assert "meshctl ca init" in (await meshctl.run("ca", "show")).stdout


async def test_roots_are_printed_as_they_are_and_nothing_else(gateway: FakeServer, meshctl: Program) -> None:
    gateway.answer("ShowCa", SHOWN)
    assert (await meshctl.run("ca", "root")).stdout == "PEM\n"
    gateway.answer("ShowCa", ca_pb2.ShowCaResponse())
    missing = await meshctl.run("ca", "root")
    assert missing.exit_code
    assert "CA_MISSING" in missing.output


async def test_init_and_seed_tell_the_fingerprint_and_where_the_key_is(gateway: FakeServer, meshctl: Program) -> None:
    gateway.answer("InitCa", ca_pb2.InitCaResponse(ca_fingerprint="aa", root_key_file="/x/root.key"))
    said = (await meshctl.run("ca", "init")).stdout
    assert "aa" in said
    assert "/x/root.key" in said
    gateway.answer("Seed", mesh_pb2.SeedResponse(mesh_id="m", node_id=1, ca_fingerprint="dd", ca_root_key_file="/y"))
    said = (await meshctl.run("seed")).stdout
    assert "dd" in said
    assert "/y" in said


@pytest.mark.parametrize(
    ("flags", "rotation"),
    [
        ((), ca_pb2.CA_ROTATION_INTERMEDIATE),
        (("--new-root",), ca_pb2.CA_ROTATION_NEW_ROOT),
        (("--finish",), ca_pb2.CA_ROTATION_FINISH),
    ],
)
async def test_rotation_asks_for_what_is_meant(
    gateway: FakeServer, meshctl: Program, flags: tuple[str, ...], rotation: ca_pb2.CaRotation.ValueType
) -> None:
    gateway.answer("RotateCa", ca_pb2.RotateCaResponse(ca=SHOWN))
    assert not (await meshctl.run("ca", "rotate", *flags, "--revoke")).exit_code
    assert gateway.asked[-1].request == ca_pb2.RotateCaRequest(rotation=rotation, revoke=True)
    assert (await meshctl.run("ca", "rotate", "--new-root", "--finish")).exit_code == 2


async def test_a_root_key_in_a_file_signs_here_and_is_not_sent(
    gateway: FakeServer, meshctl: Program, tmp_path: Path
) -> None:
    root_key, pending = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root = certificates.make_root(MESH_ID, root_key, datetime.now(UTC))
    key_pem = root_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "root.key").write_bytes(key_pem)
    (tmp_path / "root.crt").write_text(certificates.pem(root))
    (tmp_path / "other.key").write_bytes(pending.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    csr = certificates.make_request(MESH_ID, pending).public_bytes(Encoding.PEM).decode()
    gateway.answer("RequestCa", ca_pb2.RequestCaResponse(csr_pem=csr))
    gateway.answer("InstallCa", ca_pb2.InstallCaResponse(ca=SHOWN))
    files = ("--root-cert", str(tmp_path / "root.crt"), "--root-key")
    result = await meshctl.run("ca", "rotate", *files, str(tmp_path / "root.key"))
    assert not result.exit_code, result.output
    sent = gateway.asked[-1].request
    signed = certificates.read_pem(sent.certificate_pem)
    certificates.check_intermediate(signed, root, MESH_ID, datetime.now(UTC))
    assert signed.public_key() == pending.public_key()
    assert not any(key_pem.decode() in str(asked.request) for asked in gateway.asked)
    wrong = await meshctl.run("ca", "rotate", *files, str(tmp_path / "other.key"))
    assert wrong.exit_code
    assert "do not belong together" in wrong.output
    assert (await meshctl.run("ca", "rotate", "--root-key", str(tmp_path / "root.key"))).exit_code == 2


async def test_request_and_install_pass_on_what_is_in_the_files(
    gateway: FakeServer, meshctl: Program, tmp_path: Path
) -> None:
    gateway.answer("RequestCa", ca_pb2.RequestCaResponse(csr_pem="CSR\n"))
    assert (await meshctl.run("ca", "csr")).stdout == "CSR\n"
    (tmp_path / "c").write_text("C")
    (tmp_path / "r").write_text("R")
    gateway.answer("InstallCa", ca_pb2.InstallCaResponse(ca=SHOWN))
    assert not (await meshctl.run("ca", "install", str(tmp_path / "c"), "--root", str(tmp_path / "r"))).exit_code
    assert gateway.asked[-1].request == ca_pb2.InstallCaRequest(certificate_pem="C", root_pem="R")
    gateway.answer("InstallCa", MeshError(ErrorCode.CERTIFICATE_INVALID, "No."))
    refused = await meshctl.run("ca", "install", str(tmp_path / "c"), "--root", str(tmp_path / "r"))
    assert "CERTIFICATE_INVALID" in refused.output


async def test_certificates_are_listed_with_what_is_left_of_them(gateway: FakeServer, meshctl: Program) -> None:
    item = ca_pb2.CertificateInfo(
        kind="node",
        subject="spiffe://m/node/a",
        issuer="CN=i",
        not_after_ms=1_700_000_000_000,
        life_left=0.5,
        file="/n",
    )
    gateway.answer("ListCertificates", ca_pb2.ListCertificatesResponse(certificates=[item]))
    said = (await meshctl.run("cert", "ls")).stdout
    for part in ("spiffe://m/node/a", "CN=i", "2023-11-14 22:13:20", "50%", "/n"):
        assert part in said


async def test_join_by_a_fingerprint(gateway: FakeServer, meshctl: Program) -> None:
    gateway.answer("Join", mesh_pb2.JoinResponse(mesh_id="m", node_id=2))
    await meshctl.run("join", "wss://a:1", "--trust", "ab" * 32)
    assert gateway.asked[-1].request == mesh_pb2.JoinRequest(address="wss://a:1", trust_fingerprint="ab" * 32)
    assert (await meshctl.run("join", "wss://a:1")).exit_code == 2
