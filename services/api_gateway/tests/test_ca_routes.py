"""REST about the mesh's certificate authority."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meshapi.supervisor.v1 import ca_pb2, mesh_pb2
from meshcommon.errors import ErrorCode, MeshError

if TYPE_CHECKING:
    from tests.conftest import Gateway

SHOWN = ca_pb2.ShowCaResponse(exists=True, generation=3, root_fingerprints=["aa"], roots_pem="PEM", issuers=["a", "b"])


async def test_ca_is_shown(gateway: Gateway) -> None:
    gateway.control.answer("ShowCa", SHOWN)
    body = (await gateway.http.get("/v1/ca")).json()
    assert (body["exists"], body["generation"], body["root_fingerprints"]) == (True, 3, ["aa"])
    assert (body["roots_pem"], body["issuers"], body["is_rotation_due"]) == ("PEM", ["a", "b"], False)


async def test_ca_is_made(gateway: Gateway) -> None:
    gateway.control.answer("InitCa", ca_pb2.InitCaResponse(ca_fingerprint="aa", root_key_file="/x"))
    answer = await gateway.http.post("/v1/ca/init")
    assert (answer.status_code, answer.json()) == (201, {"ca_fingerprint": "aa", "root_key_file": "/x"})
    gateway.control.answer("InitCa", MeshError(ErrorCode.CA_EXISTS, "It does."))
    refused = await gateway.http.post("/v1/ca/init")
    assert (refused.status_code, refused.json()["code"]) == (409, "CA_EXISTS")


@pytest.mark.parametrize(
    ("body", "rotation"),
    [
        (None, ca_pb2.CA_ROTATION_INTERMEDIATE),
        ({"rotation": "NEW_ROOT"}, ca_pb2.CA_ROTATION_NEW_ROOT),
        ({"rotation": "FINISH"}, ca_pb2.CA_ROTATION_FINISH),
    ],
)
async def test_rotation_is_passed_on(
    gateway: Gateway, body: dict[str, str] | None, rotation: ca_pb2.CaRotation.ValueType
) -> None:
    gateway.control.answer("RotateCa", ca_pb2.RotateCaResponse(ca=SHOWN))
    answer = await gateway.http.post("/v1/ca/rotate", json=body)
    assert answer.json()["generation"] == 3
    assert gateway.control.asked[-1].request == ca_pb2.RotateCaRequest(rotation=rotation)
    assert (await gateway.http.post("/v1/ca/rotate", json={"rotation": "ALL"})).status_code == 400


async def test_own_root_signs_by_request_and_install(gateway: Gateway) -> None:
    gateway.control.answer("RequestCa", ca_pb2.RequestCaResponse(csr_pem="CSR"))
    assert (await gateway.http.post("/v1/ca/request")).json() == {"csr_pem": "CSR"}
    gateway.control.answer("InstallCa", ca_pb2.InstallCaResponse(ca=SHOWN))
    wish = {"certificate_pem": "C", "root_pem": "R", "revoke": True}
    assert (await gateway.http.post("/v1/ca/install", json=wish)).json()["exists"]
    assert gateway.control.asked[-1].request == ca_pb2.InstallCaRequest(certificate_pem="C", root_pem="R", revoke=True)
    too_long = {"certificate_pem": "C" * 9000, "root_pem": "R"}
    assert (await gateway.http.post("/v1/ca/install", json=too_long)).status_code == 400


async def test_certificates_are_listed(gateway: Gateway) -> None:
    item = ca_pb2.CertificateInfo(kind="node", subject="spiffe://m/node/a", life_left=0.5, not_after_ms=7, file="/n")
    gateway.control.answer("ListCertificates", ca_pb2.ListCertificatesResponse(certificates=[item]))
    (listed,) = (await gateway.http.get("/v1/certificates")).json()["certificates"]
    assert (listed["kind"], listed["life_left"], listed["not_after_ms"], listed["file"]) == ("node", 0.5, 7, "/n")


async def test_seed_and_join_speak_of_the_fingerprint(gateway: Gateway) -> None:
    gateway.control.answer(
        "Seed", mesh_pb2.SeedResponse(mesh_id="m", node_id=1, ca_fingerprint="aa", ca_root_key_file="/x")
    )
    body = (await gateway.http.post("/v1/mesh/seed")).json()
    assert (body["ca_fingerprint"], body["ca_root_key_file"]) == ("aa", "/x")
    gateway.control.answer("Join", mesh_pb2.JoinResponse(mesh_id="m", node_id=2))
    await gateway.http.post("/v1/mesh/join", json={"address": "wss://a:1", "trust_fingerprint": "ab" * 32})
    assert gateway.control.asked[-1].request == mesh_pb2.JoinRequest(address="wss://a:1", trust_fingerprint="ab" * 32)
