"""Strangers that never speak and a node whose disk was wiped: what counts, what is refused, and the way back.

Real processes; the strangers are lanes of this process that prove a key, send one request to join, and stay silent.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest

from mesh_data.core.forwarder import Delivery
from mesh_data.core.timing import OverlayTiming
from mesh_data.shell.overlay.overlay import Overlay
from meshapi.common.v1 import view_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.requests import Requests
from meshtest.delegated import delegated_signer
from meshtest.site import MODULES, Site
from meshtest.trio import Trio
from meshtest.waiting import eventually
from meshwire.packet import Protocol, TrafficClass
from meshwire.request import ErrorResponse, OkResponse, Request, Response
from tests.e2e.workload import publishing
from tests.join_requests import join_request

pytestmark = pytest.mark.asyncio(loop_scope="module")
JOIN_METHOD = 1


@asynccontextmanager
async def silent_overlay(answers: asyncio.Queue[Delivery]) -> AsyncIterator[Overlay]:
    """A data plane of no node; answers to its requests come into `answers`."""
    overlay = Overlay(OverlayTiming(), {}, None)
    overlay.bind(Protocol.JOIN, answers.put_nowait)
    task = asyncio.create_task(overlay.run(), name="silent overlay")
    await asyncio.sleep(0)
    try:
        yield overlay
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def ask_to_join(
    overlay: Overlay,
    answers: asyncio.Queue[Delivery],
    address: str,
    name: str,
    *,
    token: str = "",
    claimed_key: bytes = b"",
) -> Response:
    """One request over a lane of its own, with the key that the lane proves unless another one is claimed."""
    signer = delegated_signer(secrets.token_bytes(32))
    lane = await overlay.open_join_lane(address, name, signer)
    requests = Requests(first_id=secrets.randbits(62))
    body = join_request(name, claimed_key or signer.identity_key, token).SerializeToString()
    loop = asyncio.get_running_loop()
    request_id, outgoing = requests.start(
        0, Request(JOIN_METHOD, 5_000, body), loop.time() + 10, loop.time(), lane.lane_id
    )
    overlay.send_join(lane.lane_id, TrafficClass.CONTROL, outgoing.payload)
    async with asyncio.timeout(10):
        delivery = await answers.get()
    overlay.close_join_lane(lane.lane_id)
    taken = requests.receive(0, lane.lane_id, bytes(delivery.payload))
    assert isinstance(taken, tuple)
    assert taken[0] == request_id
    return taken[1]


async def view_at(mesh: Trio, name: str) -> view_pb2.MeshView:
    return (await mesh.gateways[name].status()).view


async def sees_three(mesh: Trio, at: str) -> bool:
    view = await view_at(mesh, at)
    return sorted(node.name for node in view.nodes) == ["a", "b", "c"] and view.status == view_pb2.MESH_STATUS_HEALTHY


async def wipe(site: Site) -> None:
    """Ends the services, empties the disk, and starts them again."""
    for service in MODULES:
        site.kill_service(service)
    shutil.rmtree(site.config.directory / "state")
    for service in MODULES:
        site.start_service(service)
    await site.wait_until_answering()


async def test_strangers_count_for_nothing_and_a_wiped_node_comes_back(mesh: Trio) -> None:
    """Three silent strangers once made the mesh CRITICAL; a wiped node once could never come back under its name."""
    a, c = mesh.gateways["a"], mesh.gateways["c"]
    address = mesh.sites["a"].config.peer_address
    await mesh.create_stream("lost/lines")
    answers: asyncio.Queue[Delivery] = asyncio.Queue()
    async with silent_overlay(answers) as overlay:
        refused = await ask_to_join(overlay, answers, address, "thief", claimed_key=b"k" * 32)
        assert isinstance(refused, ErrorResponse)
        assert refused.code == ErrorCode.KEY_MISMATCH
        refused = await ask_to_join(overlay, answers, address, "x0")
        assert isinstance(refused, ErrorResponse)
        assert refused.code == ErrorCode.TOKEN_REQUIRED
        token = await a.issue_token(uses=3)
        for number in range(3):
            assert isinstance(await ask_to_join(overlay, answers, address, f"x{number}", token=token), OkResponse)
    async with publishing(a, "lost/lines") as workload:
        await wipe(mesh.sites["c"])

        async def is_missed() -> bool:
            view = await view_at(mesh, "a")
            is_unheard = any(node.name == "c" and not node.is_reachable for node in view.nodes)
            return is_unheard and view.status != view_pb2.MESH_STATUS_HEALTHY

        await eventually("the mesh misses c", is_missed)
        # As long as the silence of c, that of the strangers; with them counted, four of six would be gone.
        view = await view_at(mesh, "a")
        states = {node.name: node.state for node in view.nodes}
        assert [states[f"x{number}"] for number in range(3)] == [view_pb2.NODE_STATE_JOINING] * 3
        assert view.status == view_pb2.MESH_STATUS_DEGRADED
        token = await a.issue_token()
        with pytest.raises(MeshError) as caught:
            await c.join(token=token)
        assert caught.value.code is ErrorCode.NAME_TAKEN
        assert "`meshctl node forget c`" in caught.value.message
        with pytest.raises(MeshError) as caught:
            await a.forget_node("b")
        assert caught.value.code is ErrorCode.NODE_IS_HEARD
        assert list((await mesh.gateways["b"].forget_node("c")).streams) == ["lost/lines"]
        place = await c.join(token=token)
        assert place.node_id > max(node.node_id for node in view.nodes)
        for number in range(3):
            await a.forget_node(f"x{number}")
        await workload.progress()
        await a.change_members("lost/lines", add=["c"])

        async def is_whole() -> bool:
            live = await a.describe("lost/lines")
            return {member.node for member in live.members if member.is_voter} == {"a", "b", "c"} and not live.change

        await eventually("the stream is on all three again", is_whole, 60)
        await workload.progress()
    for name in mesh.gateways:
        await eventually(f"node {name} sees a mesh of three", partial(sees_three, mesh, name))


async def test_a_node_that_was_forgotten_while_it_was_away_is_told(mesh: Trio) -> None:
    """Its lanes are refused, so it hears of that from a member that it asks; then it may leave alone and join again."""
    a, c, site = mesh.gateways["a"], mesh.gateways["c"], mesh.sites["c"]
    for service in MODULES:
        site.kill_service(service)

    async def is_forgotten() -> bool:
        try:
            await a.forget_node("c")
        except MeshError as error:
            # An earlier look was answered too late, and did it.
            return error.code is ErrorCode.UNKNOWN_NODE
        return True

    await eventually("c is missed and forgotten", is_forgotten)
    for service in MODULES:
        site.start_service(service)
    await site.wait_until_answering()

    async def is_told() -> bool:
        return any("removed from the mesh" in warning for warning in (await c.status()).warnings)

    await eventually("c knows that it was forgotten", is_told)
    await c.leave()
    await c.join(token=await a.issue_token())
    await eventually("the mesh is whole", partial(sees_three, mesh, "c"))
