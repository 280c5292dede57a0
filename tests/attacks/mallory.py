"""Mallory: a member whose key the test made. Its data plane is the real overlay code, its control plane is the test.

So what it sends carries the right proofs of a member: it is refused for what it says, not for how it is sealed. It also
knows its key, so that the test can open lanes of its own under its name and send bytes that no data plane would.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from mesh_data.core.forwarder import Delivery
from mesh_data.core.handshake import LocalNode
from mesh_data.core.timing import OverlayTiming
from mesh_data.core.view import view_from_proto
from mesh_data.shell.overlay.overlay import Overlay
from meshapi.common.v1 import view_pb2
from meshapi.control.v1 import join_pb2
from meshapi.data.v1 import data_pb2
from meshcommon.ids import NodeId
from meshcommon.requests import Requests
from meshtest.delegated import delegated_signer
from meshtest.waiting import eventually
from meshwire.packet import Protocol, TrafficClass
from meshwire.request import ErrorResponse, Request, Response
from tests.attacks.lanes import RawLane, lane, new_key, public_key, stranger
from tests.attacks.target import Target
from tests.join_requests import join_request

NAME: Final = "mallory"
_ANSWER_TIMEOUT_S: Final = 15.0
_UNKNOWN_METHOD: Final = 200


@dataclass(slots=True)
class Mallory:
    """The malicious member. `received` holds what came for the protocols that the test bound."""

    key: bytes = field(repr=False)
    local: LocalNode
    view: view_pb2.MeshView
    overlay: Overlay
    received: list[Delivery] = field(default_factory=list)
    requests: Requests = field(default_factory=lambda: Requests(first_id=secrets.randbits(62)))
    _answers: dict[int, Response] = field(default_factory=dict)

    @property
    def ids(self) -> dict[str, int]:
        """Node ids by name."""
        return {node.name: node.node_id for node in self.view.nodes}

    def lane(self, port: int) -> AbstractAsyncContextManager[RawLane]:
        """A lane of its own, on which the test writes what it likes."""
        return lane(port, self.local, self.overlay.view() or view_from_proto(self.view))

    def overlay_id(self, node: str) -> NodeId:
        """The id of a node, as the overlay types it."""
        return NodeId(self.ids[node])

    def links_up(self) -> set[int]:
        """Neighbours now."""
        return {int(link.peer) for link in self.overlay.core.links() if link.is_up}

    def send(self, protocol: Protocol, node: str, payload: bytes, cls: TrafficClass = TrafficClass.CONTROL) -> bool:
        """A packet to a node, sealed as a member's."""
        return self.overlay.send(protocol, cls, NodeId(self.ids[node]), payload)

    async def ask_control_plane(self, node: str, method: int, body: bytes) -> Response:
        """A request to a node's control plane."""
        loop = asyncio.get_running_loop()
        peer = self.ids[node]
        request = Request(method, int(_ANSWER_TIMEOUT_S * 1000), body)
        deadline = loop.time() + _ANSWER_TIMEOUT_S
        request_id, outgoing = self.requests.start(peer, request, deadline, loop.time())
        self.send(Protocol.JOIN, node, outgoing.payload)

        async def is_answered() -> bool:
            for again in self.requests.tick(loop.time())[0]:
                self.send(Protocol.JOIN, node, again.payload)
            return request_id in self._answers

        await eventually(f"the control plane of {node} answers mallory", is_answered, _ANSWER_TIMEOUT_S)
        return self._answers.pop(request_id)

    def take_join_packet(self, delivery: Delivery) -> None:
        """What a control plane said."""
        taken = self.requests.receive(int(delivery.source), 0, bytes(delivery.payload))
        if isinstance(taken, tuple):
            self._answers[taken[0]] = taken[1]


async def admitted(target: Target, site: str, name: str, key: bytes, address: str = "") -> join_pb2.JoinResponse:
    """Joins by a token, through one site; the test fails when it is refused."""
    request = join_request(name, public_key(key), await target.issue_token(), address)
    async with lane(target.port(site, "peer"), stranger(name, key)) as found:
        answer = await found.join(request)
    assert not isinstance(answer, ErrorResponse), answer
    return answer


@asynccontextmanager
async def running_overlay(local: LocalNode, view: view_pb2.MeshView) -> AsyncIterator[Overlay]:
    """A data plane's overlay in this process: it dials the members that listen."""
    overlay = Overlay(OverlayTiming(), {}, None)
    task = asyncio.create_task(overlay.run(), name=f"overlay of {local.name}")
    await asyncio.sleep(0)
    overlay.configure(local, view_from_proto(view), is_running=True)
    try:
        yield overlay
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def joined_mallory(target: Target) -> AsyncIterator[Mallory]:
    """Joins through a, and waits for lanes to a and b."""
    key = new_key()
    answer = await admitted(target, "a", NAME, key)
    mesh = answer.view
    signer = delegated_signer(key, mesh.mesh_id, answer.node_id, mesh_epoch=mesh.mesh_epoch)
    local = LocalNode(NodeId(answer.node_id), NAME, signer, mesh.mesh_id, mesh.mesh_epoch)
    async with running_overlay(local, mesh) as overlay:
        mallory = Mallory(key, local, mesh, overlay)
        overlay.bind(Protocol.JOIN, mallory.take_join_packet)

        async def has_links() -> bool:
            return {mallory.ids["a"], mallory.ids["b"]} <= mallory.links_up()

        await eventually("mallory has lanes to a and b", has_links, 20)
        overlay.push_routes(_routes(mallory, [["a"], ["b"], ["a", "c"]]))
        # An unknown method: what matters is that questions arrive and answers come back.
        for node in ("a", "b"):
            await mallory.ask_control_plane(node, _UNKNOWN_METHOD, b"")
        yield mallory


def _routes(mallory: Mallory, paths: Sequence[Sequence[str]]) -> data_pb2.PushRoutesRequest:
    own = int(mallory.local.node_id)
    changed = [
        data_pb2.Route(
            destination=mallory.ids[path[-1]],
            paths=[data_pb2.Path(nodes=[own, *(mallory.ids[name] for name in path)], cost=1)],
        )
        for path in paths
    ]
    return data_pb2.PushRoutesRequest(version=1, changed=changed)
