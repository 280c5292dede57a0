"""A member that missed a change of the members hears of it on the first lane, without its control plane.

Real processes. The forgotten node is a data plane's overlay of this process, which keeps its key and the view it joined with.
"""

from __future__ import annotations

import asyncio

import pytest

from mesh_data.core.handshake import LocalNode
from mesh_data.shell.overlay.overlay import Overlay
from meshapi.common.v1 import view_pb2
from meshapi.control.v1 import join_pb2
from meshcommon.errors import ErrorCode
from meshcommon.ids import NodeId
from meshtest.delegated import delegated_signer
from meshtest.site import MODULES, Site
from meshtest.trio import Trio
from meshtest.waiting import eventually
from meshwire.request import ErrorResponse
from tests.attacks.lanes import lane, new_key, public_key, stranger
from tests.attacks.mallory import running_overlay
from tests.attacks.raw_socket import tls_ports
from tests.join_requests import join_request

pytestmark = pytest.mark.asyncio(loop_scope="module")
GHOST = "ghost"


async def joined(mesh: Trio, key: bytes) -> join_pb2.JoinResponse:
    """The place of a node that joins through a."""
    request = join_request(GHOST, public_key(key), await mesh.gateways["a"].issue_token())
    port = mesh.sites["a"].config.ports["peer"]
    tls_ports.add(port)
    async with lane(port, stranger(GHOST, key)) as found:
        answer = await found.join(request)
    assert not isinstance(answer, ErrorResponse), answer
    return answer


def member(key: bytes, place: join_pb2.JoinResponse) -> LocalNode:
    view = place.view
    signer = delegated_signer(key, view.mesh_id, place.node_id, mesh_epoch=view.mesh_epoch)
    return LocalNode(NodeId(place.node_id), GHOST, signer, view.mesh_id, view.mesh_epoch)


def only_via(view: view_pb2.MeshView, name: str) -> view_pb2.MeshView:
    """The view as a node has it that can dial one member only."""
    only = view_pb2.MeshView()
    only.CopyFrom(view)
    for node in only.nodes:
        node.peer_address = node.peer_address if node.name == name else ""
    return only


async def knows_ghost(mesh: Trio, name: str) -> bool:
    return GHOST in {node.name for node in (await mesh.gateways[name].status()).view.nodes}


async def until_link(overlay: Overlay, peer: NodeId, *, is_up: bool) -> None:
    async def look() -> bool:
        return overlay.core.is_link_up(peer) is is_up

    await eventually(f"the ghost's link is {'up' if is_up else 'down'}", look, 20, poll_s=0.02)


def log_of(site: Site) -> str:
    return site.services["data"].log.read_text(errors="replace")


async def test_forgotten_node_is_cut_off_by_a_member_that_missed_it_once_that_meets_another_one(mesh: Trio) -> None:
    a, b, key = mesh.gateways["a"], mesh.sites["b"], new_key()
    place = await joined(mesh, key)
    peer = NodeId(next(node.node_id for node in place.view.nodes if node.name == "b"))
    await eventually("b knows the ghost", lambda: knows_ghost(mesh, "b"), 20)
    # b keeps what it knows on its disk, and misses the rest.
    await asyncio.sleep(1.0)
    for service in MODULES:
        b.kill_service(service)

    async def is_forgotten() -> bool:
        await a.forget_node(GHOST)
        return True

    await eventually("a and c have forgotten the ghost", is_forgotten, 30)
    for name in ("ab", "bc"):
        mesh.links[name].cut()
    # Its data plane alone: whatever it hears now, it hears on its lanes.
    b.start_service("data")
    async with running_overlay(member(key, place), only_via(place.view, "b")) as ghost:
        await until_link(ghost, peer, is_up=True)
        assert "membership_learned" not in log_of(b)
        for name in ("ab", "bc"):
            mesh.links[name].heal()
        await until_link(ghost, peer, is_up=False)
        log = log_of(b)
        assert log.count("membership_learned") == 1, log[-2000:]
        link = ghost.core.link(peer)
        assert link is not None
        assert "no member of the mesh any more" in link.down_reason

        async def is_refused() -> bool:
            return ghost.refusals.get(ErrorCode.HANDSHAKE_FAILED, 0) >= 2

        await eventually("the ghost is refused from then on", is_refused, 20)
        assert not ghost.core.is_link_up(peer)
    for service in ("control", "routing", "gateway"):
        b.start_service(service)
    await b.wait_until_answering()

    async def is_whole() -> bool:
        view = (await mesh.gateways["b"].status()).view
        return len(view.nodes) == 3 and view.status == view_pb2.MESH_STATUS_HEALTHY

    await eventually("b has caught up", is_whole, 60)
