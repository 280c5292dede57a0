"""A node that is gone for good can be forgotten, so that its name is free again; one that is heard cannot, whoever asks."""

from __future__ import annotations

import grpc.aio
import pytest

from meshapi.common.v1 import view_pb2
from meshapi.supervisor.v1 import mesh_pb2
from meshcommon.errors import ErrorCode
from meshcommon.grpc_client import mesh_error
from meshtest.waiting import eventually
from tests.attacks.lanes import new_key
from tests.attacks.mallory import admitted
from tests.attacks.raw_socket import answer, http_request, status_of
from tests.attacks.target import Target

LOST = "lost-disk"


async def test_node_that_is_heard_is_not_forgotten(target: Target) -> None:
    for gateway in target.gateways.values():
        for name in ("b", "c"):
            for accept_risk in (False, True):
                forget = mesh_pb2.ForgetNodeRequest(name=name, accept_risk=accept_risk)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await gateway.mesh.ForgetNode(forget, timeout=20)
                assert mesh_error(caught.value, "gateway").code is ErrorCode.NODE_IS_HEARD


@pytest.mark.parametrize("name", ["", "nobody", "../x", "a\x00", "x" * 5_000], ids=lambda name: ascii(name)[:12])
async def test_forgetting_nobody(target: Target, name: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await target.gateways["a"].mesh.ForgetNode(mesh_pb2.ForgetNodeRequest(name=name), timeout=20)
    code = mesh_error(caught.value, "gateway").code
    assert code in {ErrorCode.UNKNOWN_NODE, ErrorCode.ILLEGAL_NAME, ErrorCode.INVALID_ARGUMENT}


async def test_page_in_a_browser_forgets_nobody(target: Target) -> None:
    number = target.port("a", "gateway_http")
    for headers in (["Sec-Fetch-Site: cross-site"], ["Origin: http://evil.example"]):
        found = await answer(number, http_request("DELETE", "/v1/nodes/c", f"127.0.0.1:{number}", headers))
        assert status_of(found) == 403, found[:300]


@pytest.mark.changes_state
async def test_wiped_node_comes_back_under_its_name(target: Target) -> None:
    """It once had to choose another name for ever, and left the mesh DEGRADED."""
    first = await admitted(target, "a", LOST, new_key())
    forget = mesh_pb2.ForgetNodeRequest(name=LOST)
    await target.gateways["b"].mesh.ForgetNode(forget, timeout=20)
    second = await admitted(target, "b", LOST, new_key())
    assert second.node_id > first.node_id

    async def is_healthy() -> bool:
        view = (await target.gateways["a"].status()).view
        names = [node.name for node in view.nodes if node.node_id == second.node_id]
        return names == [LOST] and view.status == view_pb2.MESH_STATUS_HEALTHY

    await eventually("a has the node's new place, and the mesh is healthy", is_healthy)
    await target.gateways["c"].mesh.ForgetNode(forget, timeout=20)
