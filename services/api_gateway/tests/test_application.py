"""What holds for every path: unknown paths and methods, admission, the API page, counting, faults of our own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from meshapi.supervisor.v1 import mesh_pb2
from meshcommon.address import check_listen, is_loopback
from meshcommon.errors import MeshError

if TYPE_CHECKING:
    from tests.conftest import Gateway

OPERATIONS = {
    "/v1/mesh": {"get"},
    "/v1/mesh/seed": {"post"},
    "/v1/mesh/join": {"post"},
    "/v1/mesh/tokens": {"get", "post"},
    "/v1/mesh/tokens/{token_id}": {"delete"},
    "/v1/mesh/policy": {"put"},
    "/v1/mesh/weights": {"get"},
    "/v1/mesh/weights/{traffic_class}": {"patch"},
    "/v1/ca": {"get"},
    "/v1/ca/init": {"post"},
    "/v1/ca/rotate": {"post"},
    "/v1/ca/request": {"post"},
    "/v1/ca/install": {"post"},
    "/v1/certificates": {"get"},
    "/v1/mesh/leave": {"post"},
    "/v1/mesh/nodes/{name}/forget": {"post"},
    "/v1/mesh/stop": {"post"},
    "/v1/mesh/start": {"post"},
    "/v1/nodes": {"get"},
    "/v1/nodes/{name}/ping": {"post"},
    "/v1/links": {"get"},
    "/v1/paths": {"get"},
    "/v1/whatif/cut": {"get"},
    "/v1/whatif/stop": {"get"},
    "/v1/forwarding": {"get"},
    "/v1/streams": {"get", "post"},
    "/v1/streams/{namespace}/{name}": {"get", "delete"},
    "/v1/streams/{namespace}/{name}/members": {"patch"},
    "/v1/streams/{namespace}/{name}/leader": {"put"},
    "/v1/streams/{namespace}/{name}/audit": {"get"},
    "/v1/raft": {"get"},
    "/v1/streams/{namespace}/{name}/producers": {"post"},
    "/v1/streams/{namespace}/{name}/records": {"get", "post"},
}


async def test_unknown_paths_and_methods_are_problems(gateway: Gateway) -> None:
    answer = await gateway.http.get("/v2/mesh")
    assert (answer.status_code, answer.json()["code"]) == (404, "ROUTE_NOT_FOUND")
    assert answer.headers["content-type"] == "application/problem+json"
    answer = await gateway.http.put("/v1/mesh")
    assert (answer.status_code, answer.json()["code"]) == (405, "METHOD_NOT_ALLOWED")
    assert answer.headers["allow"] == "GET"


async def test_a_body_that_is_not_sent_as_json_is_told_how_to_be_sent(gateway: Gateway) -> None:
    answer = await gateway.http.post("/v1/streams", content=b"hello", headers={"content-type": "text/plain"})
    assert (answer.status_code, answer.json()["code"]) == (415, "MEDIA_TYPE_NOT_SUPPORTED")
    assert "Content-Type: application/json" in answer.json()["detail"]


async def test_a_missing_query_parameter_is_named(gateway: Gateway) -> None:
    answer = await gateway.http.get("/v1/paths", params={"from": "a"})
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("Query parameter 'to' is missing")
    assert answer.json()["details"] == {"field": "to"}


async def test_a_fault_of_our_own_is_a_problem_without_its_traceback(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_answer: Any) -> None:
        raise ZeroDivisionError

    gateway.control.answer("GetStatus", mesh_pb2.GetStatusResponse())
    monkeypatch.setattr("mesh_gateway.shell.mesh_routes.status_model", broken)
    answer = await gateway.http.get("/v1/mesh", headers={"x-correlation-id": "me"})
    assert answer.status_code == 500
    problem = answer.json()
    assert (problem["code"], problem["correlation_id"]) == ("INTERNAL", "me")
    assert "ZeroDivision" not in answer.text
    assert answer.headers["x-correlation-id"] == "me"


@pytest.mark.parametrize(
    ("headers", "refused"),
    [
        ({}, None),
        ({"host": "localhost:7001"}, None),
        ({"host": "[::1]:7001"}, None),
        ({"host": "mesh.example"}, None),
        ({"host": "127.0.0.1:7001", "origin": "http://127.0.0.1:7001"}, None),
        ({"host": "127.0.0.1:7001", "origin": "http://127.0.0.1:7001", "sec-fetch-site": "same-origin"}, None),
        ({"host": "evil.example:7001"}, "HOST_NOT_ALLOWED"),
        ({"host": "evil.example:7001", "origin": "http://evil.example:7001"}, "HOST_NOT_ALLOWED"),
        ({"host": "127.0.0.1:7001", "origin": "http://evil.example"}, "ORIGIN_NOT_ALLOWED"),
        ({"host": "127.0.0.1:7001", "origin": "null"}, "ORIGIN_NOT_ALLOWED"),
        ({"host": "127.0.0.1:7001", "origin": "http://127.0.0.1:8000"}, "ORIGIN_NOT_ALLOWED"),
        ({"host": "127.0.0.1:7001", "sec-fetch-site": "cross-site"}, "ORIGIN_NOT_ALLOWED"),
        ({"host": "127.0.0.1:7001", "origin": "http://["}, "INVALID_ARGUMENT"),
        ({"host": "[::1"}, "INVALID_ARGUMENT"),
        ({"host": ""}, "INVALID_ARGUMENT"),
    ],
)
async def test_only_the_machines_own_programs_and_pages_get_in(
    gateway: Gateway, headers: dict[str, str], refused: str | None
) -> None:
    """Against cross-site requests and DNS rebinding through a browser on the machine."""
    gateway.control.answer("Leave", mesh_pb2.LeaveResponse())
    answer = await gateway.http.post("/v1/mesh/leave", headers=headers)
    assert len(gateway.control.asked) == (0 if refused else 1)
    if refused is None:
        assert answer.status_code == 204
    else:
        assert answer.status_code == (400 if refused == "INVALID_ARGUMENT" else 403)
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["code"] == refused


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("localhost", True),
        ("LOCALHOST", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("", False),
    ],
)
def test_what_counts_as_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_listening_to_others_has_to_be_asked_for() -> None:
    check_listen("127.0.0.1:7001", "REST", is_insecure_dev=False)
    check_listen("[::1]:7001", "REST", is_insecure_dev=False)
    check_listen("0.0.0.0:7001", "REST", is_insecure_dev=True)
    with pytest.raises(MeshError, match="INSECURE_NOT_ALLOWED") as caught:
        check_listen("0.0.0.0:7001", "REST", is_insecure_dev=False)
    assert "MESH_INSECURE_DEV=1" in caught.value.message


async def test_openapi_lists_every_path_with_our_errors(gateway: Gateway) -> None:
    document = (await gateway.http.get("/openapi.json")).json()
    assert {path: set(operations) for path, operations in document["paths"].items()} == OPERATIONS
    names = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]
    assert len(set(names)) == len(names)
    for operations in document["paths"].values():
        for operation in operations.values():
            assert operation["summary"]
            assert operation["description"]
            assert "422" not in operation["responses"]
            assert list(operation["responses"]["default"]["content"]) == ["application/problem+json"]
    assert "HTTPValidationError" not in document["components"]["schemas"]


async def test_openapi_describes_every_field_and_has_no_dangling_reference(gateway: Gateway) -> None:
    answer = await gateway.http.get("/openapi.json")
    schemas = answer.json()["components"]["schemas"]
    for name, schema in schemas.items():
        assert schema["description"], name
        for field, definition in schema["properties"].items():
            assert definition.get("description"), f"{name}.{field}"
    references = {part.split('"')[0] for part in answer.text.split('"#/components/schemas/')[1:]}
    assert references <= set(schemas)
    assert "PublishBody" in references


async def test_the_api_page_needs_nothing_from_elsewhere(gateway: Gateway) -> None:
    home = await gateway.http.get("/")
    assert home.headers["location"] == "/docs"
    page = await gateway.http.get("/docs")
    assert page.status_code == 200
    assert "https://" not in page.text
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for name in ("swagger-ui-bundle.js", "swagger-ui.css"):
        assert f"/docs/assets/{name}" in page.text
        assert (await gateway.http.get(f"/docs/assets/{name}")).status_code == 200


async def test_requests_are_counted_by_route_never_by_path(gateway: Gateway) -> None:
    gateway.control.answer("DeleteStream", mesh_pb2.DeleteStreamResponse())
    for name in ("one", "two"):
        await gateway.http.delete(f"/v1/streams/demo/{name}")
        await gateway.http.get(f"/nowhere/{name}")
    await gateway.http.delete("/v1/streams/demo/x", headers={"host": "evil.example"})
    for method in ("BREW", "M-SEARCH", "X" * 100):
        await gateway.http.request(method, "/nowhere")

    def count(route: str, method: str, status: str) -> float | None:
        labels = {"route": route, "method": method, "status": status}
        return gateway.registry.get_sample_value("mesh_gateway_http_requests_total", labels)

    assert count("/v1/streams/{namespace}/{name}", "DELETE", "204") == 2
    assert count("(none)", "GET", "404") == 2
    assert count("(none)", "DELETE", "403") == 1
    # Methods of a caller's own would be labels without number.
    assert count("(none)", "OTHER", "404") == 3
    labels = {"route": "/v1/streams/{namespace}/{name}", "method": "DELETE"}
    assert gateway.registry.get_sample_value("mesh_gateway_http_request_seconds_count", labels) == 2
